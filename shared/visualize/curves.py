"""Curves of a method's results: ROC, calibration, decision, losses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.metrics.calibration import calibration_report
from shared.metrics.classification import classification_metrics, to_numpy
from shared.visualize.style import NEGATIVE, PALETTE, POSITIVE, new_figure, plain, save

_STYLES = ("-", "--", "-.", ":")
_MEASURES = {"intercept": "intercept", "slope": "slope", "observed_expected": "O:E", "ICI": "ICI"}


def roc_curve_figure(
    curves: Mapping[str, tuple[Any, Any]],
    path: str | os.PathLike,
    *,
    title: str = "ROC curve",
    bootstrap: int = 2000,
    seed: int = 0,
    groups: Sequence[Any] | None = None,
    pdf: bool = False,
) -> None:
    """Write ROC curves of one or several methods, AUC and its 95 % interval in the legend.

    Args:
        curves: name to (labels ``[n]``, probability of the positive class ``[n]``).
        path: the picture.
        pdf: also as PDF beside it.
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
    save(figure, path, pdf=pdf)


def calibration_figure(
    labels: Any,
    probability: Any,
    path: str | os.PathLike,
    *,
    report: Mapping[str, Any] | None = None,
    title: str = "Calibration",
    groups: Sequence[Any] | None = None,
    unit: str | None = None,
    class_names: Sequence[str] = ("negative", "positive"),
    bootstrap: int = 2000,
    seed: int = 0,
    pdf: bool = False,
) -> None:
    """Write the flexible calibration curve with its 95 % band, and how the probability is distributed in each class.

    Args:
        labels: 1 = positive.
        probability: predicted probability of the positive class; of several seeds the curve is the mean.
        path: the picture.
        pdf: also as PDF beside it.
        report: of :func:`shared.metrics.calibration_report`, where it is known already.
        title: over the picture.
        groups: patient of each row, where rows are patches; or group of each patient. They are drawn together.
        unit: what a row is (default: patients, with ``groups`` patches).
        class_names: of class 0 and 1.
        bootstrap: draws of the band.
        seed: of the draws.

    Shape:
        - labels, groups: ``[n]``; probability: ``[n]`` or ``[seeds, n]``
    """
    report = report or calibration_report(labels, probability, groups=groups, bootstrap=bootstrap, seed=seed)
    labels, both = to_numpy(labels), np.atleast_2d(to_numpy(probability)).astype(float)
    unit = unit or ("patients" if groups is None else "patches")
    figure = new_figure(5.2, 6.4)
    upper, lower = figure.subplots(2, 1, height_ratios=[3.2, 1.2], sharex=True)
    upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":", label="perfect")
    curve = {key: np.array(values, dtype=float) for key, values in report["curve"].items()}
    marker = "o" if len(curve["probability"]) == 1 else None
    upper.plot(
        curve["probability"], curve["observed"], color=PALETTE[2], linewidth=2, marker=marker, label="local line"
    )
    band = [curve["probability"], curve["low"], curve["high"]]
    if np.isfinite(band).all():
        upper.fill_between(*band, color=PALETTE[2], alpha=0.2, linewidth=0, label="95 % band")
    upper.set(ylabel="observed share of positives", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    upper.set_title(f"{title} ({len(labels)} {unit}, {int(labels.sum())} positive)", fontsize=12)
    upper.legend(loc="upper left", fontsize=8.5)
    lines = [f"{name} {_measure(report[key])}" for key, name in _MEASURES.items()]
    upper.text(0.98, 0.03, "\n".join(lines), transform=upper.transAxes, ha="right", va="bottom", fontsize=8.5)
    edges = np.linspace(0, 1, 21)
    for side, (value, colour) in enumerate(((1, POSITIVE), (0, NEGATIVE))):
        count = np.histogram(both[:, labels == value], edges)[0] / len(both)
        lower.bar(edges[:-1], count * (1 - 2 * side), width=0.05, align="edge", color=colour, label=class_names[value])
    lower.axhline(0, color="0.3", linewidth=0.8)
    lower.set(xlabel="predicted probability", ylabel=unit)
    lower.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")  # of both classes a number of rows
    lower.yaxis.get_major_locator().set_params(integer=True)
    figure.legend(*lower.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5)
    for axes in (upper, lower):
        plain(axes)
    save(figure, path, pdf=pdf)


def decision_figure(
    curve: Mapping[str, Any],
    path: str | os.PathLike,
    *,
    name: str = "model",
    pdf: bool = False,
) -> None:
    """Write net benefit over the threshold: of the model with its 95 % band, of each control, of all, of none.

    Args:
        curve: of :func:`shared.metrics.decision_curve`.
        path: the picture.
        pdf: also as PDF beside it.
        name: of the model, in the legend.
    """
    threshold = np.array(curve["threshold"])
    figure = new_figure(6.0, 5.0)
    axes = figure.subplots()
    axes.axhline(0, color="0.3", linewidth=1, label="none")
    axes.plot(threshold, curve["all"], color="0.55", linewidth=1.4, linestyle="--", label="all")
    for i, (control, values) in enumerate(curve["controls"].items()):
        axes.plot(threshold, values, color=_colour(i + 3), linestyle=_style(i + 1), linewidth=1.5, label=control)
    axes.plot(threshold, curve["model"], color=PALETTE[2], linewidth=2, label=name, zorder=3)
    band = [np.array(curve[end], dtype=float) for end in ("low", "high")]
    if np.isfinite(band).all():
        axes.fill_between(threshold, *band, color=PALETTE[2], alpha=0.2, linewidth=0, label="95 % band")
    top = max([*curve["model"], *curve["all"], 0.02, *np.nan_to_num(band[1])])
    axes.set(xlabel="threshold probability", ylabel="net benefit (true positives per row)", xlim=(0, 1))
    axes.set_ylim(-0.35 * top, 1.08 * top)  # what lies far below acting on nobody needs no room
    axes.set_title("Decision curve", fontsize=12)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5)
    plain(axes)
    save(figure, path, pdf=pdf)


def loss_curve(
    history: Mapping[str, Sequence[float | None]],
    path: str | os.PathLike,
    *,
    title: str = "Loss",
) -> None:
    """Write one line per loss over the epochs (counted from 1); None is a gap.

    Args:
        history: name to one value per epoch.
        path: the picture.
        title: over the picture.

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
    axes.set(xlabel="epoch", ylabel="loss")
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


def _measure(interval: Mapping[str, float | None]) -> str:
    """``value [low, high]``; a dash for what is not defined or not bounded."""
    value, low, high = ("-" if interval[key] is None else f"{interval[key]:.2f}" for key in ("value", "low", "high"))
    return value if low == high == "-" else f"{value} [{low}, {high}]"
