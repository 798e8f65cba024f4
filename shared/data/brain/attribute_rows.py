"""Rows that the brain network's encoders learn from: the voxels of every region, or tract, of every patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from shared.data.loaders import collate_patches
from shared.errors import DataError


class AttributeRows(Dataset):
    """All (patient, region) or (patient, tract) rows of prepared patients, a batch of them formed by indexing.

    Nothing is read or copied: the rows are those of ``cases``. Its
    ``collate`` is what a loader needs as ``collate_fn``; workers would only copy.

    Args:
        cases: prepared patients, such as :class:`shared.data.GliomaCases`, with ``patient`` and ``kind``.
        kind: ``"region_rows"``, for the node autoencoder, or ``"tract_rows"``, for the edge contrast; as
            :class:`shared.transforms.glioma.brain_network.SampledRows`.
        patients: names of those wanted, in this order; None: all.
        fa: also give the tracts' FA, which every patient then needs (``fa_rows``).
        device: where the voxels are kept.

    Attributes:
        patients: their names.
        num_units: regions or tracts, K. Row r is unit ``r % K`` of patient ``r // K``.

    Shape:
        - a batch: ``rows`` ``[B, C * V]``, ``fa_rows`` ``[B, V]`` (where there is FA), ``patient`` ``[B]``,
          ``unit`` ``[B]``

    Raises:
        DataError: with every patient that lacks its FA map or has another number of sequences; no patient at all, or
            one that is not among the cases.
    """

    @staticmethod
    def collate(batch):
        """A batch of items, see :func:`collate_patches`."""
        return collate_patches(batch)

    def __init__(
        self,
        cases: Sequence[Mapping[str, Any]],
        kind: str,
        *,
        patients: Sequence[str] | None = None,
        fa: bool = False,
        device: str | torch.device = "cpu",
    ):
        items = getattr(cases, "items", cases)  # GliomaCases itself draws row numbers
        every = {str(item["patient"]): item for item in items}
        self.patients = list(every if patients is None else patients)
        if not self.patients:
            raise DataError("there is no patient to take rows from; list some in the training section")
        if missing := [name for name in self.patients if name not in every]:
            raise DataError(f"{', '.join(missing[:5])}: not among the prepared patients")
        self._index: dict[str, Tensor] = {}
        self._voxels: dict[str, list[Tensor]] = {}
        problems: list[str] = []
        for name, key in {"rows": kind, **({"fa_rows": "fa_rows"} if fa else {})}.items():
            rows = {patient: every[patient].get(key) for patient in self.patients}
            problems += [
                f"{patient}: has no 'fa'; leave the patient out of this stage, or prepare the volume"
                for patient, row in rows.items()
                if row is None
            ]
            known = {patient: row for patient, row in rows.items() if row is not None}
            channels = {patient: len(row.voxels) for patient, row in known.items()}
            first = next(iter(channels.values()), 0)
            problems += [
                f"{patient}: every patient has {first} volumes under {key!r}, this one {count}; prepare all patients "
                "with the same sequences"
                for patient, count in channels.items()
                if count != first
            ]
            if known:
                self._index[name] = next(iter(known.values())).index.to(device)
            self._voxels[name] = [row.voxels.to(device) for row in known.values()]
        if problems:
            raise DataError(problems)
        self.num_units = len(self._index["rows"])

    def __len__(self) -> int:
        return len(self.patients) * self.num_units

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: values[0] for key, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A whole batch; torch's loaders call it instead of ``__getitem__``."""
        row = torch.as_tensor(indices, dtype=torch.long)
        patient, unit = row // self.num_units, row % self.num_units
        places = list(zip(patient.tolist(), unit.tolist(), strict=True))
        batch = {}
        for name, voxels in self._voxels.items():
            index = self._index[name]
            batch[name] = torch.stack([voxels[p].index_select(1, index[u]).flatten() for p, u in places])
        device = batch["rows"].device
        return {**batch, "patient": patient.to(device), "unit": unit.to(device)}
