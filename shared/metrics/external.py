"""A model on other patients than those of its development: what becomes of AUC and calibration, and what mends it.

Recalibration updates the intercept, or intercept and slope, of the log odds (Steyerberg, Clinical Prediction Models,
2019, chapter 20). It is fitted to one half of the external patients and judged on the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.metrics.calibration import MEASURES, calibration_draws, calibration_report, interval, recalibrated
from shared.metrics.classification import (
    bootstrap_metrics,
    check_seeds,
    mean_defined,
    paired_difference,
    percentile_interval,
    weighted_metrics,
)
from shared.metrics.delong import delong_interval

SCORES = ("AUC", "BRIER")


def external_validation(
    development: tuple[Any, Any, Sequence[Any] | None],
    external: tuple[Any, Any, Sequence[Any] | None],
    *,
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """AUC, Brier score and calibration of both cohorts, their differences, and what recalibration changes.

    Args:
        development: labels, probabilities of models that were not trained on the row, patient of each row (None: each
            row is one); for several seeds all is the mean over them.
        external: the same of other patients.
        bootstrap: draws of the 95 % intervals; both cohorts are drawn independently.
        seed: of the draws and of the halves.

    Shape:
        - labels, groups: ``[n]``; probabilities: ``[n]`` or ``[seeds, n]``, each cohort with seeds of its own
        - returns: ``{"development", "external": {"n", "positives", measure: {"value", "low", "high"}}, "difference":
          {measure: {...}}, "recalibration": {"fitted": {"n", "positives"}, "tested": {...}, "methods": {"none",
          "intercept", "intercept and slope": {measure: {...}, "BRIER_difference": {..., "p"}}}}}``, the difference
          being external minus development; ``difference.AUC`` also has ``p``, two-sided, of DeLong's variances. A
          method that cannot be fitted is None, and so is the recalibration where a half has one class

    Raises:
        DataError: see ``classification_metrics``; or a cohort with one class.

    Example:
        >>> near, far = ([0, 0, 1, 1] * 3, [0.1, 0.6, 0.4, 0.9] * 3, None), ([0, 1] * 6, [0.3, 0.6] * 6, None)
        >>> external_validation(near, far, bootstrap=20)["difference"]["AUC"]["value"]
        0.25
    """
    result: dict[str, Any] = {}
    values, draws, errors = {}, {}, {}
    for number, (name, (labels, probability, groups)) in enumerate(
        zip(("development", "external"), (development, external), strict=True)
    ):
        truth, both = check_seeds(labels, probability, 1)
        if truth.all() or not truth.any():
            raise DataError(
                f"External validation needs both classes in each cohort; {name} has {len(truth)} rows of one."
            )
        places = np.unique(both)[:1]  # the curve is not looked at
        options: dict[str, Any] = {"groups": groups, "bootstrap": bootstrap, "seed": seed + number}
        value, drawn = calibration_draws(truth, both, places, **options)
        scores = weighted_metrics(truth, both, np.ones((1, len(truth))), 0.5, SCORES)
        samples = bootstrap_metrics(truth, both, groups, 0.5, bootstrap, seed + number, SCORES)
        values[name] = {key: float(value[key][0]) for key in MEASURES} | {k: float(scores[k].mean()) for k in SCORES}
        draws[name] = {key: drawn[key] for key in MEASURES} | {key: mean_defined(samples[key]) for key in SCORES}
        errors[name] = delong_interval(labels, probability, groups=groups)["se"]
        result[name] = {"n": len(truth), "positives": int(truth.sum())}
        result[name] |= {key: _interval(values[name][key], draws[name][key], key) for key in (*SCORES, *MEASURES)}
    with np.errstate(invalid="ignore"):  # two slopes without bound
        difference = {
            key: _interval(
                values["external"][key] - values["development"][key],
                draws["external"][key] - draws["development"][key],
                key,
            )
            for key in (*SCORES, *MEASURES)
        }
    difference["AUC"]["p"] = _p(difference["AUC"]["value"], errors["development"], errors["external"])
    return result | {"difference": difference, "recalibration": _recalibration(*external, bootstrap, seed)}


def halves(labels: np.ndarray, groups: Sequence[Any] | None, seed: int) -> np.ndarray:
    """Whether each row is in the first half: whole groups, those with a positive and those without shared out alike.

    Example:
        >>> halves(np.array([0, 0, 1, 1]), None, 0).sum()
        np.int64(2)
    """
    names = [str(k) for k in range(len(labels))] if groups is None else [str(group) for group in groups]
    code = np.unique(names, return_inverse=True)[1]
    positive = np.bincount(code, weights=labels) > 0
    order = np.random.default_rng(seed).permutation(len(positive))
    first = np.zeros(len(positive), dtype=bool)
    first[np.concatenate([order[positive[order]], order[~positive[order]]])[::2]] = True
    return first[code]


def _recalibration(
    labels: Any, probability: Any, groups: Sequence[Any] | None, bootstrap: int, seed: int
) -> dict[str, Any] | None:
    truth, both = check_seeds(labels, probability, 1)
    first = halves(truth, groups, seed)
    fitted, tested = truth[first], truth[~first]
    if min(fitted.sum(), (~fitted).sum(), tested.sum(), (~tested).sum()) == 0:
        return None
    left = None if groups is None else [group for group, inside in zip(groups, first, strict=True) if not inside]
    options: dict[str, Any] = {"bootstrap": bootstrap, "seed": seed, "groups": left}
    methods: dict[str, Any] = {}
    for name, slope in (("none", None), ("intercept", False), ("intercept and slope", True)):
        rows = [
            row[~first] if slope is None else recalibrated(fitted, row[first], row[~first], slope=slope) for row in both
        ]
        mended = [row for row in rows if row is not None]
        if len(mended) < len(rows):
            methods[name] = None
            continue
        new = np.stack(mended)
        report = calibration_report(tested, new, **options)
        scores = weighted_metrics(tested, new, np.ones((1, len(tested))), 0.5, ("BRIER",))["BRIER"]
        samples = bootstrap_metrics(tested, new, left, 0.5, bootstrap, seed, ("BRIER",))["BRIER"]
        methods[name] = {"BRIER": percentile_interval(float(scores.mean()), mean_defined(samples))}
        methods[name] |= {key: report[key] for key in MEASURES}
        if slope is not None:
            found = paired_difference(tested, new, both[:, ~first], "BRIER", **options)
            methods[name]["BRIER_difference"] = {key: found[key] for key in ("value", "low", "high", "p")}
    sizes = ({"n": len(half), "positives": int(half.sum())} for half in (fitted, tested))
    return {**dict(zip(("fitted", "tested"), sizes, strict=True)), "methods": methods}


def _interval(value: float, drawn: np.ndarray, key: str) -> dict[str, float | None]:
    return percentile_interval(value, drawn) if key in SCORES else interval(value, drawn)


def _p(difference: float | None, first: float | None, other: float | None) -> float | None:
    """Two-sided p of a difference of two independent AUCs, from their standard errors."""
    if difference is None or first is None or other is None or first == other == 0:
        return None
    return math.erfc(abs(difference) / math.hypot(first, other) / math.sqrt(2))
