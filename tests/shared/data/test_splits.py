"""Folds: disjoint by patient, stratified, seeded, independent of order; and what is refused."""

from collections import Counter

import numpy as np
import pytest

from shared.data import assign_folds, grouped_folds, split_off_groups, stratified_folds
from shared.data.splits import groups_of
from shared.errors import DataError

PATIENTS = [f"P{row:02d}" for row in range(40)]
LABELS = [int(row % 4 == 0) for row in range(40)]  # 10 positive of 40


def test_folds_are_stratified_and_cover_every_patient_once():
    folds = stratified_folds(PATIENTS, LABELS, folds=5, seed=3)
    assert sorted(folds) == PATIENTS
    assert Counter(folds.values()) == dict.fromkeys(range(5), 8)
    positive = Counter(folds[name] for name, label in zip(PATIENTS, LABELS, strict=True) if label)
    assert positive == dict.fromkeys(range(5), 2)


def test_the_seed_decides_and_the_order_does_not():
    folds = stratified_folds(PATIENTS, LABELS, folds=5, seed=3)
    assert stratified_folds(PATIENTS[::-1], LABELS[::-1], folds=5, seed=3) == folds
    assert stratified_folds(PATIENTS, LABELS, folds=5, seed=4) != folds


def test_a_patient_with_several_cases_has_one_fold():
    cases = [{"patient": name, "label": label} for name, label in zip(PATIENTS, LABELS, strict=True) for _ in range(3)]
    assigned = assign_folds(cases, folds=5)
    assert len(assigned) == 120 and "fold" not in cases[0]
    assert all(len({case["fold"] for case in assigned[row : row + 3]}) == 1 for row in range(0, 120, 3))


@pytest.mark.parametrize(
    ("patients", "labels", "folds", "message"),
    [
        (["a", "b", "c"], [0, 1, 1], 5, "3 patients cannot fill 5 folds; use at most 3 folds"),
        (list("abcdefg"), [0, 0, 1, 1, 1, 1, 1], 3, "label 0 has 2 patients, fewer than the 3 folds; use 2 folds"),
        (list("abcdefg"), [0, 1, 1, 1, 1, 1, 1], 3, "label 0 has 1 patients, .* add patients of that class"),
        (list("abcdefg"), [1] * 7, 3, "all 7 patients have label 1; a split needs both classes"),
        (["a", "a", "b", "c"], [0, 1, 0, 1], 2, "a: has label 0 and label 1"),
        ([], [], 2, "no patient to split"),
        (["a", "b"], [0, 1], 1, "at least 2 folds, got 1"),
        (["a", "b"], [0], 2, "2 patients and 1 labels"),
    ],
)
def test_what_cannot_be_split_is_refused_with_numbers(patients, labels, folds, message):
    with pytest.raises(DataError, match=message):
        stratified_folds(patients, labels, folds=folds)


# --- groups of samples ------------------------------------------------------------------------------------------------


def grouped_cohort(patients=40, seed=0):
    """Patients of 1 to 12 patches, some of both labels."""
    rng = np.random.default_rng(seed)
    groups, labels = [], []
    for row in range(patients):
        count = int(rng.integers(1, 13))
        groups += [f"P{row:02d}"] * count
        labels += [int(row % 2 if row % 7 else rng.integers(2)) for _ in range(count)]
    return groups, labels


def test_groups_stay_together_and_every_fold_has_its_share_of_every_label():
    groups, labels = grouped_cohort()
    folds = grouped_folds(groups, labels, folds=5, seed=1)
    assert sorted(folds) == sorted(set(groups)) and set(folds.values()) == set(range(5))
    for label in (0, 1):
        counts = Counter(folds[group] for group, other in zip(groups, labels, strict=True) if other == label)
        expected = labels.count(label) / 5
        assert all(0.6 * expected <= counts[fold] <= 1.4 * expected for fold in range(5)), counts


def test_grouped_folds_depend_on_the_seed_and_not_on_the_order():
    groups, labels = grouped_cohort()
    order = np.random.default_rng(0).permutation(len(groups))
    shuffled = grouped_folds([groups[row] for row in order], [labels[row] for row in order], folds=5, seed=1)
    assert shuffled == grouped_folds(groups, labels, folds=5, seed=1)
    assert len({tuple(sorted(grouped_folds(groups, labels, 5, seed).items())) for seed in range(4)}) > 1


def test_cases_of_one_group_get_one_fold_and_others_those_of_patients():
    cases = [{"patient": f"P{row}", "label": row // 2 % 2, "group": f"G{row // 2}"} for row in range(40)]
    folds = {case["patient"]: case["fold"] for case in assign_folds(cases, folds=5, seed=2)}
    assert all(folds[f"P{row}"] == folds[f"P{row + 1}"] for row in range(0, 40, 2))
    of_groups = grouped_folds([case["group"] for case in cases], [case["label"] for case in cases], 5, 2)
    assert all(folds[case["patient"]] == of_groups[case["group"]] for case in cases)
    assert groups_of(cases)["P3"] == "G1" and groups_of([{"patient": "P"}, {"patient": "Q", "group": None}]) is None
    alone = [{key: case[key] for key in ("patient", "label")} for case in cases]
    single = stratified_folds([case["patient"] for case in cases], [case["label"] for case in cases], 5, 2)
    assert {case["patient"]: case["fold"] for case in assign_folds(alone, 5, 2)} == single


def test_samples_that_are_groups_of_their_own_are_split_as_patients_are():
    assert grouped_folds(PATIENTS, LABELS, 5, 3) == stratified_folds(PATIENTS, LABELS, 5, 3)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.5])
def test_about_the_share_is_split_off_of_every_label(share):
    groups, labels = grouped_cohort(60)
    chosen = split_off_groups(groups, labels, share, seed=2)
    assert chosen < set(groups)
    for label in (0, 1):
        inside = [group in chosen for group, other in zip(groups, labels, strict=True) if other == label]
        assert abs(np.mean(inside) - share) < 0.08
    assert chosen != split_off_groups(groups, labels, share, seed=3)


def test_the_largest_group_is_not_always_split_off():
    groups, labels = grouped_cohort()
    largest = Counter(groups).most_common(1)[0][0]
    assert {largest in split_off_groups(groups, labels, 0.2, seed) for seed in range(12)} == {True, False}


@pytest.mark.parametrize(
    ("groups", "labels", "folds", "message"),
    [
        (list("aabb"), [0, 0, 1, 1], 2, "label 0 is in 1 groups only, fewer than the 2 folds; add groups"),
        (list("aabbc"), [0, 1, 0, 1, 1], 3, "label 0 is in 2 groups only, fewer than the 3 folds; use 2 folds"),
        (list("abc"), [1, 1, 1], 2, "all 3 samples have one label"),
        ([], [], 2, "all 0 samples have one label or none"),
        (list("ab"), [0], 2, "got 2 groups and 1 labels"),
        (list("ab"), [0, 1], 1, "at least 2 folds, got 1"),
    ],
)
def test_groups_that_cannot_be_split_are_refused(groups, labels, folds, message):
    with pytest.raises(DataError, match=message):
        grouped_folds(groups, labels, folds=folds)


def test_a_share_lies_between_0_and_1():
    for share in (0, 1, -0.1):
        with pytest.raises(DataError, match="must lie between 0 and 1"):
            split_off_groups(list("abcd"), [0, 1, 0, 1], share)
