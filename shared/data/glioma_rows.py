"""Batches of glioma patients: loaders draw row numbers, tensors are gathered on the way to the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from shared.data.cases import CaseDataset
from shared.errors import DataError
from shared.transforms.brain_network import pad_incidence
from shared.transforms.point_graph import collate_point_graphs

STACKED = ("image", "points", "centre", "region_rows", "tract_rows", "covariates", "nodes", "edges")


class GliomaRows(Dataset):
    """Some patients of a :class:`CaseDataset`, as row numbers with what a table needs.

    Nested data (graphs, geometry) stay here: MONAI's decollation would take them apart.

    Args:
        cases: prepared patients.
        patients: names of those wanted, in this order; None: all.

    Attributes:
        items: the prepared patients.

    Shape:
        - an item: ``row`` int, ``patient`` str, ``covariates`` ``[k]``, ``label`` int (where all have one)

    Raises:
        DataError: a patient that is not among the cases.
    """

    def __init__(self, cases: CaseDataset, patients: Sequence[str] | None = None):
        every = {str(cases[i]["patient"]): cases[i] for i in range(len(cases))}
        names = list(every if patients is None else patients)
        if missing := [name for name in names if name not in every]:
            raise DataError(f"{', '.join(missing[:5])}: not among the prepared patients")
        self.items: list[dict[str, Any]] = [every[name] for name in names]
        self.labelled = all(item.get("label") is not None for item in self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> dict[str, Any]:
        item = self.items[row]
        known = {"label": int(item["label"])} if self.labelled else {}
        return {"row": row, "patient": str(item["patient"]), "covariates": item["covariates"], **known}

    @property
    def patients(self) -> list[str]:
        """Their names."""
        return [str(item["patient"]) for item in self.items]

    @property
    def labels(self) -> Tensor:
        """Their labels ``[N]``."""
        return torch.tensor([int(item["label"]) for item in self.items])

    @property
    def covariates(self) -> Tensor:
        """Their covariates ``[N, k]``."""
        return torch.stack([item["covariates"] for item in self.items])


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
