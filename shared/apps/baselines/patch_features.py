"""Colour and texture of a patch in numbers, for the control that needs no network; imports neither torch nor MONAI."""

from __future__ import annotations

import numpy as np

from shared.errors import DataError

_PERCENTILES = (5, 25, 50, 75, 95)
_LBP = ((8, 1), (16, 2), (24, 4))  # neighbours, radius
_GREYS, _DISTANCES = 32, (1, 2, 4, 8)
_GLCM = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation")


def patch_features(image: np.ndarray) -> dict[str, float]:
    """Return statistics of colour (RGB, HSV, stains) and texture (local binary patterns, grey-level co-occurrence).

    Colour: mean, standard deviation, skewness and percentiles of each channel of RGB, of saturation and value, of
    haematoxylin, eosin and DAB (Ruifrok and Johnston 2001), and the mean direction of the hue, which is an angle.
    Texture, of the luminance: histograms of uniform local binary patterns (Ojala 2002) at three radii, and Haralick's
    measures of the co-occurrence of 32 grey levels at four distances, mean and range over four directions.

    Args:
        image: one patch.

    Shape:
        - image: uint8 ``[3, H, W]``, at least 16 pixels wide and high

    Raises:
        DataError: another type or shape.

    Example:
        >>> plain = np.full((3, 32, 32), 200, dtype=np.uint8)
        >>> found = patch_features(plain)
        >>> found["red_mean"], found["glcm1_contrast"], len(found)
        (200.0, 0.0, 160)
    """
    from scipy.stats import skew
    from skimage.color import rgb2gray, rgb2hed, rgb2hsv
    from skimage.util import img_as_ubyte

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] != 3 or min(image.shape[1:]) < 16:
        raise DataError(
            f"Colour and texture are measured on uint8 patches [3, H, W] of 16 pixels or more; got {image.dtype} "
            f"{image.shape}."
        )
    rgb = np.moveaxis(image, 0, -1)
    hsv, hed = rgb2hsv(rgb), rgb2hed(rgb)
    channels = dict(zip(("red", "green", "blue"), rgb.reshape(-1, 3).T.astype(float), strict=True))
    channels |= dict(zip(("saturation", "value"), hsv.reshape(-1, 3).T[1:], strict=True))
    channels |= dict(zip(("haematoxylin", "eosin", "dab"), hed.reshape(-1, 3).T, strict=True))
    features = {}
    for name, values in channels.items():
        constant = values.max() == values.min()
        found = {"mean": values.mean(), "sd": values.std(), "skewness": 0.0 if constant else skew(values)}
        found |= {f"p{q}": value for q, value in zip(_PERCENTILES, np.percentile(values, _PERCENTILES), strict=True)}
        features |= {f"{name}_{key}": float(value) for key, value in found.items()}
    direction = (hsv[..., 1] * np.exp(2j * np.pi * hsv[..., 0])).mean()  # grey has no hue
    features |= {"hue_cos": float(direction.real), "hue_sin": float(direction.imag)}
    grey = img_as_ubyte(rgb2gray(rgb))
    return features | _patterns(grey) | _co_occurrence(grey)


def _patterns(grey: np.ndarray) -> dict[str, float]:
    """Shares of the rotation-invariant uniform patterns, the rest together."""
    from skimage.feature import local_binary_pattern

    features = {}
    for points, radius in _LBP:
        codes = local_binary_pattern(grey, points, radius, method="uniform").astype(int)
        shares = np.bincount(codes.ravel(), minlength=points + 2) / codes.size
        features |= {f"lbp{radius}_{code}": float(share) for code, share in enumerate(shares)}
    return features


def _co_occurrence(grey: np.ndarray) -> dict[str, float]:
    """Mean and range over directions of Haralick's measures."""
    from skimage.feature import graycomatrix, graycoprops

    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    levels = grey // (256 // _GREYS)
    matrix = graycomatrix(levels, _DISTANCES, angles, levels=_GREYS, symmetric=True, normed=True)
    features = {}
    for measure in _GLCM:
        values = graycoprops(matrix, measure)  # [distances, angles]
        for distance, row in zip(_DISTANCES, values, strict=True):
            features[f"glcm{distance}_{measure}"] = float(row.mean())
            features[f"glcm{distance}_{measure}_range"] = float(np.ptp(row))
    return features
