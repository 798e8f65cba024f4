"""A radiomics feature set of the tumour's largest slices, of scikit-image and SciPy: first order, texture, shape.

The families are those of the Image Biomarker Standardisation Initiative (Zwanenburg et al., Radiology 2020): first
order statistics, grey-level co-occurrence matrices (Haralick et al. 1973), shape; and local binary patterns (Ojala et
al. 2002). It is no implementation of that standard: the figures are not PyRadiomics's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.apps.baselines.roi_features import largest_slices, organ_test

LEVELS = 16
"""Grey levels of the textures, equally wide between the 1st and 99th percentile of the tumour."""
DISTANCES = (1, 2)
"""Pixels between the two of a co-occurrence."""
_ANGLES = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
_GLCM = ("contrast", "dissimilarity", "homogeneity", "ASM", "correlation", "entropy")
_NEIGHBOURS = 8


def radiomics_features(
    volumes: np.ndarray, mask: np.ndarray, affine: np.ndarray, num_slices: int, modalities: Sequence[str] | None = None
) -> dict[str, float]:
    """Return first order and texture features per modality, and the shape of the largest slice.

    Intensities are multiples of the organ's mean. Textures are those of the slices together: co-occurrences are counted
    within the tumour alone, over four directions.

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
        >>> mask[2:6, 2:6] = True
        >>> features = radiomics_features(np.where(mask, 3.0, 1.0)[None], mask, np.eye(4), 1, ["T1"])
        >>> features["radiomics_area_mm2"], features["radiomics_T1_glcm1_contrast"]
        (16.0, 0.0)
    """
    slices, tumour, spacing = largest_slices(volumes, mask, affine, num_slices)
    names = modalities or [f"image{number}" for number in range(len(volumes))]
    features = _shape(tumour, spacing)
    for name, volume, cut in zip(names, volumes, slices, strict=True):
        scaled = cut / volume[organ_test(volume)(volume)].mean()
        own = {**_first_order(scaled[tumour]), **_cooccurrence(scaled, tumour), **_patterns(scaled, tumour)}
        features |= {f"{name}_{key}": value for key, value in own.items()}
    return {f"radiomics_{key}": float(value) for key, value in features.items()}


def _first_order(inside: np.ndarray) -> dict[str, float]:
    from scipy.stats import kurtosis, skew

    low, *percentiles, high = np.percentile(inside, (0, 10, 25, 50, 75, 90, 100))
    shares = np.bincount(_levels(inside, inside)) / inside.size
    shares = shares[shares > 0]
    constant = high == low
    return {
        "mean": inside.mean(),
        "sd": inside.std(),
        "minimum": low,
        **dict(zip(("p10", "p25", "median", "p75", "p90"), percentiles, strict=True)),
        "maximum": high,
        "absolute_deviation": np.abs(inside - inside.mean()).mean(),
        "root_mean_square": np.sqrt(np.square(inside).mean()),
        "skewness": 0.0 if constant else skew(inside),
        "kurtosis": 0.0 if constant else kurtosis(inside),
        "entropy": -(shares * np.log2(shares)).sum(),
        "uniformity": np.square(shares).sum(),
    }


def _cooccurrence(slices: np.ndarray, tumour: np.ndarray) -> dict[str, float]:
    """Properties of the grey-level co-occurrence matrix of each distance."""
    from skimage.feature import graycomatrix, graycoprops

    grey = np.where(tumour, 1 + _levels(slices, slices[tumour]), 0).astype(np.uint8)
    found = {}
    for distance in DISTANCES:
        pairs = [graycomatrix(image, [distance], _ANGLES, LEVELS + 1, symmetric=True) for image in grey]
        # level 0 is outside the tumour: pairs that reach out do not count
        counts = np.sum(pairs, axis=(0, 3, 4), dtype=float)[1:, 1:, None, None]
        values = dict.fromkeys(_GLCM, np.nan)  # a tumour without such a pair
        if counts.any():
            values = {name: graycoprops(counts / counts.sum(), name)[0, 0] for name in _GLCM}
        found |= {f"glcm{distance}_{name}": value for name, value in values.items()}
    return found


def _patterns(slices: np.ndarray, tumour: np.ndarray) -> dict[str, float]:
    """Shares of the rotation-invariant uniform local binary patterns among the tumour's pixels."""
    from skimage.feature import local_binary_pattern

    grey = _levels(slices, slices[tumour], levels=256)
    codes = np.concatenate(
        [local_binary_pattern(g, _NEIGHBOURS, 1, "uniform")[t] for g, t in zip(grey, tumour, strict=True)]
    )
    shares = np.bincount(codes.astype(int), minlength=_NEIGHBOURS + 2) / codes.size
    return {f"lbp{code}": share for code, share in enumerate(shares)}


def _shape(tumour: np.ndarray, spacing: np.ndarray) -> dict[str, float]:
    """Shape of the largest slice, in mm, on square pixels of the smaller side."""
    from scipy.ndimage import zoom
    from skimage.measure import regionprops

    side = float(spacing.min())
    largest = tumour[tumour.sum(axis=(1, 2)).argmax()]
    square = largest if np.isclose(*spacing) else zoom(largest.astype(float), spacing / side, order=1) >= 0.5
    region = regionprops(square.astype(np.uint8), spacing=(side, side))[0]
    area, perimeter, several = region.area, region.perimeter, square.sum() > 3
    return {
        "area_mm2": area,
        "perimeter_mm": perimeter,
        "perimeter_to_area": perimeter / area,
        "roundness": 4 * np.pi * area / perimeter**2 if perimeter > 0 else np.nan,
        "major_axis_mm": region.axis_major_length,
        "minor_axis_mm": region.axis_minor_length,
        "eccentricity": region.eccentricity,
        "extent": region.extent,
        "solidity": region.solidity if several else np.nan,
        "largest_diameter_mm": region.feret_diameter_max if several else np.nan,
    }


def _levels(values: np.ndarray, inside: np.ndarray, levels: int = LEVELS) -> np.ndarray:
    """Grey levels ``0 .. levels - 1`` between the 1st and 99th percentile of what is ``inside``."""
    low, high = np.percentile(inside, (1, 99))
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.clip(np.floor(scaled * levels), 0, levels - 1).astype(np.uint8)
