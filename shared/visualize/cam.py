"""Class activation maps as pictures: one patch under its map and box, many as a gallery."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb

from shared.errors import DataError
from shared.io import atomic_path
from shared.metrics.classification import to_numpy
from shared.visualize.overlay import BOX, OUTLINE, SIGNED_OUTLINE, overlay_grid
from shared.visualize.style import grey_of, heat, signed_heat

_SMALLEST = 224  # pixels: smaller patches are enlarged, or the box would hide them


def cam_picture(cam: Any, path: str | os.PathLike, *, signed: bool = False) -> None:
    """Write a map as an 8-bit greyscale image of its own size: 0 black, 1 white.

    Args:
        cam: map in [0, 1], or signed, in [-1, 1].
        path: the picture; PNG, so that the values can be read back.
        signed: -1 is grey level 1, 0 is 128, 1 is 255.

    Shape:
        - cam: ``[H, W]``
    """
    from skimage.io import imsave

    cam = to_numpy(cam)
    levels = 128 + 127 * np.clip(cam, -1, 1) if signed else 255 * np.clip(cam, 0, 1)
    values = np.round(levels).astype(np.uint8)
    with atomic_path(path) as temporary:
        imsave(temporary, values, check_contrast=False)


def cam_overlay(
    image: Any, cam: Any, path: str | os.PathLike, *, box: Any = None, outline: Any = None, signed: bool = False
) -> None:
    """Write a patch beside itself, in grey, under its map, with the box and the lesion's outline.

    Drawn pixel by pixel, without axes or text: a folder of patches takes milliseconds each.

    Args:
        image: colour image in [0, 1] or uint8.
        cam: map in [0, 1], or signed, in [-1, 1].
        path: the picture.
        box: half-open box (``x0, y0, x1, y1, ...``) in pixels, or None.
        outline: lesion, non-zero inside, or None.
        signed: colours for and against, none where the map is 0.

    Shape:
        - image: ``[3, H, W]``; cam, outline: ``[H, W]``
        - the picture: H high, 2 W and a gap wide, in whole multiples of that for small patches

    Raises:
        DataError: shapes do not fit.
    """
    from skimage.io import imsave
    from skimage.segmentation import find_boundaries

    image, cam = to_numpy(image), to_numpy(cam)
    outline = None if outline is None else to_numpy(outline) != 0
    if image.ndim != 3 or image.shape[0] != 3 or cam.shape != image.shape[1:]:
        raise DataError(f"An overlay needs an image [3, H, W] and its map [H, W], got {image.shape} and {cam.shape}.")
    if outline is not None and outline.shape != cam.shape:
        raise DataError(f"The outline must have the map's shape {cam.shape}, got {outline.shape}.")
    image = image / 255 if image.dtype == np.uint8 else image
    scale = max(1, -(-_SMALLEST // max(cam.shape)))
    image, cam = (np.repeat(np.repeat(x, scale, axis=-2), scale, axis=-1) for x in (image, cam))
    colours = signed_heat()((np.clip(cam, -1, 1) + 1) / 2) if signed else heat()(np.clip(cam, 0, 1))
    alpha = colours[..., 3:]
    under = (1 - alpha) * grey_of(image)[..., None] + alpha * colours[..., :3]
    line = max(1, round(max(cam.shape) / 160))
    panels = [np.moveaxis(image, 0, -1).copy(), under]
    if outline is not None:
        outline = np.repeat(np.repeat(outline, scale, axis=0), scale, axis=1)
        edge = find_boundaries(outline, mode="thick", connectivity=2)
        for panel in panels:
            panel[edge] = to_rgb(SIGNED_OUTLINE if signed else OUTLINE)
    if box is not None:
        _frame(under, [scale * int(side) for side in box[:4]], line)
    gap = np.ones((len(under), max(2, 2 * line), 3))
    picture = np.concatenate([panels[0], gap, under], axis=1)
    with atomic_path(path) as temporary:
        imsave(temporary, np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8), check_contrast=False)


def cam_gallery(
    images: Any, cams: Any, path: str | os.PathLike, *, name: str = "Grad-CAM", signed: bool = False, **settings: Any
) -> None:
    """Write a picture of many patches, each beside itself under its map.

    Args:
        images: colour images in [0, 1].
        cams: map of each, in [0, 1], or signed, in [-1, 1].
        path: the picture.
        name: of the maps, over their colours.
        signed: colours for and against, none where a map is 0.
        settings: further ones of :func:`shared.visualize.overlay_grid`, such as ``titles``, ``boxes`` and ``outline``.

    Shape:
        - images: ``[m, 3, H, W]``; cams: ``[m, H, W]``

    Raises:
        DataError: shapes or the number of titles or boxes do not fit.
    """
    key = f"{name}\n1 for the class\n-1 against" if signed else f"{name}\n1 hot\n0 cold"
    overlay_grid(images, cams, path, contour=None, key=key, signed=signed, **{"outline_name": "lesion", **settings})


def _frame(picture: np.ndarray, box: Sequence[int], width: int) -> None:
    """Draw a box of so many pixels' line into a picture, inside the box."""
    x0, y0, x1, y1 = box
    inside = np.zeros(picture.shape[:2], dtype=bool)
    inside[y0:y1, x0:x1] = True
    inside[y0 + width : y1 - width, x0 + width : x1 - width] = False
    picture[inside] = to_rgb(BOX)
