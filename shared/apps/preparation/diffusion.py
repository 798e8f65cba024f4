"""Fractional anisotropy from diffusion MRI, by dipy's tensor model (an extra, imported where used)."""

from __future__ import annotations

import importlib
import os
from typing import Any

from shared.data.volumes import Volume, load_volume
from shared.errors import DataError

HIGHEST = 1.25  # an FA map's largest value: sqrt(3 / 2), where a fitted tensor has negative eigenvalues
_INSTALL = "pip install dipy, or leave the diffusion images out with --no-fa"


def fractional_anisotropy(
    dwi: str | os.PathLike, bval: str | os.PathLike, bvec: str | os.PathLike
) -> tuple[Volume, Volume]:
    """FA in [0, 1], and the mean image without diffusion weighting by which it is registered.

    Args:
        dwi: 4D NIfTI image, ``[X, Y, Z, volumes]``, motion and eddy currents corrected.
        bval: b-values, FSL's text file.
        bvec: directions, FSL's text file.

    Returns:
        FA and mean b0 on the image's grid, in RAS order.

    Raises:
        DataError: dipy is not installed, files do not fit each other, fewer than six directions, no b0.
    """
    import nibabel as nib
    import numpy as np
    from scipy.ndimage import binary_fill_holes
    from skimage.filters import threshold_otsu

    try:
        gradients = importlib.import_module("dipy.core.gradients")
        reconstruction = importlib.import_module("dipy.reconst.dti")
        reading = importlib.import_module("dipy.io")
    except ImportError as error:
        raise DataError(f"FA from diffusion images needs dipy: {_INSTALL}") from error
    image = nib.load(dwi)
    try:
        values, directions = reading.read_bvals_bvecs(str(bval), str(bvec))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{bval} and {bvec} cannot be read ({error}); write b-values and directions as FSL does"
        ) from error
    count = image.shape[3] if len(image.shape) == 4 else 1
    if not count == len(values) == len(directions):
        raise DataError(
            f"{dwi}: has {count} volumes, its files {len(values)} b-values and {len(directions)} directions; "
            "they must be as many"
        )
    low = values < 50
    distinct = np.unique(np.round(directions[~low] * np.sign(directions[~low][:, :1] + 1e-9), 3), axis=0)
    if not low.any() or len(distinct) < 6:
        raise DataError(
            f"{dwi}: {int(low.sum())} volumes without diffusion weighting and {len(distinct)} directions; "
            "a tensor needs one and six"
        )
    array = np.asarray(image.dataobj, np.float32)
    base = array[..., low].mean(-1)
    head = binary_fill_holes(base > 0.5 * threshold_otsu(base))
    table = gradients.gradient_table(values, bvecs=directions)
    # FSL's directions go with the voxel axes as stored, hence the fit comes before any reordering; FA has no direction
    fitted = reconstruction.TensorModel(table).fit(array, mask=head)
    found = np.where(head, np.clip(np.nan_to_num(fitted.fa), 0, 1), 0).astype(np.float32)
    return _upright(found, image.affine), _upright(base, image.affine)


def ready_fa(path: str | os.PathLike) -> Volume:
    """An FA map that another program made, at most 1, in RAS order; NaN becomes 0.

    Raises:
        DataError: its values are no FA: below 0, or above what noise makes of 1.
    """
    import numpy as np

    volume = load_volume(path)
    low, high = float(volume.array.min()), float(volume.array.max())
    if low < 0 or not 0 < high <= HIGHEST:
        raise DataError(f"{path}: FA lies in 0 to 1, its values in {low:g} to {high:g}; give another map or --no-fa")
    return Volume(np.minimum(volume.array, 1.0), volume.affine)


def _upright(array: Any, affine: Any) -> Volume:
    import nibabel as nib

    image = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    return Volume(image.get_fdata(dtype="float32"), image.affine)
