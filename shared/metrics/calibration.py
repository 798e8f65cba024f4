"""Calibration of predicted probabilities: intercept, slope, O:E ratio, ICI and the flexible curve, with intervals.

Intercept (calibration in the large) and slope are those of a logistic regression of the label on the log odds of the
prediction, the intercept with the slope held at 1 (Cox 1958; Van Calster et al., BMC Med 2019). The curve is a local
linear regression of the label on the probability (tricube weights of the nearest 75 % of rows, no robustness steps:
lowess of Cleveland 1979, without its later steps), and the ICI the mean distance between curve and diagonal (Austin and
Steyerberg, Stat Med 2019). Bandwidths are those of all rows, in every draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit, logit

from shared.metrics.classification import check_seeds, drawn_weights

MEASURES = ("intercept", "slope", "observed_expected", "ICI")
SMOOTHER = "local linear regression, tricube weights, span 0.75"
CLIP = 1e-6
_SPAN, _GRID = 0.75, 50
_LARGEST, _STEPS = 1.5, 200  # Newton's step in log odds, up to which each one raises the likelihood; number of steps


def calibration_report(
    labels: Any,
    probability: Any,
    *,
    bootstrap: int = 2000,
    seed: int = 0,
    positive: int = 1,
    groups: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Calibration intercept, slope, ratio of observed to expected positives, ICI and curve, with 95 % intervals.

    Args:
        labels: labels of two classes.
        probability: predicted probability of the positive class; for several seeds all is the mean over them. Those
            nearer to 0 or 1 than 1e-6 count as that far away where log odds are taken.
        bootstrap: draws; 0: no intervals.
        seed: of the draws, which are those of ``classification_metrics``.
        positive: the positive label.
        groups: patient of each row, where a patient has several: they are drawn together.

    Shape:
        - labels, groups: ``[n]``; probability: ``[n]`` or ``[seeds, n]``
        - returns: ``{"intercept", "slope", "observed_expected", "ICI": {"value", "low", "high"}, "curve":
          {"probability", "observed", "low", "high": up to 50 numbers each}, "smoother", "undefined": {measure: why}}``;
          what is not defined is None, and so is an end of an interval that is not bounded (a slope, where more than
          2.5 % of the draws are separated)

    Raises:
        DataError: see ``classification_metrics``.

    Example:
        >>> report = calibration_report([0, 0, 1, 0, 1, 1], [0.2, 0.3, 0.3, 0.6, 0.6, 0.9], bootstrap=0)
        >>> round(report["observed_expected"]["value"], 3), report["undefined"]
        (1.034, {})
    """
    truth, both = check_seeds(labels, probability, positive)
    places = _grid(both.ravel())
    value, drawn = calibration_draws(truth, both, places, groups=groups, bootstrap=bootstrap, seed=seed)
    report: dict[str, Any] = {}
    for name in MEASURES:
        report[name] = interval(float(value[name][0]), drawn[name])
    tails = _tails(drawn["curve"])
    report["curve"] = {"probability": places.tolist(), "observed": [_plain(x) for x in value["curve"][0]]}
    report["curve"] |= {end: [_plain(x) for x in tails[k]] for k, end in enumerate(("low", "high"))}
    reasons = {name: _reason(name, truth, both) for name in MEASURES if report[name]["value"] is None}
    return report | {"smoother": SMOOTHER, "undefined": reasons}


def calibration_draws(
    truth: np.ndarray, both: np.ndarray, places: np.ndarray, *, groups: Sequence[Any] | None, bootstrap: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Each measure ``[1]`` and the curve at ``places`` ``[1, places]``, and the same of every draw ``[draws, ...]``."""
    predictions = [_Prediction(truth, row) for row in both]
    with np.errstate(divide="ignore", invalid="ignore"):  # infinite slopes, and the draws that a measure lacks
        value = _measured(predictions, places, np.ones((1, len(truth))))
        parts = [_measured(predictions, places, w) for w in drawn_weights(truth, groups, bootstrap, seed)]
    return value, {name: np.concatenate([value[name][:0], *(part[name] for part in parts)]) for name in value}


def interval(value: float, drawn: np.ndarray) -> dict[str, float | None]:
    """A value and the 95 % percentiles of its draws, of which infinite ones count; None where it is not finite."""
    low, high = _tails(drawn) if np.isfinite(value) else (np.nan, np.nan)
    return {"value": _plain(value), "low": _plain(low), "high": _plain(high)}


def recalibrated(labels: Any, probability: Any, new: Any, *, slope: bool = True) -> np.ndarray | None:
    """Probabilities ``new`` after a logistic recalibration that is fitted to ``labels`` and ``probability``.

    Args:
        labels: 0 or 1, of the rows fitted to.
        probability: their predicted probabilities.
        new: probabilities to correct.
        slope: fit intercept and slope; else the intercept alone.

    Shape:
        - labels, probability: ``[n]``; new, returns: ``[m]``; None where there is no such fit (one class, classes
          that the probability separates, constant probabilities)

    Example:
        >>> recalibrated([0, 1, 1, 1], [0.5] * 4, [0.5], slope=False).round(3).tolist()
        [0.75]
    """
    truth, both = check_seeds(labels, probability, 1)
    fitted = _Prediction(truth, both[0])
    one = np.ones((1, len(truth)))
    with np.errstate(divide="ignore", invalid="ignore"):
        intercept, factor = fitted.line(one) if slope else (fitted.shift(one), np.ones(1))
    if not np.isfinite([intercept[0], factor[0]]).all():
        return None
    return expit(intercept[0] + factor[0] * log_odds(np.asarray(new, dtype=float)))


def calibration_slopes(truth: np.ndarray, probability: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Slope of each draw of one prediction ``[draws]``; NaN where there is none (classes apart, one class)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = _Prediction(truth, probability).line(weights)[1]
    return np.where(np.isfinite(slope), slope, np.nan)


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Log odds; of probabilities nearer to 0 or 1 than 1e-6, those of 1e-6 or 1 - 1e-6.

    Example:
        >>> log_odds(np.array([0.5, 0.0])).round(2).tolist()
        [0.0, -13.82]
    """
    return logit(np.clip(probability, CLIP, 1 - CLIP))


class _Prediction:
    """What of one prediction is the same in every draw: its log odds and the smoother of its curve."""

    def __init__(self, truth: np.ndarray, probability: np.ndarray):
        self.truth, self.probability, self.log_odds = truth, probability, log_odds(probability)
        self.centre, self.scale = self.log_odds.mean(), self.log_odds.std() or 1.0
        self.grid = _grid(probability)
        away = probability[:, None] - self.grid  # [n, G]
        nearest = max(1, int(_SPAN * len(truth) + 1e-10)) - 1
        reach = np.partition(np.abs(away), nearest, axis=0)[nearest]
        kernel = np.clip(1 - (np.abs(away) / np.maximum(reach, 1e-12)) ** 3, 0, None) ** 3
        y = truth[:, None]
        self.moments = [kernel, kernel * away, kernel * away**2, kernel * y, kernel * away * y]

    def shift(self, weights: np.ndarray) -> np.ndarray:
        """Intercept with slope 1, of each draw; infinite where it has one class."""
        shift = _newton(np.ones((1, len(self.truth))), self.log_odds, self.truth, weights)[:, 0]
        hits, total = weights @ self.truth, weights.sum(axis=1)
        return np.where(hits == 0, -np.inf, np.where(hits == total, np.inf, shift))

    def line(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Intercept and slope of each draw; infinite where it is separated, NaN where probabilities are constant."""
        slope = self._separated(weights)
        open_ = np.flatnonzero(slope == 0)
        intercept = np.full(len(weights), np.nan)
        standard = (self.log_odds - self.centre) / self.scale
        design = np.stack([np.ones_like(standard), standard])
        found = _newton(design, np.zeros_like(standard), self.truth, weights[open_])
        slope[open_] = found[:, 1] / self.scale
        intercept[open_] = found[:, 0] - slope[open_] * self.centre
        return intercept, slope

    def _separated(self, weights: np.ndarray) -> np.ndarray:
        """Of each draw: an infinity where a threshold parts the classes, NaN where there is no slope, else 0."""
        ends = []
        for inside in (self.truth, ~self.truth):
            drawn, values = weights[:, inside] > 0, self.log_odds[inside]
            ends.append(np.where(drawn, values, np.inf).min(axis=1, initial=np.inf))
            ends.append(np.where(drawn, values, -np.inf).max(axis=1, initial=-np.inf))
        low, high, other_low, other_high = ends
        one_class = ~np.isfinite(low) | ~np.isfinite(other_low)
        constant = np.minimum(low, other_low) == np.maximum(high, other_high)
        slope = np.where(other_high <= low, np.inf, np.where(high <= other_low, -np.inf, 0.0))
        return np.where(one_class | constant, np.nan, slope)

    def curve(self, weights: np.ndarray) -> np.ndarray:
        """Observed share of positives ``[draws, G]`` at the grid, from 0 to 1; NaN where a draw has no row nearby."""
        s0, s1, s2, t0, t1 = (weights @ moment for moment in self.moments)
        spread = s2 / s0 - (s1 / s0) ** 2
        local = (s2 * t0 - s1 * t1) / (s0 * s2 - s1**2)
        flat = spread <= (1e-3 * np.ptp(self.probability)) ** 2  # a window with one probability has a mean, no slope
        return np.clip(np.where(flat, t0 / s0, local), 0, 1)

    def at(self, curve: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The curve between the grid's points, ``[draws, len(places)]``; beyond them its end."""
        left = np.clip(np.searchsorted(self.grid, places, side="right") - 1, 0, len(self.grid) - 1)
        right = np.minimum(left + 1, len(self.grid) - 1)
        width = self.grid[right] - self.grid[left]
        share = np.clip((places - self.grid[left]) / np.where(width > 0, width, 1), 0, 1)
        return curve[:, left] * (1 - share) + curve[:, right] * share


def _measured(predictions: Sequence[_Prediction], places: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Each measure ``[draws]``, and the curve ``[draws, places]``, means over the predictions."""
    of_each: dict[str, list[np.ndarray]] = {name: [] for name in (*MEASURES, "curve")}
    for each in predictions:
        curve = each.curve(weights)
        of_each["intercept"].append(each.shift(weights))
        of_each["slope"].append(each.line(weights)[1])
        of_each["observed_expected"].append((weights @ each.truth) / (weights @ each.probability))
        distance = np.abs(each.at(curve, each.probability) - each.probability)
        of_each["ICI"].append((weights * distance).sum(axis=1) / weights.sum(axis=1))
        of_each["curve"].append(each.at(curve, places))
    return {name: np.mean(found, axis=0) for name, found in of_each.items()}


def _newton(design: np.ndarray, offset: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Logistic regression ``[draws, k]`` of every draw; a slope that grows on and on is infinite.

    Steps that change no log odds by more than 1.5 raise the likelihood (Bach, Electron J Stat 2010, self-concordance).
    """
    count = len(design)
    products = (design[:, None] * design[None]).reshape(count * count, -1)
    coefficients = np.zeros((len(weights), count))
    todo = np.arange(len(weights))
    for _ in range(_STEPS):
        if not len(todo):
            break
        mean = expit(coefficients[todo] @ design + offset)
        drawn = weights[todo]
        gradient = (drawn * (truth - mean)) @ design.T
        hessian = ((drawn * mean * (1 - mean)) @ products.T).reshape(-1, count, count) + 1e-12 * np.eye(count)
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        change = np.abs(step @ design).max(axis=1)
        coefficients[todo] += step * np.minimum(1, _LARGEST / np.maximum(change, 1e-300))[:, None]
        todo = todo[change > 1e-9]
    coefficients[todo] = np.where(coefficients[todo] < 0, -np.inf, np.inf)
    return coefficients


def _grid(probability: np.ndarray) -> np.ndarray:
    """The distinct probabilities, of more than 50 the quantiles."""
    distinct = np.unique(probability)
    if len(distinct) <= _GRID:
        return distinct
    return np.unique(np.quantile(probability, np.linspace(0, 1, _GRID)))


def _tails(drawn: np.ndarray) -> list[Any]:
    """Percentiles 2.5 and 97.5 of the draws in which a measure is defined; NaN where an end is not bounded."""
    defined = ~np.isnan(drawn)
    if not defined.any(axis=0).all():
        return [np.full(drawn.shape[1:], np.nan)] * 2
    with np.errstate(invalid="ignore"):  # between two infinite draws
        percentiles = np.percentile if defined.all() else np.nanpercentile
        return list(percentiles(drawn, [2.5, 97.5], axis=0))


def _plain(value: Any) -> float | None:
    """A float for JSON, None for what is not finite."""
    return float(value) if np.isfinite(value) else None


def _reason(name: str, truth: np.ndarray, both: np.ndarray) -> str:
    """Why a measure does not exist."""
    if name == "observed_expected":
        return "no positive is expected: all probabilities are 0"
    if truth.all() or not truth.any():
        return "all rows are of one class"
    if any(np.ptp(log_odds(row)) == 0 for row in both):
        return "the probabilities are constant"
    return "a threshold separates the classes: the slope is not bounded"
