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
from shared.visualize.style import heat, new_figure, picture, save

TUMOUR, PLANTED = "#56B4E9", "#00E5A0"
VIEWS = ((12, -90, "from behind"), (12, 0, "from the right"))
_MARGIN = 6  # voxels around the tumour in the close-ups


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
    codes = [] if planted is None else [code for code in np.unique(planted) if code]
    figure = new_figure(13.2, 2.2 * len(images) + 0.8)
    axes = figure.subplots(len(images), 6, squeeze=False)
    for line, (sequence, image) in zip(axes, images.items(), strict=True):
        for column, axis in enumerate((2, 1, 0)):
            for axe, shown in ((line[2 * column], None), (line[2 * column + 1], cam)):
                # the whole brain gives the greys, the close-up the detail
                picture(axe, plane(image[box], axis, centre - low))
                axe.images[0].set_clim(0, float(np.quantile(image[image > 0], 0.995)) if (image > 0).any() else 1.0)
                if shown is not None:
                    axe.imshow(plane(shown[box], axis, centre - low), cmap=heat(), vmin=0, vmax=1)
                for code in codes:  # one line each, so that a hole in one is not taken for another
                    _outline(axe, plane(planted[box] == code, axis, centre - low), PLANTED, "-")
                _outline(axe, plane(mask[box] != 0, axis, centre - low), TUMOUR, "--")
        line[0].set_ylabel(sequence, fontsize=10)
    for column, (view, sides) in enumerate((("axial", "RL"), ("coronal", "RL"), ("sagittal", "AP"))):
        axes[0, 2 * column].set_title(f"{view} ({sides[0]} | {sides[1]})", fontsize=9)
        axes[0, 2 * column + 1].set_title(name, fontsize=9)
    bar = figure.colorbar(axes[0, 1].images[1], ax=axes, shrink=0.7, pad=0.01)
    bar.set_label(f"{name} (1 = hot)", fontsize=8)
    bar.ax.set_facecolor("0.35")
    handles = [Line2D([], [], color=TUMOUR, linestyle="--", label="tumour mask")]
    if planted is not None:
        handles.append(Line2D([], [], color=PLANTED, label="planted (each sign)"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=10)
    save(figure, path)


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
    middle, reach = points.mean(axis=0), float(np.abs(points - points.mean(axis=0)).max()) or 1.0
    for row, (name, value) in enumerate(values.items()):
        drawn = []
        for column, (elevation, azimuth, side) in enumerate(VIEWS):
            axes = figure.add_subplot(len(values), 2, 2 * row + column + 1, projection="3d")
            colours = {"c": value, "cmap": "inferno", "norm": Normalize(*_range(value))}
            drawn.append(axes.scatter(*points.T, s=14, depthshade=False, linewidths=0, **colours))
            axes.view_init(elevation, azimuth)
            axes.set(**{f"{x}lim": (m - reach, m + reach) for x, m in zip("xyz", middle, strict=True)})
            axes.set_box_aspect((1, 1, 1), zoom=1.0)
            axes.set_title(f"{name}, {side}", fontsize=9)
            for x, label in zip("xyz", ("R", "A", "S"), strict=True):
                getattr(axes, f"set_{x}label")(f"{label} (mm)", fontsize=7, labelpad=-6)
            axes.tick_params(labelsize=6, pad=-3)
            axes.locator_params(nbins=5)
        figure.colorbar(drawn[-1], ax=figure.axes[-2:], shrink=0.6, pad=0.08)
    if title:
        figure.suptitle(title, fontsize=10)
    save(figure, path)


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


def _outline(axes: Any, region: np.ndarray, colour: str, style: str) -> None:
    if region.any() and not region.all():
        axes.contour(region, [0.5], colors=colour, linewidths=1.0, linestyles=style)
