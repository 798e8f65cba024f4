"""How well a patient lies on the template: outlines of brain and tumour on both, in three planes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from shared.errors import DataError
from shared.visualize.style import new_figure, picture, save

BRAIN, TUMOUR = "#56B4E9", "#E69F00"


def registration_picture(
    template: Any,
    template_mask: Any,
    images: Mapping[str, Any],
    brain: Any,
    mask: Any,
    path: str | os.PathLike,
    *,
    title: str = "",
) -> None:
    """Write a picture: the template under the patient's outlines, the patient's images under the template's.

    Planes run through the tumour's centre. As radiologists hang them, the patient's left is on the right; of sagittal
    planes, the front is on the left.

    Args:
        template: its T1 image.
        template_mask: its brain.
        images: the patient's, by name, each a row.
        brain: the patient's.
        mask: the tumour's.
        path: the picture.
        title: over it.

    Shape:
        - all volumes: ``[X, Y, Z]``, x to the right, y to the front, z upward

    Raises:
        DataError: the volumes differ in shape, or the mask is empty.
    """
    volumes = [np.asarray(volume) for volume in (template, template_mask, *images.values(), brain, mask)]
    template, template_mask, *shown, brain, mask = volumes
    if len({volume.shape for volume in volumes}) > 1 or mask.ndim != 3 or not (mask != 0).any():
        shapes = sorted({volume.shape for volume in volumes})
        raise DataError(
            f"A registration picture needs volumes [X, Y, Z] of one shape and a tumour, got shapes {shapes}."
        )
    centre = np.rint(np.argwhere(mask).mean(0)).astype(int)
    rows = [
        ("template", template, brain),
        *((name, image, template_mask) for name, image in zip(images, shown, strict=True)),
    ]
    figure = new_figure(8.4, 2.9 * len(rows) + 0.5)
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for line, (name, volume, outline) in zip(axes, rows, strict=True):
        for axis, axe in zip((2, 1, 0), line, strict=True):
            picture(axe, _plane(volume, axis, centre))
            for drawn, colour, width in ((outline, BRAIN, 0.9), (mask, TUMOUR, 1.3)):
                plane = _plane(drawn != 0, axis, centre)
                if plane.any() and not plane.all():
                    axe.contour(plane, [0.5], colors=colour, linewidths=width)
            sides = ("R", "L") if axis else ("A", "P")
            for x, side, where in ((0.03, sides[0], "left"), (0.97, sides[1], "right")):
                axe.text(x, 0.95, side, color="white", ha=where, va="top", fontsize=8, transform=axe.transAxes)
        line[0].set_ylabel(name, fontsize=10)
    handles = [
        Line2D([], [], color=BRAIN, label="brain: the patient's on the template, the template's on the patient"),
        Line2D([], [], color=TUMOUR, label="tumour mask"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=10)
    save(figure, path)


def _plane(volume: Any, axis: int, centre: Any) -> Any:
    """A plane as rows from above (or the front) downward, the patient's right (or front) on the left."""
    # In RAS the first index runs from left to right, or from back to front: turned round it starts right, or in front.
    return np.take(volume, centre[axis], axis)[::-1].T[::-1]
