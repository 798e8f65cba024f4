"""Subgroups: levels, metrics of each against a naive count, differences, Holm's correction, planted and not."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from shared.errors import DataError
from shared.metrics.multiplicity import holm_adjusted
from shared.metrics.subgroups import OTHERS, UNKNOWN, subgroup_levels, subgroup_metrics


def cohort(n=240, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    site = np.array(["A", "B", "C"])[random.integers(0, 3, n)]
    strength = np.where(site == "B", 0.0, 1.8)  # in B the method knows nothing
    score = strength * labels + random.normal(size=n)
    return labels, 1 / (1 + np.exp(1 - score)), site


def test_each_level_has_the_metrics_of_its_rows():
    labels, probability, site = cohort()
    rows = subgroup_metrics(labels, probability, {"site": site}, threshold=0.4, bootstrap=200)
    assert [row["level"] for row in rows] == ["A", "B", "C"]
    for row in rows:
        inside = site == row["level"]
        own, called = labels[inside], probability[inside] >= 0.4
        assert (row["n"], row["positives"]) == (inside.sum(), own.sum())
        assert row["AUC"]["value"] == pytest.approx(roc_auc_score(own, probability[inside]), abs=1e-12)
        assert row["sensitivity"]["value"] == pytest.approx(called[own == 1].mean(), abs=1e-12)
        assert row["specificity"]["value"] == pytest.approx((~called[own == 0]).mean(), abs=1e-12)
        assert row["AUC"]["low"] < row["AUC"]["value"] < row["AUC"]["high"] and not row["few"]


def test_a_subgroup_that_is_worse_differs_and_one_that_is_not_does_not():
    labels, probability, site = cohort()
    rows = {row["level"]: row for row in subgroup_metrics(labels, probability, {"site": site}, bootstrap=1000)}
    reference = next(level for level, row in rows.items() if row["reference"])
    assert rows[reference]["n"] == max(row["n"] for row in rows.values()) and rows[reference]["difference"] is None
    others = {level: row["difference"] for level, row in rows.items() if level != reference}
    values = {level: rows[level]["AUC"]["value"] - rows[reference]["AUC"]["value"] for level in others}
    for level, difference in others.items():
        assert difference["value"] == pytest.approx(values[level], abs=1e-12)
    p = {frozenset((reference, level)): d["p_holm"] for level, d in others.items()}
    assert all((value < 0.01) == ("B" in pair) for pair, value in p.items())
    assert [d["p_holm"] for d in others.values()] == holm_adjusted([d["p"] for d in others.values()])


def test_p_is_corrected_over_all_columns():
    labels, probability, site = cohort()
    columns = {"site": site, "sex": np.array(["F", "M"])[np.arange(240) // 2 % 2]}
    rows = subgroup_metrics(labels, probability, columns, bootstrap=300)
    found = [row["difference"] for row in rows if row["difference"]]
    assert len(found) == 3 and [d["p_holm"] for d in found] == holm_adjusted([d["p"] for d in found])


def test_seeds_are_averaged_and_patients_drawn_whole():
    labels, probability, site = cohort()
    groups = [f"P{k // 4}" for k in range(240)]
    both = np.stack([probability, probability[::-1]])
    alone = subgroup_metrics(labels, probability, {"site": site}, bootstrap=300)
    rows = subgroup_metrics(labels, both, {"site": site}, groups=groups, bootstrap=300)
    for row, own in zip(rows, alone, strict=True):
        inside = site == row["level"]
        mean = np.mean([roc_auc_score(labels[inside], p[inside]) for p in both])
        assert row["AUC"]["value"] == pytest.approx(mean, abs=1e-12)
        assert row["patients"] == len({g for g, is_in in zip(groups, inside, strict=True) if is_in}) < own["patients"]


def test_few_rows_unknown_and_one_class_are_told():
    labels = np.array([0, 1] * 20 + [1] * 8)
    levels = ["A"] * 30 + [UNKNOWN] * 10 + ["B"] * 8
    rows = {r["level"]: r for r in subgroup_metrics(labels, np.linspace(0, 1, 48), {"x": levels}, bootstrap=50)}
    assert not rows["A"]["few"] and rows["B"]["few"] and rows[UNKNOWN]["few"]
    assert rows["B"]["AUC"]["value"] is None and rows["B"]["specificity"]["value"] is None
    assert rows["B"]["difference"] is None and rows[UNKNOWN]["difference"] is None
    assert rows[UNKNOWN]["AUC"]["value"] == 0.5 + 0.1


def test_a_handful_of_patients_is_not_tested():
    """Two rows that are ranked wrongly are ranked so in every draw."""
    labels, probability, _ = cohort()
    levels = ["A"] * 200 + ["B"] * 38 + ["C"] * 2
    probability[-2:] = [0.9, 0.1]  # labels 0, 1
    rows = {row["level"]: row for row in subgroup_metrics(labels, probability, {"x": levels}, bootstrap=300)}
    found = rows["C"]["difference"]
    assert found["value"] < -0.4 and (found["p"], found["p_holm"]) == (None, None)
    assert rows["B"]["difference"]["p_holm"] == pytest.approx(rows["B"]["difference"]["p"])  # the only one


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_or_one_row_is_told_without_a_crash(label):
    rows = subgroup_metrics([label] * 4, [0.1, 0.2, 0.3, 0.4], {"x": list("aabb")}, bootstrap=20)
    assert [(row["n"], row["AUC"]["value"], row["difference"]) for row in rows] == [(2, None, None)] * 2
    assert subgroup_metrics([label], [0.1], {"x": ["a"]}, bootstrap=20) == []


def test_long_numbers_and_numbers_beside_texts_keep_their_names():
    assert subgroup_levels([1234561.0, 1234562.0]) == ["1234561", "1234562"]
    assert subgroup_levels([1.0, "A", None]) == ["1", "A", UNKNOWN]


def test_thirds_are_of_patients_not_of_rows():
    values, owners = [1.0] * 90 + [2, 3, 4, 5, 6, 7], ["A"] * 90 + list("BCDEFG")
    levels = subgroup_levels(values, owners=owners)
    assert levels == ["< 3"] * 91 + ["3 to 5"] * 2 + [">= 5"] * 3


def test_many_texts_are_kept_to_the_commonest():
    values = [f"S{k:02}" for k in range(15) for _ in range(k + 1)]
    levels = subgroup_levels(values)
    assert len(set(levels)) == 10 and levels.count(OTHERS) == sum(range(1, 7)) and "S14" in levels


def test_a_column_of_another_length_is_refused():
    with pytest.raises(DataError, match="need a level of each row, got 3 for 4"):
        subgroup_metrics([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], {"x": list("abc")})
