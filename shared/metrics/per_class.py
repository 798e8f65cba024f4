"""Precision, recall and F1 of each class and the confusion matrix, with bootstrap intervals over patients.

What the SSCL paper prints as accuracy per class is the overall accuracy, twice; a class has a recall, not an accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.metrics.classification import check_predictions, drawn_weights, percentile_interval

SCORES = ("precision", "recall", "F1")


def class_report(
    labels: Any,
    probability: Any,
    *,
    class_names: Sequence[str] = ("negative", "positive"),
    threshold: float = 0.5,
    bootstrap: int = 2000,
    seed: int = 0,
    groups: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Scores of both classes, each with its 95 % interval, and how often each was called the other.

    The draws are those of :func:`shared.metrics.classification_metrics` with the same seed: the recall of the second
    class is its ``REC``, interval included.

    Args:
        labels: 0 or 1.
        probability: predicted probability of class 1, which is called from ``threshold`` on.
        class_names: of class 0 and 1.
        threshold: decision threshold.
        bootstrap: draws; 0: no intervals.
        seed: of the draws.
        groups: patient of each row, where a patient has several: they are drawn together.

    Shape:
        - labels, probability, groups: ``[n]``
        - returns: ``{"classes": {name: {"precision", "recall", "F1": {"value", "low", "high"}, "support": rows}},
          "confusion": {"classes": names, "matrix": [true][called]}}``; what is not defined is None

    Raises:
        DataError: see ``classification_metrics``; or other than two names.

    Example:
        >>> report = class_report([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9], class_names=["HP", "SSA"], bootstrap=0)
        >>> report["confusion"]["matrix"], report["classes"]["HP"]["recall"]["value"]
        ([[1, 1], [1, 1]], 0.5)
    """
    names = [str(name) for name in class_names]
    if len(names) != 2 or names[0] == names[1]:
        raise DataError(f"A report needs two different names of classes, got {names}.")
    truth, probability = check_predictions(labels, probability, 1)
    cell = 2 * truth + (probability >= threshold)  # true and called class in one number
    value = _scores(np.bincount(cell, minlength=4)[None].astype(float))
    one_hot = np.eye(4)[cell]
    counts = [weights @ one_hot for weights in drawn_weights(truth, groups, bootstrap, seed)]
    drawn = _scores(np.concatenate([np.empty((0, 4)), *counts]))
    support = np.bincount(truth.astype(int), minlength=2)
    classes = {
        name: {score: percentile_interval(value[score][0, k], drawn[score][:, k]) for score in SCORES}
        | {"support": int(support[k])}
        for k, name in enumerate(names)
    }
    matrix = np.bincount(cell, minlength=4).reshape(2, 2).tolist()
    return {"classes": classes, "confusion": {"classes": names, "matrix": matrix}}


def _scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Scores ``[draws, 2]`` of confusion matrices ``[draws, 4]``; NaN where not defined."""
    matrix = counts.reshape(-1, 2, 2)
    hits, true, called = matrix.diagonal(axis1=1, axis2=2), matrix.sum(axis=2), matrix.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"precision": hits / called, "recall": hits / true, "F1": 2 * hits / (true + called)}
