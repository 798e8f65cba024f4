"""The whole brain around a tumour's crop, for an explanation's pictures, and maps put back into it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from scipy.ndimage import map_coordinates

from shared.data.masks import LABELS_KEY, read_mask
from shared.data.volumes import load_volume
from shared.io import atomic_path

_SCANNER, _MNI = 1, 4  # NIfTI's codes for an affine into the scanner's space and into MNI152's


class BrainVolumes(NamedTuple):
    """A patient's volumes on the MNI152 grid.

    Attributes:
        images: sequences ``[C, X, Y, Z]``; one that the patient lacks is 0.
        mask: the tumour's, ``[X, Y, Z]`` bool.
        affine: voxel to mm, ``[4, 4]``.
        planted: phantoms only: codes of what was planted, ``[X, Y, Z]``.
        places: where the patient's own places lie in MNI152, mm, ``[U, V, W, 3]``; None: not known.
        native_affine: of their grid, voxel to mm in the patient's scan, ``[4, 4]``.
    """

    images: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    planted: np.ndarray | None = None
    places: np.ndarray | None = None
    native_affine: np.ndarray | None = None

    @classmethod
    def load(cls, files: Mapping[str, Any]) -> BrainVolumes:
        """Read them anew; samples keep the crop alone.

        Args:
            files: ``images``: paths, ``mask``: a path, ``tumour_labels``: its values that are tumour, where it has
                several, ``planted``: a path or None, ``lacking``: places of ``images`` where another one stands,
                ``mni_places``: what the preparation wrote of the way back, where it did.
        """
        images = [load_volume(path) for path in files["images"]]
        stacked = np.stack([image.array for image in images])
        stacked[[*(files.get("lacking") or {}).values()]] = 0
        planted, places = files.get("planted"), files.get("mni_places")
        known = nib.load(places) if places else None
        return cls(
            stacked,
            read_mask(files["mask"], files.get(LABELS_KEY) or (), joined=False).array > 0,
            images[0].affine,
            None if planted is None else np.rint(load_volume(planted).array).astype(np.int64),
            *((None, None) if known is None else (known.get_fdata(dtype=np.float32), known.affine)),
        )

    def native(self, values: np.ndarray) -> np.ndarray:
        """A map of the MNI grid ``[X, Y, Z]`` at the patient's own places ``[U, V, W]``, by linear interpolation."""
        voxels = apply_affine(np.linalg.inv(self.affine), self.places)
        return map_coordinates(values.astype(np.float32), np.moveaxis(voxels, -1, 0), order=1, mode="constant")

    def write(self, path: str, values: np.ndarray, description: str) -> None:
        """A map as ``path`` on the MNI grid and, where the way back is known, as ``..._native`` on the patient's."""
        write_volume(path, values, self.affine, description)
        if self.places is not None:
            native = f"{path.removesuffix('.nii.gz')}_native.nii.gz"
            write_volume(native, self.native(values), self.native_affine, description, code=_SCANNER)


def uncrop(crop: np.ndarray, start: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """A crop put back where it was cut out, zeros elsewhere; what reached beyond the volume is dropped.

    Args:
        crop: ``[S, S, S]``.
        start: its first voxel in the volume, which may be negative.
        shape: of the volume.

    Example:
        >>> uncrop(np.ones((2, 2, 2)), (-1, 0, 1), (2, 2, 2)).sum(axis=(1, 2)).tolist()
        [2.0, 0.0]
    """
    whole, start = np.zeros(tuple(shape), crop.dtype), np.asarray(start)
    low = np.maximum(start, 0)
    high = np.maximum(np.minimum(start + crop.shape, shape), low)
    whole[tuple(map(slice, low, high))] = crop[tuple(map(slice, low - start, high - start))]
    return whole


def write_volume(
    path: str | os.PathLike, values: np.ndarray, affine: np.ndarray, description: str, *, code: int = _MNI
) -> None:
    """A float32 NIfTI, by default in MNI152 space."""
    image = nib.Nifti1Image(np.asarray(values, np.float32), np.asarray(affine, np.float64))
    image.set_sform(image.affine, code)
    image.set_qform(image.affine, code)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
