"""Images, each beside itself under its mask or heat map (IRCL Fig. 5)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from shared.errors import DataError
from shared.metrics.classification import to_numpy
from shared.visualize.style import NEGATIVE, POSITIVE, grey_of, heat, new_figure, picture, plain, save, signed_heat

OUTLINE, BOX = "#56B4E9", "#00E5A0"
SIGNED_OUTLINE = "black"  # of a signed map blue is what speaks against
_SIDE, _GAP = 1.75, 0.06  # inches


def overlay_grid(
    images: Any,
    masks: Any,
    path: str | os.PathLike,
    *,
    titles: Sequence[str],
    outline: Any = None,
    outline_name: str = "tumour",
    header: str = "",
    columns: int = 3,
    contour: float | None = 0.5,
    boxes: Sequence[Any] | None = None,
    key: str = "mask Q\n1 kept\n0 hidden",
    signed: bool = False,
) -> None:
    """Write a picture of images (all of a patient, say), each beside itself under its mask.

    Args:
        images: grey images of any range, or colour images in [0, 1], which are grey under their mask: its colours
            would not be told from theirs.
        masks: mask of each, in [0, 1], or a signed map, in [-1, 1].
        path: the picture.
        titles: of each image: what it is, its biomarker, the similarity. Lines are broken at ``\\n``.
        outline: tumour of each image, non-zero inside, drawn as a line.
        outline_name: its name in the legend.
        header: over the picture: patient, probability, label.
        columns: images in a row; the number of slices puts each modality in a row of its own.
        contour: mask value at which a line is drawn; None: no line.
        boxes: of each image, a half-open box (``x0, y0, x1, y1, ...``) in pixels, or None.
        key: over the mask's colours: what it is, what they mean.
        signed: colours for and against, none where a map is 0.

    Shape:
        - images: ``[m, H, W]`` or ``[m, 3, H, W]``; masks, outline: ``[m, H, W]``

    Raises:
        DataError: shapes or the number of titles do not fit.
    """
    images, masks = to_numpy(images), to_numpy(masks)
    outline = None if outline is None else to_numpy(outline) != 0
    plane = (len(images), *images.shape[-2:]) if images.ndim == 4 and images.shape[1] == 3 else images.shape
    if len(plane) != 3 or masks.shape != plane or len(titles) != len(images):
        raise DataError(
            "An overlay needs images [m, H, W] or [m, 3, H, W], masks [m, H, W] and m titles; got "
            f"{images.shape}, {masks.shape}, {len(titles)}."
        )
    if outline is not None and outline.shape != plane:
        raise DataError(f"The outline must have the images' shape {plane}, got {outline.shape}.")
    if boxes is not None and len(boxes) != len(images):
        raise DataError(f"One box, or None, is needed for each of {len(images)} images, got {len(boxes)}.")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    title_height = 0.1 + 0.16 * (1 + max(title.count("\n") for title in titles))
    cell_width, cell_height = 2 * _SIDE + _GAP + 0.3, _SIDE + title_height + 0.12
    width = columns * cell_width + 1.35
    height = max(rows * cell_height, 2.1) + (0.45 if header else 0.1)
    figure = Figure(figsize=(width, height))

    def place(left: float, top: float, wide: float, high: float) -> Axes:
        # inches from the upper left corner: the pictures stay as large as they are whatever the titles hold
        return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))

    line = SIGNED_OUTLINE if signed else OUTLINE
    for i, (image, mask, title) in enumerate(zip(images, masks, titles, strict=True)):
        x = 0.15 + (i % columns) * cell_width
        y = (0.45 if header else 0.1) + (i // columns) * cell_height + title_height
        pair = [place(x + side * (_SIDE + _GAP), y, _SIDE, _SIDE) for side in range(2)]
        picture(pair[0], image)
        picture(pair[1], grey_of(image))
        for axes in pair:
            if outline is not None and outline[i].any() and not outline[i].all():
                axes.contour(outline[i], [0.5], colors=line, linewidths=1.3, linestyles="--")
        colours = signed_heat() if signed else heat()
        pair[1].imshow(mask, cmap=colours, vmin=-1 if signed else 0, vmax=1, interpolation="nearest")
        if contour is not None and mask.min() < contour < mask.max():
            pair[1].contour(mask, [contour], colors="white", linewidths=0.9)
        if boxes is not None and boxes[i] is not None:
            x0, y0, x1, y1 = boxes[i][:4]
            # pixel centres lie at whole numbers
            corner, size = (x0 - 0.5, y0 - 0.5), (x1 - x0, y1 - y0)
            pair[1].add_patch(Rectangle(corner, *size, fill=False, edgecolor=BOX, linewidth=1.3, clip_on=False))
        figure.text(
            (x + _SIDE + _GAP / 2) / width,
            1 - (y - 0.06) / height,
            title,
            ha="center",
            va="bottom",
            fontsize=9,
            linespacing=1.2,
        )
    right, top = columns * cell_width + 0.12, 0.75
    _bar(place(right, top, 0.17, _SIDE * 0.6), key, signed)
    handles = [Line2D([], [], color="white", label=f"Q = {contour:g}")] if contour is not None else []
    if outline is not None:
        handles.append(Line2D([], [], color=line, linestyle="--", label=outline_name))
    if boxes is not None:
        handles.append(Line2D([], [], color=BOX, label="box"))
    if handles:
        corner = (right / width, 1 - (top + _SIDE * 0.6 + 0.15) / height)
        figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=corner,
            fontsize=8,
            facecolor="0.35",
            labelcolor="white",
            borderaxespad=0,
            handlelength=1.6,
        )
    if header:
        figure.text(0.15 / width, 1 - 0.1 / height, header, va="top", fontsize=12, fontweight="bold")
    save(figure, path)


def contribution_grid(
    images: Any,
    contributions: Any,
    path: str | os.PathLike,
    *,
    titles: Sequence[str],
    speaks: Sequence[Mapping[str, Any]],
    outline: Any = None,
    header: str = "",
    columns: int = 3,
    positive_name: str = "positive",
) -> None:
    """Write a patient's images under what each place adds to the log odds, and bars of what speaks for and against.

    Args:
        images: grey images of any range.
        contributions: log odds of each place, on the network's grid.
        path: the picture.
        titles: of each image.
        speaks: ``name``, ``log_odds`` and, of biomarkers, ``area_mm2`` of what is drawn as bars.
        outline: tumour of each image, non-zero inside, drawn as a line.
        header: over the picture: patient, probability, label.
        columns: images in a row; the number of slices puts each modality in a row of its own.
        positive_name: name of the positive class.

    Shape:
        - images, outline: ``[m, H, W]``; contributions: ``[m, h, w]``

    Raises:
        DataError: the numbers of images, maps and titles differ.
    """
    images, contributions = to_numpy(images), to_numpy(contributions)
    outline = None if outline is None else to_numpy(outline) != 0
    if not len(images) == len(contributions) == len(titles):
        raise DataError(
            f"One map and one title for each image are needed: {len(images)} images, {len(contributions)} maps, "
            f"{len(titles)} titles."
        )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = new_figure(1.9 * columns + 4.6, max(2.15 * rows, 2.6) + 0.5)
    halves: Any = figure.subfigures(1, 2, width_ratios=[1.9 * columns + 0.8, 3.8])
    left, right = halves
    grid = left.subplots(rows, columns, squeeze=False)
    limit = max(float(np.abs(contributions).max(initial=0)), 1e-6)
    height, width = images.shape[-2:]
    shown = None
    for axes in grid.flat:
        axes.set_axis_off()
    for image, values, title, axes, i in zip(
        images, contributions, titles, grid.flat, range(len(images)), strict=False
    ):
        axes.set_axis_on()
        picture(axes, image)
        shown = axes.imshow(
            values,
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            alpha=np.clip(0.15 + np.abs(values) / limit, 0, 0.8) * (values != 0),
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            interpolation="nearest",
        )
        if outline is not None and outline[i].any() and not outline[i].all():
            axes.contour(outline[i], [0.5], colors="#009E73", linewidths=1.0, linestyles="--")
        axes.set_title(title if len(title) <= 24 else title.replace(", ", ",\n", 1), fontsize=8.5)
    bar = left.colorbar(shown, ax=grid, shrink=0.6, pad=0.02)
    bar.set_label("log odds of a place", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    axes = right.subplots()
    place, values = np.arange(len(speaks)), np.array([float(row["log_odds"]) for row in speaks])
    axes.barh(place, values, color=np.where(values >= 0, POSITIVE, NEGATIVE), height=0.68)
    axes.axvline(0, color="0.3", linewidth=0.8)
    names = [
        row["name"] + (f" ({row['area_mm2']:.0f} mm²)" if row.get("area_mm2") is not None else "") for row in speaks
    ]
    axes.set_yticks(place, names, fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=8)
    what = f"log odds beside the average patient: blue lowers, orange raises {positive_name}"
    axes.set_xlabel(fill(what, 27), fontsize=8)
    axes.set_title("What speaks for and against", fontsize=9)
    plain(axes)
    figure.suptitle(header, fontsize=11, fontweight="bold", x=0.01, ha="left")
    save(figure, path)


def _bar(axes: Axes, key: str, signed: bool) -> None:
    """Colours of the mask, laid over grey as in the pictures (a colorbar would show them opaque)."""
    low = -1 if signed else 0
    whole = {"extent": (0, 1, low, 1), "aspect": "auto", "origin": "lower"}
    axes.imshow([[0.35]], cmap="gray", vmin=0, vmax=1, **whole)
    axes.imshow([[level] for level in range(256)], cmap=signed_heat() if signed else heat(), **whole)
    axes.set(xticks=[], yticks=[-1, 0, 1] if signed else [0, 0.5, 1])
    axes.yaxis.tick_right()
    axes.tick_params(labelsize=8)
    axes.set_title(key, fontsize=8, loc="left")
