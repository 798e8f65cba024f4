"""The confusion matrix as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from shared.errors import DataError
from shared.visualize.style import NEGATIVE, new_figure, save


def confusion_figure(matrix: Any, path: str | os.PathLike, *, class_names: Sequence[str]) -> None:
    """Write how often each true class was called each class: counts, and shares of the true class as shades.

    Args:
        matrix: counts, a row for each true class.
        path: the picture.
        class_names: names of the classes.

    Shape:
        - matrix: ``[K, K]``, K the number of names

    Raises:
        DataError: the matrix is not square, or has another size than there are names.
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape != (len(class_names), len(class_names)):
        raise DataError(f"A confusion matrix of {len(class_names)} classes is square, got shape {matrix.shape}.")
    total = matrix.sum(axis=1, keepdims=True)
    share = matrix / np.maximum(total, 1)
    side = 2.6 + 1.15 * len(class_names)
    figure = new_figure(side + 0.3, side)
    axes = figure.subplots()
    shades = LinearSegmentedColormap.from_list("share", ["#ffffff", NEGATIVE])
    axes.imshow(share, cmap=shades, vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        colour = "white" if share[row, column] > 0.55 else "black"
        axes.text(column, row - 0.05, f"{count:d}", ha="center", va="center", color=colour, fontsize=15)
        text = f"{share[row, column]:.0%}" if total[row] else "-"
        axes.text(column, row + 0.13, text, ha="center", va="center", color=colour, fontsize=9.5)
    places = range(len(class_names))
    axes.set_xticks(places, class_names)
    axes.set_yticks(places, class_names, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.set_xlabel("called")
    axes.set_ylabel("true")
    axes.set_title(f"Confusion matrix ({matrix.sum()} patches)", fontsize=12)
    axes.set_xticks(np.arange(len(class_names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(class_names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    save(figure, path)
