"""A penalised logistic regression on how much of each biomarker patients have: weights, calibrated; stability."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment, minimize
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedGroupKFold

from shared.errors import DataError
from shared.metrics.classification import to_numpy

STRENGTHS = tuple(float(c) for c in np.logspace(-2, 1, 10))  # inverse of the penalty, as scikit-learn's C
_PRECISION = 6.0  # of the slope's prior: chosen on phantoms 0, 1 and TCGA-LGG, seeds 3 to 5


@dataclass(frozen=True)
class AdditiveFit:
    """Weights of the log odds ``bias + amounts @ weight + covariates @ covariate_weight``.

    Attributes:
        weight: of each biomarker's amount, ``[F]``.
        covariate_weight: of each covariate, in its own unit, ``[C]``.
        bias: log odds where all of these are 0.
        strength: C of the regression.
        mean: amounts of the average training patient, ``[F]``.
        covariate_mean: covariates of the average training patient, ``[C]``.
        slope: of the calibration, which the weights hold; those of :func:`bootstrap_weights` do not.
        left_out: calibrated log odds of each training patient by the inner folds that left it out, ``[n]``.
    """

    weight: np.ndarray
    covariate_weight: np.ndarray
    bias: float
    strength: float
    mean: np.ndarray
    covariate_mean: np.ndarray
    slope: float
    left_out: np.ndarray


def fit_additive(
    amounts: Any,
    labels: Any,
    covariates: Any = None,
    *,
    penalty: str = "l2",
    scaling: str = "own",
    covariate_penalty: float = 1.0,
    strength: float | None = None,
    folds: int = 5,
    repeats: int = 4,
    seed: int = 0,
    groups: Any = None,
) -> AdditiveFit:
    """Fit the log odds of class 1 as a penalised sum of biomarkers' amounts and covariates.

    Classes count equally in the fit; covariates are standardised. Probabilities are calibrated by the patients that the
    inner folds left out: slope and intercept of their log odds at the cohort's prevalence (Platt, Probabilistic Outputs
    for Support Vector Machines, 1999). A small cohort does not tell the slope: it is drawn towards log odds of standard
    deviation 1, with a normal prior on its logarithm.

    Args:
        amounts: how much of each biomarker each training patient has.
        labels: 0 or 1.
        covariates: clinical covariates; None: none.
        penalty: ``"l1"`` (few biomarkers) or ``"l2"``.
        scaling: amounts are divided by their ``"own"`` standard deviation, or all by a ``"common"`` one, their root
            mean square: then a biomarker that hardly occurs cannot get a large weight.
        covariate_penalty: of the covariates, in parts of the biomarkers' L2 penalty (of L1 its root counts): known
            factors beside many unknown ones should keep their weight (De Bin et al., Stat Med 33, 2014).
        strength: C of scikit-learn's LogisticRegression; None: the one of ``STRENGTHS`` of least log loss in the inner
            cross-validation.
        folds: of the inner cross-validation, of the training patients alone; fewer where a class is smaller.
        repeats: of the inner cross-validation.
        seed: of its folds.
        groups: patients that stay together in a fold; None: each by itself.

    Shape:
        - amounts: ``[n, F]``, labels: ``[n]``, covariates: ``[n, C]``, groups: ``[n]``

    Raises:
        DataError: numbers that are not finite, or one class alone.

    Example:
        >>> amounts = np.array([[0.0, 1.0], [0.1, 0.9], [0.9, 0.1], [1.0, 0.0]] * 5)
        >>> fit = fit_additive(amounts, [0, 0, 1, 1] * 5)
        >>> bool(fit.weight[0] > 0 > fit.weight[1])
        True
    """
    x, y = to_numpy(amounts).astype(np.float64), to_numpy(labels).astype(int)
    known = np.zeros((len(x), 0)) if covariates is None else to_numpy(covariates).astype(np.float64)
    for name, value, allowed in (("penalty", penalty, ("l1", "l2")), ("scaling", scaling, ("own", "common"))):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")
    if x.ndim != 2 or y.shape != x.shape[:1] or known.shape[:1] != x.shape[:1]:
        raise DataError(f"A fit needs amounts [n, F] and n labels; got {x.shape}, {y.shape}, {known.shape}.")
    if not (np.isfinite(x).all() and np.isfinite(known).all()):
        raise DataError("The biomarkers' amounts and the covariates must be finite numbers.")
    count = np.bincount(y, minlength=2)
    if len(count) > 2 or count.min() == 0:
        raise DataError(f"The additive predictor needs patients of two classes, 0 and 1; got {count.tolist()} of each.")
    folds = max(2, min(folds, int(count.min())))
    splits = _splits(y, folds, repeats, seed, groups)
    strengths = STRENGTHS if strength is None else (float(strength),)
    best, outside = _inner(x, known, y, splits, strengths, penalty, scaling, covariate_penalty)
    scale, covariate_scale = _scales(x, known, scaling, covariate_penalty)
    coefficients, intercept = _regression(np.hstack([x / scale, known / covariate_scale]), y, penalty, best)
    slope, shift = _calibration(outside, y)
    weight, of_covariates = np.split(slope * coefficients, [x.shape[1]])
    return AdditiveFit(
        weight=weight / scale,
        covariate_weight=of_covariates / covariate_scale,
        bias=slope * intercept + shift,
        strength=best,
        mean=x.mean(axis=0),
        covariate_mean=known.mean(axis=0),
        slope=slope,
        left_out=slope * outside + shift,
    )


def _scales(x: np.ndarray, known: np.ndarray, scaling: str, covariate_penalty: float) -> tuple[np.ndarray, np.ndarray]:
    spread, covariate_spread = x.std(axis=0), known.std(axis=0)
    if scaling == "common":
        spread = np.full_like(spread, np.sqrt((spread**2).mean()))
    return np.where(spread > 1e-9, spread, 1.0), np.where(
        covariate_spread > 1e-9, np.sqrt(covariate_penalty) * covariate_spread, 1.0
    )


def _regression(x: np.ndarray, y: np.ndarray, penalty: str, strength: float) -> tuple[np.ndarray, float]:
    centre = x.mean(axis=0)  # liblinear penalises the intercept: where all is centred, it is near 0
    solver = {"l1": {"solver": "liblinear", "l1_ratio": 1.0}, "l2": {"solver": "lbfgs", "l1_ratio": 0.0}}[penalty]
    # liblinear draws the order of its coordinates: not from numbers that others draw, too
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=5000, random_state=0, **solver)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged within max_iter at the weakest penalties
        model.fit(x - centre, y)
    return model.coef_[0], float(model.intercept_[0] - model.coef_[0] @ centre)


def _splits(y: np.ndarray, folds: int, repeats: int, seed: int, groups: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Fitted and left-out patients of every inner fold."""
    if groups is None:
        return list(RepeatedStratifiedKFold(n_splits=folds, n_repeats=repeats, random_state=seed).split(y, y))
    return [
        split
        for repeat in range(repeats)
        for split in StratifiedGroupKFold(folds, shuffle=True, random_state=seed + repeat).split(y, y, groups)
    ]


def _inner(
    x: np.ndarray,
    known: np.ndarray,
    y: np.ndarray,
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
    strengths: Sequence[float],
    penalty: str,
    scaling: str,
    covariate_penalty: float,
) -> tuple[float, np.ndarray]:
    """The strength of least log loss, and its mean log odds of each patient where the patient was left out."""
    odds = np.zeros((len(strengths), len(y)))
    times = np.zeros(len(y))
    weight = len(y) / (2 * np.bincount(y, minlength=2))[y]
    losses = np.zeros(len(strengths))
    for fitted, left_out in splits:
        if len(np.unique(y[fitted])) < 2:
            continue
        scale, covariate_scale = _scales(x[fitted], known[fitted], scaling, covariate_penalty)
        both = np.hstack([x / scale, known / covariate_scale])
        times[left_out] += 1
        for i, each in enumerate(strengths):
            coefficients, intercept = _regression(both[fitted], y[fitted], penalty, each)
            found = both[left_out] @ coefficients + intercept
            odds[i, left_out] += found
            losses[i] += log_loss(y[left_out], expit(found), sample_weight=weight[left_out], labels=[0, 1])
    best = int(losses.argmin())
    return strengths[best], odds[best] / np.maximum(times, 1)


def _calibration(odds: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and intercept that turn left-out log odds into those of the cohort's prevalence; the slope is above 0."""
    centre, spread = odds.mean(), odds.std() or 1.0
    z = (odds - centre) / spread

    def loss(found: np.ndarray) -> tuple[float, np.ndarray]:
        steepness = np.exp(found[0])
        told = steepness * z + found[1]
        wrong = expit(told) - y
        value = np.logaddexp(0, told).sum() - y @ told + _PRECISION / 2 * found[0] ** 2
        return value, np.array([steepness * (wrong @ z) + _PRECISION * found[0], wrong.sum()])

    start = np.array([0.0, np.log(y.mean() / (1 - y.mean()))])
    log_slope, shift = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-8}).x
    slope = float(np.exp(log_slope) / spread)
    return slope, float(shift - slope * centre)


def calibrate_members(fits: Sequence[AdditiveFit], labels: Any) -> list[AdditiveFit]:
    """Fits of the same patients, whose mean log odds answer, brought to one scale and calibrated together.

    Each is divided by the standard deviation of its left-out log odds, so that none outweighs the others because it is
    too sure of itself. One fit alone stays as it is.

    Shape:
        - labels: ``[n]``, of the patients of every fit's ``left_out``
    """
    spreads = [float(fit.left_out.std()) or 1.0 for fit in fits]
    mean = np.mean([fit.left_out / spread for fit, spread in zip(fits, spreads, strict=True)], axis=0)
    steepness, shift = _calibration(mean, to_numpy(labels).astype(int))
    found = []
    for fit, spread in zip(fits, spreads, strict=True):
        factor = steepness / spread
        found.append(
            replace(
                fit,
                weight=factor * fit.weight,
                covariate_weight=factor * fit.covariate_weight,
                bias=factor * fit.bias + shift,
                slope=factor * fit.slope,
                left_out=factor * fit.left_out + shift,
            )
        )
    return found


def bootstrap_weights(
    amounts: Any,
    labels: Any,
    covariates: Any = None,
    *,
    penalty: str = "l2",
    scaling: str = "own",
    covariate_penalty: float = 1.0,
    strength: float = 0.1,
    draws: int = 200,
    seed: int = 0,
) -> np.ndarray:
    """Weights of the biomarkers of fits to patients drawn with replacement, within each class.

    Neither the biomarkers nor the strength are chosen anew, and nothing is recalibrated: the interval is that of the
    regression alone.

    Shape:
        - amounts: ``[n, F]``, labels: ``[n]``, covariates: ``[n, C]`` or None
        - returns: ``[draws, F]``
    """
    x, y = to_numpy(amounts).astype(np.float64), to_numpy(labels).astype(int)
    known = np.zeros((len(x), 0)) if covariates is None else to_numpy(covariates).astype(np.float64)
    generator, found = np.random.default_rng(seed), []
    scale, covariate_scale = _scales(x, known, scaling, covariate_penalty)
    both = np.hstack([x / scale, known / covariate_scale])
    for _ in range(draws):
        drawn = np.concatenate([generator.choice(np.flatnonzero(y == c), (y == c).sum()) for c in (0, 1)])
        coefficients, _ = _regression(both[drawn], y[drawn], penalty, strength)
        found.append(coefficients[: x.shape[1]] / scale)
    return np.array(found).reshape(draws, x.shape[1])


def match_biomarkers(first: Any, second: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pair two models' biomarkers by the places they share (Kuhn, The Hungarian method, 1955).

    Args:
        first: biomarker of each place by one model, in ``range(count)``; -1 outside.
        second: of the same places by the other.
        count: biomarkers of each.

    Shape:
        - first, second: any, equal
        - returns: the second model's partner of each biomarker ``[count]``, and the Dice overlap of each pair
          ``[count]`` (NaN where neither occurs)

    Example:
        >>> partner, overlap = match_biomarkers([0, 0, 1, 1], [1, 1, 0, 0], 2)
        >>> partner.tolist(), overlap.tolist()
        ([1, 0], [1.0, 1.0])
    """
    a, b = to_numpy(first).ravel(), to_numpy(second).ravel()
    if a.shape != b.shape:
        raise DataError(f"Maps of the same places are needed, got {a.size} and {b.size} places.")
    inside = (a >= 0) & (b >= 0)
    together = np.zeros((count, count))
    np.add.at(together, (a[inside].astype(int), b[inside].astype(int)), 1)
    total = together.sum(axis=1)[:, None] + together.sum(axis=0)[None]
    dice = np.divide(2 * together, total, out=np.zeros_like(together), where=total > 0)
    rows, partner = linear_sum_assignment(-dice)
    found = dice[rows, partner]
    return partner, np.where(total[rows, partner] > 0, found, np.nan)


def rank_agreement(first: Any, second: Any) -> float:
    """Spearman's correlation of two models' effects of paired biomarkers; NaN where one has no spread.

    Example:
        >>> rank_agreement([0.1, 0.2, 0.3], [1.0, 2.0, 9.0])
        1.0
    """
    a, b = to_numpy(first).astype(float), to_numpy(second).astype(float)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return round(float(spearmanr(a, b).statistic), 12)
