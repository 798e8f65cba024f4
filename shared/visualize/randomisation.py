"""The sanity check of an explanation as a picture: maps and their similarity while the network is randomised."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.metrics.classification import to_numpy
from shared.visualize.style import NEGATIVE, POSITIVE, grey_of, heat, new_figure, picture, plain, save, signed_heat


def randomisation_figure(
    images: Any,
    maps: Any,
    path: str | os.PathLike,
    *,
    stages: Sequence[str],
    spearman: Any,
    ssim: Any,
    all_zero: Any,
    titles: Sequence[str] | None = None,
    title: str = "Grad-CAM while the weights are randomised from the top",
    signed: bool = False,
) -> None:
    """Write a row of maps per image, a column per stage, and below them the mean similarity to the original map.

    Args:
        images: images to show, colour in [0, 1] or grey.
        maps: their maps at every stage, the untouched network's first.
        path: the picture.
        stages: their names.
        spearman: rank correlation with the original map of every map measured, also of those not shown; NaN: none.
        ssim: structural similarity likewise.
        all_zero: whether a map is zero everywhere, likewise.
        titles: of the images.
        title: over the picture.
        signed: maps in [-1, 1]: colours for and against, none at 0.

    Shape:
        - images: ``[m, 3, H, W]`` or ``[m, H, W]``, maps: ``[S, m, H, W]``, spearman, ssim, all_zero: ``[S, n]``

    Raises:
        DataError: shapes do not fit.
    """
    images, maps, spearman, ssim, all_zero = (to_numpy(x) for x in (images, maps, spearman, ssim, all_zero))
    plane = (len(images), *images.shape[-2:])
    rows_fit = len(spearman) == len(stages) and spearman.shape == ssim.shape == all_zero.shape
    if maps.shape != (len(stages), *plane) or not rows_fit or not np.isfinite(spearman).all(axis=0).any():
        raise DataError(
            f"The figure needs maps of {plane} images at {len(stages)} stages, and at each the similarities of the "
            f"same images, some of them finite; got maps {maps.shape}, Spearman {spearman.shape}, SSIM {ssim.shape}, "
            f"all_zero {all_zero.shape}."
        )
    columns, rows = len(stages) + 1, len(images)
    figure = new_figure(0.4 + 1.35 * columns, 0.6 + 1.4 * rows + 2.3)
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1.0] * rows + [1.5])
    for i, image in enumerate(images):
        axes = figure.add_subplot(grid[i, 0])
        picture(axes, image)
        axes.set_ylabel(titles[i] if titles is not None else "", fontsize=8)
        for j, stage in enumerate(stages):
            axes = figure.add_subplot(grid[i, j + 1])
            picture(axes, grey_of(image))
            colours = signed_heat() if signed else heat()
            axes.imshow(maps[j, i], cmap=colours, vmin=-1 if signed else 0, vmax=1, interpolation="nearest")
            if i == 0:
                axes.set_title(stage.replace(".", ".\n"), fontsize=8)
    axes = figure.add_subplot(grid[rows, 1:])
    place = np.arange(len(stages))
    for name, values, colour, line in (("Spearman", spearman, POSITIVE, "-"), ("SSIM", ssim, NEGATIVE, "--")):
        known = np.isfinite(values).all(axis=0)
        low, high = np.percentile(values[:, known], [25, 75], axis=1)
        axes.fill_between(place, low, high, color=colour, alpha=0.15, linewidth=0)
        mean = values[:, known].mean(axis=1)
        axes.plot(place, mean, color=colour, linestyle=line, marker="o", markersize=4, label=name)
    axes.axhline(0, color="0.6", linewidth=0.8)
    ticks = [f"{stage}\n{zero:.0%} all zero" for stage, zero in zip(stages, all_zero.mean(axis=1), strict=True)]
    axes.set(xticks=place, xticklabels=ticks, xlim=(-0.5, len(stages) - 0.5), ylim=(-1.05, 1.05))
    axes.set_ylabel("similarity to original", fontsize=9)
    axes.set_xlabel(f"randomised up to (line: mean, band: quartiles of {spearman.shape[1]} maps)", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, loc="lower left")
    plain(axes)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    save(figure, path)
