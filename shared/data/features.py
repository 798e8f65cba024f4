"""Stage II's training set: features of the frozen encoder, computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from shared.data.cases import CaseDataset
from shared.data.mixup import MixupTable


class FeatureRows(Dataset):
    """Representations and biomarker assignments of all (original and mixed) cases, encoded at the first access.

    Args:
        cases: the training cases.
        network: with ``encode(image) -> (h, z)`` and ``assign(z) -> (assignment, similarity)``; it must hold the
            trained encoder and biomarkers by the time of the first access.
        table: the cases' mixtures; labels are mixed likewise (soft labels).
        num_classes: width of the soft labels.
        device: where the encoder runs; the features stay on it.
        batch_size: cases encoded at a time.

    Shape:
        - an item: ``image`` (h) ``[m, D]``, ``assignment`` ``[m]``, ``label`` ``[num_classes]``, ``covariates`` ``[C]``
    """

    def __init__(
        self,
        cases: CaseDataset,
        network: nn.Module,
        table: MixupTable,
        *,
        num_classes: int = 2,
        device: str | torch.device = "cpu",
        batch_size: int = 64,
    ):
        self.cases, self.network, self.table = cases, network, table
        self.num_classes, self.device, self.batch_size = num_classes, torch.device(device), batch_size
        self.features: dict[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.features is None:
            self.encode()
        return {key: value[index] for key, value in self.features.items()}

    @torch.no_grad()
    def encode(self) -> None:
        """Run the frozen encoder over every case once."""
        from tqdm import tqdm

        images = self.cases.stack("image").to(self.device)
        labels = nn.functional.one_hot(self.cases.stack("label").long(), self.num_classes).float().to(self.device)
        self.network.to(self.device).eval()
        h, assignment = [], []
        for entries in tqdm(torch.arange(len(self.table)).split(self.batch_size), desc="Encoding cases", leave=False):
            # float32 as in inference: what is cached is what a patient alone would get
            features, z = self.network.encode(self.table.mix(images, entries))
            h.append(features.float())
            assignment.append(self.network.assign(z)[0])
        entries = torch.arange(len(self.table))
        self.features = {
            "image": torch.cat(h),
            "assignment": torch.cat(assignment),
            "label": self.table.mix(labels, entries),
            "covariates": self.table.mix(self.cases.stack("covariates").to(self.device), entries),
        }
