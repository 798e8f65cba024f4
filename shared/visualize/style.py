"""What all pictures share: colours that colour-blind readers can tell apart, and saving without pyplot's state."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.figure import Figure

from shared.io import atomic_path

# Okabe and Ito's palette; blue is the negative class and vermilion the positive one throughout
NEGATIVE, POSITIVE = "#0072B2", "#D55E00"
PALETTE = (NEGATIVE, POSITIVE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def heat() -> ListedColormap:
    """Colours of a mask over a grey image: clear at 0, through purple and orange to yellow at 1."""
    ramp = np.linspace(0, 1, 256)
    colours = colormaps["inferno"](0.25 + 0.72 * ramp)
    colours[:, 3] = 0.8 * ramp**0.8
    return ListedColormap(colours, name="heat")


def signed_heat() -> ListedColormap:
    """Colours of a map from -1 to 1 over a grey image: blue what speaks against, vermilion what speaks for, 0 clear."""
    ramp = np.linspace(-1, 1, 257)  # odd: 0 has a colour of its own
    colours = np.where(ramp[:, None] < 0, to_rgba(NEGATIVE), to_rgba(POSITIVE))
    colours[:, 3] = 0.85 * np.abs(ramp) ** 0.8
    return ListedColormap(colours, name="signed_heat")


def new_figure(width: float, height: float) -> Figure:
    """A figure of its own, in inches, outside pyplot: safe in threads and never left open."""
    return Figure(figsize=(width, height), layout="constrained")


def cell_grid(count: int, width: float, height: float, *, head: float = 0.0) -> tuple[Figure, np.ndarray]:
    """A figure of ``count`` cells without axes, three in a row, each so many inches large below the head; its cells."""
    columns = min(3, count)
    lines = -(-count // columns)
    figure = new_figure(width * columns, height * lines + head)
    cells = figure.subplots(lines, columns, squeeze=False).ravel()
    for cell in cells:
        cell.set_axis_off()
    return figure, cells


def picture(axes: Axes, image: np.ndarray) -> None:
    """Show an image without ticks: grey ``[H, W]`` over its own range, colour ``[3, H, W]`` in [0, 1] as it is."""
    if np.ndim(image) == 3:
        axes.imshow(np.clip(np.moveaxis(image, 0, -1), 0, 1), interpolation="nearest")
    else:
        low, high = float(np.min(image)), float(np.max(image))
        axes.imshow(image, cmap="gray", vmin=low, vmax=high if high > low else low + 1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def grey_of(image: np.ndarray) -> np.ndarray:
    """Luminance ``[H, W]`` of a colour image ``[3, H, W]``; a grey image as it is."""
    return np.tensordot([0.2126, 0.7152, 0.0722], image, axes=1) if np.ndim(image) == 3 else image


def plain(axes: Axes) -> None:
    """Leave out the frame's upper and right sides."""
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: str | os.PathLike, *, title: str = "", dpi: int = 120, pdf: bool = False) -> None:
    """Write the figure with a small title, atomically; the ending says the format. With ``pdf`` a PDF beside it."""
    if title:
        figure.suptitle(title, fontsize=10)
    figure.dpi = dpi
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".png":
            FigureCanvasAgg(figure).print_png(temporary)  # savefig draws all of it twice, once to lay it out
        else:
            figure.savefig(temporary)
    if pdf:
        with atomic_path(Path(path).with_suffix(".pdf")) as temporary:
            figure.savefig(temporary, metadata={"CreationDate": None})  # the same figure is the same file
