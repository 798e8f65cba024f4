"""``prepare_batch`` functions and frozen data of the glioma stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from shared.data.glioma_rows import GliomaRows, collate_glioma, glioma_inputs
from shared.networks.glioma_classifier import GliomaClassifier, GliomaFeatures
from shared.transforms.tumour_crop import TumourRotation


@torch.no_grad()
def brain_networks(
    rows: GliomaRows, features: GliomaFeatures, device: Any = "cpu", *, standardised: bool = True
) -> tuple[Tensor, Tensor]:
    """Attributes of all patients' brain networks, on the CPU: ``[N, R, F]`` and ``[N, E, F]``."""
    found = []
    for item in rows.items:  # one patient at a time: its rows are thousands
        given = (torch.as_tensor(item[key])[None].to(device) for key in ("region_rows", "tract_rows"))
        found.append([x[0].cpu() for x in features.attributes(*given, standardised=standardised)])
    return tuple(torch.stack(part) for part in zip(*found, strict=True))


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

    Shape:
        - returns: image, label ``[B]``, (), ``points, graph, nodes, edges, incidence``
    """

    def __init__(self, rows: GliomaRows, features: GliomaFeatures, rotation: TumourRotation | None = None):
        self.rows, self.features, self.rotation = rows, features, rotation
        self._networks: tuple[Tensor, Tensor] | None = None

    def __call__(
        self, batchdata: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor, tuple, dict]:
        """Gather, move and rotate one batch."""
        row = batchdata["row"]
        names = ("image", "points", "centre", "graph", "incidence", "label")
        batch = collate_glioma([{k: self.rows.items[i][k] for k in names} for i in row.tolist()])
        inputs = glioma_inputs(batch, device, ("image", "points", "graph", "incidence"))
        if "brain" in self.features.glioma.encoders:
            if self._networks is None:
                self._networks = brain_networks(self.rows, self.features, device)
            inputs |= {key: x[row].to(device) for key, x in zip(("nodes", "edges"), self._networks, strict=True)}
        if self.rotation is not None:
            inputs["image"], inputs["points"] = self.rotation(inputs["image"], inputs["points"], batch["centre"])
        return inputs.pop("image"), batch["label"].to(device), (), inputs


class FrozenEmbeddings(Dataset):
    """Patients' rows, and their frozen embeddings: computed once, after the features were loaded.

    Args:
        rows: the patients.
        network: the classifier.
        device: where it runs.
        batch_size: patients at a time.

    Shape:
        - an item: ``row`` int, ``label`` int, ``covariates`` ``[k]``
        - :meth:`embeddings`: nodes ``[N, D]``, edges ``[N, D']``
    """

    def __init__(self, rows: GliomaRows, network: GliomaClassifier, *, device: Any = "cpu", batch_size: int = 8):
        self.rows, self.network, self.device, self.batch_size = rows, network, device, batch_size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.rows[row]

    @torch.no_grad()
    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Node and edge features of all patients, in eval mode."""
        self.network.features.eval()
        found = []
        for first in tqdm(range(0, len(self.rows), self.batch_size), desc="Embedding patients", leave=False):
            batch = collate_glioma(self.rows.items[first : first + self.batch_size])
            inputs = glioma_inputs(batch, self.device)
            inputs.pop("covariates")
            found.append(self.network.graph_parts(self.network.embed(**inputs)))
        return tuple(torch.cat(part) for part in zip(*found, strict=True))


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


class PopulationLoss(nn.Module):
    """Binary cross-entropy of every member of the population graph and of the MLP; none shares a parameter.

    Args:
        pos_weight: weight of the positives' loss; None: 1.

    Shape:
        - logits: of :class:`shared.networks.PopulationTraining`; label: ``[R]``
        - returns: scalar
    """

    def __init__(self, pos_weight: float | None = None):
        super().__init__()
        self.pos_weight = pos_weight

    def forward(self, logits: tuple[Tensor | None, ...], label: Tensor) -> Tensor:
        """Sum of the means."""
        weight = None if self.pos_weight is None else label.new_tensor(self.pos_weight)
        return sum(
            len(part) * nn.functional.binary_cross_entropy_with_logits(part, label.expand_as(part), pos_weight=weight)
            for part in logits
            if part is not None
        )
