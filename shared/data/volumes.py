"""Volumes with their affine: read in RAS order, resampled to another grid."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from shared.data.checks import image_header_problem
from shared.data.grids import same_grid
from shared.errors import DataError


class Volume(NamedTuple):
    """Voxels ``[X, Y, Z]`` and their affine, voxel to world (RAS, mm), ``[4, 4]``."""

    array: Any
    affine: Any


def load_volume(path: str | os.PathLike, *, repair: bool = True) -> Volume:
    """An image in RAS order as float32, values that are not finite set to 0 unless ``repair`` is false.

    Raises:
        DataError: not a readable 3D NIfTI image.
    """
    import nibabel as nib
    import numpy as np

    problem, _ = image_header_problem(path)
    if problem:
        raise DataError(f"{path}: {problem}")
    try:
        image = nib.as_closest_canonical(nib.load(path))
        array = np.asarray(image.dataobj, np.float32)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: voxels cannot be read ({error}); copy or export it again") from error
    array = array.reshape(array.shape[:3])
    return Volume(np.nan_to_num(array, posinf=0, neginf=0) if repair else array, image.affine)


def resample(volume: Volume, shape: tuple[int, ...], affine: Any, *, nearest: bool = False) -> Volume:
    """A volume on another grid by its affine alone, linear or nearest neighbour, 0 outside; nothing is registered."""
    import numpy as np
    from scipy.ndimage import affine_transform

    if same_grid(volume, (shape, affine)):
        return volume
    matrix = np.linalg.inv(volume.affine) @ affine
    # a label reaches to its voxel's edge, half a voxel beyond the last centre
    how = {"order": 0, "mode": "grid-constant"} if nearest else {"order": 1}
    array = affine_transform(volume.array, matrix[:3, :3], matrix[:3, 3], output_shape=tuple(shape), **how)
    return Volume(array, np.asarray(affine, float))
