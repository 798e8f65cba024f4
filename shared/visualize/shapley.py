"""Shapley values of biomarkers: their distribution over patients, and one patient's (IRCL Fig. 4a and 4b).

Drawn here rather than by shap, whose plots go through pyplot's global state and do not split by label.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from shared.errors import DataError
from shared.metrics.classification import to_numpy
from shared.visualize.style import NEGATIVE, POSITIVE, new_figure, plain, save


def shapley_distribution(
    values: Any,
    labels: Any,
    path: str | os.PathLike,
    *,
    class_names: Sequence[str] = ("negative", "positive"),
    names: Sequence[str] | None = None,
    shown: Any = None,
    unit: str = "probability",
) -> None:
    """Write one panel per biomarker: histograms of its values in negative and positive patients, their means marked.

    Each panel says of how many patients its means are: of those of the class who show the biomarker.

    Args:
        values: Shapley values.
        labels: label of each patient, 0 or 1.
        path: the picture.
        class_names: names of the two classes.
        names: names of the biomarkers.
        shown: whether the patient shows the biomarker; only those are drawn and averaged. None: all, a biomarker that
            a patient does not show counting as 0.
        unit: of what the values are a contribution to.

    Shape:
        - values: ``[n, K]``, labels: ``[n]``, shown: ``[n, K]`` bool

    Raises:
        DataError: shapes do not fit.
    """
    values, labels, some = to_numpy(values).astype(float), to_numpy(labels), shown is not None
    shown = np.ones(values.shape, dtype=bool) if shown is None else to_numpy(shown).astype(bool)
    if values.ndim != 2 or labels.shape != values.shape[:1] or shown.shape != values.shape:
        raise DataError(
            f"A distribution needs values [n, K] and n labels; got {values.shape}, {labels.shape}, shown {shown.shape}."
        )
    count = values.shape[1]
    columns = min(count, 3 if count <= 9 else 4)
    rows = -(-count // columns)
    limit = max(float(np.abs(values).max(initial=0)), 1e-6) * 1.05
    edges = np.linspace(-limit, limit, 32)
    figure = new_figure(3.5 * columns, 2.35 * rows + 0.9)
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for k, axes in enumerate(grid.flat):
        plain(axes)
        if k >= count:
            axes.set_axis_off()
            continue
        axes.axvline(0, color="0.75", linewidth=0.8)
        lines = []
        for group, colour in ((0, NEGATIVE), (1, POSITIVE)):
            mine = values[(labels == group) & shown[:, k], k]
            if len(mine) == 0:
                lines.append("none (n 0)")
                continue
            weights = np.full(len(mine), 100 / len(mine))
            axes.hist(mine, edges, weights=weights, color=colour, alpha=0.45, edgecolor=colour, linewidth=0.6)
            axes.axvline(mine.mean(), color=colour, linewidth=2, linestyle="--" if group == 0 else "-")
            lines.append(f"{mine.mean():+.3f} (n {len(mine)})")
        axes.set_title(
            f"{names[k] if names else f'Biomarker {k}'}\nmeans {lines[0]} / {lines[1]}", fontsize=9, linespacing=1.3
        )
        axes.tick_params(labelsize=8)
        if k % columns == 0:
            axes.set_ylabel("patients of the class" + ("\nwho show it (%)" if some else " (%)"), fontsize=8)
        if k + columns >= count:
            axes.set_xlabel(f"Shapley value ({unit})", fontsize=8)
            axes.tick_params(labelbottom=True)
    handles = [
        Patch(facecolor=NEGATIVE, alpha=0.5, label=class_names[0]),
        Patch(facecolor=POSITIVE, alpha=0.5, label=class_names[1]),
        Line2D([], [], color=NEGATIVE, linewidth=2, linestyle="--", label=f"mean of {class_names[0]}"),
        Line2D([], [], color=POSITIVE, linewidth=2, label=f"mean of {class_names[1]}"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4 if columns > 2 else 2, fontsize=8.5)
    figure.suptitle("Shapley values of the biomarkers", fontsize=12, fontweight="bold")
    save(figure, path)


def shapley_patient_bars(
    values: Any,
    path: str | os.PathLike,
    *,
    titles: Sequence[str] | None = None,
    base: Any = None,
    full: Any = None,
    shown: Any = None,
    names: Sequence[str] | None = None,
    positive_name: str = "positive",
    unit: str = "probability",
    words: tuple[str, str] = ("without biomarkers", "with them"),
) -> None:
    """Write the biomarkers' contributions to one patient's prediction as bars, or one panel for each of several.

    Args:
        values: Shapley values.
        path: the picture.
        titles: of each patient: name, label.
        base: output without any biomarker; goes with ``full`` into the title.
        full: the prediction.
        shown: whether the patient shows the biomarker; one that it does not is marked so.
        names: names of the biomarkers.
        positive_name: name of the positive class.
        unit: of what the values are a contribution to.
        words: what ``base`` and ``full`` are.

    Shape:
        - values: ``[K]`` or ``[P, K]``, base, full: scalar or ``[P]``, shown: as values

    Raises:
        DataError: shapes do not fit.
    """
    values = np.atleast_2d(to_numpy(values).astype(float))
    patients, count = values.shape
    shown = np.ones(values.shape, bool) if shown is None else np.atleast_2d(to_numpy(shown).astype(bool))
    titles = [""] * patients if titles is None else list(titles)
    ends = [None if x is None else np.atleast_1d(to_numpy(x).astype(float)) for x in (base, full)]
    if (
        shown.shape != values.shape
        or len(titles) != patients
        or any(x is not None and len(x) != patients for x in ends)
    ):
        raise DataError(
            f"Bars of {patients} patients need as many titles, bases and predictions, and shown like values "
            f"{values.shape}; got {len(titles)} titles, shown {shown.shape}."
        )
    names = list(names or [f"Biomarker {k}" for k in range(count)])
    limit = max(float(np.abs(values).max(initial=0)), 1e-6) * 1.3
    figure = new_figure(6.4, patients * (0.85 + 0.27 * count) + 0.35)
    for p, axes in enumerate(figure.subplots(patients, 1, squeeze=False)[:, 0]):
        place = np.arange(count)
        axes.barh(place, values[p], color=np.where(values[p] >= 0, POSITIVE, NEGATIVE), height=0.68)
        axes.axvline(0, color="0.3", linewidth=0.8)
        for k, value in enumerate(values[p]):
            text = f"{value:+.3f}" if shown[p, k] else "not shown"
            right = value >= 0
            axes.annotate(
                text,
                (value, k),
                xytext=(4 if right else -4, 0),
                textcoords="offset points",
                fontsize=8,
                ha="left" if right else "right",
                va="center",
                color="black" if shown[p, k] else "0.55",
            )
        axes.set_yticks(place, names, fontsize=8.5)
        axes.invert_yaxis()
        axes.set_xlim(-limit, limit)
        axes.tick_params(axis="x", labelsize=8)
        line = titles[p]
        if ends[0] is not None and ends[1] is not None:
            line += f"\n{unit} of {positive_name}: {ends[0][p]:.3f} {words[0]}, {ends[1][p]:.3f} {words[1]}"
        axes.set_title(line.strip(), fontsize=10)
        plain(axes)
    axes.set_xlabel(f"Shapley value ({unit}): blue lowers, orange raises {positive_name}", fontsize=9)
    save(figure, path)
