"""Does a map point at the truth: pointing game, energy inside, overlap; and the same of control maps.

Pointing game: Zhang et al., Top-down Neural Attention by Excitation Backprop (2018). Energy inside: Wang et al.,
Score-CAM (2020). Every score is one number per map; maps and truths are ``[B, 1, H, W]``, NumPy or torch; what needs
no box takes volumes ``[B, 1, D, H, W]``, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

from shared.errors import DataError
from shared.explain.boxes import bounding_box, box_iou, box_mask_iou, mask_box
from shared.explain.controls import (
    centred_box_map,
    centred_gaussian_map,
    darkness_map,
    edge_density_map,
    random_map,
    resize_maps,
)
from shared.metrics.classification import to_numpy


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
    axes = _axes(maps)
    peak = maps.max(axis=axes, keepdims=True)
    tied = (maps == peak) & (peak > 0)
    return (tied & truth).sum(axis=axes) / np.maximum(tied.sum(axis=axes), 1)


def energy_inside(maps: Any, truth: Any) -> np.ndarray:
    """Share of the map's mass that lies inside the truth, ``[B]``; 0 for an all-zero map.

    Example:
        >>> energy_inside(np.array([[[[3.0, 1.0]]]]), np.array([[[[1, 0]]]])).tolist()
        [0.75]
    """
    maps, truth = _pair(maps, truth)
    mass = maps.sum(axis=_axes(maps))
    return (maps * truth).sum(axis=_axes(maps)) / np.where(mass > 0, mass, 1.0)


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
    axes = _axes(maps)
    if region is not None:
        inside = _boolean(region, truth.shape)
        maps, truth = maps * inside, truth & inside
        _not_empty(truth, "has no pixel inside the region")
        share = truth.sum(axis=axes) / inside.sum(axis=axes)
    else:
        share = truth.mean(axis=axes)
    mass = maps.sum(axis=axes)
    return (maps * truth).sum(axis=axes) / np.where(mass > 0, mass, 1.0) / share


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
    level = threshold * maps.max(axis=_axes(maps), keepdims=True) if relative else threshold
    found = (maps >= level) & (maps > 0)
    return (found & truth).sum(axis=_axes(maps)) / (found | truth).sum(axis=_axes(maps))


def localisation_scores(
    maps: Any, truth: Any, *, tolerance: float = 0.0, threshold: float = 0.5, region: Any = None, boxes: bool = False
) -> dict[str, np.ndarray]:
    """All scores of a batch of maps, each ``[B]``: pointing, energy_inside, energy_ratio, iou.

    Args:
        maps: importance, not negative.
        truth: non-zero inside.
        tolerance: see ``pointing_game``.
        threshold: see ``intersection_over_union``.
        region: see ``energy_ratio``.
        boxes: add ``box_iou``, of the box of the largest component from ``threshold`` times the maximum on with the
            box of the whole truth, and ``box_mask_iou``, of that box's area with the truth itself.

    Example:
        >>> truth = np.eye(4)[None, None]
        >>> {name: score.tolist() for name, score in localisation_scores(truth, truth).items()}
        {'pointing': [1.0], 'energy_inside': [1.0], 'energy_ratio': [4.0], 'iou': [1.0]}
    """
    scores = {
        "pointing": pointing_game(maps, truth, tolerance=tolerance),
        "energy_inside": energy_inside(maps, truth),
        "energy_ratio": energy_ratio(maps, truth, region=region),
        "iou": intersection_over_union(maps, truth, threshold=threshold),
    }
    return scores | box_scores(maps, truth, threshold=threshold) if boxes else scores


def box_scores(maps: Any, truth: Any, *, threshold: float = 0.5) -> dict[str, np.ndarray]:
    """Overlap of each map's bounding box with the truth's box and with the truth, ``[B]`` each; 0 without a box.

    Example:
        >>> maps = np.zeros((1, 1, 4, 4)); maps[0, 0, :2, :2] = 1
        >>> {name: score.tolist() for name, score in box_scores(maps, np.eye(4)[None, None]).items()}
        {'box_iou': [0.25], 'box_mask_iou': [0.3333333333333333]}
    """
    maps, truth = _pair(maps, truth)
    found = [bounding_box(one, threshold=threshold) for one in maps]
    return {
        "box_iou": np.array([box_iou(box, mask_box(one)) for box, one in zip(found, truth, strict=True)]),
        "box_mask_iou": np.array([box_mask_iou(box, one) for box, one in zip(found, truth, strict=True)]),
    }


def scores_beside_controls(
    maps: Any,
    truth: Any,
    *,
    images: Any = None,
    grid: tuple[int, int] | None = None,
    name: str = "Grad-CAM",
    threshold: float = 0.5,
    seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """Score a batch of maps beside maps that know nothing of the network, every map scaled to [0, 1] alike.

    The controls: a centred box, a centred Gaussian, a random map, the images' darkness and edge density; random map
    and darkness also on the network's own grid, since a map of a few cells is smooth, and smoothness alone moves some
    of the scores.

    Args:
        maps: importance, not negative.
        truth: non-zero inside.
        images: the images, for darkness and edges; None: without.
        grid: height and width of the layer that the maps come from; None: without the coarse controls.
        name: what the maps are called.
        threshold: share of a map's maximum from which a pixel belongs to its region and its box.
        seed: of the random maps.

    Shape:
        - maps, truth: ``[B, 1, H, W]``, images: ``[B, 3, h, w]`` or ``[B, 1, h, w]`` in [0, 1]
        - returns: map to score to ``[B]``; scores as ``localisation_scores`` with boxes, and ``all_zero`` (1 where a
          map is zero everywhere, so that its sum is their count)

    Example:
        >>> truth = np.zeros((1, 1, 4, 4)); truth[0, 0, 1, 1] = 1
        >>> scores = scores_beside_controls(np.zeros((1, 1, 4, 4)), truth)
        >>> list(scores), int(scores["Grad-CAM"]["all_zero"].sum())
        (['Grad-CAM', 'centred box', 'centred Gaussian', 'random map'], 1)
    """
    _pair(maps, truth)
    maps = to_numpy(maps)
    size = maps.shape[-2:]
    controls = {"centred box": centred_box_map(maps.shape), "centred Gaussian": centred_gaussian_map(maps.shape)}
    controls["random map"] = random_map(maps.shape, seed=seed)
    if grid is not None:
        controls["coarse random map"] = resize_maps(random_map((len(maps), 1, *grid), seed=seed), size)
    if images is not None:
        controls["darkness"] = resize_maps(darkness_map(images), size)
        if grid is not None:
            controls["coarse darkness"] = resize_maps(resize_maps(controls["darkness"], grid), size)
        controls["edge density"] = resize_maps(edge_density_map(images), size)
    result = {}
    for key, values in {name: maps, **controls}.items():
        scaled = _min_max(values)
        result[key] = localisation_scores(scaled, truth, threshold=threshold, boxes=True)
        result[key]["all_zero"] = (~scaled.any(axis=(1, 2, 3))).astype(np.float64)
    return result


def _min_max(maps: np.ndarray) -> np.ndarray:
    """Each map to [0, 1]; one that is constant stays zero, or becomes one."""
    low, high = maps.min(axis=(1, 2, 3), keepdims=True), maps.max(axis=(1, 2, 3), keepdims=True)
    return np.where(high > low, (maps - low) / np.where(high > low, high - low, 1), high > 0)


def _axes(maps: np.ndarray) -> tuple[int, ...]:
    return tuple(range(1, maps.ndim))


def _boolean(truth: Any, shape: tuple[int, ...]) -> np.ndarray:
    truth = to_numpy(truth) != 0
    if truth.ndim < 4 or truth.shape[1] != 1 or truth[:, 0].shape != shape:
        raise DataError(
            f"Maps, truths and regions must have one shape [B, 1, H, W]; got {truth.shape} beside maps of "
            f"{(shape[0], 1, *shape[1:])}."
        )
    return truth[:, 0]


def _not_empty(truth: np.ndarray, what: str) -> None:
    empty = np.flatnonzero(~truth.any(axis=_axes(truth))).tolist()
    if empty:
        raise DataError(f"A map can only be scored against a truth that is there; the one at position {empty} {what}.")


def _pair(maps: Any, truth: Any) -> tuple[np.ndarray, np.ndarray]:
    maps = to_numpy(maps).astype(np.float64)
    if maps.ndim not in (4, 5) or maps.shape[1] != 1:
        raise DataError(f"Maps must be [B, 1, H, W] or [B, 1, D, H, W], got {maps.shape}.")
    if not np.isfinite(maps).all() or (maps < 0).any():
        raise DataError("Maps must be finite and not negative: take the absolute value or clip before scoring.")
    truth = _boolean(truth, (maps.shape[0], *maps.shape[2:]))
    _not_empty(truth, "is empty")
    return maps[:, 0], truth
