"""Several explanations of the same images side by side (IRCL Fig. 5)."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from shared.errors import DataError
from shared.metrics.classification import to_numpy
from shared.visualize.overlay import OUTLINE
from shared.visualize.style import grey_of, heat, picture, save, signed_heat

TRUTH = "#00E5A0"
_SIDE, _GAP, _LEFT = 1.2, 0.05, 1.8  # inches
_LETTERS = 22  # of a row's title in a line


def explanation_grid(
    images: Any,
    maps: Mapping[str, Any],
    path: str | os.PathLike,
    *,
    titles: Sequence[str],
    outline: Any = None,
    truth: Any = None,
    truth_name: str = "planted pattern",
    signed: Collection[str] = (),
    header: str = "",
) -> None:
    """Write a picture of images, a row each: first the image itself, then under the map of every method.

    Args:
        images: grey images of any range, or colour images in [0, 1], which are grey under their maps.
        maps: by method the map of each image, in [0, 1], or signed, in [-1, 1]; 0 is clear.
        path: the picture.
        titles: of each row; lines are broken at ``\\n``.
        outline: tumour of each image, non-zero inside, drawn dashed.
        truth: what was planted in each image, non-zero inside, drawn as a line.
        truth_name: its name in the legend.
        signed: methods whose maps are signed: orange above 0, blue below.
        header: over the picture.

    Shape:
        - images: ``[n, H, W]`` or ``[n, 3, H, W]``; each map, outline, truth: ``[n, H, W]``

    Raises:
        DataError: shapes or the number of titles do not fit, or there is no map.
    """
    images = to_numpy(images)
    laid = {name: to_numpy(values) for name, values in maps.items()}
    lines = {key: to_numpy(x) != 0 for key, x in (("outline", outline), ("truth", truth)) if x is not None}
    plane = (len(images), *images.shape[-2:]) if images.ndim == 4 and images.shape[1] == 3 else images.shape
    wrong = [f"{name} {x.shape}" for name, x in {**laid, **lines}.items() if x.shape != plane]
    if len(plane) != 3 or wrong or not laid or len(titles) != len(images):
        raise DataError(
            "A picture of explanations needs images [n, H, W], at least one map of the same shape, and n titles; got "
            f"{images.shape}, {', '.join(wrong) or f'{len(laid)} maps'}, {len(titles)} titles."
        )
    top = 0.75 if header else 0.45
    columns = ["image", *laid]
    width = _LEFT + len(columns) * (_SIDE + _GAP) + 0.1
    height = top + len(images) * (_SIDE + _GAP) + 0.4
    figure = Figure(figsize=(width, height))
    for row, image in enumerate(images):
        y = top + row * (_SIDE + _GAP)
        for column, name in enumerate(columns):
            x = _LEFT + column * (_SIDE + _GAP)
            place = (x / width, 1 - (y + _SIDE) / height, _SIDE / width, _SIDE / height)
            axes = figure.add_axes(place)
            picture(axes, grey_of(image) if name in laid else image)
            if name in laid:
                low, colours = (-1, signed_heat()) if name in signed else (0, heat())
                axes.imshow(laid[name][row], cmap=colours, vmin=low, vmax=1, interpolation="nearest")
            for key, colour, style in (("outline", OUTLINE, "--"), ("truth", TRUTH, "-")):
                region = lines.get(key, np.zeros((len(images), 0, 0), bool))[row]
                if region.any() and not region.all():
                    axes.contour(region, [0.5], colors=colour, linewidths=0.9, linestyles=style)
            if row == 0:
                # two long names beside each other would touch
                axes.set_title("\n".join(name.rsplit(" ", 1)) if len(name) > 14 else name, fontsize=9)
        title = "\n".join(part for line in titles[row].split("\n") for part in wrap(line, _LETTERS))
        figure.text((_LEFT - 0.1) / width, 1 - (y + _SIDE / 2) / height, title, ha="right", va="center", fontsize=8)
    names = {"outline": ("tumour", OUTLINE, "--"), "truth": (truth_name, TRUTH, "-")}
    handles = [Line2D([], [], label=names[key][0], color=names[key][1], linestyle=names[key][2]) for key in lines]
    if handles:
        legend = {"loc": "lower left", "bbox_to_anchor": (_LEFT / width, 0.02 / height), "ncols": 2, "fontsize": 8}
        figure.legend(handles=handles, facecolor="0.35", labelcolor="white", borderaxespad=0, **legend)
    if header:
        figure.text(0.1 / width, 1 - 0.1 / height, header, va="top", fontsize=11, fontweight="bold")
    save(figure, path, dpi=130)
