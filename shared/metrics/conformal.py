"""Class-conditional conformal sets: the classes that patients left out before do not rule out.

Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World (2005), section 4.5 (label-conditional predictors).
Where a patient has several rows (patches, seeds, patients of a group), Lee, Barber and Willett, Distribution-free
inference with hierarchical data (2023): a patient counts once, each of its n rows as 1 / n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.metrics.classification import check_predictions, drawn_weights
from shared.metrics.thresholds import share_interval


def class_scores(labels: Any, probability: Any, groups: Sequence[Any] | None = None) -> list[dict[str, Any]]:
    """Nonconformity of calibration rows by their true class: 1 - the probability of that class.

    Args:
        labels: 0 or 1.
        probability: of class 1, by models that were not trained on the row's patient.
        groups: patient of each row, where a patient has several.

    Shape:
        - labels, probability, groups: ``[n]``
        - returns: of class 0 and 1 ``{"patients": K, "scores": [m], "weights": [m]}``, scores sorted; the weights of a
          patient's rows of a class sum to 1

    Raises:
        DataError: see ``classification_metrics``; groups that are not one a row.

    Example:
        >>> class_scores([0, 1, 1], [0.25, 0.5, 1.0], ["A", "B", "B"])[1]
        {'patients': 1, 'scores': [0.0, 0.5], 'weights': [0.5, 0.5]}
    """
    truth, probability = check_predictions(labels, probability, 1)
    if groups is not None and len(groups) != len(truth):
        raise DataError(f"One group per row is needed, got {len(groups)} for {len(truth)} rows.")
    code = np.arange(len(truth)) if groups is None else np.unique([str(g) for g in groups], return_inverse=True)[1]
    found = []
    for label, rows in enumerate((~truth, truth)):
        scores = np.abs(label - probability[rows])
        _, place, rows_of = np.unique(code[rows], return_inverse=True, return_counts=True)
        order = np.argsort(scores, kind="stable")
        weights = 1 / rows_of[place]
        found.append({"patients": len(rows_of), "scores": scores[order].tolist(), "weights": weights[order].tolist()})
    return found


def class_p_values(probability: Any, scores: Sequence[Mapping[str, Any]]) -> np.ndarray:
    r"""How many patients of each class fitted it as badly as a new row would.

    .. math:: p_c(x) = \frac{1 + \sum_j w_j\,[s_j \ge s_c(x)]}{1 + K_c}

    Args:
        probability: of class 1.
        scores: what :func:`class_scores` gives; a class without patients has p = 1.

    Shape:
        - probability: ``[n]`` -> ``[n, 2]``

    Example:
        >>> class_p_values([0.5], class_scores([0, 0, 0, 1], [0.1, 0.5, 0.9, 0.8])).tolist()
        [[0.75, 0.5]]
    """
    probability = np.asarray(probability, dtype=float)
    columns = []
    for label, known in enumerate(scores):
        edges = np.asarray(known["scores"], dtype=float)
        # weight of all scores from a place on
        above = np.append(np.cumsum(np.asarray(known["weights"], dtype=float)[::-1])[::-1], 0.0)
        count = above[np.searchsorted(edges, np.abs(label - probability), side="left")]
        columns.append((1 + count) / (1 + known["patients"]))
    return np.stack(columns, axis=1)


def conformal_sets(probability: Any, scores: Sequence[Mapping[str, Any]], coverage: float = 0.9) -> np.ndarray:
    """Which classes are plausible: those with a p above 1 - coverage.

    Of new patients of a class, exchangeable with the calibration patients of that class, at least this share has its
    class in the set.

    Args:
        probability: of class 1.
        scores: what :func:`class_scores` gives.
        coverage: the wanted share, of each class.

    Shape:
        - probability: ``[n]`` -> bool ``[n, 2]``

    Raises:
        DataError: a coverage that is no share.
    """
    if not 0 < coverage < 1:
        raise DataError(f"coverage is the share of patients whose class is in the set, above 0 and below 1: {coverage}")
    # 1 - 0.9 is a little less than 0.1 in binary
    return class_p_values(probability, scores) > 1 - coverage + 1e-9


def set_report(
    labels: Any,
    sets: Any,
    *,
    class_names: Sequence[str] = ("negative", "positive"),
    groups: Sequence[Any] | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Coverage of each class, and the share of rows with one class in the set, with 95 % intervals.

    Intervals are those of :func:`shared.metrics.operating_points`.

    Args:
        labels: 0 or 1.
        sets: which classes are in each row's set.
        class_names: of class 0 and 1.
        groups: patient of each row, where a patient has several.
        bootstrap: draws.
        seed: of the draws.

    Shape:
        - labels, groups: ``[n]``; sets: bool ``[n, 2]``
        - returns: ``{"classes": {name: {"n", "value", "low", "high"}}, "one_class": {"value", "low", "high"}}``

    Example:
        >>> found = set_report([0, 0, 1], [[1, 0], [0, 1], [1, 1]])
        >>> found["classes"]["negative"]["value"], found["classes"]["positive"]["n"]
        (0.5, 1)
    """
    truth, sets = np.asarray(labels).astype(int) == 1, np.asarray(sets).astype(bool)
    code = np.arange(len(truth)) if groups is None else np.unique([str(g) for g in groups], return_inverse=True)[1]
    simple = len(np.unique(code)) == len(truth)
    draws = [] if simple else list(drawn_weights(truth, groups, bootstrap, seed))
    classes = {}
    for label, (name, of) in enumerate(zip(class_names, (~truth, truth), strict=True)):
        classes[name] = {"n": int(of.sum())} | share_interval(sets[None, :, label], of[None], draws, code, simple)
    one = sets.sum(axis=1) == 1
    return {"classes": classes, "one_class": share_interval(one[None], np.ones_like(one)[None], draws, code, simple)}
