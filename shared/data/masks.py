"""The tumour in a mask: which of its values mean tumour, what is no mask, and volumes that no tumour has."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

from shared.data.volumes import Volume, load_volume
from shared.errors import DataError

MOST_LABELS = 64
WHOLE = 1e-3  # what a header's slope may leave of a whole number
INVERTED = 0.9  # of the voxels along the box's edges: a tumour never fills them
LARGEST_SHARE = 0.2  # of the body or organ that the image shows
MANY_TIMES = 10.0  # the cohort's median volume

LABELS_KEY = "tumour_labels"  # of a case: values of its mask that are tumour


def mask_labels(text: str) -> list[int]:
    """Type of the option that names the values of a mask that are tumour.

    Example:
        >>> mask_labels("1, 4")
        [1, 4]
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdigit() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(f"must be positive whole numbers, as 1,4, got {text!r}")
    return [int(word) for word in words]


def millilitres(mask: Any, affine: Any) -> float:
    """Volume of a mask.

    Example:
        >>> import numpy as np
        >>> millilitres(np.ones((10, 10, 10), bool), np.diag([1.0, 1, 2, 1]))
        2.0
    """
    import numpy as np

    return float((np.asarray(mask) > 0).sum()) * abs(float(np.linalg.det(np.asarray(affine)[:3, :3]))) / 1e3


def size_text(mask: Any, affine: Any) -> str:
    """Size of a mask in words: its volume, of a single slice its area.

    Example:
        >>> import numpy as np
        >>> size_text(np.ones((10, 10, 10)), np.eye(4)), size_text(np.ones((5, 4, 1)), np.diag([0.5, 0.5, 1, 1]))
        ('1.0 ml', '5 mm2')
    """
    import numpy as np

    if np.shape(mask)[2:] != (1,):
        return f"{millilitres(mask, affine):.1f} ml"
    return f"{square_millimetres(mask, affine):.4g} mm2"


def square_millimetres(mask: Any, affine: Any) -> float:
    """Area of a mask of one slice, which lies across the third axis.

    Example:
        >>> import numpy as np
        >>> square_millimetres(np.ones((5, 4, 1)), np.diag([0.5, 0.5, 3, 1]))
        5.0
    """
    import numpy as np

    along = np.asarray(affine, float)[:3, :2]
    return float((np.asarray(mask) > 0).sum()) * float(np.linalg.norm(np.cross(along[:, 0], along[:, 1])))


def tumour_of(array: Any, affine: Any, labels: Sequence[int] = (), *, joined: bool = False) -> Any:
    """Voxels of the tumour in the values of a mask.

    Without labels a mask has two values, of which the higher is tumour and the lower, at most 0, is not (0 and 1, 255
    or 0.9999; -1 and 1), or it is the signed distance to the tumour's edge, positive inside.

    Args:
        array: values ``[X, Y, Z]``.
        affine: voxel to mm, ``[4, 4]``.
        labels: values that are tumour; empty: see above.
        joined: without labels, several positive whole numbers (BraTS's 1, 2, 4) are all tumour.

    Returns:
        ``[X, Y, Z]``, boolean.

    Raises:
        DataError: several labels of which none is named, values that are no labels (probabilities, softened edges), no
            tumour, no background, or an inverted mask.

    Example:
        >>> import numpy as np
        >>> values = np.array([-1, -1, 1, -1]).reshape(4, 1, 1)
        >>> tumour_of(values, np.eye(4)).ravel().tolist()
        [False, False, True, False]
    """
    import numpy as np

    array = np.asarray(array)
    if bad := int((~np.isfinite(array)).sum()):
        raise DataError(f"holds {bad} NaN or Inf voxels; export the mask again")
    low, high = array.min(), array.max()
    two = bool(((array == low) | (array == high)).all())
    values = np.array(sorted({low, high})) if two else np.unique(array)
    whole = len(values) <= MOST_LABELS and bool((np.abs(values - np.rint(values)) <= WHOLE).all())
    if high <= 0:
        raise DataError("the mask is empty (no voxel in it); segment the tumour or leave the patient out")
    if labels and whole:
        tumour = np.isin(np.rint(array), labels)
        if not tumour.any():
            raise DataError(
                f"the mask is empty (none of the labels {', '.join(map(str, labels))} in it); it holds "
                f"{_volumes(array, affine)}; segment the tumour or leave the patient out"
            )
    elif two and not labels:
        if low > 0:
            raise DataError(
                f"no voxel of it is background: it holds {_volumes(array, affine)}; name the values that are tumour "
                "with --mask-labels, or leave the mask out"
            )
        tumour = array == high
    elif whole and joined and low >= -WHOLE:
        tumour = np.rint(array) > 0
    elif whole and not joined:
        raise DataError(
            f"has {len(values)} values: {_volumes(array, affine)}; name those that are tumour with --mask-labels, as "
            f"--mask-labels {np.rint(high):g}"
        )
    elif not labels and low < 0 and _is_distance(array, affine):
        tumour = array > 0
    else:
        raise DataError(
            f"is no mask: 0 and a few positive whole numbers are needed, it has {len(values)} values from {low:g} to "
            f"{high:g}; of probabilities or softened edges make a mask by a threshold of your choice"
        )
    edges = _edges(tumour)
    if edges.mean() > INVERTED:
        raise DataError(
            f"is inverted, or no tumour's: it marks the edges of the image's box, {size_text(tumour, affine)} of "
            f"{size_text(np.ones_like(tumour), affine)} in all; exchange tumour and background"
        )
    return tumour


def whole_values(array: Any) -> list[int]:
    """The whole numbers in a mask; none where it holds others, too.

    Example:
        >>> import numpy as np
        >>> whole_values(np.array([0, 2, 1.0001])), whole_values(np.array([0, 0.5]))
        ([0, 1, 2], [])
    """
    import numpy as np

    values = np.unique(array)
    fits = len(values) <= MOST_LABELS and bool((np.abs(values - np.rint(values)) <= WHOLE).all())
    return [int(value) for value in np.rint(values)] if fits else []


def absent_labels(held: Mapping[str, Sequence[int]], labels: Sequence[int]) -> list[str]:
    """A line on the labels that the mask of no patient holds, as a slip of the keyboard names them.

    Args:
        held: :func:`whole_values` of the masks, by patient.
        labels: values that are tumour.

    Example:
        >>> absent_labels({"P1": [0, 1, 2], "P2": [0, 1, 4]}, [1, 3])
        ['--mask-labels 1,3: no mask holds 3; they hold 0, 1, 2, 4']
    """
    values = sorted({value for some in held.values() for value in some})
    absent = [label for label in labels if label not in values]
    if not values or not absent:
        return []
    given, absent, values = (", ".join(map(str, some)) for some in (labels, absent, values))
    return [f"--mask-labels {given.replace(' ', '')}: no mask holds {absent}; they hold {values}"]


def differing_tumours(held: Mapping[str, Sequence[int]], most: int = 5) -> list[str]:
    """A line on masks of two values whose tumour is one label with some patients and another with others.

    1, 255 and what stands for 1 (0.9999, 1 beside -1) are one form of a mask; 2 to 63 are labels.

    Args:
        held: :func:`whole_values` of the masks, by patient.
        most: names of patients in a group.

    Example:
        >>> differing_tumours({"P1": [0, 1], "P2": [0, 255], "P3": [0, 2]})
        ['the tumour is 1 in the masks of P1, P2, 2 in those of P3; name ... with --mask-labels, as --mask-labels 1,2']
    """
    groups: dict[int, list[str]] = {}
    for name, values in held.items():
        label = max(values, default=1)
        groups.setdefault(label if 1 < label < MOST_LABELS else 1, []).append(name)
    if len(groups) < 2:
        return []
    parts = []
    for label, names in sorted(groups.items()):
        more = f" and {len(names) - most} more" if len(names) > most else ""
        parts.append(f"{label} in {'those' if parts else 'the masks'} of {', '.join(names[:most])}{more}")
    both = ",".join(map(str, sorted(groups)))
    return [
        f"the tumour is {', '.join(parts)}; name the values that are tumour with --mask-labels, as --mask-labels {both}"
    ]


def read_mask(path: str | os.PathLike, labels: Sequence[int] = (), *, joined: bool = True) -> Volume:
    """A tumour mask as 0 and 1, in RAS order.

    Args:
        path: the file.
        labels: values that are tumour; empty: see :func:`tumour_of`.
        joined: without labels, several positive whole numbers are all tumour.

    Raises:
        DataError: what :func:`tumour_of` refuses.
    """
    import numpy as np

    volume = load_volume(path, repair=False)
    try:
        tumour = tumour_of(volume.array, volume.affine, labels, joined=joined)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return Volume(tumour.astype(np.uint8), volume.affine)


def share_of_body(millilitres_of_tumour: float, path: str | os.PathLike) -> float:
    """Share of the body, or organ, that an image shows: what is brighter than a tenth of its range."""
    import numpy as np

    image = load_volume(path)
    low, high = np.percentile(image.array, (1, 99))
    body = millilitres(image.array - low > 0.1 * (high - low), image.affine)
    return millilitres_of_tumour / body if body else 0.0


def size_flags(volumes: Mapping[str, float], least: int = 5, unit: str = "ml") -> list[str]:
    """Lines on tumours many times larger than the cohort's median, as an organ's mask among tumours is.

    Example:
        >>> size_flags({"P1": 20.0, "P2": 30.0, "P3": 25.0, "P4": 31.0, "P5": 838.0})
        ['P5: the mask has 838.0 ml, 28 times the median of 30.0 ml; is it an organ?']
    """
    from statistics import median

    if len(volumes) < least:
        return []
    middle = median(volumes.values())
    return [
        f"{name}: the mask has {size:.1f} {unit}, {size / middle:.0f} times the median of {middle:.1f} {unit}; is it "
        "an organ?"
        for name, size in volumes.items()
        if middle and size > MANY_TIMES * middle
    ]


def _volumes(array: Any, affine: Any, most: int = 12) -> str:
    import numpy as np

    values = np.unique(array)
    parts = [f"{value:g} ({size_text(array == value, affine)})" for value in values[:most]]
    return ", ".join(parts) + (", ..." if len(values) > most else "")


def _edges(tumour: Any) -> Any:
    """The voxels along the twelve edges of the box: those at an end of two of the axes."""
    import numpy as np

    ends = [np.zeros(n, int) for n in tumour.shape]
    for end in ends:
        end[[0, -1]] = 1
    return tumour[ends[0][:, None, None] + ends[1][:, None] + ends[2] >= 2]


def _is_distance(array: Any, affine: Any) -> bool:
    """Whether values are the distance to the edge of what is above 0, negative outside, in voxels or mm."""
    import nibabel as nib
    import numpy as np
    from scipy.ndimage import distance_transform_edt

    inside = array > 0
    for steps in (np.ones(3), nib.affines.voxel_sizes(np.asarray(affine, float))):
        away = distance_transform_edt(inside, steps) - distance_transform_edt(~inside, steps)
        if np.corrcoef(away.ravel(), array.ravel())[0, 1] > 0.95:
            return True
    return False
