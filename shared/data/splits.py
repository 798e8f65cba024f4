"""Folds by patient or group of patients, stratified by label and seeded; written into the datalist, never by slice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from fractions import Fraction
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
    """Copies of ``cases`` with the key ``fold``, from their ``patient``, ``label`` and, where they have one, ``group``.

    Cases of one group get one fold.

    Example:
        >>> cases = [{"patient": name, "label": row % 2} for row, name in enumerate("abcd")]
        >>> sorted(case["fold"] for case in assign_folds(cases, folds=2))
        [0, 0, 1, 1]
        >>> grouped = [{**case, "group": group} for case, group in zip(cases * 2, "wxyzwxyz")]
        >>> found = [case["fold"] for case in assign_folds(grouped, folds=2)]
        >>> found[:4] == found[4:]
        True
    """
    labels = [case["label"] for case in cases]
    groups = groups_of(cases)
    if groups is None:
        fold_of = stratified_folds([case["patient"] for case in cases], labels, folds, seed)
    else:
        fold_of = grouped_folds([groups[case["patient"]] for case in cases], labels, folds, seed)
        fold_of = {patient: fold_of[group] for patient, group in groups.items()}
    return [{**case, "fold": fold_of[case["patient"]]} for case in cases]


def groups_of(cases: Sequence[Mapping[str, Any]]) -> dict[str, str] | None:
    """The group of each patient: those of one belong to one fold and one section; None where no case has one.

    Example:
        >>> groups_of([{"patient": "a"}]), groups_of([{"patient": "a", "group": "g"}, {"patient": "b"}])
        (None, {'a': 'g', 'b': 'b'})
    """
    if not any(case.get("group") for case in cases):
        return None
    return {str(case["patient"]): str(case.get("group") or case["patient"]) for case in cases}


def grouped_folds(groups: Sequence[str], labels: Sequence[Hashable], folds: int = 5, seed: int = 0) -> dict[str, int]:
    """Give every group of samples a fold, each fold with about the same share of the samples of every label.

    For many patches a patient, whose labels may differ: a patient's patches stay together. The result depends on the
    set of samples only, not on their order.

    Args:
        groups: the group (patient, slide) of each sample.
        labels: the label of each sample.
        folds: how many, at least 2.
        seed: of the shuffle.

    Returns:
        fold 0 .. ``folds`` - 1 of each group; every fold holds samples of every label.

    Raises:
        DataError: one label only, a label in fewer groups than folds, or in so few that a fold would lack it.

    Example:
        >>> folds = grouped_folds(["a", "a", "b", "c", "d"], [0, 1, 1, 0, 0], folds=2)
        >>> sorted(folds), folds["a"] != folds["b"]
        (['a', 'b', 'c', 'd'], True)
    """
    import numpy as np
    from sklearn.model_selection import StratifiedGroupKFold

    if len(groups) != len(labels):
        raise DataError(f"every sample needs a group and a label, got {len(groups)} groups and {len(labels)} labels")
    if folds < 2:
        raise DataError(f"a split needs at least 2 folds, got {folds}")
    samples = sorted(zip(groups, labels, strict=True), key=str)
    groups_of = {label: {group for group, other in samples if other == label} for label in dict.fromkeys(labels)}
    if len(groups_of) < 2:
        raise DataError(f"all {len(samples)} samples have one label or none; a split needs at least two labels")
    few = [
        f"label {label} is in {len(found)} groups only, fewer than the {folds} folds; "
        + (f"use {len(found)} folds or add groups" if len(found) > 1 else "add groups (patients) of that label")
        for label, found in sorted(groups_of.items(), key=str)
        if len(found) < folds
    ]
    if few:
        raise DataError(few)
    names, kinds = [group for group, _ in samples], [label for _, label in samples]
    codes = np.unique([str(label) for label in kinds], return_inverse=True)[1]
    if len(set(names)) == len(names):  # the same folds, without the greedy search over groups
        return stratified_folds(names, kinds, folds, seed)
    # A seed can leave a fold without a label: large groups are dealt out first, and greedily.
    for attempt in range(20):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + 1000 * attempt)
        parts = [rows for _, rows in splitter.split(codes, codes, names)]
        if all(len(set(codes[rows])) == len(groups_of) for rows in parts):
            return {names[row]: fold for fold, rows in enumerate(parts) for row in rows}
    raise DataError(f"no way was found to give each of {folds} folds samples of every label; use fewer folds")


def split_off_groups(groups: Sequence[str], labels: Sequence[Hashable], share: float, seed: int = 0) -> set[str]:
    """Groups that hold about ``share`` of the samples of every label, drawn with a seed.

    The share is taken as the nearest fraction k / n with n up to 10 (and to the groups of the rarest label); k of n
    grouped and stratified folds are drawn.

    Args:
        groups: the group of each sample.
        labels: the label of each sample.
        share: above 0, below 1.
        seed: of the draw.

    Raises:
        DataError: the share is not between 0 and 1, or :func:`grouped_folds` cannot split.

    Example:
        >>> chosen = split_off_groups(list("abcdefgh"), [0, 1] * 4, share=0.25)
        >>> len(chosen)
        2
    """
    import numpy as np

    if not 0 < share < 1:
        raise DataError(f"the share to split off must lie between 0 and 1, got {share}")
    there = {label: {g for g, other in zip(groups, labels, strict=True) if other == label} for label in set(labels)}
    most = max(2, min([10, *map(len, there.values())]))
    fraction = min(max(Fraction(share).limit_denominator(most), Fraction(1, most)), Fraction(most - 1, most))
    fold_of = grouped_folds(groups, labels, fraction.denominator, seed)
    # The greedy split puts the largest group first into fold 0; a draw gives every fold its chance.
    drawn = np.random.default_rng(seed).permutation(fraction.denominator)[: fraction.numerator]
    return {group for group, fold in fold_of.items() if fold in drawn}
