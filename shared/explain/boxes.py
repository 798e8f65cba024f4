"""The box around what a map points at, and how well it fits a mask.

Boxes are half-open, in pixels of the picture that the map or mask was given at: columns ``x0 ... x1 - 1`` counted from
the left, rows ``y0 ... y1 - 1`` counted from the top, so that ``x1 - x0`` is the width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import find_objects, label

from shared.errors import DataError
from shared.metrics.classification import to_numpy

BOX_CONVENTION = (
    "x to the right, y down, in pixels of the source image (upright, as its EXIF orientation says), counted from 0 at "
    "its upper left corner; x0, y0 are the first column and row inside, x1, y1 the first behind (width = x1 - x0); "
    "score: mean of the map over the component"
)


class Box(NamedTuple):
    """A half-open box of pixels.

    Attributes:
        x0: first column inside.
        y0: first row inside.
        x1: first column behind.
        y1: first row behind.
        score: mean of the map over the component that the box surrounds, as a share of the map's maximum; 1 of a mask.
    """

    x0: int
    y0: int
    x1: int
    y1: int
    score: float = 1.0


def bounding_box(cam: Any, *, threshold: float = 0.5) -> Box | None:
    """Box of the largest connected component of the pixels from ``threshold`` times the map's maximum on.

    Pixels that touch at a corner are connected. Of components equally large the one with more of the map's mass is
    taken.

    Args:
        cam: importance, not negative.
        threshold: share of the maximum, in (0, 1].

    Shape:
        - cam: ``[H, W]``
        - returns: the box, or None for a map that is zero everywhere

    Raises:
        DataError: the map is not two-dimensional, negative or not finite.

    Example:
        >>> cam = np.zeros((4, 6)); cam[1:3, 2:5] = 0.75; cam[3, 0] = 1.0
        >>> bounding_box(cam)
        Box(x0=2, y0=1, x1=5, y1=3, score=0.75)
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}.")
    cam = to_numpy(cam).astype(np.float64)
    if cam.ndim != 2 or not np.isfinite(cam).all() or (cam < 0).any():
        raise DataError(f"A box needs one finite map [H, W] that is not negative, got {cam.shape}.")
    if not cam.any():
        return None
    cam = cam / cam.max()
    components, _ = label(cam >= threshold, structure=np.ones((3, 3)))
    count = np.bincount(components.ravel())[1:]
    mass = np.bincount(components.ravel(), weights=cam.ravel())[1:]
    largest = int(np.lexsort((mass, count))[-1])
    rows, columns = find_objects(components)[largest]
    return Box(columns.start, rows.start, columns.stop, rows.stop, float(mass[largest] / count[largest]))


def mask_box(mask: Any) -> Box | None:
    """Box of all that is not zero in a mask ``[H, W]``; None where there is nothing.

    Example:
        >>> mask_box(np.eye(5)[1:4])
        Box(x0=1, y0=0, x1=4, y1=3, score=1.0)
    """
    rows, columns = np.nonzero(to_numpy(mask))
    if not len(rows):
        return None
    return Box(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)


def box_iou(a: Box | None, b: Box | None) -> float:
    """Intersection over union of two boxes; 0 where there is none.

    Example:
        >>> box_iou(Box(0, 0, 2, 2), Box(1, 0, 3, 2))
        0.3333333333333333
    """
    if a is None or b is None:
        return 0.0
    width = max(0, min(a.x1, b.x1) - max(a.x0, b.x0))
    height = max(0, min(a.y1, b.y1) - max(a.y0, b.y0))
    shared = width * height
    return shared / ((a.x1 - a.x0) * (a.y1 - a.y0) + (b.x1 - b.x0) * (b.y1 - b.y0) - shared)


def box_mask_iou(box: Box | None, mask: Any) -> float:
    """Intersection over union of a box's area with a mask ``[H, W]``; 0 where there is no box.

    Example:
        >>> box_mask_iou(Box(0, 0, 2, 2), np.eye(2))
        0.5
    """
    if box is None:
        return 0.0
    mask = to_numpy(mask) != 0
    inside = np.zeros_like(mask)
    inside[box.y0 : box.y1, box.x0 : box.x1] = True
    return float((inside & mask).sum() / (inside | mask).sum())


def box_record(box: Box | None, *, class_name: str, probability: float) -> dict[str, Any] | None:
    """What the JSON says of a box: corners (see ``BOX_CONVENTION``), score, class and its probability.

    Example:
        >>> box_record(Box(2, 1, 5, 3, 0.8), class_name="SSA", probability=0.9)
        {'x0': 2, 'y0': 1, 'x1': 5, 'y1': 3, 'score': 0.8, 'class': 'SSA', 'probability': 0.9}
    """
    if box is None:
        return None
    values = {**box._asdict(), "score": round(box.score, 6)}
    return values | {"class": class_name, "probability": round(float(probability), 6)}
