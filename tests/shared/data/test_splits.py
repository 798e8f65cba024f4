"""Folds: disjoint by patient, stratified, seeded, independent of order; and what is refused."""

from collections import Counter

import pytest

from shared.data import assign_folds, stratified_folds
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
