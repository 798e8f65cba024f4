"""The page of a patient's result: its text beside its overlay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def draw_page(lines: Sequence[str], overlay: Path | None, *, width: int = 1024, height: int = 768) -> np.ndarray:
    """Lines of text above a picture, on black.

    Args:
        lines: the first is the headline.
        overlay: a picture to show below; None: text alone.
        width: of the page, in pixels.
        height: of the page, in pixels.

    Shape:
        - returns: uint8, ``[height, width, 3]``

    Example:
        >>> draw_page(["P001"], None, width=64, height=32).shape
        (32, 64, 3)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    top, step = 0.9, 0.036  # viewers write into the corners
    for k, line in enumerate(lines):
        figure.text(0.02, top - step * k, line, color="white", fontsize=13 if k == 0 else 10, va="top")
    if overlay is not None and overlay.is_file():
        top -= 0.01 + step * len(lines)
        axes = figure.add_axes((0.02, 0.02, 0.96, max(top - 0.02, 0.1)))
        axes.imshow(np.asarray(Image.open(overlay).convert("RGB")))
        axes.axis("off")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
