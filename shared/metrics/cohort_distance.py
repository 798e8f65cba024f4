"""How far a patient is from a cohort, in measured features, and from which distance on it is unlike that cohort.

Mahalanobis distance to the mean (Lee et al., A simple unified framework for detecting out-of-distribution samples,
2018) under a covariance of few axes and equal variance elsewhere (Tipping and Bishop, Probabilistic principal component
analysis, 1999): features are more than patients, and a shift shows where the cohort hardly varies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import DataError

if TYPE_CHECKING:
    from shared.metrics.exchanged_channels import ExchangedChannels

FALSE_ALARM = 0.01
"""Share of patients like those of the cohort who are taken for others."""

FEWEST = 5
"""Patients below which no distance is told."""

SHIFT_P = 0.001
"""Below it, patients together are unlike the cohort."""

FAR_COVARIATE = 10.0
"""SD of the cohort beyond which a covariate is taken for one in another unit."""

SMALLEST_SHIFT = 0.5
"""Mean of patients that is worth a word, in SD of the cohort."""

FARTHEST = 4.0
"""SD of the cohort that a patient counts for at most in the mean of several: one alone shall not shift them all."""

LEAST_SPREAD = 1e-6
"""SD, as a share of 1 + the mean's size, below which a value is the same for all, but for rounding."""

FOLDS = 10
ROWS = 2000  # rows that a fit takes at most


class CohortDistance:
    r"""Mahalanobis distance of standardised features, about 1 for a patient of the cohort.

    With :math:`z` the features, less their means and divided by their standard deviations, :math:`p` of them,
    :math:`v_i, \lambda_i` the cohort's principal axes and variances, and :math:`s` the variance beside these axes,

    .. math:: d^2 = \frac{1}{p} \Big(\sum_i \frac{(v_i^\top z)^2}{\lambda_i + s}
              + \frac{\lVert z \rVert^2 - \sum_i (v_i^\top z)^2}{s}\Big)

    Args:
        parts: ``mean`` and ``scale`` ``[p]``, ``axes`` ``[r, p]``, ``variances`` ``[r]``, ``rest`` ``[]``: what
            :func:`fit_cohort` makes.
    """

    def __init__(self, parts: Mapping[str, np.ndarray]):
        self.parts = {name: np.asarray(parts[name]) for name in ("mean", "scale", "axes", "variances", "rest")}

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Distance of each row, ``[n, p]`` -> ``[n]``."""
        along, beside = self._split(features)
        rest = self.parts["rest"]
        squared = np.square(along) @ (1 / (self.parts["variances"] + rest)) + beside / rest
        return np.sqrt(squared / self.parts["mean"].size)

    def _split(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates on the axes, and the squared length of what is beside them."""
        z = (np.asarray(features, dtype=np.float64) - self.parts["mean"]) / self.parts["scale"]
        along = z @ self.parts["axes"].astype(np.float64).T
        return along, (np.square(z).sum(axis=1) - np.square(along).sum(axis=1)).clip(min=0)


def fit_cohort(features: np.ndarray, groups: Sequence[Any]) -> tuple[CohortDistance, np.ndarray]:
    """The distance to a cohort, and those of its own rows to the other patients of it.

    For these the patients are left out in up to ten folds, so that nobody is compared with itself; the variance beside
    the axes is theirs, too, since of the patients that make the axes hardly any is left.

    Args:
        features: of the cohort.
        groups: patient of each row.

    Shape:
        - features: ``[n, p]``, p at least 2; groups: ``[n]``
        - returns: the distance, and ``[n]``

    Raises:
        DataError: fewer than :data:`FEWEST` patients, or features that are not finite.

    Example:
        >>> random = np.random.default_rng(0)
        >>> distance, own = fit_cohort(random.normal(size=(100, 20)), range(100))
        >>> distance(np.full((1, 20), 3.0)).round().tolist(), float(own.mean().round(1))
        ([3.0], 0.8)
    """
    x = np.asarray(features, dtype=np.float64)
    code = np.unique([str(g) for g in groups], return_inverse=True)[1]
    if len(set(code)) < FEWEST or not np.isfinite(x).all():
        raise DataError(f"A cohort needs finite features of at least {FEWEST} patients, got {len(set(code))} patients.")
    fold = np.random.default_rng(0).permutation(code.max() + 1)[code] % FOLDS
    left_out = [(fold == number, _axes(x[fold != number])) for number in np.unique(fold)]
    beside = sum(part._split(x[rows])[1].sum() for rows, part in left_out)
    free = sum(int(rows.sum()) * (x.shape[1] - len(part.parts["axes"])) for rows, part in left_out)
    rest = np.array(max(beside / free, 1e-9))
    own = np.empty(len(x))
    for rows, part in left_out:
        part.parts["rest"] = rest
        own[rows] = part(x[rows])
    whole = _axes(x)
    whole.parts["rest"] = rest
    return whole, own


def _axes(x: np.ndarray) -> CohortDistance:
    """Means, scales and principal axes of rows; the variance beside them is not known yet."""
    mean, spread = x.mean(axis=0), x.std(axis=0)
    scale = np.where(spread > LEAST_SPREAD * (1 + np.abs(mean)), spread, 1.0)  # a dead channel, the same for all
    z = (x - mean) / scale
    # of many rows all axes but one are known well, of few only what is left out tells the variance beside them
    rank = max(1, x.shape[1] - 1 if 4 * x.shape[1] <= len(x) else min(len(x) - 1, x.shape[1] // 2))
    if len(z) <= z.shape[1]:  # of the smaller of the two products
        values, left = np.linalg.eigh(z @ z.T / len(z))
        values, left = values[::-1][:rank].clip(min=1e-12), left[:, ::-1][:, :rank]
        axes = (z.T @ left / np.sqrt(values * len(z))).T
    else:
        values, right = np.linalg.eigh(z.T @ z / len(z))
        values, axes = values[::-1][:rank].clip(min=1e-12), right[:, ::-1][:, :rank].T
    kept = values > 1e-9
    parts = {"mean": mean, "scale": scale, "axes": axes[kept].astype(np.float32), "variances": values[kept]}
    return CohortDistance(parts | {"rest": np.array(1.0)})


class Cohort:
    """How far patients are in several parts of features: the largest distance, each in units of its own limit.

    One part of a few features may tell what a part of many would hide. Above 1 a patient is unlike the cohort; of
    patients like it, :data:`FALSE_ALARM` are, all parts together (Bonferroni).

    Args:
        distances: of each part.
        limits: of each part.
        patients: how many the cohort has.
        channels: whether two of the image's channels were exchanged; None: there is one.
        covariates: mean and SD of each, ``[2, C]``, of the known ones; None: there are none.

    Example:
        >>> random = np.random.default_rng(0)
        >>> cohort = Cohort.fit([random.normal(size=(60, 3)), random.normal(size=(60, 8))], range(60))
        >>> (cohort([np.zeros((1, 3)), np.full((1, 8), 9.0)]) > 1).tolist()
        [True]
    """

    def __init__(
        self,
        distances: Sequence[CohortDistance],
        limits: Sequence[float],
        patients: int,
        channels: ExchangedChannels | None = None,
        covariates: np.ndarray | None = None,
    ):
        self.distances, self.limits, self.patients = list(distances), [float(limit) for limit in limits], patients
        self.channels = channels
        self.covariates = np.empty((2, 0)) if covariates is None else np.asarray(covariates, dtype=np.float64)

    @classmethod
    def fit(cls, parts: Sequence[np.ndarray], groups: Sequence[Any], **more: Any) -> Cohort:
        """Of the features ``[n, p_k]`` of each part, and the patient of each row; see :func:`fit_cohort`."""
        fitted = [fit_cohort(part, groups) for part in parts]
        share = FALSE_ALARM / len(parts)
        limits = [distance_limit(own, groups, false_alarm=share)["limit"] for _, own in fitted]
        return cls([distance for distance, _ in fitted], limits, len({str(group) for group in groups}), **more)

    def __call__(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Distance of each row, ``[n]``."""
        pairs = zip(self.distances, self.limits, parts, strict=True)
        return np.max([distance(part) / limit for distance, limit, part in pairs], axis=0)

    def far_covariates(self, known: np.ndarray) -> list[dict[int, float]]:
        """Of each row of covariates ``[n, C]`` those in another unit, it seems, and how many SD they are from the mean.

        Example:
            >>> Cohort([], [], 60, covariates=[[50.0], [15.0]]).far_covariates(np.array([[90.0], [650.0], [np.nan]]))
            [{}, {0: 40.0}, {}]
        """
        mean, spread = self.covariates
        limit = max(FAR_COVARIATE, np.sqrt(self.patients))  # what one patient of the cohort alone has may be so far
        varies = spread > LEAST_SPREAD * (1 + np.abs(mean))
        z = np.divide(known - mean, spread, out=np.zeros_like(known, dtype=float), where=varies)
        return [{int(k): float(row[k]) for k in np.flatnonzero(np.abs(row) > limit)} for row in z]

    def shift(self, new: np.ndarray, by_channel: np.ndarray | None = None) -> dict[str, Any] | None:
        """Whether new patients together differ from the cohort in the first part, where one alone may not.

        A t test of each feature's mean (winsorised at :data:`FARTHEST`), with the cohort's spread, and Bonferroni's
        correction for their number. Of a significant difference below :data:`SMALLEST_SHIFT` nothing is told: of many
        patients any is significant.

        Args:
            new: features of each new patient, means over the patient's rows, ``[n, p]``.
            by_channel: those that tell channels from one another.

        Returns:
            ``{"patients": n, "sd": the largest shift in SD of the cohort, "p"}`` and, where two channels look exchanged
            in all of them, their numbers as ``"exchanged"``; None: neither, or fewer than :data:`FEWEST` patients.

        Example:
            >>> random = np.random.default_rng(0)
            >>> cohort = Cohort.fit([random.normal(size=(60, 3))], range(60))
            >>> cohort.shift(random.normal(size=(20, 3))), cohort.shift(1.5 + random.normal(size=(20, 3)))["p"] < 1e-6
            (None, True)
        """
        from scipy import stats

        x = np.asarray(new, dtype=np.float64)
        x = x[np.isfinite(x).all(axis=1)]  # the distance tells of the others
        if len(x) < FEWEST:
            return None
        parts = self.distances[0].parts
        shift = np.abs(((x - parts["mean"]) / parts["scale"]).clip(-FARTHEST, FARTHEST).mean(axis=0))
        t = shift / np.sqrt(1 / len(x) + 1 / self.patients)
        p = float(min(1.0, 2 * len(t) * stats.t.sf(t.max(), self.patients - 1)))
        found: dict[str, Any] = {"patients": len(x), "sd": float(shift.max()), "p": p}
        if self.channels is not None and by_channel is not None:
            together = by_channel[np.isfinite(by_channel).all(axis=1)].mean(axis=0)[None]
            (pair,) = self.channels(together, false_alarm=SHIFT_P, count=len(x))
            found |= {"exchanged": pair} if pair is not None and self.channels.sure(together[0], pair) else {}
        return found if "exchanged" in found or (p < SHIFT_P and found["sd"] >= SMALLEST_SHIFT) else None


def distance_limit(distances: Any, groups: Sequence[Any], *, false_alarm: float = FALSE_ALARM) -> dict[str, Any]:
    """Where distances of new patients of the cohort end, but for a share of them.

    The one-sided prediction limit of a normal log distance (Hahn and Meeker, Statistical Intervals, 1991, section 4.8),
    which knows how few patients it is made of; of several rows of a patient each counts as their share.

    Args:
        distances: above 0, of patients of the cohort who were left out.
        groups: patient of each row.
        false_alarm: the share.

    Shape:
        - distances, groups: ``[n]``
        - returns: ``{"patients", "log_mean", "log_sd", "limit"}``

    Raises:
        DataError: fewer than :data:`FEWEST` patients.

    Example:
        >>> distance_limit([1.0, 1.1, 0.9, 1.0, 1.2, 0.8], "ABCDEF", false_alarm=0.01)["limit"].__round__(2)
        1.67
    """
    from scipy import stats

    log = np.log(np.maximum(np.asarray(distances, dtype=float), 1e-12))
    _, code, rows = np.unique([str(g) for g in groups], return_inverse=True, return_counts=True)
    patients = len(rows)
    if patients < FEWEST:
        raise DataError(f"A limit of distances needs at least {FEWEST} patients, got {patients}.")
    weight = 1 / rows[code] / patients
    mean = float(weight @ log)
    spread = float(np.sqrt(weight @ np.square(log - mean) * patients / (patients - 1)))
    far = float(stats.t.isf(false_alarm, patients - 1)) * spread * np.sqrt(1 + 1 / patients)
    return {"patients": patients, "log_mean": mean, "log_sd": spread, "limit": float(np.exp(mean + far))}
