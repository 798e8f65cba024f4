import csv
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from shared.apps.baselines.population import Cohort, Method, population_methods, predict_fold
from shared.apps.baselines.population_report import (
    COMPARED,
    external_lines,
    strata,
    subset,
    write_population_report,
)
from shared.apps.baselines.population_table import PopulationTable
from shared.errors import DataError
from shared.metrics.repeated import RepeatedPredictions


def table(count=60, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    features = random.normal(size=(count, 5))
    features[:, 0] += 3 * labels
    age = np.stack([random.normal(50, 10, count)], axis=1)
    patients = tuple(f"P{i:02}" for i in range(count))
    names = ("u_T0", "u_T1", "u_B0", "u_B1", "u_B2")
    return PopulationTable(patients, features, names, labels, age, ("age",), np.where(np.arange(count) < 30, 4.0, 2.0))


def predictions(strength, count=60):
    labels, rows = np.arange(count) % 2, []
    for seed in (0, 1):
        random = np.random.default_rng(seed)
        scores = 1 / (1 + np.exp(-(strength * (labels - 0.5) + random.normal(size=count))))
        rows += [
            {"seed": seed, "fold": i % 3, "patient": f"P{i:02}", "label": int(labels[i]), "probability": scores[i]}
            for i in range(count)
        ]
    return RepeatedPredictions.from_rows(rows)


def test_every_method_predicts_and_what_sees_nothing_knows_nothing():
    cohort, train, test = Cohort(table()), np.arange(40), np.arange(40, 60)
    found = {}
    for name, method in population_methods(("age",)).items():
        p = predict_fold(cohort, method, train, test, training={"epochs": 20, "learning_rate": 0.01})
        assert p.shape == (20,) and ((p >= 0) & (p <= 1)).all()
        found[name] = roc_auc_score(cohort.table.labels[test], p)
    assert min(found[name] for name in ("gat", "gat_no_edges", "logistic", "svm", "gat_covariates")) > 0.85
    assert found["covariates"] < 0.8


@pytest.mark.parametrize("model", ["gat", "logistic"])
@pytest.mark.parametrize("variant", [None, "both-brain"])
def test_nothing_is_learnt_from_who_is_left_out(model, variant):
    """Labels of the test rows and the other test rows change no prediction: edges are the training rows', too."""
    plain, train, test = table(), np.arange(40), np.arange(40, 60)
    method, options = Method("x", model, ("age", "grade"), variant=variant), {"training": {"epochs": 3}}
    wanted = predict_fold(Cohort(plain, "u_T", "u_B"), method, train, test, **options)
    flipped = table()
    flipped.labels[40:] = 1 - flipped.labels[40:]
    cohort = Cohort(flipped, "u_T", "u_B")
    np.testing.assert_array_equal(predict_fold(cohort, method, train, test, **options), wanted)
    flipped.features[50:], flipped.covariates[50:], flipped.grade[50:] = 1e3, 1e3, 9
    np.testing.assert_allclose(predict_fold(cohort, method, train, test, **options)[:10], wanted[:10], atol=1e-6)


def test_everything_is_joined_by_everyone_and_beaten():
    """Age, and age and grade, in every control; the graph is compared with all that sees what it sees."""
    methods = population_methods(("age",))
    for suffix, seen in (("", ()), ("_covariates", ("age",)), ("_grade_covariates", ("age", "grade"))):
        names = [f"{model}{suffix}" for model in ("logistic", "logistic_tuned", "svm", "mlp", "gat")]
        names += [f"gat{suffix}_no_edges", f"gat{suffix}_random_edges"]
        assert all(methods[name].covariates == seen and methods[name].features for name in names)
        assert set(names) - set(COMPARED[f"gat{suffix}"]) == {f"gat{suffix}"}
    assert methods["gat_grade_covariates_no_edges"].network == {"graph": "none"}
    assert methods["gat_grade_covariates_random_edges"].network == {"graph": "random"}
    assert set(methods) == {*COMPARED, *sum(COMPARED.values(), ())}


def test_the_external_table_has_each_cohort_in_its_column():
    """A method that is right here and wrong there, with too many mutants expected."""
    near, far = predictions(3), replace(predictions(3), labels=1 - np.arange(60) % 2)
    who, _, header, _, row, *_ = "\n".join(external_lines({"a": near}, {"a": far}, {"a": "A"}, bootstrap=20)).split(
        "\n"
    )
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    value = {name: float(cell.split(" ")[0]) for name, cell in cells.items() if cell[0] in "-01"}
    aucs = [np.mean([roc_auc_score(t.labels, p) for p in t.probability]) for t in (near, far)]
    assert value["AUC cross-validated"] == pytest.approx(aucs[0], abs=6e-4)
    assert value["AUC external"] == pytest.approx(aucs[1], abs=6e-4) and value["slope"] < 0
    assert value["O:E"] == pytest.approx(np.mean([30 / p.sum() for p in far.probability]), abs=6e-4)
    assert "fitted to all patients of the table" in who


def test_graphs_of_table_1_take_their_parts_by_prefix():
    cohort = Cohort(table(), "u_T", "u_B")
    methods = population_methods(("age",), variant="both-brain", variants=True)
    assert methods["gat"].variant == methods["gat_paper"].variant == "both-brain"
    assert {f"gat_{n}" for n in ("tumour-brain", "brain-tumour", "both-tumour", "both-both")} <= set(methods)
    nodes, edges, covariates = cohort.inputs(methods["gat_brain-tumour"])
    assert nodes.shape == (60, 3) and edges.shape == (60, 2) and covariates is None
    assert predict_fold(cohort, methods["gat"], np.arange(40), np.arange(40, 60), training={"epochs": 2}).shape == (20,)
    with pytest.raises(DataError, match="both-brain needs the prefixes"):
        Cohort(table()).inputs(methods["gat"])


def test_without_grade_or_covariates_these_methods_are_not_there():
    assert "grade_covariates" not in population_methods(("age",), grade=False)
    assert not [name for name in population_methods((), grade=False) if "covariates" in name]


def test_strata_are_those_with_both_labels():
    everything = predictions(1)
    grade = {name: 4.0 if int(name[1:]) % 2 else 3.0 for name in everything.patients}  # grade is the label
    assert list(strata(grade, everything)) == ["all"]
    parts = strata({**grade, "P00": 4.0}, everything)
    assert list(parts) == ["all", "grade 4"] and parts["grade 4"].sum() == 31
    cut = subset(everything, parts["grade 4"])
    assert cut.probability.shape == (2, 31) and cut.patients[0] == "P00"


def test_report_has_every_comparison_and_says_what_edges_add(tmp_path):
    found = {"gat": predictions(3), "gat_no_edges": predictions(0.2), "gat_random_edges": predictions(3)}
    found["logistic"] = predictions(2)
    grade = dict(zip(found["gat"].patients, table().grade, strict=True))
    titles = {name: name.upper() for name in found}
    text = write_population_report(tmp_path, found, titles, grade, heading=["Seen."], command="x", bootstrap=200)
    assert "against no edges: +0." in text and ": a gain shown." in text
    assert "against random edges: +0.000 [+0.000, +0.000]: no difference shown." in text
    with (tmp_path / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 3 and {row["stratum"] for row in rows} == {"all", "grade 4", "grade 2-3"}
    row = next(row for row in rows if row["method"] == "gat" and row["stratum"] == "grade 4")
    inside, seeds = np.arange(60) < 30, found["gat"].probability
    wanted = np.mean([roc_auc_score((np.arange(60) % 2)[inside], p[inside]) for p in seeds])
    assert float(row["AUC_value"]) == pytest.approx(wanted) and row["patients"] == "30"
    with (tmp_path / "differences.csv").open() as file:
        differences = list(csv.DictReader(file))
    assert [d["minus"] for d in differences[::3]] == ["gat_no_edges", "gat_random_edges", "logistic"]
    assert float(differences[0]["value"]) > 0.2 and float(differences[0]["low"]) > 0
    assert (tmp_path / "comparison.md").read_text() == text and (tmp_path / "roc.png").stat().st_size > 1000


@pytest.mark.parametrize("model", ["logistic", "logistic_tuned", "svm", "mlp"])
def test_the_unit_of_a_feature_changes_no_control(model):
    """In mm or in km: controls are fitted to standardised features."""
    plain, other, train, test = table(), table(), np.arange(40), np.arange(40, 60)
    other.features[:, 0] *= 1e4
    other.features[:, 3] *= 1e-4
    wanted = predict_fold(Cohort(plain), Method("x", model), train, test)
    np.testing.assert_allclose(predict_fold(Cohort(other), Method("x", model), train, test), wanted, atol=2e-3)


@pytest.mark.parametrize("model", ["gat", "logistic"])
def test_a_fold_learns_from_its_own_training_rows(model):
    """Whichever rows they are, and in whichever order of the table."""
    plain, order = table(), np.random.default_rng(5).permutation(60)
    parts = {name: getattr(plain, name)[order] for name in ("features", "labels", "covariates", "grade")}
    moved = replace(plain, patients=tuple(plain.patients[k] for k in order), **parts)
    where = np.argsort(order)
    train, test = np.arange(20, 60), np.arange(20)
    options = {"training": {"epochs": 3}}
    wanted = predict_fold(Cohort(plain), Method("x", model), train, test, **options)
    found = predict_fold(Cohort(moved), Method("x", model), where[train], where[test], **options)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert roc_auc_score(plain.labels[test], wanted) > 0.8 or model == "gat"
