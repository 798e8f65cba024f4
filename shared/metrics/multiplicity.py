"""p values of several comparisons, corrected for how many there are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm_adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    """p values of Holm's step-down procedure (Scand J Stat 1979), in the given order; None stays, and does not count.

    Example:
        >>> holm_adjusted([0.01, None, 0.04, 0.03])
        [0.03, None, 0.06, 0.06]
    """
    known = [k for k, p in enumerate(p_values) if p is not None]
    order = sorted(known, key=lambda k: float(p_values[k] or 0.0))
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for position, k in enumerate(order):
        largest = max(largest, min(1.0, float(p_values[k] or 0.0) * (len(order) - position)))
        adjusted[k] = float(np.round(largest, 12))
    return adjusted
