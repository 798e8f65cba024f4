"""Curves of a method's results: ROC, calibration, losses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.metrics.classification import classification_metrics, to_numpy
from shared.visualize.style import NEGATIVE, PALETTE, POSITIVE, new_figure, plain, save

_STYLES = ("-", "--", "-.", ":")


def roc_curve_figure(
    curves: Mapping[str, tuple[Any, Any]],
    path: str | os.PathLike,
    *,
    title: str = "ROC curve",
    bootstrap: int = 2000,
    seed: int = 0,
    groups: Sequence[Any] | None = None,
) -> None:
    """Write ROC curves of one or several methods, AUC and its 95 % interval in the legend.

    Args:
        curves: name to (labels ``[n]``, probability of the positive class ``[n]``).
        path: the picture.
        title: over the picture.
        bootstrap: draws of the interval.
        seed: seed of the draws.
        groups: patient of each row, the same in all curves, where a patient has several; they are drawn together.

    Raises:
        DataError: there is no curve, or one class only in it.
    """
    from sklearn.metrics import roc_curve

    if not curves:
        raise DataError("A ROC figure needs at least one curve.")
    figure = new_figure(5.2, 5.2)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":", label="chance")
    for i, (name, (labels, probability)) in enumerate(curves.items()):
        metrics = classification_metrics(labels, probability, bootstrap=bootstrap, seed=seed, groups=groups)
        auc = metrics["AUC"]
        if auc["value"] is None:
            unit = "patients" if groups is None else "patches"
            raise DataError(f"{name}: a ROC curve needs both classes, got {metrics['n']} {unit} of one.")
        fpr, tpr, _ = roc_curve(to_numpy(labels), to_numpy(probability))
        interval = f" [{auc['low']:.2f}, {auc['high']:.2f}]" if auc["low"] is not None else ""
        label = f"{name}: AUC {auc['value']:.2f}{interval}".removeprefix(": ")
        axes.plot(fpr, tpr, color=_colour(i), linestyle=_style(i), linewidth=2, label=label, zorder=3)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set_title(title, fontsize=12)
    axes.legend(loc="lower right", fontsize=8.5)
    plain(axes)
    save(figure, path)


def calibration_figure(
    labels: Any,
    probability: Any,
    path: str | os.PathLike,
    *,
    bins: int = 5,
    title: str = "Calibration",
    groups: Sequence[Any] | None = None,
    unit: str | None = None,
    class_names: Sequence[str] = ("negative", "positive"),
) -> None:
    """Write predicted against observed share of positives, in bins of equally many rows, with Wilson intervals.

    The patches of a patient are no independent patients, nor are patients of one group: with ``groups`` a bin counts as
    many rows as it has groups.

    Args:
        labels: 1 = positive.
        probability: predicted probability of the positive class.
        path: the picture.
        bins: bins of equally many rows.
        title: over the picture.
        groups: patient of each row, where rows are patches; or group of each patient.
        unit: what a row is (default: patients, with ``groups`` patches).
        class_names: of class 0 and 1.

    Shape:
        - labels, probability, groups: ``[n]``
    """
    brier = classification_metrics(labels, probability, bootstrap=0)["BRIER"]["value"]
    labels, probability = to_numpy(labels), to_numpy(probability).astype(float)
    figure = new_figure(5.2, 6.0)
    upper, lower = figure.subplots(2, 1, height_ratios=[3.4, 1], sharex=True)
    upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":", label="perfect")
    parts = [part for part in np.array_split(np.argsort(probability, kind="stable"), bins) if len(part)]
    x = np.array([probability[part].mean() for part in parts])
    y = np.array([labels[part].mean() for part in parts])
    unit = unit or ("patients" if groups is None else "patches")
    code = np.arange(len(labels)) if groups is None else np.asarray(groups)
    count = [len(np.unique(code[part])) for part in parts]
    low, high = np.array([_wilson(share * n, n) for share, n in zip(y, count, strict=True)]).T
    error = np.maximum([y - low, high - y], 0)
    upper.errorbar(
        x,
        y,
        yerr=error,
        marker="o",
        color=PALETTE[2],
        capsize=3,
        linewidth=1.6,
        label=f"{len(parts)} bins of about {len(parts[0])} {unit}, 95 % intervals",
    )
    upper.set(ylabel="observed share of positives", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    upper.set_title(f"{title} (Brier score {brier:.3f}, {len(labels)} {unit})", fontsize=12)
    upper.legend(loc="upper left", fontsize=8.5)
    edges = np.linspace(0, 1, 21)
    lower.hist(
        [probability[labels == 0], probability[labels == 1]],
        edges,
        stacked=True,
        color=[NEGATIVE, POSITIVE],
        label=list(class_names),
    )
    lower.set(xlabel="predicted probability", ylabel=unit)
    lower.yaxis.get_major_locator().set_params(integer=True)
    figure.legend(*lower.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5)
    for axes in (upper, lower):
        plain(axes)
    save(figure, path)


def loss_curve(
    history: Mapping[str, Sequence[float | None]],
    path: str | os.PathLike,
    *,
    title: str = "Loss",
    xlabel: str = "epoch",
    ylabel: str = "loss",
    mark: int | None = None,
) -> None:
    """Write one line per loss over the epochs (counted from 1); None is a gap.

    Args:
        history: name to one value per epoch.
        path: the picture.
        title: over the picture.
        xlabel: unit of the abscissa.
        ylabel: what the values are.
        mark: epoch to mark (of the checkpoint that was kept).

    Raises:
        DataError: there is nothing to draw.
    """
    if not history or not any(len(values) for values in history.values()):
        raise DataError("A loss curve needs at least one value.")
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    for i, (name, values) in enumerate(history.items()):
        y = np.array([np.nan if value is None else value for value in values], dtype=float)
        axes.plot(
            np.arange(1, len(y) + 1),
            y,
            color=_colour(i),
            linestyle=_style(i),
            linewidth=1.8,
            label=name,
            marker="o" if len(y) < 30 else None,
            markersize=3,
        )
    if mark is not None:
        axes.axvline(mark, color="0.5", linewidth=1, linestyle=":", label=f"kept: {xlabel} {mark}")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, fontsize=12)
    axes.grid(axis="y", color="0.9")
    from matplotlib.ticker import AutoLocator

    locator = AutoLocator()
    locator.set_params(integer=True)
    axes.xaxis.set_major_locator(locator)
    axes.legend(fontsize=8.5)
    plain(axes)
    save(figure, path)


def _colour(i: int) -> str:
    return PALETTE[i % len(PALETTE)]


def _style(i: int) -> str:
    return _STYLES[i % len(_STYLES)]


def _wilson(hits: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, sensible also for few patients and for shares of 0 and 1."""
    share = hits / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return float(centre - half), float(centre + half)
