"""A glioma's explanation as pictures: Grad-CAM in three planes, and its surface from two sides."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D

from shared.errors import DataError
from shared.visualize.style import heat, new_figure, save

TUMOUR, PLANTED = "#56B4E9", "#00E5A0"
# axis to the right, axis of depth, its sign towards the reader; S is upward
VIEWS = ((0, 1, -1, "from behind"), (1, 0, 1, "from the right"))
_MARGIN = 6  # voxels around the tumour in the close-ups
_GAP = 2  # voxels between them


def plane(volume: np.ndarray, axis: int, centre: Sequence[int]) -> np.ndarray:
    """A plane of a RAS volume as radiologists hang it: from above downward, the patient's right, or front, at the left.

    Example:
        >>> plane(np.arange(8).reshape(2, 2, 2), 2, (0, 0, 0)).tolist()
        [[6, 2], [4, 0]]
    """
    return np.take(volume, centre[axis], axis)[::-1].T[::-1]


def cam_planes(
    images: Mapping[str, np.ndarray],
    cam: np.ndarray,
    mask: np.ndarray,
    path: str | os.PathLike,
    *,
    title: str = "",
    planted: np.ndarray | None = None,
    name: str = "Grad-CAM",
) -> None:
    """Write a picture: a sequence a row, three planes through the tumour's centre, each beside itself under the map.

    Args:
        images: volumes by sequence.
        cam: map in [0, 1].
        mask: the tumour's; its outline is drawn.
        path: the picture.
        title: over it.
        planted: phantoms only: codes of what was planted, each drawn as a line.
        name: of the map.

    Shape:
        - all volumes: ``[X, Y, Z]``, x to the right, y to the front, z upward

    Raises:
        DataError: the volumes differ in shape, or the mask is empty.
    """
    shapes = {np.shape(volume) for volume in (*images.values(), cam, mask)}
    inside = np.argwhere(mask)
    if len(shapes) > 1 or not len(inside) or not images:
        raise DataError(f"Three planes need images, map and a tumour on one grid, got shapes {sorted(shapes)}.")
    centre = np.rint(inside.mean(axis=0)).astype(int)
    low = np.maximum(inside.min(axis=0) - _MARGIN, 0)
    box = tuple(slice(a, b) for a, b in zip(low, inside.max(axis=0) + _MARGIN + 1, strict=True))

    def cut(volume: np.ndarray) -> list[np.ndarray]:
        return [plane(volume[box], axis, centre - low) for axis in (2, 1, 0)]

    lines = []
    for image in images.values():
        # the whole brain gives the greys, the close-up the detail
        top = float(np.quantile(image[image > 0], 0.995)) if (image > 0).any() else 1.0
        lines.append([shown / top for each in cut(image) for shown in (each, each)])
    hidden = [np.ma.masked_all_like(each) for each in cut(cam)]
    under = [[part for pair in zip(hidden, cut(cam), strict=True) for part in pair]] * len(images)
    # one pair of axes for all: of 24 each costs more than all that is drawn in it
    figure = new_figure(13.2, 2.2 * len(images) + 0.8)
    axes = figure.subplots()
    axes.imshow(_tiled(lines), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    shown = axes.imshow(_tiled(under), cmap=heat(), vmin=0, vmax=1)
    codes = [] if planted is None else [code for code in np.unique(planted) if code]
    # one line each, so that a hole in one is not taken for another
    regions = [(planted == code, PLANTED, "-") for code in codes]
    for region, colour, style in [*regions, (mask != 0, TUMOUR, "--")]:
        both = [[part for each in cut(region) for part in (each, each)]] * len(images)
        _outline(axes, _tiled(both), colour, style)
    height, *columns = _places(lines)
    views = ["axial (R | L)", "coronal (R | L)", "sagittal (A | P)"]
    names = [title for view in views for title in (view, name)]
    middles = [first + each.shape[1] / 2 - 0.5 for first, each in zip(columns, lines[0], strict=True)]
    axes.set_xticks(middles, names, fontsize=9)
    axes.set_yticks([(height + _GAP) * row + height / 2 for row in range(len(images))], images, fontsize=10)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.tick_params(axis="y", labelrotation=90)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(shown, ax=axes, shrink=0.7, pad=0.01)
    bar.set_label(f"{name} (1 = hot)", fontsize=8)
    bar.ax.set_facecolor("0.35")
    handles = [Line2D([], [], color=TUMOUR, linestyle="--", label="tumour mask")]
    if planted is not None:
        handles.append(Line2D([], [], color=PLANTED, label="planted (each sign)"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    save(figure, path, title=title)


def surface_picture(
    points: np.ndarray, values: Mapping[str, np.ndarray], path: str | os.PathLike, *, title: str = ""
) -> None:
    """Write a picture of the tumour's surface, a row for each quantity, from two sides.

    Args:
        points: mm, x to the right, y to the front, z upward.
        values: by name, one of each point.
        path: the picture.
        title: over it.

    Shape:
        - points: ``[P, 3]``, values: ``[P]`` each
    """
    figure = new_figure(8.4, 3.5 * len(values) + 0.4)
    middle, reach = points.mean(axis=0), 1.05 * float(np.abs(points - points.mean(axis=0)).max()) or 1.0
    lines = figure.subplots(len(values), len(VIEWS), squeeze=False, sharex="col", sharey=True)
    for line, (name, value) in zip(lines, values.items(), strict=True):
        for axes, (across, depth, towards, side) in zip(line, VIEWS, strict=True):
            order = np.argsort(towards * points[:, depth])  # the nearest last
            drawn = axes.scatter(
                *points[order][:, [across, 2]].T,
                s=14,
                linewidths=0,
                c=value[order],
                cmap="inferno",
                norm=Normalize(*_range(value)),
            )
            limits = [(m - reach, m + reach) for m in middle]
            axes.set(xlim=limits[across], ylim=limits[2], aspect="equal", title=f"{name}, {side}")
            axes.title.set_fontsize(9)
            axes.tick_params(labelsize=6)
        line[0].set_ylabel("S (mm)")
        figure.colorbar(drawn, ax=line, shrink=0.6)
    for axes, (across, *_) in zip(lines[-1], VIEWS, strict=True):
        axes.set_xlabel(f"{'RA'[across]} (mm)")
    save(figure, path, title=title)


def vertex_colours(values: np.ndarray) -> np.ndarray:
    """Colours ``[P, 3]`` uint8 of values from their minimum to their maximum, as in the pictures.

    Example:
        >>> vertex_colours(np.array([0.0, 2.0])).tolist()
        [[0, 0, 3], [252, 254, 164]]
    """
    return colormaps["inferno"](Normalize(*_range(values))(np.asarray(values)), bytes=True)[:, :3]


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    return (low, high) if high > low else (low - 1, low + 1)


def _places(lines: Sequence[Sequence[np.ndarray]]) -> list[int]:
    """Height of a row of planes, then where each column begins."""
    widths = [each.shape[1] + _GAP for each in lines[0]]
    return [max(each.shape[0] for each in lines[0]), *np.cumsum([0, *widths[:-1]]).tolist()]


def _tiled(lines: Sequence[Sequence[np.ndarray]]) -> np.ma.MaskedArray:
    """Rows of planes as one array, masked between them; a column's planes have one shape."""
    height, *columns = _places(lines)
    size = (height + _GAP) * len(lines) - _GAP, columns[-1] + lines[0][-1].shape[1]
    whole = np.ma.masked_all(size)
    for row, line in enumerate(lines):
        for first, each in zip(columns, line, strict=True):
            top = (height + _GAP) * row + (height - each.shape[0]) // 2
            whole[top : top + each.shape[0], first : first + each.shape[1]] = each
    return whole


def _outline(axes: Any, region: np.ma.MaskedArray, colour: str, style: str) -> None:
    if region.any() and not region.all():
        axes.contour(region, [0.5], colors=colour, linewidths=1.0, linestyles=style)
