"""Net benefit of acting on a prediction, and its decision curve beside acting on all, on nobody, or on a control.

Vickers and Elkin, Med Decis Making 2006: at threshold t a false positive costs t / (1 - t) true positives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.metrics.classification import check_seeds, drawn_weights, percentile_interval

THRESHOLDS = tuple(k / 20 for k in range(1, 20))


def decision_curve(
    labels: Any,
    probability: Any,
    *,
    controls: Mapping[str, Any] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    bootstrap: int = 2000,
    seed: int = 0,
    positive: int = 1,
    groups: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Net benefit at every threshold, with its 95 % interval; of acting on all and of each control without.

    Args:
        labels: labels of two classes.
        probability: predicted probability of the positive class; for several seeds all is the mean over them. Rows
            from the threshold on are acted on.
        controls: name to the probabilities of another prediction of the same rows.
        thresholds: probabilities above 0 and below 1.
        bootstrap: draws; 0: no intervals.
        seed: of the draws, which are those of ``classification_metrics``.
        positive: the positive label.
        groups: patient of each row, where a patient has several: they are drawn together.

    Shape:
        - labels, groups: ``[n]``; probability, each control: ``[n]`` or ``[seeds, n]``
        - returns: ``{"threshold", "model", "low", "high", "all": [T], "controls": {name: [T]}}``, in true positives per
          row; acting on nobody has 0

    Raises:
        DataError: see ``classification_metrics``; or a threshold outside (0, 1).

    Example:
        >>> decision_curve([0, 0, 0, 1], [0.1, 0.2, 0.6, 0.7], thresholds=[0.5], bootstrap=0)["model"]
        [0.0]
    """
    cut = np.array(thresholds, dtype=float)
    if not ((cut > 0) & (cut < 1)).all():
        raise DataError(f"Thresholds of a decision curve must lie between 0 and 1, got {cut.tolist()}.")
    truth, model = check_seeds(labels, probability, positive)
    one = np.ones((1, len(truth)))
    found = _net_benefit(truth, model, cut, one)[0]
    weights = drawn_weights(truth, groups, bootstrap, seed)
    drawn = np.concatenate([np.empty((0, len(cut))), *(_net_benefit(truth, model, cut, w) for w in weights)])
    ends = [percentile_interval(value, drawn[:, k]) for k, value in enumerate(found)]
    others = {
        name: _net_benefit(truth, check_seeds(labels, other, positive)[1], cut, one)[0].tolist()
        for name, other in (controls or {}).items()
    }
    everyone = _net_benefit(truth, np.ones((1, len(truth))), cut, one)[0]
    return {
        "threshold": cut.tolist(),
        "model": found.tolist(),
        **{end: [each[end] for each in ends] for end in ("low", "high")},
        "all": everyone.tolist(),
        "controls": others,
    }


def _net_benefit(truth: np.ndarray, probability: np.ndarray, cut: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Net benefit ``[draws, T]``, mean over the predictions ``[seeds, n]``."""
    total = np.zeros((len(weights), len(cut)))
    for row in probability:
        called = row >= cut[:, None]
        total += weights @ (called & truth).T - weights @ (called & ~truth).T * (cut / (1 - cut))
    return total / len(probability) / weights.sum(axis=1, keepdims=True)
