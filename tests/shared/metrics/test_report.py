"""Metrics of repeated cross-validation against scikit-learn in plain loops."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

from shared.errors import DataError
from shared.metrics.report import RepeatedPredictions, paired_auc_difference, summarise

SCORES = {
    "ACC": lambda y, p: accuracy_score(y, p >= 0.5),
    "AUC": roc_auc_score,
    "F1": lambda y, p: f1_score(y, p >= 0.5),
    "PRE": lambda y, p: precision_score(y, p >= 0.5),
    "REC": lambda y, p: recall_score(y, p >= 0.5),
}


def make(patients=40, seeds=(0, 3), folds=4, noise=1.0, random_state=0):
    random = np.random.default_rng(random_state)
    rows = []
    for seed in seeds:
        for number in range(patients):
            label = int(number % 3 == 0)
            score = 1 / (1 + np.exp(-(2 * label - 1 + noise * random.normal())))
            fold = (number + seed) % folds
            row = {"seed": seed, "fold": fold, "patient": f"{number:03}", "label": label}
            rows.append({**row, "probability": round(score, 2)})
    return RepeatedPredictions.from_rows(rows)


def test_values_spread_and_folds_against_loops():
    table = make()
    summary = summarise(table, bootstrap=20)
    for name, score in SCORES.items():
        of_seeds = [score(table.labels, probability) for probability in table.probability]
        metric = summary["metrics"][name]
        assert metric["seeds"] == pytest.approx(of_seeds) and metric["value"] == pytest.approx(np.mean(of_seeds))
        assert metric["sd"] == pytest.approx(np.std(of_seeds, ddof=1))
    aucs = []
    for folds, probability in zip(table.folds, table.probability, strict=True):
        aucs += [roc_auc_score(table.labels[folds == f], probability[folds == f]) for f in range(4)]
    assert summary["fold_auc"]["value"] == pytest.approx(np.mean(aucs)) and summary["fold_auc"]["folds"] == 8


def test_interval_is_that_of_patients_drawn_with_all_their_seeds():
    table = make(patients=60)
    summary = summarise(table, bootstrap=4000, seed=5)
    random = np.random.default_rng(1)
    draws = [random.integers(0, 60, 60) for _ in range(300)]
    for name in ("AUC", "PRE"):
        score = SCORES[name]
        samples = [np.mean([score(table.labels[d], p[d]) for p in table.probability]) for d in draws]
        low, high = np.percentile(samples, [2.5, 97.5])
        assert summary["metrics"][name]["low"] == pytest.approx(low, abs=0.03), name
        assert summary["metrics"][name]["high"] == pytest.approx(high, abs=0.03), name


def test_more_seeds_of_the_same_patients_do_not_count_as_more_patients():
    one, many = make(seeds=(0,), noise=0.7), make(seeds=range(8), noise=0.7)
    width = [np.ptp([m["low"], m["high"]]) for m in (summarise(t)["metrics"]["AUC"] for t in (one, many))]
    same = RepeatedPredictions(
        one.patients, one.labels, tuple(range(8)), one.folds.repeat(8, 0), one.probability.repeat(8, 0)
    )
    repeated = summarise(same)["metrics"]["AUC"]
    assert np.ptp([repeated["low"], repeated["high"]]) == pytest.approx(width[0], abs=1e-12)
    assert width[1] > width[0] / np.sqrt(8)


def test_paired_difference():
    good, bad = make(noise=0.3), make(noise=3.0, random_state=4, seeds=(0,))
    difference = paired_auc_difference(good, bad, bootstrap=500)
    mean = [np.mean([roc_auc_score(t.labels, p) for p in t.probability]) for t in (good, bad)]
    assert difference["value"] == pytest.approx(mean[1] - mean[0]) and difference["high"] < 0
    assert difference["p"] < 0.05
    alike = paired_auc_difference(good, make(noise=0.3, random_state=9), bootstrap=500)
    assert alike["low"] <= 0 <= alike["high"] and alike["p"] > 0.05
    assert paired_auc_difference(good, make(patients=41)) is None


def test_nobody_called_positive_has_no_precision_and_stays_json():
    table = make(seeds=(0,))
    quiet = RepeatedPredictions(table.patients, table.labels, table.seeds, table.folds, table.probability * 0.4)
    precision = summarise(quiet, bootstrap=50)["metrics"]["PRE"]
    assert precision["value"] is None and precision["low"] is None and precision["seeds"] == [None]


def test_incomplete_rows_are_all_named():
    rows = make(patients=4, seeds=(0, 1)).rows()
    with pytest.raises(
        DataError, match=r"2 problems:\n.*000 stands twice in seed 0\n.*003 has no prediction in seed 1"
    ):
        RepeatedPredictions.from_rows([*rows[:-1], rows[0]])
    with pytest.raises(DataError, match="has two labels"):
        RepeatedPredictions.from_rows([*rows[:-1], {**rows[-1], "label": 0}])
    with pytest.raises(DataError, match="no predictions"):
        RepeatedPredictions.from_rows([])
    table = make()
    with pytest.raises(DataError, match="both classes"):
        summarise(RepeatedPredictions(table.patients, table.labels * 0, table.seeds, table.folds, table.probability))


def test_a_file_with_other_columns_is_refused(tmp_path):
    (tmp_path / "p.csv").write_text("patient,label\nP1,0\n")
    with pytest.raises(DataError, match="columns seed, fold, patient, label, probability are needed"):
        RepeatedPredictions.read(tmp_path / "p.csv")
