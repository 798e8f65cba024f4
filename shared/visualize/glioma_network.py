"""A brain network's explanation as pictures: its tracts through a glass brain and as a ring, its regions as bars."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve

from shared.data.brain.atlas import TractAtlas
from shared.visualize.glioma import TUMOUR
from shared.visualize.style import NEGATIVE, POSITIVE, new_figure, plain, save

_VIEWS = ((2, "axial", "RL"), (1, "coronal", "RL"), (0, "sagittal", "AP"))
_LISTED = 20
_NONE = "no mask is above the threshold:\nthe answer does not need any single tract"


def glass_brain(
    tracts: np.ndarray,
    brain: np.ndarray,
    mask: np.ndarray,
    path: str | os.PathLike,
    *,
    title: str = "",
    image: np.ndarray | None = None,
) -> None:
    """Write a picture: the strongest voxel along each ray in three directions, over the brain's shadow.

    Args:
        tracts: importance of each voxel, not negative.
        brain: voxels of the brain.
        mask: the tumour's.
        path: the picture.
        title: over it.
        image: shown faintly as its mean along each ray; None: the brain's thickness.

    Shape:
        - all volumes: ``[X, Y, Z]``, x to the right, y to the front, z upward
    """
    figure = new_figure(11.0, 4.4)
    axes = figure.subplots(1, 3)
    high, last = float(tracts.max()) or 1.0, None
    behind = brain if image is None else image
    for axe, (axis, name, sides) in zip(axes, _VIEWS, strict=True):
        axe.imshow(_hung(behind.mean(axis)), cmap="gray_r", vmin=0, vmax=2.5 * float(behind.mean(axis).max()) or 1.0)
        last = _strongest(axe, tracts, brain, axis, high)
        shadow = _hung(mask.any(axis))
        if shadow.any():
            axe.contour(shadow, [0.5], colors=TUMOUR, linewidths=1.6)
        axe.set(title=f"{name} ({sides[0]} | {sides[1]})")
    if tracts.any():
        figure.colorbar(last, ax=axes, shrink=0.6, label="sum over tracts of mask x probability")
    else:
        axes[1].text(0.5, -0.04, _NONE, ha="center", va="top", transform=axes[1].transAxes, fontsize=9)
    figure.legend(
        handles=[Line2D([], [], color=TUMOUR, label="tumour (its shadow)")], loc="outside lower center", frameon=False
    )
    save(figure, path, title=title)


def disrupted_picture(
    groups: Mapping[str, np.ndarray], brain: np.ndarray, path: str | os.PathLike, *, title: str = ""
) -> None:
    """Write a picture: of each group a row, in three directions the largest share of patients along each ray.

    Args:
        groups: by what stands over it, share of patients with a disrupted tract at each voxel.
        brain: voxels of the brain, drawn as an outline.
        path: the picture.
        title: over it.

    Shape:
        - all volumes: ``[X, Y, Z]``, x to the right, y to the front, z upward
    """
    figure = new_figure(10.0, 3.4 * len(groups) + 0.5)
    lines = figure.subplots(len(groups), len(_VIEWS), squeeze=False)
    high, last = max(float(shares.max()) for shares in groups.values()) or 1.0, None
    for line, (name, shares) in zip(lines, groups.items(), strict=True):
        for axe, (axis, view, sides) in zip(line, _VIEWS, strict=True):
            last = _strongest(axe, shares, brain, axis, high)
            axe.set_xlabel(f"{view} ({sides[0]} | {sides[1]})", fontsize=9)
        line[1].set_title(name, fontsize=10)
    figure.colorbar(last, ax=lines, shrink=0.6, label="share of patients")
    save(figure, path, title=title)


def connectome_picture(
    atlas: TractAtlas,
    values: np.ndarray,
    kept: np.ndarray,
    path: str | os.PathLike,
    *,
    crossing: np.ndarray | None = None,
    planted: Sequence[int] = (),
    title: str = "",
) -> None:
    """Write a picture: the kept tracts as a ring of regions, and the first of them as a list.

    Args:
        atlas: regions and tracts.
        values: mask of each tract.
        kept: those that are drawn.
        path: the picture.
        crossing: tracts that cross the tumour, which are marked.
        planted: phantoms only: infiltrated tracts, marked with an asterisk.
        title: over it.

    Shape:
        - values ``[E]``, kept and crossing ``[E]`` bool
    """
    figure = new_figure(12.6, 6.2)
    ring, bars = figure.subplots(1, 2, width_ratios=(1, 1.05))
    crossing = np.zeros(len(values), bool) if crossing is None else crossing
    colours = np.where(crossing, POSITIVE, NEGATIVE)
    drawn = np.flatnonzero(kept)
    drawn = drawn[np.argsort(values[drawn])]
    _ring(ring, atlas, values, drawn, colours)
    first = drawn[::-1][:_LISTED]
    names = [
        f"{atlas.names[a]} - {atlas.names[b]}{' *' if edge in set(planted) else ''}"
        for edge, (a, b) in zip(first, atlas.pairs[first], strict=True)
    ]
    bars.barh(range(len(first)), values[first], color=colours[first])
    bars.set_yticks(range(len(first)), names, fontsize=7)
    # a few tracts are drawn as thin as many
    bars.set_ylim(max(len(first), 12) - 0.5, -0.5)
    listed = f"; the first {len(first)}" if len(first) < len(drawn) else ""
    bars.set(xlim=(0, 1), xlabel="mask", title=f"{len(drawn)} of {len(values)} tracts kept{listed}")
    if not len(drawn):
        bars.text(0.5, 0.5, _NONE, ha="center", va="center", transform=bars.transAxes, fontsize=9)
    plain(bars)
    handles = [
        Line2D([], [], color=POSITIVE, label="crosses the tumour's surface"),
        Line2D([], [], color=NEGATIVE, label="does not"),
    ]
    if len(planted):
        label = f"planted: infiltrated ({int(np.asarray(kept)[list(planted)].sum())} of {len(planted)} kept)"
        handles.append(Line2D([], [], linestyle="", marker="*", color="0.2", label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    save(figure, path, title=title)


def region_bars(
    names: Sequence[str], attention: np.ndarray, path: str | os.PathLike, *, count: int = 20, title: str = ""
) -> None:
    """Write a picture of the regions that the tumour attends to most, as multiples of an even share.

    Args:
        names: of the regions.
        attention: of each; softmax shares, or cosines.
        path: the picture.
        count: regions shown.
        title: over it.
    """
    order = np.argsort(attention)[::-1][:count]
    figure = new_figure(7.2, 0.22 * len(order) + 1.3)
    axes = figure.subplots()
    shares = attention.min() >= 0 and abs(attention.sum() - 1) < 1e-3
    values = attention[order] * len(attention) if shares else attention[order]
    axes.barh(range(len(order)), values, color=NEGATIVE)
    axes.set_yticks(range(len(order)), [names[i] for i in order], fontsize=8)
    axes.invert_yaxis()
    if shares:
        axes.axvline(1, color="0.3", linewidth=0.9, linestyle="--")
    axes.set_xlabel("node attention, 1 = even share" if shares else "node attention (cosine)")
    plain(axes)
    save(figure, path, title=title)


def _ring(axes: Axes, atlas: TractAtlas, values: np.ndarray, drawn: np.ndarray, colours: np.ndarray) -> None:
    """Regions on a circle, left ones at the left from front to back; tracts as curves between them."""
    world = atlas.centres
    place, angles = np.zeros((len(world), 2)), np.zeros(len(world))
    for side, start in ((-1, 1), (1, 1)):
        members = np.flatnonzero(np.sign(world[:, 0] + 1e-9) == side)
        members = members[np.argsort(-world[members, 1])]
        angle = np.pi / 2 - side * np.pi * start * (np.arange(len(members)) + 0.5) / max(len(members), 1)
        angles[members], place[members] = angle, np.stack([np.cos(angle), np.sin(angle)], axis=1)
    axes.scatter(place[:, 0], place[:, 1], s=7, color="0.6", zorder=2)
    for edge in drawn:
        a, b = place[atlas.pairs[edge]]
        curve = Curve([a, 0.25 * (a + b), b], [Curve.MOVETO, Curve.CURVE3, Curve.CURVE3])
        strength = 0.25 + 0.75 * float(values[edge])
        axes.add_patch(PathPatch(curve, fill=False, edgecolor=colours[edge], alpha=strength, linewidth=1.1))
    for region in np.unique(atlas.pairs[drawn[::-1][:_LISTED]]) if len(drawn) else []:
        x, y = 1.04 * place[region]
        turn = np.degrees(angles[region])
        flipped = x < 0
        axes.text(
            *(x, y, atlas.names[region]),
            rotation=turn + 180 if flipped else turn,
            ha="right" if flipped else "left",
            va="center",
            rotation_mode="anchor",
            fontsize=6,
        )
    axes.set(xlim=(-1.75, 1.75), ylim=(-1.75, 1.75), aspect="equal", title="L | R, front at the top")
    axes.axis("off")
    axes.title.set_visible(True)


def _strongest(axe: Axes, values: np.ndarray, brain: np.ndarray, axis: int, high: float) -> AxesImage:
    """The strongest voxel along each ray, 0 clear, within the brain's outline."""
    strongest = np.ma.masked_less_equal(_hung(values.max(axis)), 0)
    drawn = axe.imshow(strongest, cmap="plasma_r", vmin=0, vmax=high, alpha=0.9)
    axe.contour(_hung(brain.any(axis)), [0.5], colors="0.45", linewidths=0.8)
    axe.set(xticks=[], yticks=[])
    axe.spines[:].set_visible(False)
    return drawn


def _hung(plane: np.ndarray) -> np.ndarray:
    return plane[::-1].T[::-1]
