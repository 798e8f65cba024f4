"""Whether two channels of an image, such as two MRI sequences, were exchanged.

What an exchange turns round in a patient's features, the differences between the two channels, has the opposite sign
in the given order of the training patients: a linear discriminant tells both apart (Fisher, The use of multiple
measurements in taxonomic problems, 1936; covariance shrunk after Ledoit and Wolf, A well-conditioned estimator for
large-dimensional covariance matrices, 2004).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shared.metrics.cohort_distance import FOLDS, CohortDistance, distance_limit, fit_cohort

FALSE_ALARM = 0.0025
"""Share of patients in the given order who are told of at most."""

NAMES = ("pairs", "orders", "weights", "mean", "sd", "patients", "limit")


class ExchangedChannels:
    """For each two channels a score of a patient: positive in the given order, about as far below 0 in the other.

    Two channels look exchanged if the score is below 0, and lower than those of all but a share of patients in the
    given order: the one-sided prediction limit of a normal sample (Hahn and Meeker, Statistical Intervals, 1991), for
    one patient or for the mean of several. The turned features must also be nearer to the cohort than the given ones.
    Inverted values or a bias field of one channel may look like an exchange, too: :meth:`sure` tells whether the turned
    features are those of a patient of the cohort. Of two channels that look alike nothing is told.

    Args:
        distance: to the cohort, see :func:`shared.metrics.cohort_distance.fit_cohort`.
        parts: ``pairs`` of channels ``[k, 2]``, of each the order ``[k, p]`` of the features that its exchange makes,
            ``weights`` ``[k, p]``, and ``mean`` and ``sd`` ``[k]`` of the scores of training patients who were left
            out, ``patients`` ``[]``, ``limit`` ``[]`` of the distance (an older version has none): what :meth:`fit`
            makes.

    Example:
        >>> random, orders = np.random.default_rng(0), {(0, 1): np.array([1, 0, 3, 2])}
        >>> known = np.array([0.0, 5.0, 1.0, 1.0]) + random.normal(size=(40, 4))
        >>> exchanged = ExchangedChannels.fit(known, range(40), orders)
        >>> exchanged(np.array([[0.0, 5.0, 1.0, 1.0], [5.0, 0.0, 1.0, 1.0]]))
        [None, (0, 1)]
    """

    def __init__(self, distance: CohortDistance, parts: Mapping[str, np.ndarray]):
        self.distance = distance
        self.parts = {name: np.asarray({"limit": np.inf, **parts}[name]) for name in NAMES}
        pairs = [(int(a), int(b)) for a, b in self.parts["pairs"]]
        self.orders = dict(zip(pairs, self.parts["orders"], strict=True))
        """Of each pair."""

    @classmethod
    def fit(
        cls, features: np.ndarray, groups: Sequence[Any], orders: Mapping[tuple[int, int], np.ndarray]
    ) -> ExchangedChannels:
        """Of the features ``[n, p]`` of the training's images and the patient of each.

        Scores of rows come from discriminants of other patients, in up to ten folds; a row of a patient counts as its
        share.
        """
        x = np.asarray(features, dtype=np.float64)
        _, code, rows = np.unique([str(g) for g in groups], return_inverse=True, return_counts=True)
        patients, weight = len(rows), 1 / rows[code] / len(rows)
        fold = np.random.default_rng(0).permutation(patients)[code] % FOLDS
        weights: list[np.ndarray] = []
        mean: list[float] = []
        sd: list[float] = []
        for order in orders.values():
            turned = x - x[:, order]
            whole, score = _direction(turned), np.empty(len(x))
            for number in np.unique(fold):
                score[fold == number] = turned[fold == number] @ _direction(turned[fold != number])
            middle = float(weight @ score)
            spread = float(np.sqrt(weight @ np.square(score - middle) * patients / (patients - 1)))
            weights, mean, sd = [*weights, whole], [*mean, middle], [*sd, spread]
        distance, own = fit_cohort(x, groups)
        limit = distance_limit(own, groups)["limit"]
        found = (list(orders), list(orders.values()), weights, mean, sd, patients, limit)
        return cls(distance, dict(zip(NAMES, map(np.array, found), strict=True)))

    def __call__(
        self, features: np.ndarray, *, false_alarm: float = FALSE_ALARM, count: int = 1
    ) -> list[tuple[int, int] | None]:
        """The two channels of each row that look exchanged most; None: none do.

        Args:
            features: of patients, or the mean of several.
            false_alarm: share of patients in the given order who are told of, all pairs together (Bonferroni).
            count: patients that a row is the mean of.
        """
        from scipy import stats

        known = self.parts["patients"]
        far = stats.t.isf(false_alarm / len(self.orders), known - 1) * np.sqrt(1 / count + 1 / known)
        limit = np.minimum(self.parts["mean"] - far * self.parts["sd"], 0.0)
        turned = np.stack([features - features[:, order] for order in self.orders.values()], axis=1)
        score = np.einsum("nkp,kp->nk", turned, self.parts["weights"])
        sd = np.where(self.parts["sd"] > 0, self.parts["sd"], 1.0)  # 0: two channels that are the same in all patients
        below = np.where(score < limit, (score - self.parts["mean"]) / sd, np.inf)
        given, pairs = self.distance(features), list(self.orders)
        nearer = [self.distance(features[:, order]) < given for order in self.orders.values()]
        below = np.where(np.transpose(nearer), below, np.inf)
        return [pairs[row.argmin()] if np.isfinite(row).any() else None for row in below]

    def sure(self, features: np.ndarray, pair: tuple[int, int]) -> bool:
        """Whether a row ``[p]`` with two channels exchanged back is like the cohort: else something else is odd."""
        return bool(self.distance(features[None, self.orders[pair]])[0] <= self.parts["limit"])


def _direction(turned: np.ndarray) -> np.ndarray:
    """Weights ``[p]`` of the discriminant between differences and the same with the opposite sign."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    found = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    return found.fit(np.concatenate([turned, -turned]), np.repeat([1, 0], len(turned))).coef_[0]
