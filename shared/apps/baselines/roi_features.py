"""What one measures of a tumour without a network: its size, its intensities, its outline; for the control models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shared.apps.preparation.shape import outline_features

_RING_MM = 5.0
_BINS = 32
OUTLINE = ("compactness", "eccentricity", "solidity", "pieces")  # what of the features looks at no intensity


def covariate_names(cases: Sequence[Mapping]) -> list[str]:
    """Return the covariates that at least one case has, sorted.

    Example:
        >>> covariate_names([{"covariates": {"age": 44.0}}, {}])
        ['age']
    """
    return sorted({name for case in cases for name in case.get("covariates") or {}})


def size_features(volumes: np.ndarray, mask: np.ndarray, affine: np.ndarray, num_slices: int) -> dict[str, float]:
    """Return the tumour's area over its largest slices, and its share of the organ's area in them, both as logarithms.

    Args:
        volumes: modalities on one grid.
        mask: the tumour, not empty.
        affine: voxel to mm.
        num_slices: slices of largest tumour area.

    Shape:
        - volumes: ``[C, X, Y, Z]``; mask: ``[X, Y, Z]`` bool

    Example:
        >>> mask = np.zeros((8, 8, 4), bool)
        >>> mask[2:4, 2:4] = True
        >>> size = size_features(np.ones((1, 8, 8, 4)), mask, np.diag([1, 1, 5, 1]), num_slices=2)
        >>> {name: round(float(np.exp(value)), 4) for name, value in size.items()}
        {'log_area_mm2': 8.0, 'log_area_share': 0.0625}
    """
    slices, tumour, spacing = largest_slices(volumes, mask, affine, num_slices)
    area = tumour.sum()
    organ = np.maximum(organ_test(volumes[0])(slices[0]).sum(), area)
    return {"log_area_mm2": float(np.log(area * spacing.prod())), "log_area_share": float(np.log(area / organ))}


def roi_features(
    volumes: np.ndarray, mask: np.ndarray, affine: np.ndarray, num_slices: int, modalities: Sequence[str] | None = None
) -> dict[str, float]:
    """Return first-order statistics per modality in multiples of the organ's mean, contrast to a ring, and outline.

    The ring is what lies within 5 mm of the tumour, inside the organ; without such voxels the contrast is NaN.

    Args:
        volumes: modalities on one grid.
        mask: the tumour, not empty.
        affine: voxel to mm.
        num_slices: slices of largest tumour area.
        modalities: their names.

    Shape:
        - volumes: ``[C, X, Y, Z]``; mask: ``[X, Y, Z]`` bool

    Example:
        >>> mask = np.zeros((8, 8, 4), bool)
        >>> mask[2:5, 2:5] = True
        >>> features = roi_features(np.where(mask, 3.0, 1.0)[None], mask, np.eye(4), 1, ["T1"])
        >>> round(features["T1_mean"] / (features["T1_mean"] - features["T1_contrast"]), 3)
        3.0
    """
    from scipy.ndimage import distance_transform_edt
    from scipy.stats import skew

    slices, tumour, spacing = largest_slices(volumes, mask, affine, num_slices)
    distance = np.stack([distance_transform_edt(~one, sampling=spacing) for one in tumour])
    near = (distance > 0) & (distance <= _RING_MM)
    names = modalities or [f"image{number}" for number in range(len(volumes))]
    features: dict[str, float] = {}
    for name, volume, cut in zip(names, volumes, slices, strict=True):
        organ = organ_test(volume)
        scaled = cut / volume[organ(volume)].mean()
        inside, ring = scaled[tumour], scaled[near & organ(cut)]
        counts = np.histogram(np.clip(inside, 0, 4), _BINS, (0, 4))[0] / inside.size
        constant = inside.max() == inside.min()
        values = {
            "mean": inside.mean(),
            "sd": inside.std(),
            **{f"p{q}": np.percentile(inside, q) for q in (10, 25, 50, 75, 90)},
            "skewness": 0.0 if constant else skew(inside),
            "entropy": -(counts[counts > 0] * np.log2(counts[counts > 0])).sum(),
            "contrast": inside.mean() - ring.mean() if ring.size else np.nan,
            "ring_sd": ring.std() if ring.size else np.nan,
        }
        features |= {f"{name}_{key}": float(value) for key, value in values.items()}
    return features | _outline(tumour, spacing)


def _outline(tumour: np.ndarray, spacing: np.ndarray) -> dict[str, float]:
    """Shape of the largest slice: how round, how long, how lobed, in how many pieces."""
    from skimage.measure import label

    largest = tumour[tumour.sum(axis=(1, 2)).argmax()]
    shape = outline_features(largest, spacing)
    solidity = shape["solidity"] if largest.sum() > 3 else np.nan
    values = (shape["circularity"], shape["eccentricity"], solidity, float(label(largest).max()))
    return dict(zip(OUTLINE, values, strict=True))


def largest_slices(
    volumes: np.ndarray, mask: np.ndarray, affine: np.ndarray, num_slices: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The slices a network would see, ``[C, k, H, W]`` and ``[k, H, W]``, with their pixel spacing in mm."""
    from shared.transforms.roi_slices import thickest_axis

    spacing = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    axis = thickest_axis(spacing)
    tumour, slices = np.moveaxis(mask, axis, 0), np.moveaxis(volumes, axis + 1, 1)
    area = tumour.sum(axis=(1, 2))
    rows = np.sort(np.argsort(-area, kind="stable")[:num_slices])
    rows = rows[area[rows] > 0]
    return slices[:, rows], tumour[rows], np.delete(spacing, axis)


def organ_test(volume: np.ndarray):
    """The test for organ against air that the bundles use: above a tenth of the volume's 99th percentile."""
    level = 0.1 * float(np.percentile(volume, 99))
    return lambda values: values > level
