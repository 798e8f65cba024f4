"""The brain in a skull-stripped image, and how an image is recognised whose skull is still there."""

from __future__ import annotations

from typing import Any

from shared.data.volumes import Volume
from shared.errors import DataError

# Of 24 TCGA-LGG volumes with a skull the smallest head has 2,230 ml; the MNI152 brain, a large one, has 1,880 ml.
LARGEST_BRAIN_ML = 2100.0
SMALLEST_BRAIN_ML = 400.0
SMALLEST_EXTENT_MM = 90.0  # a whole brain is at least 100 mm high
LARGEST_FOREGROUND = 0.70  # an ellipsoid fills 0.52 of its box

_REMEDY = (
    "strip the skull first: give a tool with --strip-command, or each patient's brain mask with --brain-mask-pattern"
)


def _solid(foreground: Any) -> Any:
    """Largest part of a foreground, its holes filled."""
    import numpy as np
    from scipy.ndimage import binary_fill_holes, label

    parts, count = label(foreground)
    if count > 1:
        foreground = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    return binary_fill_holes(foreground)


def brain_of(volume: Volume, *, name: str = "the image") -> Any:
    """Mask of the brain: what differs from a constant background, its largest part, holes filled.

    An image is refused as not skull-stripped when its background is not constant (scanners leave noise there), or when
    what it shows is larger than any brain.

    Args:
        volume: the image.
        name: of the image, for messages.

    Returns:
        boolean mask of the image's shape.

    Raises:
        DataError: empty, not a whole brain, or with a skull.
    """
    import nibabel as nib
    import numpy as np
    from scipy.ndimage import binary_dilation, binary_opening

    array = np.asarray(volume.array, np.float32)
    spacing = nib.affines.voxel_sizes(volume.affine)
    extents = spacing * array.shape
    if extents.min() < SMALLEST_EXTENT_MM:
        raise DataError(
            f"{name}: spans {' x '.join(f'{mm:.0f}' for mm in extents)} mm, a whole brain is needed (at least "
            f"{SMALLEST_EXTENT_MM:.0f} mm each way); take the full series, not a stack of chosen slices"
        )
    rim = np.concatenate([array[[0, -1]].ravel(), array[:, [0, -1]].ravel(), array[:, :, [0, -1]].ravel()])
    values, counts = np.unique(rim, return_counts=True)
    foreground = array != values[counts.argmax()]
    if not foreground.any():
        raise DataError(f"{name}: all voxels have the same value; export it again")
    brain = _solid(binary_opening(foreground))
    brain |= foreground & binary_dilation(brain)  # the opening rounds off thin gyri
    box = np.prod([len(np.flatnonzero(brain.any(tuple({0, 1, 2} - {axis})))) for axis in range(3)])
    filled, litres = brain.sum() / max(box, 1), brain.sum() * np.prod(spacing) / 1e6
    if filled > LARGEST_FOREGROUND:
        raise DataError(
            f"{name}: is not skull-stripped: its background is not constant (one value fills {1 - filled:.0%} of the "
            f"box around what is shown, about half is expected); {_REMEDY}"
        )
    if litres * 1e3 > LARGEST_BRAIN_ML:
        raise DataError(
            f"{name}: is not skull-stripped: what it shows has {litres:.2f} litres, a brain has less than "
            f"{LARGEST_BRAIN_ML / 1e3:g}; {_REMEDY}"
        )
    if litres * 1e3 < SMALLEST_BRAIN_ML:
        raise DataError(f"{name}: shows {litres:.2f} litres, too little for a brain; check the image and its spacing")
    return brain
