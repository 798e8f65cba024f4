"""``prepare_batch`` functions and frozen data of the glioma stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shared.data.brain.cases import GliomaRows, collate_glioma, glioma_inputs
from shared.distributed.processes import gather_rows
from shared.networks.glioma.classifier import GliomaFeatures
from shared.networks.glioma.embeddings import brain_networks
from shared.transforms.glioma.tumour_crop import SequenceDropout, TumourRotation


class PrepareGlioma:
    """From row numbers to the classifier's inputs.

    Args:
        rows: the patients.

    Shape:
        - returns: image, label ``[B]`` or None, (), the other inputs by name
    """

    def __init__(self, rows: GliomaRows):
        self.rows = rows

    def __call__(
        self, batchdata: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, tuple, dict]:
        """Gather and move one batch."""
        batch = collate_glioma([self.rows.items[row] for row in batchdata["row"].tolist()])
        inputs = glioma_inputs(batch, device)
        label = batch["label"].to(device) if "label" in batch else None
        return inputs.pop("image"), label, (), inputs


class PrepareContrast:
    """Stage ``contrast``: crop and points under one rotation each, brain networks whose attributes are computed once.

    Args:
        rows: the patients.
        features: with the trained node and edge encoders.
        rotation: the augmentation; None: none.
        dropout: leaves out sequences, of image and brain network alike; None: none.

    Shape:
        - returns: image, label ``[B]``, (), ``points, graph, nodes, edges, incidence``
    """

    def __init__(
        self,
        rows: GliomaRows,
        features: GliomaFeatures,
        rotation: TumourRotation | None = None,
        dropout: SequenceDropout | None = None,
    ):
        self.rows, self.features, self.rotation = rows, features, rotation
        self.dropout = SequenceDropout() if dropout is None else dropout
        self._networks: dict[tuple, tuple[Tensor, Tensor]] = {}  # of each patient, by what is kept

    def __call__(
        self, batchdata: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor, tuple, dict]:
        """Gather, move and rotate one batch."""
        row = batchdata["row"]
        names = ("image", "points", "centre", "graph", "incidence", "label")
        batch = collate_glioma([{k: self.rows.items[i][k] for k in names} for i in row.tolist()])
        inputs = glioma_inputs(batch, device, ("image", "points", "graph", "incidence"))
        kept = self.dropout(len(row), batch["image"].shape[1])
        inputs["image"] = inputs["image"] * kept.to(inputs["image"])[:, :, None, None, None]
        if "brain" in self.features.glioma.encoders:
            networks = [self._network(i, tuple(k), device) for i, k in zip(row.tolist(), kept.tolist(), strict=True)]
            parts = zip(("nodes", "edges"), zip(*networks, strict=True), strict=True)
            inputs |= {key: torch.cat(part).to(device) for key, part in parts}
        if self.rotation is not None:
            inputs["image"], inputs["points"] = self.rotation(inputs["image"], inputs["points"], batch["centre"])
        return inputs.pop("image"), batch["label"].to(device), (), inputs

    def _network(self, row: int, kept: tuple, device: Any) -> tuple[Tensor, Tensor]:
        if (row, kept) not in self._networks:
            self._networks[row, kept] = brain_networks([self.rows.items[row]], self.features, device, kept=kept)
        return self._networks[row, kept]


class PreparePopulation:
    """Stage ``train``: rows of the bank, labels, covariates.

    Shape:
        - returns: row ``[B]``, label ``[B]``, (covariates ``[B, k]``,), ``{}``
    """

    def __call__(
        self, batchdata: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor, tuple[Tensor], dict]:
        """Rows, labels and covariates on the device."""
        row, label, known = (batchdata[key].to(device) for key in ("row", "label", "covariates"))
        return row, label.to(known.dtype), (known,), {}


class PrepareRegions:
    """Node autoencoder: a batch's rows are both input and target.

    Shape:
        - returns: rows ``[B, C * V]`` twice

    Example:
        >>> x, target = PrepareRegions()({"rows": torch.ones(2, 3)})
        >>> x is target
        True
    """

    def __call__(
        self, batchdata: Mapping[str, Tensor], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Rows on the device."""
        rows = batchdata["rows"].to(device, non_blocking=non_blocking)
        return rows, rows


class PrepareTracts:
    """Edge contrast (Eq. 1): rows of MRI and FA, and which pairs are no negatives: the same tract of another patient.

    For :class:`shared.networks.EdgeContrast` and :class:`shared.losses.EdgeContrastiveLoss`. In several processes the
    columns are those of all of them, as the loss gathers its keys; set ``gather=False`` in both where it shall not.

    Args:
        gather: whether several processes share their keys.

    Shape:
        - returns: MRI rows ``[B, C * V]``, exclude ``[B, W B]`` bool, (FA rows ``[B, V]``,), ``{}``

    Example:
        >>> batch = {"rows": torch.ones(3, 8), "fa_rows": torch.ones(3, 2), "unit": torch.tensor([5, 7, 5])}
        >>> PrepareTracts()(batch)[1].int().tolist()
        [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    """

    def __init__(self, *, gather: bool = True):
        self.gather = gather

    def __call__(
        self, batchdata: Mapping[str, Tensor], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor, tuple[Tensor], dict]:
        """Rows and pairs on the device."""
        rows, fa, tract = (batchdata[key].to(device, non_blocking=non_blocking) for key in ("rows", "fa_rows", "unit"))
        columns = gather_rows(tract) if self.gather else tract
        return rows, torch.eq(tract[:, None], columns), (fa,), {}
