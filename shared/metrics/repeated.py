"""Metrics of predictions made with several seeds, pooled over the folds of each, averaged over seeds, with intervals.

Every bootstrap replicate draws patients (groups, where patients belong together) with replacement and takes each with
all of its patches and the predictions of ALL seeds, so an interval speaks of the figure it stands beside (the mean over
seeds), not of one seed or an ensemble.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.metrics.classification import (
    bootstrap_metrics,
    mean_defined,
    paired_difference,
    percentile_interval,
    weighted_metrics,
)

METRICS = ("ACC", "AUC", "F1", "PRE", "REC", "wF1", "wPRE", "wREC")
COLUMNS = ("seed", "fold", "patient", "label", "probability")
UNITS = ("image", "patient")


@dataclass(frozen=True)
class RepeatedPredictions:
    """Predictions of every patient, or of every patch of the patients, once per seed.

    Shape:
        - patients: the patient of each of ``n`` rows; labels: ``[n]`` of 0 and 1; seeds: ``S`` numbers.
        - folds: ``[S, n]``, the fold in which the row was left out; probability: ``[S, n]`` of class 1.
        - images: the name of each row's patch; None: a row is a patient. Rows are sorted by image, else by patient.
        - families: the group of each row's patient; None: every patient stands alone.
    """

    patients: tuple[str, ...]
    labels: np.ndarray
    seeds: tuple[int, ...]
    folds: np.ndarray
    probability: np.ndarray
    images: tuple[str, ...] | None = None
    families: tuple[str, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What the rows are called."""
        return self.patients if self.images is None else self.images

    @property
    def groups(self) -> tuple[str, ...] | None:
        """What a bootstrap draws together, where that is more than a row."""
        return self.families or (None if self.images is None else self.patients)

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]], *, source: str = "predictions") -> RepeatedPredictions:
        """Collect rows of ``seed, fold, patient, label, probability``; ``image`` where a row is a patch; ``group``.

        Raises:
            DataError: for a patient (image) that is missing from a seed, stands in it twice, has two labels or groups,
                no label 0 or 1, or a probability outside [0, 1].

        Example:
            >>> row = dict(fold=0, label=0, probability=0.5)
            >>> rows = [dict(row, seed=seed, patient=patient) for seed in (0, 1) for patient in "abcd"]
            >>> RepeatedPredictions.from_rows(rows).probability.shape
            (2, 4)
        """
        unit = next((unit for unit in UNITS if rows and unit in rows[0]), "patient")
        odd = [row for row in rows if not _usable(row["label"], row["probability"])]
        if odd:
            rule = "needs a label 0 or 1 and a probability in [0, 1], has"
            found = [(row[unit], row["label"], row["probability"]) for row in odd]
            raise DataError([f"{source}: {unit} {name} {rule} {label!r} and {p!r}" for name, label, p in found])
        labels = {row[unit]: int(row["label"]) for row in rows}
        names, seeds = tuple(sorted(labels)), tuple(sorted({int(row["seed"]) for row in rows}))
        column = {name: i for i, name in enumerate(names)}
        patient = {row[unit]: row["patient"] for row in rows}
        group = {row[unit]: row.get("group") or row["patient"] for row in rows}
        folds = np.full((len(seeds), len(names)), -1)
        probability = np.full((len(seeds), len(names)), np.nan)
        problems = []
        for row in rows:
            cell = seeds.index(int(row["seed"])), column[row[unit]]
            if not np.isnan(probability[cell]):
                problems.append(f"{source}: {unit} {row[unit]} stands twice in seed {row['seed']}")
            if int(row["label"]) != labels[row[unit]]:
                problems.append(f"{source}: {unit} {row[unit]} has two labels")
            if row["patient"] != patient[row[unit]]:
                problems.append(f"{source}: image {row[unit]} is of two patients")
            if (row.get("group") or row["patient"]) != group[row[unit]]:
                problems.append(f"{source}: {unit} {row[unit]} is of two groups")
            folds[cell], probability[cell] = int(row["fold"]), float(row["probability"])
        for seed, name in np.argwhere(np.isnan(probability)):
            problems.append(f"{source}: {unit} {names[name]} has no prediction in seed {seeds[seed]}")
        if problems or not rows:
            raise DataError(problems or f"{source}: no predictions")
        patients, truth = tuple(patient[name] for name in names), np.array([labels[name] for name in names])
        families = tuple(group[name] for name in names) if any(row.get("group") for row in rows) else None
        return cls(patients, truth, seeds, folds, probability, names if unit == "image" else None, families)

    @classmethod
    def read(cls, path: str | os.PathLike) -> RepeatedPredictions:
        """Read a ``predictions.csv`` written by :meth:`rows`."""
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if rows and not set(COLUMNS) <= set(rows[0]):
            raise DataError(f"{path}: columns {', '.join(COLUMNS)} are needed, found {', '.join(rows[0])}")
        return cls.from_rows(rows, source=str(path))

    def rows(self) -> list[dict]:
        """Return one dictionary per seed and patient (image), ready for ``write_csv``."""
        rows = []
        for s, seed in enumerate(self.seeds):
            for i, name in enumerate(self.names):
                row: dict[str, Any] = {"seed": seed, "fold": int(self.folds[s, i])}
                row |= {"patient": name} if self.images is None else {"image": name, "patient": self.patients[i]}
                row |= {} if self.families is None else {"group": self.families[i]}
                rows.append({**row, "label": int(self.labels[i]), "probability": float(self.probability[s, i])})
        return rows


def _usable(label: Any, probability: Any) -> bool:
    try:
        return int(label) in (0, 1) and 0 <= float(probability) <= 1  # not so NaN
    except (TypeError, ValueError):  # a short row has None
        return False


def summarise(
    predictions: RepeatedPredictions,
    *,
    names: Sequence[str] = METRICS,
    bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict:
    """Return the metrics pooled over folds, averaged over seeds: value, interval and spread; and the AUC fold by fold.

    Args:
        predictions: of all seeds.
        names: which of the metrics of ``classification_metrics``.
        bootstrap: replicates, over patients (over groups, where patients belong to some).
        level: of the intervals.
        seed: of the replicates.

    Returns:
        ``{"metrics": {name: {"value", "low", "high", "sd", "seeds": [S]}}, "fold_auc": {"value", "sd", "folds"}}``
        and the counts (``images`` where rows are patches, ``groups`` where patients belong together); ``sd`` is the
        spread between seeds (between folds, in ``fold_auc``), None for a single one.

    Example:
        >>> rows = [dict(seed=0, fold=i % 2, patient=f"{i}", label=i // 4, probability=i / 8) for i in range(8)]
        >>> summary = summarise(RepeatedPredictions.from_rows(rows), bootstrap=50)
        >>> summary["metrics"]["AUC"]["value"], summary["fold_auc"]["value"], summary["patients"]
        (1.0, 1.0, 8)
    """
    labels, probability = predictions.labels, predictions.probability
    if len(set(labels.tolist())) < 2:
        unit = "patients" if predictions.images is None else "images"
        raise DataError(f"metrics need {unit} of both classes, all {len(labels)} have label {labels[0]}")
    of_seeds = _metrics(labels, probability, names)
    samples = bootstrap_metrics(labels == 1, probability, predictions.groups, 0.5, bootstrap, seed, names)  # [S, B]
    metrics: dict[str, dict[str, Any]] = {}
    tails = (50 * (1 - level), 50 * (1 + level))
    for name in names:
        values = of_seeds[name]
        metrics[name] = percentile_interval(float(mean_defined(values)), mean_defined(samples[name]), tails) | {
            "sd": _spread(values)
        }
        metrics[name]["seeds"] = [_plain(value) for value in values]
    folds = _fold_aucs(predictions)
    fold_auc = {"value": _plain(float(mean_defined(folds))), "sd": _spread(folds), "folds": len(folds)}
    images = {} if predictions.images is None else {"images": len(labels)}
    families = {} if predictions.families is None else {"groups": len(set(predictions.families))}
    counts: dict[str, Any] = {"patients": len(set(predictions.patients)), **families, **images}
    counts["positive"] = int(labels.sum())
    counts["seeds"] = list(predictions.seeds)
    return {**counts, "level": level, "bootstrap": bootstrap, "metrics": metrics, "fold_auc": fold_auc}


def paired_seed_difference(
    first: RepeatedPredictions,
    other: RepeatedPredictions,
    metric: str = "AUC",
    *,
    bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, float | None] | None:
    """Return the metric of ``other`` minus that of ``first``, both on the same drawn patients; None where rows differ.

    Returns:
        ``{"value", "low", "high", "p", "undefined"}``, see :func:`shared.metrics.paired_difference`.

    Example:
        >>> rows = [dict(seed=0, fold=0, patient=f"{i}", label=i // 4, probability=i / 8) for i in range(8)]
        >>> same = RepeatedPredictions.from_rows(rows)
        >>> paired_seed_difference(same, same, bootstrap=50)
        {'value': 0.0, 'low': 0.0, 'high': 0.0, 'p': 1.0, 'undefined': 0}
    """
    if (first.names, first.groups) != (other.names, other.groups) or (first.labels != other.labels).any():
        return None
    both = (other.probability, first.probability)
    draws: dict[str, Any] = {"bootstrap": bootstrap, "level": level, "seed": seed}
    return paired_difference(first.labels, *both, metric, groups=first.groups, **draws)


def _metrics(labels: np.ndarray, probability: np.ndarray, names: Sequence[str] = METRICS) -> dict[str, np.ndarray]:
    """Metrics ``[S]`` of every seed."""
    found = weighted_metrics(labels == 1, probability, np.ones((1, len(labels))), 0.5, names)
    return {name: values[:, 0] for name, values in found.items()}


def _fold_aucs(predictions: RepeatedPredictions) -> np.ndarray:
    """The AUC of every fold that holds both classes, over all seeds."""
    aucs = []
    for folds, probability in zip(predictions.folds, predictions.probability, strict=True):
        for fold in np.unique(folds):
            inside = folds == fold
            labels = predictions.labels[inside]
            if 0 < labels.sum() < len(labels):
                aucs.append(_metrics(labels, probability[None, inside], ("AUC",))["AUC"].item())
    return np.array(aucs)


def _plain(value: float) -> float | None:
    """A float for JSON, None for NaN."""
    return float(value) if np.isfinite(value) else None


def _spread(values: np.ndarray) -> float | None:
    """Standard deviation (n - 1) of what is defined, None for fewer than two values."""
    defined = values[np.isfinite(values)]
    return float(np.std(defined, ddof=1)) if len(defined) > 1 else None
