"""How a method's score grows with the patients whose labels are known."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import FixedLocator, NullLocator

from shared.apps.experiments.label_efficiency import METRICS
from shared.errors import DataError
from shared.visualize.style import PALETTE, new_figure, plain, save

_STYLES, _MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D")


def label_efficiency_figure(
    rows: Sequence[Mapping], path: str | os.PathLike, *, title: str = "Label efficiency"
) -> None:
    """Write a panel a metric: a point a draw, a line through the means, a band from the smallest to the largest draw.

    Args:
        rows: one a run, with ``fraction, labelled_patients, arm`` and the metrics.
        path: the picture.
        title: over the picture.

    Raises:
        DataError: there is nothing to draw.
    """
    if not rows:
        raise DataError("A figure of label efficiency needs at least one run.")
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    fractions = sorted({row["fraction"] for row in rows})
    x = [np.mean([row["labelled_patients"] for row in rows if row["fraction"] == f]) for f in fractions]
    figure = new_figure(1.2 + 4.6 * len(METRICS), 4.4)
    panels = figure.subplots(1, len(METRICS), squeeze=False)[0]
    for axes, metric in zip(panels, METRICS, strict=True):
        for i, arm in enumerate(arms):
            style = {"color": PALETTE[i % len(PALETTE)]}
            values = [[r[metric] for r in rows if r["fraction"] == f and r["arm"] == arm] for f in fractions]
            known = [k for k, found in enumerate(values) if found]
            place = np.array([x[k] for k in known])
            low, mean, high = (np.array([stat(values[k]) for k in known]) for stat in (np.min, np.mean, np.max))
            axes.fill_between(place, low, high, alpha=0.15, linewidth=0, **style)
            for k in known:
                shifted = np.full(len(values[k]), x[k] * 1.03 ** (i - (len(arms) - 1) / 2))
                axes.plot(shifted, values[k], _MARKERS[i % 4], markersize=3, alpha=0.7, **style)
            line = {"linestyle": _STYLES[i % 4], "marker": _MARKERS[i % 4], "linewidth": 2, "label": arm}
            axes.plot(place, mean, **line, **style)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(x))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{count:.3g}\n{f:.0%}" for count, f in zip(x, fractions, strict=True)])
        axes.set(xlabel="labelled patients (share of all that train)", ylabel=metric)
        axes.grid(axis="y", color="0.9")
        plain(axes)
    panels[0].legend(loc="lower right", fontsize=9)
    figure.suptitle(title, fontsize=12)
    save(figure, path)
