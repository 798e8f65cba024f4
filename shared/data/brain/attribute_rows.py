"""Rows that the brain network's encoders learn from: the voxels of every region, or tract, of every patient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from shared.data.loaders import collate_patches
from shared.errors import DataError

if TYPE_CHECKING:
    from shared.transforms.glioma.brain_network import VoxelSampler


class BrainRows(Dataset):
    """All (patient, region) or (patient, tract) rows of a cohort, a batch of them formed by one indexing operation.

    Of the volumes, only the voxels on the sampler's lists are kept (a fifth of the grid for AAL90). Its ``collate``
    is what a loader needs as ``collate_fn``; workers would only copy.

    Args:
        cases: patients with ``image`` ``[C, X, Y, Z]``, loaded and normalised, and ``patient``; for the edge contrast
            also ``fa``. They are read once, one after another.
        sampler: of the regions, for the node autoencoder, or of the tracts, for the edge contrast.
        image_key: key of the volumes.
        fa_key: key of the FA map ``[1, X, Y, Z]``; None: not needed.
        affine_key: key of the volumes' affine; it is checked where it is there.
        device: where the voxels are kept.

    Attributes:
        patients: their names.
        num_units: regions or tracts, K. Row r is unit ``r % K`` of patient ``r // K``.

    Shape:
        - a batch: ``rows`` ``[B, C * V]``, ``fa_rows`` ``[B, V]`` (where there is FA), ``patient`` ``[B]``,
          ``unit`` ``[B]``

    Raises:
        DataError: with every case that is not on the atlas's grid, lacks its FA map, has another number of sequences,
            or holds NaN or Inf; no case at all.
    """

    @staticmethod
    def collate(batch):
        """A batch of items, see :func:`collate_patches`."""
        return collate_patches(batch)

    def __init__(
        self,
        cases: Iterable[Mapping[str, Any]],
        sampler: VoxelSampler,
        *,
        image_key: str = "image",
        fa_key: str | None = None,
        affine_key: str = "affine",
        device: str | torch.device = "cpu",
    ):
        self.sampler, self.num_units = sampler, len(sampler)
        used, position = np.unique(sampler.index.numpy(), return_inverse=True)
        self._index = torch.from_numpy(position.reshape(sampler.index.shape)).to(device)
        keys = {"rows": image_key, **({"fa_rows": fa_key} if fa_key else {})}
        kept: dict[str, list[Tensor]] = {name: [] for name in keys}
        self.patients: list[str] = []
        problems: list[str] = []
        channels = {}
        for case in cases:
            patient = str(case.get("patient", "?"))
            self.patients.append(patient)
            for name, key in keys.items():
                try:
                    values = _values(case, key, sampler, torch.from_numpy(used), affine_key)
                    if len(values) != channels.setdefault(name, 1 if name == "fa_rows" else len(values)):
                        raise DataError(
                            f"{patient}: every patient has {channels[name]} volumes under {key!r}, this one "
                            f"{len(values)}; prepare all patients with the same sequences"
                        )
                    kept[name].append(values.to(device))
                except DataError as error:
                    problems += error.problems
        if not self.patients:
            problems.append("there is no patient to take rows from; list some in the training section")
        if problems:
            raise DataError(problems)
        self._voxels = {name: torch.stack(values) for name, values in kept.items()}

    def __len__(self) -> int:
        return len(self.patients) * self.num_units

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: values[0] for key, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A whole batch; torch's loaders call it instead of ``__getitem__``."""
        row = torch.as_tensor(indices, dtype=torch.long, device=self._index.device)
        patient, unit = row // self.num_units, row % self.num_units
        places = self._index[unit][:, None]
        batch = {}
        for name, voxels in self._voxels.items():
            channel = torch.arange(voxels.shape[1], device=voxels.device)[:, None]
            batch[name] = voxels[patient[:, None, None], channel, places].flatten(1)
        return {**batch, "patient": patient, "unit": unit}


def _values(case: Mapping[str, Any], key: str, sampler: VoxelSampler, used: Tensor, affine_key: str) -> Tensor:
    """The voxels of a case that any row needs, ``[C, U]``."""
    patient = str(case.get("patient", "?"))
    if case.get(key) is None:
        raise DataError(f"{patient}: has no {key!r}; leave the patient out of this stage, or prepare the volume")
    volume = torch.as_tensor(case[key])
    if volume.ndim != 4:
        raise DataError(f"{patient}: {key!r} must be [C, X, Y, Z], got {list(volume.shape)}")
    sampler.atlas.check_grid(volume.shape[1:], case.get(affine_key), what=patient)
    values = volume.flatten(1)[:, used].float()
    if bad := int((~values.isfinite()).sum()):
        raise DataError(f"{patient}: {key!r} has {bad} NaN or Inf in the atlas's voxels; prepare the patient again")
    return values
