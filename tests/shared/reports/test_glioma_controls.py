"""What the population graph has to beat: fitted on who trained, scored in the strata it is told to be scored in."""

import json

import numpy as np
import pytest

from shared.reports.glioma_controls import clinical_baseline, write_glioma_controls


def case(name, label, age, grade=4.0):
    return {"patient": name, "label": label, "covariates": {"age": age, "grade": grade}}


def test_age_is_fitted_on_the_training_patients_and_not_on_who_is_tested():
    # among who trained mutants are young, among who is tested they are old
    training = [case(f"T{k}", k % 2, 65.0 - 25 * (k % 2) + k / 10) for k in range(20)]
    tested = [case(f"V{k}", k % 2, 40.0 + 25 * (k % 2) + k / 10) for k in range(8)]
    names = [[one["patient"] for one in part] for part in (training, tested)]
    used, probability = clinical_baseline(training + tested, *names)
    assert used == ["age", "grade"]
    labels = np.array([one["label"] for one in tested])
    assert (probability[labels == 1] < 0.2).all() and (probability[labels == 0] > 0.8).all()
    # labels of who is tested, or that they have none, change nothing
    hidden = [{key: value for key, value in one.items() if key != "label"} for one in tested]
    np.testing.assert_array_equal(clinical_baseline(training + hidden, *names)[1], probability)
    assert clinical_baseline(tested, *names) is None  # nothing is known of who trained


def test_the_baseline_is_the_logistic_regression_of_standardised_covariates():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    table = np.stack([rng.normal(50, 12, 30), rng.integers(2, 5, 30)], axis=1).astype(float)
    labels = (table[:, 0] + rng.normal(0, 12, 30) < 50).astype(int)
    cases = [case(f"P{k}", int(labels[k]), *table[k]) for k in range(30)]
    names = [one["patient"] for one in cases]
    _, found = clinical_baseline(cases, names[:20], names[20:])
    mean, std = table[:20].mean(axis=0), table[:20].std(axis=0)
    fit = LogisticRegression().fit((table[:20] - mean) / std, labels[:20])
    np.testing.assert_allclose(found, fit.predict_proba((table[20:] - mean) / std)[:, 1], atol=1e-4)


def test_each_stratum_is_scored_by_its_own_patients(tmp_path):
    # the graph is right in grade 4 and wrong in grades 2 and 3; the MLP is the other way round
    rows, known = [], []
    for k in range(20):
        label, grade = k % 2, 4.0 if k < 12 else 2.0 + k // 2 % 2
        right = 0.9 - 0.001 * k if label else 0.1 + 0.001 * k
        answers = {"probability": right, "mlp": 1 - right} if grade == 4 else {"probability": 1 - right, "mlp": right}
        rows.append({"patient": f"P{k}", "label": label, "out_of_cohort": int(k == 3), **answers})
        known.append(case(f"P{k}", label, 50.0, grade))
    names = ["IDH wild type", "IDH mutant"]
    result = write_glioma_controls(tmp_path, rows, {"n": 20}, class_names=names, known=known, bootstrap=20)
    assert {name: (part["n"], part["positives"]) for name, part in result.items()} == {
        "all": (20, 10),
        "grade 4": (12, 6),
        "grade 2-3": (8, 4),
    }
    auc = {name: {title: value["value"] for title, value in part["AUC"].items()} for name, part in result.items()}
    assert auc["grade 4"]["population graph"] == 1 and auc["grade 2-3"]["population graph"] == 0
    assert auc["grade 4"]["MLP on the same embeddings"] == 0 and auc["grade 2-3"]["MLP on the same embeddings"] == 1
    # 6 and 4 of either label: a mutant of grade 4 beats the wild types of its grade only, and so on
    pairs = [(a["probability"], b["probability"]) for a in rows if a["label"] for b in rows if not b["label"]]
    assert auc["all"]["population graph"] == pytest.approx(np.mean([a > b for a, b in pairs]))
    assert json.loads((tmp_path / "metrics.json").read_text())["out_of_cohort"] == 1
    assert json.loads((tmp_path / "controls.json").read_text()) == result
