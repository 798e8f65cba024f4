"""Mixtures of whole cases, and the rows (case, image) that contrastive training draws from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class MixupTable:
    """Seeded table of mixed cases: ``weight * case[first] + (1 - weight) * case[second]`` (Zhang et al. 2017).

    The first ``num_cases`` entries are the originals, ``ratio * num_cases`` mixtures follow. No image is copied: a
    mixture is computed when its batch is formed.

    Args:
        num_cases: original cases.
        ratio: mixtures per original (30 in the IRCL paper, section 4.1).
        alpha: both parameters of the Beta distribution of the weight.
        seed: of the table.

    Example:
        >>> table = MixupTable(2, ratio=1)
        >>> len(table), table.parents[:2].tolist(), table.weight[:2].tolist()
        (4, [[0, 0], [1, 1]], [1.0, 1.0])
    """

    def __init__(self, num_cases: int, *, ratio: int = 30, alpha: float = 1.0, seed: int = 0):
        if ratio < 0:
            raise ValueError(f"The mixup ratio must be 0 (none) or more, got {ratio}.")
        if num_cases < 2:
            ratio = 0
        rng = np.random.default_rng(seed)
        count = num_cases * ratio
        own = torch.arange(num_cases)
        first = torch.as_tensor(rng.integers(0, num_cases, count))
        # a partner other than itself
        second = (first + torch.as_tensor(rng.integers(1, max(num_cases, 2), count))) % num_cases
        mixed = torch.as_tensor(rng.beta(alpha, alpha, count), dtype=torch.float32)
        self.parents = torch.stack([torch.cat([own, first]), torch.cat([own, second])], 1)
        self.weight = torch.cat([torch.ones(num_cases), mixed])

    def __len__(self) -> int:
        return len(self.weight)

    def mix(self, values: Tensor, entries: Tensor) -> Tensor:
        """Mix ``values`` ``[num_cases, ...]`` for table ``entries`` ``[B]`` -> ``[B, ...]``."""
        parents = self.parents[entries]
        weight = self.weight[entries].to(values.device, values.dtype)
        weight = weight.reshape(-1, *[1] * (values.ndim - 1))
        first, second = parents[:, 0].to(values.device), parents[:, 1].to(values.device)
        return weight * values[first] + (1 - weight) * values[second]


class ContrastiveRows(Dataset):
    """Rows of the memory bank: image k of (original or mixed) case c is row ``c * m + k``.

    Items are row numbers only; :meth:`batch` forms the images of a whole batch on the device.

    Args:
        images: all training images.
        table: the cases' mixtures.
        num_modalities: images come modality by modality.
        intra_positives: ``"patient"``: all images of the same case are intra-patient positives (section 3.2);
            ``"modality"``: those of the same modality only; ``"none"``: there are none (Table 3, "w/o Intra-patient
            Sample").
        device: where images are kept and mixed.

    Shape:
        - images: ``[n, m, H, W]``
    """

    def __init__(
        self,
        images: Tensor,
        table: MixupTable,
        *,
        num_modalities: int = 1,
        intra_positives: str = "patient",
        device: str | torch.device = "cpu",
    ):
        if intra_positives not in ("patient", "modality", "none"):
            raise ValueError(f'intra_positives must be "patient", "modality" or "none", got {intra_positives!r}.')
        self.images = images.to(device)
        self.table = table
        self.num_images = images.shape[1]
        spans = {"patient": self.num_images, "modality": self.num_images // num_modalities, "none": 1}
        self.span = spans[intra_positives]

    def __len__(self) -> int:
        return len(self.table) * self.num_images

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"row": row}

    @property
    def groups(self) -> Tensor:
        """Parent cases of every row ``[N, 2]``: rows that share one are no inter-patient positives of each other."""
        return self.table.parents.repeat_interleave(self.num_images, dim=0)

    def batch(self, rows: Tensor) -> Tensor:
        """Images ``[B, 1, H, W]`` of rows ``[B]``."""
        case, image = rows // self.num_images, rows % self.num_images
        flat = self.images.flatten(0, 1)
        parents, weight = self.table.parents[case], self.table.weight[case].to(flat.device)[:, None, None]
        first, second = (parents * self.num_images + image[:, None]).to(flat.device).unbind(1)
        return (weight * flat[first] + (1 - weight) * flat[second]).unsqueeze(1)

    def intra_positives(self, rows: Tensor) -> Tensor:
        """Rows of the same case (and modality) for each of rows ``[B]``, itself included: ``[B, span]``."""
        start = rows - rows % self.num_images % self.span
        return start[:, None] + torch.arange(self.span)
