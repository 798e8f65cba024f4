"""Draws of labelled patients for label efficiency: all training pixels stay, most labels go."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from shared.errors import DataError

_LABELS = ("label", "soft_label", "fold")


def draw_patients(
    labels: Mapping[str, int], patients: Mapping[str, str], fraction: float, *, seed: int = 0, images: int = 2
) -> set[str]:
    """Patients whose labels are known: about ``fraction`` of those with patches of either class, and of both.

    Draws of one seed are nested: a larger fraction keeps the patients of a smaller one.

    Args:
        labels: label of each patch.
        patients: patient of each patch.
        fraction: share of the patients, above 0, at most 1.
        seed: of the draw.
        images: patches that each class must have at least; patients are added until it has.

    Raises:
        DataError: the fraction is out of range, or a class has fewer patches in all.

    Example:
        >>> labels = {f"{i}": i % 2 for i in range(40)}
        >>> chosen = draw_patients(labels, {name: f"P{int(name) // 2 * 2 + int(name) % 2}" for name in labels}, 0.25)
        >>> len(chosen)
        10
    """
    if not 0 < fraction <= 1:
        raise DataError(f"A fraction of labelled patients must be above 0 and at most 1, got {fraction}.")
    classes: dict[str, Counter] = defaultdict(Counter)
    for name, label in labels.items():
        classes[patients[name]][label] += 1
    strata: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for patient in sorted(classes):
        strata[tuple(sorted(classes[patient]))].append(patient)
    order = {}
    for stratum, members in strata.items():
        random.Random(f"{seed}/{stratum}").shuffle(members)
        for rank, patient in enumerate(members):
            # the middle of a patient's step: a fraction takes the nearest number of patients of a stratum
            order[patient] = (rank + 0.5) / len(members)
    ranked = sorted(order, key=lambda patient: (order[patient], patient))
    chosen = {patient for patient in ranked if order[patient] <= fraction}
    pure_first = sorted(ranked, key=lambda patient: len(classes[patient]))
    for label in (0, 1):
        spare = iter(patient for patient in pure_first if classes[patient][label])
        while sum(classes[patient][label] for patient in chosen) < images and (patient := next(spare, None)):
            chosen.add(patient)
        if sum(classes[patient][label] for patient in chosen) < images:
            raise DataError(f"Class {label} has fewer than {images} training patches; no draw can label so many.")
    return chosen


def with_labels_of(datalist: Mapping, chosen: set[str]) -> dict:
    """The datalist whose training section holds these patients; the others' patches are unlabelled.

    Example:
        >>> cases = [{"image": f"{name}.png", "patient": name, "label": i} for i, name in enumerate("ab")]
        >>> with_labels_of({"training": cases}, {"b"})["unlabelled"]
        [{'image': 'a.png', 'patient': 'a'}]
    """
    kept: list[dict] = []
    others: list[dict] = []
    for case in datalist["training"]:
        if str(case["patient"]) in chosen:
            kept.append({key: value for key, value in case.items() if key != "fold"})
        else:
            others.append({key: value for key, value in case.items() if key not in _LABELS})
    return {**datalist, "training": kept, "unlabelled": others + list(datalist.get("unlabelled", []))}


def labelled_counts(datalist: Mapping) -> dict[str, int]:
    """Labelled patients and patches of a datalist's training section."""
    training: Sequence[Mapping] = datalist["training"]
    return {"patients": len({str(case["patient"]) for case in training}), "patches": len(training)}
