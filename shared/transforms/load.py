"""Read the volumes of a patient and put them, and the mask, on the grid of the first."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Orientation, ResampleToMatch

from shared.data.checks import orientation_problem
from shared.data.grids import place_problem, same_grid
from shared.data.masks import LABELS_KEY, millilitres, tumour_of
from shared.data.volumes import Volume, resample
from shared.errors import DataError

logger = logging.getLogger(__name__)


class LoadCased(MapTransform):
    """Load a case's modalities and tumour mask on one grid, in RAS order, and refuse what cannot be used.

    Modalities (and the mask) of another shape than the first modality's are resampled to it (linear; nearest for the
    mask), with a logged line; those of its very shape whose affine puts them elsewhere are refused, unless the case's
    ``trust_affines`` is true. Which values of the mask are tumour: ``tumour_labels`` of the case, else see
    :func:`shared.data.masks.tumour_of`. A case without a mask is taken whole as the region of interest.

    Args:
        whole_allowed: whether leaving the mask out is a way; for the message about an empty one.

    Shape:
        - ``data["image"]``, a path or a list of paths (one per modality), becomes ``[C, X, Y, Z]`` float32, RAS
        - ``data["mask"]``, a path (absent or None: no mask), becomes ``[1, X, Y, Z]`` bool, RAS
        - ``data["source"]``: path, shape and affine of the first modality as stored

    Raises:
        DataError: a file that cannot be read, is not 3D, holds NaN or Inf, or is constant; a mask that is empty or
            none; a grid that cannot be meant.
    """

    def __init__(self, *, whole_allowed: bool = True):
        super().__init__(["image"])
        whole = "the mask out of the datalist to take the whole image as region of interest"
        self._instead = whole if whole_allowed else "the patient out"
        self._orient = Orientation(axcodes="RAS", labels=None)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load one case."""
        out = dict(data)
        patient = str(out.get("patient", "?"))
        paths = out["image"]
        paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
        volumes = []
        for path in paths:
            volume = self._read(path, patient)
            if float(volume.max()) == float(volume.min()):
                raise DataError(
                    f"{patient}: every voxel of {path} is {float(volume.max()):g}; an image must vary. "
                    "Export the series again or leave the patient out."
                )
            volumes.append(volume)
        first = nib.load(paths[0])
        out["source"] = {"path": str(paths[0]), "shape": tuple(first.shape[:3]), "affine": first.affine.copy()}
        reference = self._orient(volumes[0])
        aligned = [reference]
        for path, volume in zip(paths[1:], volumes[1:], strict=True):
            self._check_place(volume, path, out)
            aligned.append(self._to_grid(self._orient(volume), reference, "bilinear", path, patient))
        out["image"] = torch.cat([torch.as_tensor(volume.array) for volume in aligned])
        if out.get("mask") is None:
            mask = torch.ones(1, *reference.shape[1:], dtype=torch.bool)
        else:
            mask = self._mask(out, reference, patient)
            out["masked"] = True
        out.setdefault("masked", False)
        out["mask"] = mask
        out["affine"] = np.asarray(reference.affine)
        return out

    def _mask(self, case: Mapping[Hashable, Any], reference: MetaTensor, patient: str) -> torch.Tensor:
        """The tumour on the images' grid."""
        path = case["mask"]
        volume = self._read(path, patient)
        self._check_place(volume, path, case)
        volume = self._orient(volume)
        try:
            values, labels = volume[0].numpy(), case.get(LABELS_KEY) or ()
            tumour = tumour_of(values, volume.affine, labels) if values.max() > 0 else values > 0
        except DataError as error:
            raise DataError(f"{patient}: {path}: {error}") from None
        before = millilitres(tumour, volume.affine)
        volume = MetaTensor(torch.as_tensor(tumour, dtype=torch.float32)[None], affine=volume.affine)
        mask = torch.as_tensor(self._to_grid(volume, reference, "nearest", path, patient).array) > 0
        if not mask.any():
            raise DataError(
                f"{patient}: the tumour mask {path} is empty on the image's grid. Draw the tumour, or leave "
                f"{self._instead}."
            )
        if mask.shape != volume.shape:
            after = millilitres(mask, reference.affine)
            logger.warning("%s: the tumour has %.1f ml in its mask, %.1f ml on that grid.", patient, before, after)
        return mask

    def _read(self, path: str, patient: str) -> MetaTensor:
        if not Path(path).is_file():
            raise DataError(f"{patient}: there is no file {path}. Correct the datalist or prepare the data again.")
        try:
            image = nib.load(path)  # LoadImage would also make MONAI's DICOM readers, one of which warns
            volume = MetaTensor(torch.as_tensor(np.asarray(image.dataobj).astype(np.float32)), affine=image.affine)
        except Exception as error:
            said = (str(error).splitlines() or ["no more is said"])[0]  # an EOFError may be silent
            raise DataError(
                f"{patient}: {path} cannot be read as NIfTI ({type(error).__name__}: {said}). "
                "Check that the file is whole and a .nii or .nii.gz."
            ) from error
        if problem := orientation_problem(image.header):
            raise DataError(f"{patient}: {path} {problem}")
        while volume.ndim > 3 and volume.shape[-1] == 1:
            volume = volume[..., 0]
        if volume.ndim != 3:
            raise DataError(
                f"{patient}: {path} has {volume.ndim} dimensions {tuple(volume.shape)}; one 3D volume per modality is "
                "needed. Split time points or channels into files of their own."
            )
        if not bool(torch.isfinite(volume).all()):
            count = int((~torch.isfinite(volume)).sum())
            raise DataError(f"{patient}: {path} holds {count} NaN or Inf voxels. Repair or export it again.")
        return volume[None]

    def _check_place(self, volume: MetaTensor, path: str, case: Mapping[Hashable, Any]) -> None:
        """Refuse a volume that has the first modality's shape and lies elsewhere."""
        source = case["source"]
        problem = place_problem(
            source["path"], (source["shape"], source["affine"]), path, (volume.shape[1:], np.asarray(volume.affine))
        )
        if problem and case.get("trust_affines") is not True:
            raise DataError(f"{case.get('patient', '?')}: {problem}")

    def _to_grid(self, volume: MetaTensor, reference: MetaTensor, mode: str, path: str, patient: str) -> MetaTensor:
        if same_grid((volume.shape[1:], volume.affine), (reference.shape[1:], reference.affine)):
            return volume
        logger.warning(
            "%s: %s %s is on another grid than the first modality %s and is resampled to it.",
            patient,
            path,
            tuple(volume.shape[1:]),
            tuple(reference.shape[1:]),
        )
        if mode == "nearest":  # by the function whose volume the preparation tells
            given, shape = Volume(volume[0].numpy(), np.asarray(volume.affine)), tuple(reference.shape[1:])
            moved = resample(given, shape, np.asarray(reference.affine), nearest=True)
            return MetaTensor(torch.as_tensor(moved.array)[None], affine=reference.affine)
        return ResampleToMatch(mode=mode, padding_mode="zeros", dtype=torch.float32)(volume, img_dst=reference)
