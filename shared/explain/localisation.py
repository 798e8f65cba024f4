"""Does a map point at the truth: pointing game, energy inside, overlap; and the control maps to compare with.

Pointing game: Zhang et al., Top-down Neural Attention by Excitation Backprop (2018). Energy inside: Wang et al.,
Score-CAM (2020). Every score is one number per map; maps and truths are ``[B, 1, H, W]``, NumPy or torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

from shared.errors import DataError
from shared.metrics.arrays import to_numpy


def pointing_game(maps: Any, truth: Any, *, tolerance: float = 0.0) -> np.ndarray:
    """Does the map's maximum lie inside the truth (1) or not (0)?

    Where several pixels share the maximum (a saturated mask, a box), the score is the share of them that hit: the
    expected outcome of a fair draw. An all-zero map points nowhere and does not hit.

    Args:
        maps: importance, not negative.
        truth: non-zero inside.
        tolerance: pixels by which the maximum may miss the truth.

    Shape:
        - maps, truth: ``[B, 1, H, W]``
        - returns: ``[B]`` float64

    Example:
        >>> maps = np.zeros((2, 1, 3, 3)); maps[:, 0, 1, 1] = 1
        >>> truth = np.zeros((2, 1, 3, 3)); truth[0, 0, 1, 1] = 1; truth[1, 0, 0, 0] = 1
        >>> pointing_game(maps, truth).tolist(), pointing_game(maps, truth, tolerance=1.5).tolist()
        ([1.0, 0.0], [1.0, 1.0])
    """
    maps, truth = _pair(maps, truth)
    if tolerance > 0:
        truth = np.stack([distance_transform_edt(~region) <= tolerance for region in truth])
    peak = maps.max(axis=(1, 2), keepdims=True)
    tied = (maps == peak) & (peak > 0)
    return (tied & truth).sum(axis=(1, 2)) / np.maximum(tied.sum(axis=(1, 2)), 1)


def energy_inside(maps: Any, truth: Any) -> np.ndarray:
    """Share of the map's mass that lies inside the truth, ``[B]``; 0 for an all-zero map.

    Example:
        >>> energy_inside(np.array([[[[3.0, 1.0]]]]), np.array([[[[1, 0]]]])).tolist()
        [0.75]
    """
    maps, truth = _pair(maps, truth)
    mass = maps.sum(axis=(1, 2))
    return (maps * truth).sum(axis=(1, 2)) / np.where(mass > 0, mass, 1.0)


def energy_ratio(maps: Any, truth: Any, *, region: Any = None) -> np.ndarray:
    """Energy inside the truth over what an even map would have there: 1 is chance, ``[B]``.

    Args:
        maps: importance, not negative.
        truth: non-zero inside.
        region: count only pixels in here (the tumour, say): then finding the region itself earns nothing.

    Example:
        >>> energy_ratio(np.array([[[[3.0, 1.0]]]]), np.array([[[[1, 0]]]])).tolist()
        [1.5]
    """
    maps, truth = _pair(maps, truth)
    if region is not None:
        inside = _boolean(region, truth.shape)
        maps, truth = maps * inside, truth & inside
        _not_empty(truth, "has no pixel inside the region")
        share = truth.sum(axis=(1, 2)) / inside.sum(axis=(1, 2))
    else:
        share = truth.mean(axis=(1, 2))
    mass = maps.sum(axis=(1, 2))
    return (maps * truth).sum(axis=(1, 2)) / np.where(mass > 0, mass, 1.0) / share


def intersection_over_union(maps: Any, truth: Any, *, threshold: float = 0.5, relative: bool = False) -> np.ndarray:
    """Overlap of the thresholded map with the truth, ``[B]``; 0 for an all-zero map.

    Args:
        maps: importance, not negative.
        truth: non-zero inside.
        threshold: a pixel belongs to the map's region from this value on.
        relative: ``threshold`` is a share of the map's own maximum.

    Example:
        >>> intersection_over_union(np.array([[[[0.9, 0.6, 0.1]]]]), np.array([[[[1, 0, 0]]]])).tolist()
        [0.5]
    """
    maps, truth = _pair(maps, truth)
    level = threshold * maps.max(axis=(1, 2), keepdims=True) if relative else threshold
    found = (maps >= level) & (maps > 0)
    return (found & truth).sum(axis=(1, 2)) / (found | truth).sum(axis=(1, 2))


def localisation_scores(
    maps: Any, truth: Any, *, tolerance: float = 0.0, threshold: float = 0.5, region: Any = None
) -> dict[str, np.ndarray]:
    """All scores of a batch of maps, each ``[B]``: pointing, energy_inside, energy_ratio, iou.

    Example:
        >>> truth = np.eye(4)[None, None]
        >>> {name: score.tolist() for name, score in localisation_scores(truth, truth).items()}
        {'pointing': [1.0], 'energy_inside': [1.0], 'energy_ratio': [4.0], 'iou': [1.0]}
    """
    return {
        "pointing": pointing_game(maps, truth, tolerance=tolerance),
        "energy_inside": energy_inside(maps, truth),
        "energy_ratio": energy_ratio(maps, truth, region=region),
        "iou": intersection_over_union(maps, truth, threshold=threshold),
    }


def centred_box_map(shape: tuple[int, int, int, int], *, share: float = 0.25) -> np.ndarray:
    """Control: a box of ones at the centre that covers about ``share`` of the area, ``[B, 1, H, W]`` float32.

    Example:
        >>> centred_box_map((1, 1, 4, 4))[0, 0].sum(axis=1).tolist()
        [0.0, 2.0, 2.0, 0.0]
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}.")
    box = np.zeros(shape, dtype=np.float32)
    sides = [max(1, round(side * share**0.5)) for side in shape[-2:]]
    (top, left) = ((full - side) // 2 for full, side in zip(shape[-2:], sides, strict=True))
    box[..., top : top + sides[0], left : left + sides[1]] = 1
    return box


def random_map(shape: tuple[int, int, int, int], *, seed: int = 0) -> np.ndarray:
    """Control: independent uniform noise in [0, 1), ``[B, 1, H, W]`` float32.

    Example:
        >>> random_map((2, 1, 4, 4)).shape
        (2, 1, 4, 4)
    """
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def _boolean(truth: Any, shape: tuple[int, int, int]) -> np.ndarray:
    truth = to_numpy(truth) != 0
    if truth.ndim != 4 or truth.shape[1] != 1 or truth[:, 0].shape != shape:
        raise DataError(
            f"Maps, truths and regions must have one shape [B, 1, H, W]; got {truth.shape} beside maps of "
            f"{(shape[0], 1, *shape[1:])}."
        )
    return truth[:, 0]


def _not_empty(truth: np.ndarray, what: str) -> None:
    empty = np.flatnonzero(~truth.any(axis=(1, 2))).tolist()
    if empty:
        raise DataError(f"A map can only be scored against a truth that is there; the one at position {empty} {what}.")


def _pair(maps: Any, truth: Any) -> tuple[np.ndarray, np.ndarray]:
    maps = to_numpy(maps).astype(np.float64)
    if maps.ndim != 4 or maps.shape[1] != 1:
        raise DataError(f"Maps must be [B, 1, H, W], got {maps.shape}.")
    if not np.isfinite(maps).all() or (maps < 0).any():
        raise DataError("Maps must be finite and not negative: take the absolute value or clip before scoring.")
    truth = _boolean(truth, (maps.shape[0], *maps.shape[2:]))
    _not_empty(truth, "is empty")
    return maps[:, 0], truth
