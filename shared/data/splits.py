"""Cross-validation folds by patient, stratified by label and seeded; written into the datalist once, never by slice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from shared.errors import DataError


def stratified_folds(
    patients: Sequence[str], labels: Sequence[Hashable], folds: int = 5, seed: int = 0
) -> dict[str, int]:
    """Give every patient a fold, each fold with the same share of every label.

    The result depends on the set of patients and labels only, not on their order.

    Args:
        patients: patient names; one named several times (several cases) gets one fold.
        labels: one per entry of ``patients``.
        folds: how many, at least 2.
        seed: of the shuffle.

    Returns:
        fold 0 .. ``folds`` - 1 of each patient.

    Raises:
        DataError: a patient with two labels, one class only, fewer patients (in all, or of a class) than folds.

    Example:
        >>> folds = stratified_folds(["a", "b", "c", "d"], [0, 0, 1, 1], folds=2)
        >>> sorted(folds), folds["a"] != folds["b"], folds["c"] != folds["d"]
        (['a', 'b', 'c', 'd'], True, True)
    """
    from sklearn.model_selection import StratifiedKFold

    if len(patients) != len(labels):
        raise DataError(f"every patient needs one label, got {len(patients)} patients and {len(labels)} labels")
    if folds < 2:
        raise DataError(f"cross-validation needs at least 2 folds, got {folds}")
    label_of: dict[str, Hashable] = {}
    problems = []
    for patient, label in zip(patients, labels, strict=True):
        if label_of.setdefault(patient, label) != label:
            problems.append(f"{patient}: has label {label_of[patient]} and label {label}; a patient has one")
    counts = Counter(label_of.values())
    if not label_of:
        problems.append("there is no patient to split")
    elif len(counts) == 1:
        problems.append(f"all {len(label_of)} patients have label {next(iter(counts))}; a split needs both classes")
    if 0 < len(label_of) < folds:
        problems.append(f"{len(label_of)} patients cannot fill {folds} folds; use at most {len(label_of)} folds")
    elif len(counts) > 1:
        problems += [
            f"label {label} has {count} patients, fewer than the {folds} folds; "
            + (f"use {count} folds or add patients" if count > 1 else "add patients of that class")
            for label, count in sorted(counts.items(), key=lambda item: str(item[0]))
            if count < folds
        ]
    if problems:
        raise DataError(problems)
    names = sorted(label_of)
    splitter = StratifiedKFold(n_splits=folds, shuffle=True, random_state=seed)
    split = splitter.split(names, [label_of[name] for name in names])
    fold_of = {names[row]: fold for fold, (_, rows) in enumerate(split) for row in rows}
    return {name: fold_of[name] for name in names}


def assign_folds(cases: Sequence[Mapping[str, Any]], folds: int = 5, seed: int = 0) -> list[dict[str, Any]]:
    """Copies of ``cases`` with the key ``fold``, from their ``patient`` and ``label``.

    Example:
        >>> cases = [{"patient": name, "label": row % 2} for row, name in enumerate("abcd")]
        >>> sorted(case["fold"] for case in assign_folds(cases, folds=2))
        [0, 0, 1, 1]
    """
    fold_of = stratified_folds([case["patient"] for case in cases], [case["label"] for case in cases], folds, seed)
    return [{**case, "fold": fold_of[case["patient"]]} for case in cases]
