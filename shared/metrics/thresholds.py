"""Sensitivity, specificity and predictive values at thresholds that were fixed before, on training patients.

A threshold that is chosen on the patients it is scored on flatters the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.metrics.classification import (
    check_predictions,
    check_seeds,
    drawn_weights,
    mean_defined,
    percentile_interval,
)

SENSITIVITY = 0.9
SHARES = ("sensitivity", "specificity", "PPV", "NPV")


def training_thresholds(labels: Any, probability: Any, *, sensitivity: float = SENSITIVITY) -> dict[str, float]:
    """Youden's threshold (the most of sensitivity + specificity) and the highest with the wanted sensitivity.

    Args:
        labels: 0 or 1, of training patients; both classes.
        probability: theirs, predicted by a model that was not trained on them.
        sensitivity: the wanted one.

    Shape:
        - labels, probability: ``[n]``
        - returns: ``{"Youden": threshold, "sensitivity 0.9": threshold}``, each one of the probabilities

    Raises:
        DataError: see ``classification_metrics``; or one class only.

    Example:
        >>> training_thresholds([0, 0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4, 0.9])
        {'Youden': 0.3, 'sensitivity 0.9': 0.3}
    """
    truth, probability = check_predictions(labels, probability, 1)
    if truth.all() or not truth.any():
        raise DataError(f"A threshold needs training patients of both classes, got {len(truth)} of one.")
    cut = np.unique(probability)
    called = probability >= cut[:, None]
    hits, right = called[:, truth].mean(axis=1), 1 - called[:, ~truth].mean(axis=1)
    best = cut[np.argmax(np.round(hits + right, 12))]
    return {"Youden": float(best), f"sensitivity {sensitivity:g}": float(cut[hits >= sensitivity - 1e-12].max())}


def fold_thresholds(labels: np.ndarray, probability: np.ndarray, folds: np.ndarray) -> dict[str, np.ndarray]:
    """Thresholds of every row in every seed, each from the predictions of the seed's other folds.

    The patients of the other folds are those that the row's model was trained on; their predictions are of the models
    that left them out.

    Args:
        labels: 0 or 1.
        probability: predicted by the model of the fold that left the row out.
        folds: number of this fold.

    Shape:
        - labels: ``[n]``; probability, folds: ``[seeds, n]``
        - returns: name to ``[seeds, n]``; nothing where a fold has no others, or others of one class

    Example:
        >>> fold_thresholds(np.array([0, 1] * 2), np.array([[0.1, 0.8, 0.2, 0.9]]), np.array([[0, 0, 1, 1]]))["Youden"]
        array([[0.9, 0.9, 0.8, 0.8]])
    """
    found: dict[str, np.ndarray] = {}
    for s, fold in enumerate(folds):
        for number in np.unique(fold):
            others = fold != number
            if len(set(labels[others].tolist())) < 2:
                return {}
            for name, value in training_thresholds(labels[others], probability[s, others]).items():
                found.setdefault(name, np.empty(probability.shape))[s, ~others] = value
    return found


def operating_points(
    labels: Any,
    probability: Any,
    thresholds: Mapping[str, Any] | None = None,
    *,
    bootstrap: int = 2000,
    seed: int = 0,
    positive: int = 1,
    groups: Sequence[Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Sensitivity, specificity, PPV and NPV at each threshold, with 95 % intervals.

    Intervals are Wilson's where a row is a patient of its own, predicted once. Otherwise they are of a bootstrap over
    patients, and, where no draw differs (a share of 0 or 1), Wilson's of as many rows as there are patients among them.

    Args:
        labels: labels of two classes.
        probability: predicted probability of the positive class, which is called from the threshold on; for several
            seeds all is the mean over them.
        thresholds: name to threshold, fixed on other patients; one for all rows or one each. ``0.5`` is always there.
        bootstrap: draws; 0: no intervals but Wilson's.
        seed: of the draws, which are those of ``classification_metrics``.
        positive: the positive label.
        groups: patient of each row, where a patient has several: they are drawn together.

    Shape:
        - labels, groups: ``[n]``; probability: ``[n]`` or ``[seeds, n]``; each threshold: a number or as probability
        - returns: ``{name: {"threshold", "sensitivity", "specificity", "PPV", "NPV": {"value", "low", "high"}}}``; of
          thresholds that differ between rows the mean

    Raises:
        DataError: see ``classification_metrics``.

    Example:
        >>> found = operating_points([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9], {"Youden": 0.4})
        >>> found["Youden"]["sensitivity"]["value"], found["0.5"]["sensitivity"]["value"]
        (1.0, 0.5)
    """
    truth, both = check_seeds(labels, probability, positive)
    code = np.arange(len(truth)) if groups is None else np.unique([str(g) for g in groups], return_inverse=True)[1]
    simple = len(both) == 1 and len(np.unique(code)) == len(truth)
    draws = [] if simple else list(drawn_weights(truth, groups, bootstrap, seed))
    result: dict[str, dict[str, Any]] = {}
    for name, threshold in {"0.5": 0.5, **(thresholds or {})}.items():
        called = both >= np.asarray(threshold, dtype=float)
        inside = {
            "sensitivity": (called, np.broadcast_to(truth, called.shape)),
            "specificity": (~called, np.broadcast_to(~truth, called.shape)),
            "PPV": (np.broadcast_to(truth, called.shape), called),
            "NPV": (np.broadcast_to(~truth, called.shape), ~called),
        }
        result[name] = {"threshold": float(np.mean(threshold))}
        for share in SHARES:
            result[name][share] = share_interval(*inside[share], draws, code, simple)
    return result


def share_interval(
    right: np.ndarray, of: np.ndarray, draws: Sequence[np.ndarray], code: np.ndarray, simple: bool
) -> dict[str, float | None]:
    """Share of what is right among ``of`` with its 95 % interval, see :func:`operating_points`.

    Args:
        right: what counts.
        of: among which rows.
        draws: weights of the bootstrap's draws, in blocks.
        code: number of each row's patient.
        simple: each row is a patient of its own, predicted once.

    Shape:
        - right, of: bool ``[seeds, n]``; a block of draws ``[draws, n]``; code: ``[n]``
    """
    value = _share(right, of, np.ones((1, right.shape[1])))[0]
    drawn = np.concatenate([np.empty(0), *(_share(right, of, weights) for weights in draws)])
    found = percentile_interval(value, drawn)
    if np.isfinite(value) and (simple or (len(drawn) and value in (0, 1))):
        from scipy.stats import binomtest  # a second to import, which no --help should take

        count = len(np.unique(code[of.any(axis=0)]))
        ends = binomtest(round(value * count), count).proportion_ci(method="wilson")
        found |= {"low": float(ends.low), "high": float(ends.high)}
    return found


def _share(right: np.ndarray, of: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share ``[draws]`` of what is right among ``of``, mean over the seeds in which there is any."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return mean_defined(np.stack([weights @ (a & b) / (weights @ b) for a, b in zip(right, of, strict=True)]))
