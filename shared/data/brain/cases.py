"""Batches of glioma patients: loaders draw row numbers, tensors are gathered on the way to the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from shared.data.brain.point_graph import collate_point_graphs
from shared.data.cases import CaseDataset
from shared.data.disk_cache import DiskCache
from shared.errors import DataError

STACKED = ("image", "points", "centre", "region_rows", "tract_rows", "covariates", "nodes", "edges")


class _Rows:
    """Row numbers of patients, with what a table needs; ``items`` holds the prepared patients.

    Graphs and geometry stay with the dataset: MONAI's decollation would take them apart.
    """

    items: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> dict[str, Any]:
        item = self.items[row]
        known: dict[str, Any] = {"label": int(item["label"])} if self.labelled else {}
        if self.some_lack:
            known["lacking"] = ", ".join(item.get("lacking") or ())
        return {"row": row, "patient": str(item["patient"]), "covariates": item["covariates"], **known}

    @cached_property  # asked for every row that is drawn
    def labelled(self) -> bool:
        """Whether all of them have a label."""
        return all(item.get("label") is not None for item in self.items)

    @cached_property
    def some_lack(self) -> bool:
        """Whether some of them lack a sequence."""
        return any(item.get("lacking") for item in self.items)

    @property
    def patients(self) -> list[str]:
        """Their names."""
        return [str(item["patient"]) for item in self.items]

    @property
    def labels(self) -> Tensor:
        """Their labels ``[N]``."""
        return torch.tensor([int(item["label"]) for item in self.items])

    @property
    def covariate_table(self) -> Tensor:
        """Their covariates ``[N, k]``."""
        return torch.stack([item["covariates"] for item in self.items])


class GliomaCases(_Rows, CaseDataset):
    """Patients prepared once and kept in memory (:class:`CaseDataset`), drawn as row numbers.

    Args:
        data: cases of the datalist.
        transform: :class:`shared.transforms.LoadGliomad` and :class:`shared.transforms.PrepareGliomad`.
        covariates: names of the covariates.
        progress: show a progress bar while loading.
        disk_cache: keeps the prepared patients, see :class:`CaseDataset`.

    Attributes:
        items: the prepared patients.

    Shape:
        - an item drawn: ``row`` int, ``patient`` str, ``covariates`` ``[k]``, ``label`` int (where all have one)

    Raises:
        DataError: with the message of every patient that the transforms refuse.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Any,
        *,
        covariates: Sequence[str] = (),
        progress: bool = True,
        disk_cache: DiskCache | None = None,
    ):
        # made contiguous, the named tuples of the graphs would come apart
        options = {"covariates": covariates, "progress": progress, "disk_cache": disk_cache}
        CaseDataset.__init__(self, data, transform, as_contiguous=False, **options)

    @property
    def items(self) -> list[dict[str, Any]]:
        """The prepared patients."""
        return self._cache


class GliomaRows(_Rows, Dataset):
    """Some patients of :class:`GliomaCases`, in an order of their own.

    Args:
        cases: prepared patients.
        patients: names of those wanted; None: all.

    Raises:
        DataError: a patient that is not among the cases.
    """

    def __init__(self, cases: GliomaCases, patients: Sequence[str] | None = None):
        every = dict(zip(cases.patients, cases.items, strict=True))
        names = list(every if patients is None else patients)
        if missing := [name for name in names if name not in every]:
            raise DataError(f"{', '.join(missing[:5])}: not among the prepared patients")
        self.items = [every[name] for name in names]


def collate_glioma(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The batch of several patients: tensors stacked, graphs joined, incidences padded.

    Shape:
        - ``image`` ``[B, C, S, S, S]``, ``points`` ``[B, P, 3]``, ``graph`` (a batched PointGraph), ``incidence``
          ``[B, P, T]``, ``region_rows``, ``tract_rows`` (or ``nodes``, ``edges``), ``covariates`` ``[B, k]``,
          ``centre`` ``[B, 3]``, ``patient``, ``label`` ``[B]`` where all have one
    """
    batch: dict[str, Any] = {
        key: torch.stack([torch.as_tensor(item[key]) for item in items]) for key in STACKED if key in items[0]
    }
    batch["patient"] = [str(item.get("patient", "?")) for item in items]
    if "graph" in items[0]:
        batch["graph"] = collate_point_graphs([item["graph"] for item in items])
    if "incidence" in items[0]:
        batch["incidence"] = pad_incidence([item["incidence"] for item in items])
    labels = [item.get("label") for item in items]
    if all(label is not None for label in labels):
        batch["label"] = torch.tensor([int(label) for label in labels])
    return batch


INPUTS = ("image", "points", "graph", "region_rows", "tract_rows", "incidence", "covariates")


def glioma_inputs(batch: Mapping[str, Any], device: Any = "cpu", keys: Sequence[str] = INPUTS) -> dict[str, Any]:
    """What :class:`shared.networks.GliomaClassifier` takes, on the device."""
    return {key: batch[key].to(device, non_blocking=True) for key in keys if key in batch}


def pad_incidence(incidences: Sequence[Tensor]) -> Tensor:
    """Stack patients' incidences ``[P, T_i]`` to ``[B, P, T]``, padded with -1 to the largest T.

    Example:
        >>> pad_incidence([torch.tensor([[3]]), torch.tensor([[0, 7]])]).tolist()
        [[[3, -1]], [[0, 7]]]
    """
    widest = max(incidence.shape[1] for incidence in incidences)
    return torch.stack([functional.pad(i, (0, widest - i.shape[1]), value=-1) for i in incidences])
