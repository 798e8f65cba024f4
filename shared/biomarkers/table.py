"""What each biomarker stands for: images, patients, labels, modalities, nearest real images; and an alarm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.metrics.classification import to_numpy


def biomarker_table(
    assignment: Any,
    similarity: Any,
    patient: Any,
    label: Any,
    modality: Any = None,
    *,
    num_biomarkers: int | None = None,
    modality_names: Sequence[str] | None = None,
    nearest: int = 8,
    distinct_patients: bool = False,
    positive: int = 1,
) -> list[dict[str, Any]]:
    """Describe every biomarker by the images assigned to it, in plain numbers that JSON can hold.

    Args:
        assignment: biomarker of each image.
        similarity: cosine similarity to it.
        patient: patient of each image.
        label: label of each image's patient.
        modality: modality of each image, 0, 1, ...; None: one modality.
        num_biomarkers: K, so that biomarkers without images appear; None: the largest assigned + 1.
        modality_names: names of the modalities.
        nearest: how many of the most similar images to list.
        distinct_patients: list at most one of them per patient.
        positive: the label counted.

    Shape:
        - assignment, similarity, patient, label, modality: ``[n]``
        - returns: one row per biomarker: ``biomarker, images, patients, positive_share_images,
          positive_share_patients, modalities`` (images per modality), ``modality`` (the commonest), ``purity`` (its
          share), ``similarity`` (mean), ``nearest`` (indices of images), ``nearest_similarity``, ``nearest_patients``;
          shares and means are None where there is no image

    Raises:
        DataError: columns of different lengths.

    Example:
        >>> rows = biomarker_table([0, 0, 1], [0.9, 0.95, 0.8], ["A", "B", "A"], [1, 0, 1])
        >>> rows[0]["images"], rows[0]["positive_share_patients"], rows[0]["nearest"], rows[1]["purity"]
        (2, 0.5, [1, 0], 1.0)
    """
    assignment, similarity, patient, label = (to_numpy(x) for x in (assignment, similarity, patient, label))
    modality = np.zeros(len(assignment), dtype=int) if modality is None else to_numpy(modality)
    lengths = {len(x) for x in (assignment, similarity, patient, label, modality)}
    if len(lengths) > 1:
        raise DataError(f"The columns of a biomarker table must be equally long, got lengths {sorted(lengths)}.")
    count = num_biomarkers or int(assignment.max()) + 1
    names = list(modality_names or [f"modality {i}" for i in range(int(modality.max()) + 1)])
    rows = []
    for k in range(count):
        mine = np.flatnonzero(assignment == k)
        order = mine[np.argsort(-similarity[mine], kind="stable")]
        if distinct_patients:
            order = order[np.sort(np.unique(patient[order], return_index=True)[1])]
        order = order[:nearest]
        patients, first = np.unique(patient[mine], return_index=True)
        tally = np.bincount(modality[mine], minlength=len(names))
        some = len(mine) > 0
        rows.append(
            {
                "biomarker": k,
                "images": len(mine),
                "patients": len(patients),
                "positive_share_images": float(np.mean(label[mine] == positive)) if some else None,
                "positive_share_patients": float(np.mean(label[mine][first] == positive)) if some else None,
                "modalities": {name: int(number) for name, number in zip(names, tally, strict=True)},
                "modality": names[int(tally.argmax())] if some else None,
                "purity": float(tally.max() / len(mine)) if some else None,
                "similarity": float(np.mean(similarity[mine])) if some else None,
                "nearest": order.tolist(),
                "nearest_similarity": [float(x) for x in similarity[order]],
                "nearest_patients": [str(x) for x in patient[order]],
            }
        )
    return rows


def flat_rows(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table with one plain value per cell, for CSV.

    Example:
        >>> flat_rows([{"biomarker": 0, "modalities": {"T1": 2, "T2": 0}, "nearest": [3, 1], "purity": 1.0}])
        [{'biomarker': 0, 'modalities': 'T1=2 T2=0', 'nearest': '3 1', 'purity': 1.0}]
    """
    return [{key: _cell(value) for key, value in row.items()} for row in table]


def same_patient_neighbour_rate(embeddings: Any, patient: Sequence[Any], *, block: int = 1024) -> float | None:
    """Share of images whose nearest other image is of the same patient: near 1, the embedding knows the patient.

    Args:
        embeddings: embeddings, any length.
        patient: patient of each image.
        block: rows compared at once, so that no n x n matrix is held.

    Shape:
        - embeddings: ``[n, E]``, patient: ``[n]``
        - returns: a number, or None for fewer than two images

    Example:
        >>> same_patient_neighbour_rate([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], ["A", "A", "B"])
        0.6666666666666666
    """
    unit = to_numpy(embeddings).astype(np.float64)
    if len(unit) != len(patient):
        raise DataError(f"One patient per embedding is needed, got {len(patient)} for {len(unit)}.")
    if len(unit) < 2:
        return None
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    code = np.unique(np.asarray(patient), return_inverse=True)[1]
    hits = 0
    for start in range(0, len(unit), block):
        similarity = unit[start : start + block] @ unit.T
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -np.inf
        hits += int((code[similarity.argmax(axis=1)] == code[start : start + block]).sum())
    return hits / len(unit)


def _cell(value: Any) -> Any:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={number}" for key, number in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(f"{x:.4f}" if isinstance(x, float) else str(x) for x in value)
    return value
