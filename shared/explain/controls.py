"""Maps that know nothing of a network, to compare its explanations with; all ``[B, 1, H, W]`` float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shared.errors import DataError
from shared.metrics.classification import to_numpy


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


def random_map(shape: tuple[int, int, int, int], *, seed: int | Sequence[int] = 0) -> np.ndarray:
    """Control: independent uniform noise in [0, 1), ``[B, 1, H, W]`` float32.

    Args:
        shape: of the maps.
        seed: a number, or several (of the run, the patient, ...).

    Example:
        >>> random_map((2, 1, 4, 4)).shape
        (2, 1, 4, 4)
    """
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def centred_gaussian_map(shape: tuple[int, int, int, int], *, sigma: float = 0.25) -> np.ndarray:
    """Control: a Gaussian at the centre, 1 at its top, ``[B, 1, H, W]`` float32.

    Args:
        shape: of the maps.
        sigma: standard deviation as a share of each side.

    Example:
        >>> centred_gaussian_map((1, 1, 3, 3))[0, 0, 1].round(3).tolist()
        [0.411..., 1.0, 0.411...]
    """
    if sigma <= 0:
        raise ValueError(f"sigma must be positive, got {sigma}.")
    y, x = (np.exp(-0.5 * (((np.arange(n) + 0.5) / n - 0.5) / sigma) ** 2) for n in shape[-2:])
    return np.broadcast_to(np.outer(y, x).astype(np.float32), shape).copy()


def darkness_map(images: Any) -> np.ndarray:
    """Control for stained tissue, darker than the glass: 1 - luminance (ITU-R BT.709), ``[B, 1, H, W]`` float32.

    Args:
        images: ``[B, 3, H, W]`` (RGB) or ``[B, 1, H, W]``, in [0, 1] or uint8.

    Raises:
        DataError: another number of channels, or values outside [0, 1].

    Example:
        >>> darkness_map(np.array([0.2, 0.2, 0.2]).reshape(1, 3, 1, 1)).round(3).tolist()
        [[[[0.800...]]]]
    """
    images = to_numpy(images)
    images = images / np.float32(255) if images.dtype == np.uint8 else images.astype(np.float32)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(f"Darkness needs images [B, 3, H, W] or [B, 1, H, W], got {images.shape}.")
    if not (images.min(initial=0) >= 0 and images.max(initial=1) <= 1):
        raise DataError(f"Darkness needs images in [0, 1], got {images.min():.3g} ... {images.max():.3g}.")
    weights = np.float32([0.2126, 0.7152, 0.0722] if images.shape[1] == 3 else [1])
    return np.clip(1 - np.einsum("bchw,c->bhw", images, weights), 0, 1)[:, None]


def edge_density_map(images: Any, *, sigma: float = 0.03) -> np.ndarray:
    """Control for structure: gradient magnitude of the luminance, averaged nearby, ``[B, 1, H, W]`` float32, from 0 on.

    Args:
        images: as of :func:`darkness_map`.
        sigma: standard deviation of the average, as a share of the height; the gradient is that at one pixel's.

    Example:
        >>> image = np.zeros((1, 1, 32, 32)); image[..., 16:] = 1
        >>> int(edge_density_map(image)[0, 0, 16].argmax()) in (15, 16)
        True
    """
    from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude

    darkness = darkness_map(images)[:, 0]
    edges = [gaussian_gradient_magnitude(one, 1) for one in darkness]
    return np.stack([gaussian_filter(one, sigma * one.shape[0]) for one in edges])[:, None]


def resize_maps(maps: Any, size: tuple[int, int]) -> np.ndarray:
    """Maps at another size: averaged over areas where that is smaller, bilinear where it is larger.

    Example:
        >>> resize_maps(np.array([[[[0.0, 1.0, 2.0, 3.0]]]]), (1, 2)).tolist()
        [[[[0.5, 2.5]]]]
    """
    from skimage.transform import resize, resize_local_mean

    maps = to_numpy(maps)
    if tuple(size) == maps.shape[-2:]:
        return maps
    smaller = size[0] < maps.shape[-2] or size[1] < maps.shape[-1]
    resized = [
        resize_local_mean(one, size) if smaller else resize(one, size, order=1, mode="edge", anti_aliasing=False)
        for one in maps[:, 0]
    ]
    return np.stack(resized)[:, None].astype(maps.dtype)
