"""Variance of an AUC and of a difference of two without draws: DeLong's; Obuchowski's for patients of several rows.

DeLong, DeLong and Clarke-Pearson, Biometrics 1988; Obuchowski, Biometrics 1997, which is the former where every patient
has one row. The interval is on the scale of log odds. With few patients, or an AUC near 1, read the bootstrap's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.metrics.classification import check_seeds

Z = 1.959963984540054


def delong_interval(
    labels: Any, probability: Any, *, groups: Sequence[Any] | None = None, positive: int = 1
) -> dict[str, Any]:
    """AUC with standard error and 95 % interval.

    Args:
        labels: labels of two classes.
        probability: of the positive class; for several seeds the AUC is the mean over them.
        groups: patient of each row, where a patient has several (Obuchowski).
        positive: the positive label.

    Shape:
        - labels, groups: ``[n]``; probability: ``[n]`` or ``[seeds, n]``
        - returns: ``{"value", "low", "high", "se", "undefined": why}``; ``undefined`` is None where all is defined

    Raises:
        DataError: see ``classification_metrics``.

    Example:
        >>> found = delong_interval([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.5, 0.4, 0.8, 0.9])
        >>> round(found["value"], 4), round(found["se"], 4)
        (0.8889, 0.1571)
    """
    truth, both = check_seeds(labels, probability, positive)
    nothing = {"value": None, "low": None, "high": None, "se": None}
    if truth.all() or not truth.any():
        return nothing | {"undefined": "all rows are of one class"}
    value, covariance = _auc_covariance(truth, [both], _codes(groups, len(truth)))
    auc = float(value[0])
    if covariance is None:
        return nothing | {"value": auc, "undefined": "a class has one patient only"}
    se = math.sqrt(max(0.0, float(covariance[0, 0])))
    if not 0 < auc < 1 or se == 0:
        return nothing | {"value": auc, "se": se, "undefined": "all patients rank alike: the variance is 0"}
    centre, half = math.log(auc / (1 - auc)), Z * se / (auc * (1 - auc))
    low, high = (1 / (1 + math.exp(-min(700.0, max(-700.0, end)))) for end in (centre - half, centre + half))
    return {"value": auc, "low": low, "high": high, "se": se, "undefined": None}


def delong_test(
    labels: Any, prob_a: Any, prob_b: Any, *, groups: Sequence[Any] | None = None, positive: int = 1
) -> dict[str, float | None]:
    """Difference a - b of two AUCs of the same rows, with its 95 % interval and two-sided p.

    Args:
        labels: labels of two classes, both of them there.
        prob_a: probabilities of one method; for several seeds the AUC is the mean over them.
        prob_b: of the other, same rows.
        groups: patient of each row, where a patient has several (Obuchowski).
        positive: the positive label.

    Shape:
        - labels, groups: ``[n]``; prob_a, prob_b: ``[n]`` or ``[seeds, n]``, each with seeds of its own
        - returns: ``{"value", "low", "high", "se", "p"}``; all but the value are None where a class has one patient,
          and p where the variance is 0 and the difference is not

    Raises:
        DataError: see ``classification_metrics``; or one class only.

    Example:
        >>> found = delong_test([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.5, 0.4, 0.8, 0.9], [0.3, 0.7, 0.2, 0.6, 0.1, 0.9])
        >>> round(found["value"], 4), round(found["p"], 3)
        (0.3333, 0.386)
    """
    truth, first = check_seeds(labels, prob_a, positive)
    if truth.all() or not truth.any():
        raise DataError(f"A difference of AUCs needs both classes, got {len(truth)} rows of one.")
    other = check_seeds(labels, prob_b, positive)[1]
    value, covariance = _auc_covariance(truth, [first, other], _codes(groups, len(truth)))
    difference = float(value[0] - value[1])
    if covariance is None:
        return {"value": difference, "low": None, "high": None, "se": None, "p": None}
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    se = math.sqrt(variance) if variance > 1e-15 else 0.0
    if se > 0:
        p: float | None = math.erfc(abs(difference) / se / math.sqrt(2))
    else:
        p = 1.0 if abs(difference) < 1e-12 else None
    return {"value": difference, "low": difference - Z * se, "high": difference + Z * se, "se": se, "p": p}


def _codes(groups: Sequence[Any] | None, count: int) -> np.ndarray:
    if groups is None:
        return np.arange(count)
    if len(groups) != count:
        raise DataError(f"One group per row is needed, got {len(groups)} for {count} rows.")
    return np.unique([str(group) for group in groups], return_inverse=True)[1]


def _auc_covariance(
    truth: np.ndarray, methods: Sequence[np.ndarray], code: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """AUC ``[methods]``, the mean over a method's seeds, and covariance; None where a class has one patient."""
    placements = [_placements(truth, method) for method in methods]
    auc = np.array([above.mean() for above, _ in placements])
    positives, negatives = int(truth.sum()), int((~truth).sum())
    patients = int(code.max()) + 1
    with_positive, with_negative = len(np.unique(code[truth])), len(np.unique(code[~truth]))
    if min(with_positive, with_negative) < 2:
        return auc, None
    hits = np.stack(
        [_of_patients(above - a, code[truth], patients) for (above, _), a in zip(placements, auc, strict=True)]
    )
    misses = np.stack(
        [_of_patients(below - a, code[~truth], patients) for (_, below), a in zip(placements, auc, strict=True)]
    )
    s10 = with_positive / ((with_positive - 1) * positives) * hits @ hits.T
    s01 = with_negative / ((with_negative - 1) * negatives) * misses @ misses.T
    s11 = patients / (patients - 1) * hits @ misses.T
    return auc, s10 / positives + s01 / negatives + (s11 + s11.T) / (positives * negatives)


def _placements(truth: np.ndarray, method: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of negatives below each positive, and of positives above each negative, ties half; mean over seeds."""
    from scipy.stats import rankdata  # a second to import, which no --help should take

    positives, negatives = int(truth.sum()), int((~truth).sum())
    above, below = np.zeros(positives), np.zeros(negatives)
    for row in method:
        every = rankdata(row)
        above += (every[truth] - rankdata(row[truth])) / negatives
        below += 1 - (every[~truth] - rankdata(row[~truth])) / positives
    return above / len(method), below / len(method)


def _of_patients(values: np.ndarray, code: np.ndarray, patients: int) -> np.ndarray:
    return np.bincount(code, weights=values, minlength=patients)
