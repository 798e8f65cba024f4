"""Shape of a tumour's largest slice, without a look at the image: a control, and covariates that a model can be given.

What an annotator's pencil tells alone: of breast ultrasound, an irregular outline speaks for malignancy.
"""

from __future__ import annotations

import numpy as np

PREFIX = "shape_"
SHAPE = tuple(
    f"{PREFIX}{name}"
    for name in ("area", "perimeter", "circularity", "solidity", "eccentricity", "extent", "aspect_ratio")
)


def shape_features(mask: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """The features of :func:`outline_features`, each named ``shape_...``, of the slice of largest area.

    Args:
        mask: the tumour, not empty; slices lie across the axis of the thickest voxels.
        affine: voxel to mm.

    Shape:
        - mask: ``[X, Y, Z]`` bool

    Example:
        >>> mask = np.zeros((40, 40, 3), bool)
        >>> mask[5:25, 5:15, 1] = True
        >>> found = shape_features(mask, np.diag([0.5, 0.5, 4, 1]))
        >>> found["shape_area"], round(found["shape_extent"], 3), round(found["shape_aspect_ratio"], 2)
        (50.0, 1.0, 2.01)
    """
    from shared.transforms.roi_slices import thickest_axis

    spacing = np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)
    axis = thickest_axis(spacing)
    slices = np.moveaxis(np.asarray(mask) > 0, axis, 0)
    largest = slices[slices.sum(axis=(1, 2)).argmax()]
    return {f"{PREFIX}{name}": value for name, value in outline_features(largest, np.delete(spacing, axis)).items()}


def outline_features(mask: np.ndarray, spacing: np.ndarray) -> dict[str, float]:
    """Area, perimeter and form of a mask by scikit-image's ``regionprops``; several pieces count as one region.

    ``circularity`` is 4 pi area / perimeter^2 (1 for a disc, less the more lobed), ``solidity`` the share of the convex
    hull, ``extent`` that of the bounding box, ``eccentricity`` and ``aspect_ratio`` (long to short axis) those of the
    ellipse of equal second moments. What does not exist (a perimeter of 0) is NaN. ``regionprops`` measures perimeters
    between the centres of pixels; pixels that are not square are made so first, by their nearest neighbour,
    whose steps lengthen it by some percent.

    Args:
        mask: not empty.
        spacing: of its rows and columns, in mm.

    Shape:
        - mask: ``[H, W]`` bool; spacing: ``[2]``

    Returns:
        ``area`` in mm2, ``perimeter`` in mm, the others without unit.
    """
    from scipy.ndimage import zoom
    from skimage.measure import regionprops

    mask, spacing = np.asarray(mask, np.uint8), np.asarray(spacing, float)
    step = float(spacing.mean())
    if not np.isclose(*spacing):  # what an oblique or float32 affine makes of a square pixel is one
        step = float(spacing.min())
        mask = zoom(mask, spacing / step, order=0, grid_mode=True, mode="nearest")
    region = regionprops(mask, spacing=(step, step))[0]
    perimeter, short = region.perimeter, region.axis_minor_length
    return {
        "area": float(region.area),
        "perimeter": float(perimeter),
        "circularity": float(4 * np.pi * region.area / perimeter**2) if perimeter > 0 else np.nan,
        "solidity": float(region.solidity),
        "eccentricity": float(region.eccentricity),
        "extent": float(region.extent),
        "aspect_ratio": float(region.axis_major_length / short) if short > 0 else np.nan,
    }
