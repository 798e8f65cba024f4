"""A prediction in subgroups of the patients: AUC, sensitivity and specificity of each, and how they differ.

Of every column one level is the reference, the one with the most rows; the others' AUCs are compared with its. p is of
the same draws of patients for both, corrected for all comparisons of all columns (Holm); levels of few patients have
none, since draws from a handful of them do not vary as new ones would (one pair is ranked alike in every draw).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.metrics.classification import (
    bootstrap_metrics,
    check_seeds,
    drawn_weights,
    mean_defined,
    percentile_interval,
    weighted_metrics,
)
from shared.metrics.multiplicity import holm_adjusted
from shared.metrics.thresholds import operating_points

FEW = 20
"""Rows (patients) below which a subgroup's figures come with a warning."""
CATEGORIES = 5
"""Numbers with more values than these are cut into thirds."""
_LEVELS = 10
UNKNOWN, OTHERS = "not known", "others"


def subgroup_levels(values: Sequence[Any], owners: Sequence[Any] | None = None) -> list[str]:
    """The level of each row: of numbers with many values thirds; else the values themselves.

    Args:
        values: numbers or texts; None: not known.
        owners: patient of each row: thirds are of patients (by their mean), not of rows.

    Shape:
        - values, owners: ``[n]``

    Example:
        >>> subgroup_levels([30, 40, 50, 60, 70, 80, None])
        ['< 46.67', '< 46.67', '46.67 to 63.33', '46.67 to 63.33', '>= 63.33', '>= 63.33', 'not known']
        >>> subgroup_levels(["F", "M"]), subgroup_levels([2, 4.0])
        (['F', 'M'], ['2', '4'])
    """
    known = [value for value in values if value is not None]
    numeric = bool(known) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
    if numeric and len(set(known)) > CATEGORIES:
        bounds = _thirds(values, owners)
        ends = [f"< {bounds[0]:.4g}", *(f"{a:.4g} to {b:.4g}" for a, b in pairwise(bounds))]
        ends.append(f">= {bounds[-1]:.4g}")
        return [UNKNOWN if v is None else ends[int(np.searchsorted(bounds, v, side="right"))] for v in values]
    texts = [UNKNOWN if v is None else f"{v:.12g}" if isinstance(v, float) else str(v) for v in values]
    names, counts = np.unique([text for text in texts if text != UNKNOWN], return_counts=True)
    if len(names) > _LEVELS:
        kept = {*names[np.argsort(-counts, kind="stable")][: _LEVELS - 1].tolist(), UNKNOWN}
        texts = [text if text in kept else OTHERS for text in texts]
    return texts


def _thirds(values: Sequence[Any], owners: Sequence[Any] | None) -> list[float]:
    of: dict[Any, list[float]] = {}
    for owner, value in zip(range(len(values)) if owners is None else owners, values, strict=True):
        if value is not None:
            of.setdefault(owner, []).append(float(value))
    means = [float(np.mean(own)) for own in of.values()]
    return sorted(set(np.percentile(means, (100 / 3, 200 / 3)).tolist()))


def subgroup_metrics(
    labels: Any,
    probability: Any,
    columns: Mapping[str, Sequence[str]],
    *,
    threshold: Any = 0.5,
    groups: Sequence[Any] | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Metrics of every level of every column.

    Args:
        labels: 0 or 1.
        probability: of class 1; of several seeds all is the mean over them.
        columns: name to the level of each row, as of :func:`subgroup_levels`.
        threshold: from which on a row is called positive: one, or one each (fixed on other patients).
        groups: patient of each row, where a patient has several; they are drawn together.
        bootstrap: draws of the 95 % intervals.
        seed: of the draws.

    Shape:
        - labels, groups, each column: ``[n]``; probability: ``[n]`` or ``[seeds, n]``; threshold: a number or alike
        - returns: of every level ``column``, ``level``, ``n``, ``positives``, ``AUC``, ``sensitivity``,
          ``specificity`` (``{"value", "low", "high"}``, None where not defined), ``reference`` (whether the others are
          compared with it), ``difference`` (AUC minus the reference's, with ``p`` and ``p_holm``, None where either
          has fewer than :data:`FEW` patients; the whole None of the reference, of what is not known, and where
          either has one class), ``few``

    Raises:
        DataError: see ``classification_metrics``; a column of another length.

    Example:
        >>> rows = subgroup_metrics([0, 1] * 4, [0.1, 0.9] * 2 + [0.6, 0.5] * 2, {"sex": list("FFFFMMMM")})
        >>> [(row["level"], row["n"], row["AUC"]["value"]) for row in rows], rows[1]["difference"]["value"]
        ([('F', 4, 1.0), ('M', 4, 0.0)], -1.0)
    """
    truth, both = check_seeds(labels, probability, 1)
    limit = np.broadcast_to(np.asarray(threshold, float), both.shape)
    rows: list[dict[str, Any]] = []
    options: dict[str, Any] = {"bootstrap": bootstrap, "seed": seed}
    for column, levels in columns.items():
        if len(levels) != len(truth):
            raise DataError(f"Subgroups {column!r} need a level of each row, got {len(levels)} for {len(truth)} rows.")
        given = np.array([str(level) for level in levels])
        names, counts = np.unique(given[given != UNKNOWN], return_counts=True)
        if len(names) < 2:
            continue
        reference = str(names[int(counts.argmax())])
        owners = np.arange(len(truth)) if groups is None else np.array([str(group) for group in groups])
        patients = {name: len(np.unique(owners[given == name])) for name in (*names.tolist(), UNKNOWN)}
        drawn = _drawn_aucs(truth, both, given, [*names.tolist()], groups, bootstrap, seed)
        for name in [*_ordered(names.tolist()), *([UNKNOWN] if (given == UNKNOWN).any() else [])]:
            inside = given == name
            own = None if groups is None else [group for group, is_in in zip(groups, inside, strict=True) if is_in]
            found: dict[str, Any] = {"column": column, "level": name, "n": int(inside.sum())}
            found |= {"patients": patients[name]}
            found |= {"positives": int(truth[inside].sum()), "few": found["patients"] < FEW}
            found["AUC"] = _auc(truth[inside], both[:, inside], own, bootstrap, seed)
            point = operating_points(
                truth[inside].astype(int), both[:, inside], {"called": limit[:, inside]}, groups=own, **options
            )["called"]
            found |= {key: point[key] for key in ("sensitivity", "specificity")}
            found |= {"reference": name == reference, "difference": None}
            if name not in (reference, UNKNOWN):
                enough = min(patients[name], patients[reference]) >= FEW
                found["difference"] = _difference(drawn[name], drawn[reference], tested=enough)
            rows.append(found)
    known = [row["difference"] for row in rows if row["difference"] is not None]
    for difference, corrected in zip(known, holm_adjusted([each["p"] for each in known]), strict=True):
        difference["p_holm"] = corrected
    return rows


def _ordered(names: Sequence[str]) -> list[str]:
    """Levels in their order: by the number in them, what begins with < first; texts by name; the others last."""

    def key(name: str) -> tuple:
        text = name.removeprefix("< ").removeprefix(">= ").split(" to ")[0]
        try:
            return (0, float(text), not name.startswith("<"), name)
        except ValueError:
            return (1 + (name == OTHERS), 0.0, False, name)

    return sorted(names, key=key)


def _auc(truth: np.ndarray, both: np.ndarray, groups: Any, bootstrap: int, seed: int) -> dict[str, float | None]:
    if truth.all() or not truth.any():
        return {"value": None, "low": None, "high": None}
    value = mean_defined(weighted_metrics(truth, both, np.ones((1, len(truth))), 0.5, ("AUC",))["AUC"])[0]
    drawn = mean_defined(bootstrap_metrics(truth, both, groups, 0.5, bootstrap, seed, ("AUC",))["AUC"])
    return percentile_interval(float(value), drawn)


def _drawn_aucs(
    truth: np.ndarray, both: np.ndarray, levels: np.ndarray, names: Sequence[str], groups: Any, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """AUC of each level ``[1 + draws]``, first of all rows, then of the same drawn patients for all levels."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    blocks = [np.ones((1, len(truth))), *drawn_weights(truth, groups, draws, seed)]
    for weights in blocks:
        for name in names:
            inside = levels == name
            found = weighted_metrics(truth[inside], both[:, inside], weights[:, inside], 0.5, ("AUC",))["AUC"]
            parts[name].append(mean_defined(found))
    return {name: np.concatenate(found) for name, found in parts.items()}


def _difference(own: np.ndarray, reference: np.ndarray, *, tested: bool) -> dict[str, float | None] | None:
    both = own - reference
    if not np.isfinite(both[0]):
        return None
    drawn = both[1:][np.isfinite(both[1:])]
    sides = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = float(min(1.0, 2 * (1 + sides) / (len(drawn) + 1))) if tested and len(drawn) else None
    return {**percentile_interval(float(both[0]), drawn), "p": p}
