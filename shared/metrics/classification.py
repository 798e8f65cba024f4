"""Binary classification metrics of patients or their patches, with 95 % bootstrap intervals (IRCL section 4.1).

Efron and Tibshirani, An Introduction to the Bootstrap (1993), percentile intervals. Patients are drawn with
replacement, not stratified by label, so that the interval includes the chance of how many positives there are; a draw
with one class only, on which no AUC exists, is drawn again.

``F1``, ``PRE`` and ``REC`` are those of the positive class. ``wF1``, ``wPRE`` and ``wREC`` are the means over both
classes, each weighted by its number of rows, as the IRCL paper's Table 2 holds them (REC = ACC in every row, which is
always so of ``wREC``); a class that is never called counts with 0, as in scikit-learn.

Probabilities are those of the population, so that 0.5 calls the likelier class, of which a rarer one may have few.
``BACC`` is therefore taken where it says something of both classes: from the share of positives on.

``ECE`` and ``SLOPE`` are asked for by name. ECE is the expected calibration error: the mean distance of a tenth's share
of positives from its mean probability, each tenth of [0, 1] weighted by its rows (Guo et al., On Calibration of Modern
Neural Networks, 2017); it is not 0 where few rows are perfectly calibrated. SLOPE is that of a logistic regression of
the labels on the log odds (Cox, 1958): 1 is right, below 1 the probabilities are too extreme, above 1 too timid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from shared.errors import DataError

METRICS = ("ACC", "AUC", "F1", "PRE", "REC", "wF1", "wPRE", "wREC", "BACC", "BRIER")
CALIBRATION = ("ECE", "SLOPE")
_BINS = 10
_CELLS = 4_000_000


def classification_metrics(
    labels: Any,
    probability: Any,
    *,
    threshold: float = 0.5,
    bootstrap: int = 2000,
    seed: int = 0,
    positive: int = 1,
    groups: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Accuracy, AUC, F1, precision, recall, balanced accuracy and Brier score, each with its 95 % interval.

    Args:
        labels: labels of two classes.
        probability: predicted probability of the positive class; it is called positive from ``threshold`` on.
        threshold: decision threshold of all but BACC, whose is the share of positives among the rows.
        bootstrap: draws; 0: no intervals.
        seed: seed of the draws.
        positive: the positive label.
        groups: patient of each row, where a patient has several (patches, repeated cross-validation): they are drawn
            together.

    Shape:
        - labels, probability, groups: ``[n]``
        - returns: ``{"ACC": {"value", "low", "high"}, ..., "n": rows, "positives": rows}``; what is not defined (AUC of
          one class, precision without a positive call) is None, never NaN

    Raises:
        DataError: nothing to score, lengths that differ, more than two classes, a probability that is none.

    Example:
        >>> metrics = classification_metrics([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9])
        >>> metrics["AUC"]["value"], metrics["ACC"]["value"], metrics["positives"]
        (0.75, 0.5, 2)
    """
    truth, probability = check_predictions(labels, probability, positive)
    value = weighted_metrics(truth, probability[None], np.ones((1, len(truth))), threshold)
    drawn = bootstrap_metrics(truth, probability[None], groups, threshold, bootstrap, seed, METRICS)
    result: dict[str, Any] = {name: percentile_interval(value[name][0, 0], drawn[name][0]) for name in METRICS}
    return result | {"n": len(truth), "positives": int(truth.sum())}


def paired_difference(
    labels: Any,
    prob_a: Any,
    prob_b: Any,
    metric: str = "AUC",
    *,
    threshold: float = 0.5,
    bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    positive: int = 1,
    groups: Sequence[Any] | None = None,
) -> dict[str, float | None]:
    """Difference a - b of a metric between two predictions of the same rows, with its interval and p.

    Both are scored on the same draws, which is far sharper than comparing two intervals. Where a method was trained
    with several seeds its metric is the mean over them.

    Args:
        labels: labels of two classes.
        prob_a: probabilities of one method.
        prob_b: probabilities of the other, same order.
        metric: one of ``METRICS`` or ``CALIBRATION``: ACC, AUC, F1, ...
        threshold: decision threshold.
        bootstrap: draws.
        level: of the interval.
        seed: seed of the draws.
        positive: the positive label.
        groups: patient of each row, where a patient has several.

    Shape:
        - labels, groups: ``[n]``; prob_a, prob_b: ``[n]`` or ``[seeds, n]``, each with seeds of its own
        - returns: ``{"value", "low", "high", "p", "undefined"}``; ``p`` is two-sided: twice the share of draws on the
          rarer side of zero; None without draws. Interval and p are of the draws in which the metric of both exists,
          ``undefined`` is the number of the others (no precision without a positive call)

    Raises:
        DataError: see ``classification_metrics``; or an unknown metric.

    Example:
        >>> paired_difference([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], [0.1, 0.6, 0.4, 0.9])["value"]
        0.25
    """
    if metric not in METRICS + CALIBRATION:
        raise DataError(f"The metric must be one of {', '.join(METRICS + CALIBRATION)}, got {metric!r}.")
    truth, first = check_seeds(labels, prob_a, positive)
    both, split = np.concatenate([first, check_seeds(labels, prob_b, positive)[1]]), len(first)
    value = weighted_metrics(truth, both, np.ones((1, len(truth))), threshold, (metric,))[metric]
    drawn = bootstrap_metrics(truth, both, groups, threshold, bootstrap, seed, (metric,))[metric]
    value, drawn = (mean_defined(x[:split]) - mean_defined(x[split:]) for x in (value, drawn))
    defined = drawn[np.isfinite(drawn)]
    sides = min((defined <= 0).sum(), (defined >= 0).sum())
    p = float(min(1.0, 2 * (1 + sides) / (len(defined) + 1))) if len(defined) else None
    tails = (50 * (1 - level), 50 * (1 + level))
    return percentile_interval(value[0], defined, tails) | {"p": p, "undefined": len(drawn) - len(defined)}


def check_predictions(labels: Any, probability: Any, positive: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether each row is positive, and its probability.

    Raises:
        DataError: shapes that differ, more than two classes, or probabilities outside [0, 1].
    """
    labels, probability = to_numpy(labels), to_numpy(probability).astype(np.float64)
    if labels.ndim != 1 or labels.shape != probability.shape or len(labels) == 0:
        raise DataError(
            "Metrics need one label and one probability per patient, at least one patient; got shapes "
            f"{labels.shape} and {probability.shape}."
        )
    classes = np.unique(labels)
    if len(classes) > 2 or (len(classes) == 2 and positive not in classes):
        raise DataError(f"Labels must be of two classes, one of them {positive}; got {classes[:10].tolist()}.")
    bad = np.flatnonzero(~((probability >= 0) & (probability <= 1)))
    if len(bad):
        raise DataError(
            f"Probabilities must lie in [0, 1]; {len(bad)} of {len(labels)} do not, the first at row {bad[0]} "
            f"({probability[bad[0]]})."
        )
    return labels == positive, probability


def check_seeds(labels: Any, probability: Any, positive: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether each row is positive, and its probability in every seed, ``[seeds, n]``.

    Raises:
        DataError: see :func:`check_predictions`.
    """
    checked = [check_predictions(labels, row, positive) for row in np.atleast_2d(to_numpy(probability))]
    if not checked:
        raise DataError("Metrics need the probabilities of one seed at least, got none.")
    return checked[0][0], np.stack([row for _, row in checked])


def bootstrap_metrics(truth, probability, groups, threshold, draws, seed, names) -> dict[str, np.ndarray]:
    """Metrics ``[methods, draws]`` over draws of patients."""
    parts = [
        weighted_metrics(truth, probability, w, threshold, names) for w in drawn_weights(truth, groups, draws, seed)
    ]
    none = np.empty((len(probability), 0))
    return {name: np.concatenate([none, *(part[name] for part in parts)], axis=1) for name in names}


def drawn_weights(truth: np.ndarray, groups: Sequence[Any] | None, draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is in each draw of whole groups, ``[draws, n]`` in blocks that fit into memory."""
    if groups is not None and len(groups) != len(truth):
        raise DataError(f"One group per row is needed, got {len(groups)} for {len(truth)} rows.")
    code = np.arange(len(truth)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    random = np.random.default_rng(seed)
    step = max(1, _CELLS // len(truth))
    for start in range(0, draws, step):
        yield _draw(random, min(step, draws - start), code, truth)


def _draw(random: np.random.Generator, draws: int, code: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How often each row is in each draw, ``[draws, n]``; a draw with one class is repeated while there are two."""
    size = int(code.max()) + 1
    weights = np.empty((draws, len(code)))
    todo = np.arange(draws)
    while len(todo):
        picked = random.integers(0, size, (len(todo), size)) + size * np.arange(len(todo))[:, None]
        count = np.bincount(picked.ravel(), minlength=size * len(todo)).reshape(len(todo), size)
        weights[todo] = count[:, code]
        one_class = (weights[todo][:, truth].sum(axis=1) == 0) | (weights[todo][:, ~truth].sum(axis=1) == 0)
        todo = todo[one_class] if 0 < truth.sum() < len(truth) else todo[:0]
    return weights


def weighted_metrics(
    truth: np.ndarray, probability: np.ndarray, weights: np.ndarray, threshold: float, names: Sequence[str] = METRICS
) -> dict[str, np.ndarray]:
    """Metrics ``[methods, draws]`` of rows counted ``weights [draws, n]`` times; NaN where not defined."""
    total, positives = weights.sum(axis=1), weights @ truth
    negatives = total - positives
    tp, fp, tn, fn = _cells(truth, probability >= threshold, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        f1, precision = 2 * tp / (2 * tp + fp + fn), tp / (tp + fp)
        other_f1, other_precision = 2 * tn / (2 * tn + fp + fn), tn / (tn + fn)

        def both(first: np.ndarray, other: np.ndarray) -> np.ndarray:
            return (np.nan_to_num(first) * positives + np.nan_to_num(other) * negatives) / total

        known = {
            "ACC": (tp + tn) / total,
            "F1": f1,
            "PRE": precision,
            "REC": tp / positives,
            "wF1": both(f1, other_f1),
            "wPRE": both(precision, other_precision),
            "wREC": (tp + tn) / total,
            "BRIER": (probability - truth) ** 2 @ weights.T / total,
        }
        if "BACC" in names:
            tp, _, tn, _ = _cells(truth, probability >= truth.mean(), weights)
            known["BACC"] = (tp / positives + tn / negatives) / 2
    if "AUC" in names:
        known["AUC"] = np.stack([_auc(truth, row, weights) for row in probability])
    if "ECE" in names:
        known["ECE"] = np.stack([_calibration_error(truth, row, weights) for row in probability]) / total
    if "SLOPE" in names:
        from shared.metrics.calibration import calibration_slopes

        known["SLOPE"] = np.stack([calibration_slopes(truth, row, weights) for row in probability])
    return {name: known[name] for name in names}


def _cells(truth: np.ndarray, called: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Right and wrong positives, right and wrong negatives, each ``[methods, draws]``."""
    cells = (called & truth, called & ~truth, ~called & ~truth, ~called & truth)
    return tuple(cell @ weights.T for cell in cells)


def _auc(truth: np.ndarray, probability: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted rank formula: the share of (positive, negative) pairs in the right order, ties counted half."""
    order = np.argsort(probability, kind="stable")
    starts = np.flatnonzero(np.diff(probability[order], prepend=-1.0))
    weights, truth = weights[:, order], truth[order]
    negative = np.add.reduceat(weights * ~truth, starts, axis=1)
    positive = np.add.reduceat(weights * truth, starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))


def _calibration_error(truth: np.ndarray, probability: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum over the tenths of [0, 1] of how far positives and summed probabilities are apart, ``[draws]``."""
    inside = np.eye(_BINS)[np.minimum((probability * _BINS).astype(int), _BINS - 1)]
    return np.abs((weights * (truth - probability)) @ inside).sum(axis=1)


def mean_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is defined; NaN where nothing is (precision without a positive call)."""
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(axis=0) / defined.sum(axis=0)


def percentile_interval(
    value: float, drawn: np.ndarray, tails: Sequence[float] = (2.5, 97.5)
) -> dict[str, float | None]:
    """A value and the percentiles of the draws in which it is defined; None where it is not."""
    defined = drawn[np.isfinite(drawn)]
    low, high = np.percentile(defined, tails) if len(defined) and np.isfinite(value) else (None, None)
    plain = [float(x) if x is not None and np.isfinite(x) else None for x in (value, low, high)]
    return dict(zip(("value", "low", "high"), plain, strict=True))


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


def to_numpy(x: Any) -> np.ndarray:
    """``x`` as a NumPy array, a tensor detached and on the CPU, without importing torch.

    Example:
        >>> to_numpy([1.0, 2.0]).tolist()
        [1.0, 2.0]
    """
    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
