"""Means with 95 % bootstrap intervals over patients who have several rows each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.metrics.arrays import to_numpy


def grouped_mean(
    values: Any, groups: Sequence[Any], *, bootstrap: int = 2000, seed: int = 0
) -> dict[str, float | None]:
    """Mean of all rows, with the percentile interval over draws of whole groups (patients) with replacement.

    Args:
        values: one number a row.
        groups: the patient of each row.
        bootstrap: draws; 0: no interval.
        seed: of the draws.

    Shape:
        - values, groups: ``[n]``
        - returns: ``{"value", "low", "high"}``; the interval is None with fewer than two patients

    Raises:
        DataError: no row, a number of groups that differs, or a value that is not finite.

    Example:
        >>> grouped_mean([1.0, 3.0, 8.0], ["A", "A", "B"], bootstrap=200)
        {'value': 4.0, 'low': 2.0, 'high': 8.0}
    """
    from scipy.stats import bootstrap as resample

    values = to_numpy(values).astype(np.float64)
    if values.ndim != 1 or len(values) == 0 or len(groups) != len(values) or not np.isfinite(values).all():
        raise DataError(
            f"A mean over patients needs finite values [n], n > 0, and the patient of each; got {values.shape} and "
            f"{len(groups)}, {int((~np.isfinite(values)).sum())} not finite."
        )
    code = np.unique([str(group) for group in groups], return_inverse=True)[1]
    count, total = np.bincount(code), np.bincount(code, weights=values)
    result = {"value": float(values.mean()), "low": None, "high": None}
    if bootstrap > 0 and len(count) > 1:
        drawn = resample(
            (total, count),
            lambda total, count, axis=-1: total.sum(axis=axis) / count.sum(axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=bootstrap,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
        result |= {"low": float(drawn.confidence_interval.low), "high": float(drawn.confidence_interval.high)}
    return result
