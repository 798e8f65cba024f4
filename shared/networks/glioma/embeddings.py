"""What frozen encoders give of all patients, computed once: attributes of brain networks, embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from shared.data.brain.cases import GliomaRows, collate_glioma, glioma_inputs
from shared.networks.glioma.classifier import GliomaClassifier, GliomaFeatures, given_rows


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
            inputs = given_rows(glioma_inputs(batch, self.device))
            found.append(self.network.graph_parts(self.network.embed(inputs)))
        return tuple(torch.cat(part) for part in zip(*found, strict=True))
