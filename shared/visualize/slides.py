"""A slide's heat map over its overview, and its most telling tiles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from shared.visualize.style import NEGATIVE, POSITIVE, new_figure, save

LONGEST = 1600  # pixels of a picture's overview


def slide_picture(
    overview: np.ndarray,
    tissue: np.ndarray,
    heat: np.ndarray,
    path: str | os.PathLike,
    *,
    title: str,
    what: str,
    signed: bool = False,
) -> None:
    """Write the overview with the tissue outlined, beside the heat map over the overview.

    Args:
        overview: the slide at low magnification.
        tissue: what was taken for tissue.
        heat: value at each pixel, NaN where no tile is.
        path: the picture.
        title: over it.
        what: the values are.
        signed: they lie about 0; else from 0 to 1.

    Shape:
        - overview: uint8 ``[H, W, 3]``; tissue: bool ``[H, W]``; heat: ``[H, W]``
    """
    step = max(1, -(-max(heat.shape) // LONGEST))
    overview, tissue, heat = overview[::step, ::step], tissue[::step, ::step], heat[::step, ::step]
    height, width = heat.shape
    each = (5.4, 5.4 * height / width) if width >= height else (5.4 * width / height, 5.4)
    figure = new_figure(max(2 * each[0], 5.0) + 1.0, each[1] + 0.8)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.imshow(overview, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
    if tissue.any() and not tissue.all():
        left.contour(tissue, levels=[0.5], colors="#009E73", linewidths=0.8)
    left.set_title("slide; green: tissue", fontsize=9)
    values = np.ma.masked_invalid(heat)
    most = float(np.abs(values).max()) if signed and values.count() else 1.0
    # neither has a colour of eosin or haematoxylin at its ends
    scale = {"cmap": "PuOr_r", "vmin": -most, "vmax": most} if signed else {"cmap": "viridis", "vmin": 0, "vmax": 1}
    shown = right.imshow(values, alpha=0.65, interpolation="nearest", **scale)
    right.set_title(what, fontsize=9)
    figure.colorbar(shown, ax=right, fraction=0.04, pad=0.02)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    save(figure, path)


def tile_gallery(
    rows: Sequence[Sequence[tuple[Any, float, tuple[int, int]]]],
    path: str | os.PathLike,
    *,
    names: Sequence[str],
    title: str,
) -> None:
    """Write rows of tiles, each with its value and its place on the slide.

    Args:
        rows: of each row tiles uint8 ``[H, W, 3]`` with a value and corner (x, y) in pixels of level 0.
        path: the picture.
        names: what each row shows.
        title: over the picture.
    """
    columns = max(len(row) for row in rows)
    figure = new_figure(max(1.25 * columns, 4.5), 0.8 + 1.75 * len(rows))
    cells = figure.subplots(len(rows), columns, squeeze=False)
    for row, line, name, colour in zip(rows, cells, names, (POSITIVE, NEGATIVE), strict=False):
        for cell in line:
            cell.set_axis_off()
        for (pixels, value, (x, y)), cell in zip(row, line, strict=False):
            cell.set_axis_on()
            cell.imshow(pixels, interpolation="nearest")
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set(color=colour, linewidth=2)
            cell.set_title(f"{value:.3g}\nx {x} y {y}", fontsize=6.5, pad=2)
        text = line[0].annotate(name, (0, 1.32), xycoords="axes fraction", fontsize=9, fontweight="bold", va="bottom")
        text.set_in_layout(False)  # its width must not widen the first column
    figure.suptitle(f"{title}\n", fontsize=11, fontweight="bold")
    save(figure, path)
