"""How many patients a validation needs, and how many parameters a logistic model of so many patients may have.

Validation: Riley et al., Stat Med 2021 (O:E ratio, calibration slope, AUC). Development: Riley et al., Stat Med 2019.
All are sizes of independent patients.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import expit

from shared.errors import DataError
from shared.metrics.classification import check_predictions, to_numpy

Z = 1.96


def validation_sample_size(
    log_odds: Any,
    auc: float,
    *,
    prevalence: float | None = None,
    ratio_width: float = 0.2,
    slope_width: float = 0.4,
    auc_width: float = 0.1,
) -> dict[str, int | None]:
    """Patients from whom 95 % intervals of the wanted widths are to be had, of a model that is well calibrated.

    Args:
        log_odds: of the predictions, a sample of their distribution.
        auc: anticipated.
        prevalence: share of positives (default: the mean probability).
        ratio_width: of the O:E ratio's interval (its logarithm is taken as normal).
        slope_width: of the calibration slope's.
        auc_width: of the AUC's (Newcombe 2006).

    Shape:
        - log_odds: ``[n]``
        - returns: ``{"observed_expected", "slope", "AUC"}``; None where it is not to be had (constant log odds, an AUC
          of 0 or 1)

    Raises:
        DataError: no log odds, a share of positives or an AUC outside its range.

    Example:
        >>> validation_sample_size([-1.0, 0.0, 1.0, 2.0], 0.75, slope_width=1.0)["slope"]
        82
    """
    x = to_numpy(log_odds).astype(float)
    mean = expit(x)
    share = float(mean.mean()) if prevalence is None and len(x) else prevalence
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all() or share is None or not 0 < share < 1 or not 0 <= auc <= 1:
        raise DataError(
            f"A sample size needs finite log odds [n], a share of positives between 0 and 1 and an AUC of 0 to 1; got "
            f"{len(x)} log odds, {share} and {auc}."
        )
    se = math.asinh(ratio_width / 2) / Z
    information = mean * (1 - mean)
    a, ab, b = (float((information * x**k).mean()) for k in range(3))
    determinant = a * b - ab**2
    slope = a / ((slope_width / 2 / Z) ** 2 * determinant) if np.ptp(x) > 0 and determinant > 0 else None
    return {
        "observed_expected": math.ceil((1 - share) / (share * se**2)),
        "slope": None if slope is None else math.ceil(slope),
        "AUC": _auc_size(auc, share, auc_width / 2 / Z),
    }


def supported_parameters(labels: Any, probability: Any) -> dict[str, float | int | None]:
    """Candidate parameters of a logistic model that so many patients support at a shrinkage of 0.9, given its R2.

    Args:
        labels: 0 or 1.
        probability: predicted by a model that was not trained on the row.

    Shape:
        - labels, probability: ``[n]``
        - returns: ``{"r_squared": Cox and Snell's, "parameters"}``; parameters are None where R2 is not positive, both
          where there is one class

    Raises:
        DataError: see ``classification_metrics``.

    Example:
        >>> supported_parameters([0, 1] * 50, [0.2, 0.8] * 50)["parameters"]
        11
    """
    truth, probability = check_predictions(labels, probability, 1)
    if truth.all() or not truth.any():
        return {"r_squared": None, "parameters": None}
    given = np.clip(np.where(truth, probability, 1 - probability), 1e-6, 1)
    r_squared = 1 - math.exp(-2 * (float(np.log(given).mean()) - _log_likelihood(float(truth.mean()))))
    if r_squared <= 0:
        return {"r_squared": r_squared, "parameters": None}
    return {"r_squared": r_squared, "parameters": int(-0.1 * math.log(1 - r_squared / 0.9) * len(truth))}


def _log_likelihood(share: float) -> float:
    """Mean log-likelihood of the share of positives as everybody's probability."""
    return share * math.log(share) + (1 - share) * math.log(1 - share)


def _auc_size(auc: float, share: float, se: float) -> int | None:
    """The n of Newcombe's variance: c (1 - c) (1 + (n / 2 - 1) k) / (n^2 f (1 - f)), k = (1-c)/(2-c) + c/(1+c)."""
    if not 0 < auc < 1:
        return None
    k = (1 - auc) / (2 - auc) + auc / (1 + auc)
    square = se**2 * share * (1 - share) / (auc * (1 - auc))
    return math.ceil((k / 2 + math.sqrt(k**2 / 4 + 4 * square * (1 - k))) / (2 * square))
