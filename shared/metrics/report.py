"""Metrics of repeated cross-validation: pooled over the folds of a seed, averaged over seeds, with intervals.

Every bootstrap replicate draws patients with replacement and takes each with the predictions of ALL seeds, so an
interval speaks of the figure it stands beside (the mean over seeds), not of one seed or of an ensemble of seeds.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.errors import DataError
from shared.metrics.classification import _draw, _weighted

METRICS = ("ACC", "AUC", "F1", "PRE", "REC")
COLUMNS = ("seed", "fold", "patient", "label", "probability")


@dataclass(frozen=True)
class RepeatedPredictions:
    """Out-of-fold predictions of every patient, once per seed.

    Shape:
        - patients: ``P`` names, sorted; labels: ``[P]`` of 0 and 1; seeds: ``S`` numbers.
        - folds: ``[S, P]``, the fold in which the patient was validated; probability: ``[S, P]`` of class 1.
    """

    patients: tuple[str, ...]
    labels: np.ndarray
    seeds: tuple[int, ...]
    folds: np.ndarray
    probability: np.ndarray

    @classmethod
    def from_rows(cls, rows: list[Mapping], *, source: str = "predictions") -> RepeatedPredictions:
        """Collect rows of ``seed, fold, patient, label, probability``; every seed must hold every patient once.

        Raises:
            DataError: for a patient that is missing from a seed, stands in it twice, or has two labels.

        Example:
            >>> row = dict(fold=0, label=0, probability=0.5)
            >>> rows = [dict(row, seed=seed, patient=patient) for seed in (0, 1) for patient in "abcd"]
            >>> RepeatedPredictions.from_rows(rows).probability.shape
            (2, 4)
        """
        labels = {row["patient"]: int(row["label"]) for row in rows}
        patients, seeds = tuple(sorted(labels)), tuple(sorted({int(row["seed"]) for row in rows}))
        column = {patient: i for i, patient in enumerate(patients)}
        folds = np.full((len(seeds), len(patients)), -1)
        probability = np.full((len(seeds), len(patients)), np.nan)
        problems = []
        for row in rows:
            cell = seeds.index(int(row["seed"])), column[row["patient"]]
            if not np.isnan(probability[cell]):
                problems.append(f"{source}: patient {row['patient']} stands twice in seed {row['seed']}")
            if int(row["label"]) != labels[row["patient"]]:
                problems.append(f"{source}: patient {row['patient']} has two labels")
            folds[cell], probability[cell] = int(row["fold"]), float(row["probability"])
        for seed, patient in np.argwhere(np.isnan(probability)):
            problems.append(f"{source}: patient {patients[patient]} has no prediction in seed {seeds[seed]}")
        if problems or not rows:
            raise DataError(problems or f"{source}: no predictions")
        return cls(patients, np.array([labels[p] for p in patients]), seeds, folds, probability)

    @classmethod
    def read(cls, path: str | os.PathLike) -> RepeatedPredictions:
        """Read a ``predictions.csv`` written by :meth:`rows`."""
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if rows and not set(COLUMNS) <= set(rows[0]):
            raise DataError(f"{path}: columns {', '.join(COLUMNS)} are needed, found {', '.join(rows[0])}")
        return cls.from_rows(rows, source=str(path))

    def rows(self) -> list[dict]:
        """Return one dictionary per seed and patient, ready for ``write_csv``."""
        rows = []
        for s, seed in enumerate(self.seeds):
            for p, patient in enumerate(self.patients):
                row = {"seed": seed, "fold": int(self.folds[s, p]), "patient": patient, "label": int(self.labels[p])}
                rows.append({**row, "probability": float(self.probability[s, p])})
        return rows


def summarise(predictions: RepeatedPredictions, *, bootstrap: int = 2000, level: float = 0.95, seed: int = 0) -> dict:
    """Return the metrics pooled over folds, averaged over seeds: value, interval and spread; and the AUC fold by fold.

    Returns:
        ``{"metrics": {name: {"value", "low", "high", "sd", "seeds": [S]}}, "fold_auc": {"value", "sd", "folds"}}``
        and the counts; ``sd`` is the spread between seeds (between folds, in ``fold_auc``), None for a single one.

    Example:
        >>> rows = [dict(seed=0, fold=i % 2, patient=f"{i}", label=i // 4, probability=i / 8) for i in range(8)]
        >>> summary = summarise(RepeatedPredictions.from_rows(rows), bootstrap=50)
        >>> summary["metrics"]["AUC"]["value"], summary["fold_auc"]["value"], summary["patients"]
        (1.0, 1.0, 8)
    """
    labels, probability = predictions.labels, predictions.probability
    of_seeds = _metrics(labels, probability, np.ones((1, len(labels))))  # [S, 1]
    samples = _metrics(labels, probability, _drawn_patients(labels, bootstrap, seed))  # [S, B]
    metrics = {}
    for name in METRICS:
        values = of_seeds[name][:, 0]
        low, high = _tails(_mean(samples[name]), level)
        metrics[name] = {"value": _plain(_mean(values)), "low": low, "high": high, "sd": _spread(values)}
        metrics[name]["seeds"] = [_plain(value) for value in values]
    folds = _fold_aucs(predictions)
    fold_auc = {"value": _plain(_mean(folds)), "sd": _spread(folds), "folds": len(folds)}
    counts = {"patients": len(labels), "positive": int(labels.sum()), "seeds": list(predictions.seeds)}
    return {**counts, "level": level, "bootstrap": bootstrap, "metrics": metrics, "fold_auc": fold_auc}


def paired_auc_difference(
    first: RepeatedPredictions, other: RepeatedPredictions, *, bootstrap: int = 2000, level: float = 0.95, seed: int = 0
) -> dict[str, float] | None:
    """Return the AUC of ``other`` minus that of ``first``, both on the same drawn patients; None where patients differ.

    Returns:
        ``{"value", "low", "high", "p"}``; ``p`` is two-sided: twice the share of replicates on the rarer side of zero.

    Example:
        >>> rows = [dict(seed=0, fold=0, patient=f"{i}", label=i // 4, probability=i / 8) for i in range(8)]
        >>> same = RepeatedPredictions.from_rows(rows)
        >>> paired_auc_difference(same, same, bootstrap=50)
        {'value': 0.0, 'low': 0.0, 'high': 0.0, 'p': 1.0}
    """
    if first.patients != other.patients or (first.labels != other.labels).any():
        return None
    weights = np.concatenate([np.ones((1, len(first.labels))), _drawn_patients(first.labels, bootstrap, seed)])
    auc = [_metrics(table.labels, table.probability, weights)["AUC"].mean(axis=0) for table in (first, other)]
    value, samples = (auc[1] - auc[0])[0], (auc[1] - auc[0])[1:]
    low, high = _tails(samples, level)
    p = min(1.0, 2 * (1 + min((samples <= 0).sum(), (samples >= 0).sum())) / (bootstrap + 1))
    return {"value": float(value), "low": low, "high": high, "p": float(p)}


def _metrics(labels: np.ndarray, probability: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics ``[S, B]`` of every seed, of patients counted ``weights [B, P]`` times."""
    return _weighted(labels == 1, probability, weights, 0.5, METRICS)


def _drawn_patients(labels: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """How often each patient is in each replicate, ``[B, P]``; every replicate has both classes."""
    if len(set(labels.tolist())) < 2:
        raise DataError(f"metrics need patients of both classes, all {len(labels)} have label {labels[0]}")
    return _draw(np.random.default_rng(seed), replicates, np.arange(len(labels)), labels == 1)


def _fold_aucs(predictions: RepeatedPredictions) -> np.ndarray:
    """The AUC of every fold that holds both classes, over all seeds."""
    aucs = []
    for folds, probability in zip(predictions.folds, predictions.probability, strict=True):
        for fold in np.unique(folds):
            inside = folds == fold
            labels = predictions.labels[inside]
            if 0 < labels.sum() < len(labels):
                aucs.append(_metrics(labels, probability[None, inside], np.ones((1, len(labels))))["AUC"].item())
    return np.array(aucs)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is defined; NaN where nothing is (precision without a positive call)."""
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(axis=0) / defined.sum(axis=0)


def _tails(samples: np.ndarray, level: float) -> tuple[float | None, float | None]:
    """The percentile interval of what is defined."""
    defined = samples[np.isfinite(samples)]
    if not len(defined):
        return None, None
    low, high = np.percentile(defined, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def _plain(value: float) -> float | None:
    """A float for JSON, None for NaN."""
    return float(value) if np.isfinite(value) else None


def _spread(values: np.ndarray) -> float | None:
    """Standard deviation (n - 1) of what is defined, None for fewer than two values."""
    defined = values[np.isfinite(values)]
    return float(np.std(defined, ddof=1)) if len(defined) > 1 else None
