"""Masks that keep less than the tumour's own outline: what a model still knows with them is not the outline.

- ``ellipse``: in every slice the ellipse of the tumour's centre and second moments (place, size and direction are kept)
- ``box``: in every slice the bounding box (place, height and width are kept)
- ``shuffled``: another patient's tumour, centred on the own one's centre (place alone is kept)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from shared.data.volumes import Volume, resample
from shared.errors import DataError


def ellipse(mask: np.ndarray) -> np.ndarray:
    """The pixels in the ellipse of a mask's centre and second moments.

    Within an ellipse of semi-axis a the variance along it is a^2 / 4, so its edge lies two standard deviations away. A
    pixel is a square, not a point: 1/12 is added to the variances.

    Shape:
        - mask: ``[H, W]`` bool, not empty; returns: the same

    Example:
        >>> mask = np.zeros((5, 5), bool)
        >>> mask[1:4, 1:4] = True
        >>> int(ellipse(mask).sum()), int(ellipse(mask[:, :3]).sum())
        (9, 6)
    """
    rows = np.argwhere(mask)
    spread = np.cov(rows.T, bias=True) + np.eye(2) / 12
    away = np.indices(mask.shape).reshape(2, -1).T - rows.mean(axis=0)
    return (np.einsum("ni,ij,nj->n", away, np.linalg.inv(spread), away) <= 4).reshape(mask.shape)


def box(mask: np.ndarray) -> np.ndarray:
    """The pixels in a mask's bounding box.

    Shape:
        - mask: ``[H, W]`` bool, not empty; returns: the same

    Example:
        >>> box(np.eye(3, 4, dtype=bool)).sum(axis=0).tolist()
        [3, 3, 3, 0]
    """
    return np.outer(*(span(mask.any(axis=axis)) for axis in (1, 0)))


def span(line: np.ndarray) -> np.ndarray:
    """All places between the first and the last that is true.

    Example:
        >>> span(np.array([False, True, False, True, False])).tolist()
        [False, True, True, True, False]
    """
    return np.logical_or.accumulate(line) & np.logical_or.accumulate(line[::-1])[::-1]


SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"ellipse": ellipse, "box": box}
SHUFFLED = "shuffled"
KINDS = (*SHAPES, SHUFFLED)


def by_slice(tumour: Volume, how: str) -> Volume:
    """A tumour with the ellipse or the box in the stead of every slice's part.

    Args:
        tumour: 0 and 1; slices lie across the axis of the thickest voxels.
        how: ``ellipse`` or ``box``.
    """
    from shared.transforms.roi_slices import thickest_axis

    axis = thickest_axis(np.linalg.norm(np.asarray(tumour.affine, float)[:3, :3], axis=0))
    slices = np.moveaxis(np.asarray(tumour.array) > 0, axis, 0)
    drawn = [SHAPES[how](one) if one.any() else one for one in slices]
    return Volume(np.moveaxis(np.array(drawn, np.uint8), 0, axis), tumour.affine)


def donors(groups: Mapping[str, str], seed: int = 0) -> dict[str, str]:
    """Whose tumour each patient is given: every tumour once, none within its own group.

    Args:
        groups: group of each patient, its own name where it stands alone.
        seed: of the draw.

    Raises:
        DataError: a group holds more than half of the patients.

    Example:
        >>> found = donors({"a": "g", "b": "g", "c": "c", "d": "d"})
        >>> sorted(found.values()), sorted([found["a"], found["b"]])
        (['a', 'b', 'c', 'd'], ['c', 'd'])
    """
    members: dict[str, list[str]] = {}
    for patient in sorted(groups):
        members.setdefault(groups[patient], []).append(patient)
    largest = max(map(len, members.values()))
    if 2 * largest > len(groups):
        raise DataError(
            f"masks cannot be shuffled among {len(groups)} patients of whom {largest} belong together; a group may "
            "hold half of them"
        )
    rng = np.random.default_rng(seed)
    families = list(members.values())
    order = [name for row in rng.permutation(len(families)) for name in rng.permutation(families[row]).tolist()]
    # groups stand together in this order, so that a step of the largest one's size leads out of each
    return {patient: order[(row + largest) % len(order)] for row, patient in enumerate(order)}


def centred(other: Volume, own: Volume) -> Volume:
    """Another patient's tumour with its centre of mass on the own one's, in its own size in mm, on the own grid.

    Args:
        other: 0 and 1.
        own: 0 and 1, of another grid maybe.
    """
    moved = np.array(other.affine, float)
    moved[:3, 3] += _centre(own) - _centre(other)
    return resample(Volume(np.asarray(other.array, np.uint8), moved), np.shape(own.array), own.affine, nearest=True)


def _centre(tumour: Volume) -> np.ndarray:
    middle = np.argwhere(np.asarray(tumour.array) > 0).mean(axis=0)
    return np.asarray(tumour.affine, float)[:3] @ [*middle, 1.0]


def masks_as(
    how: str, read: Callable[[str], Volume], groups: Mapping[str, str], seed: int = 0
) -> tuple[Callable[[str], Volume], dict[str, str]]:
    """What makes each patient's new mask, and, of shuffled ones, whose tumour each is given.

    Args:
        how: one of ``KINDS``.
        read: a patient's tumour, 0 and 1.
        groups: see :func:`donors`.
        seed: of the shuffle.
    """
    if how != SHUFFLED:
        return (lambda patient: by_slice(read(patient), how)), {}
    given = donors(groups, seed)

    def shuffled(patient: str) -> Volume:
        mask = centred(read(given[patient]), read(patient))
        if not np.any(mask.array):
            raise DataError(f"{patient}: the tumour of {given[patient]} lies outside its image; choose another --seed")
        return mask

    return shuffled, given
