"""Loaders of training batches: shuffled by a generator of their own, whose state is part of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import DataLoader
from torch import Tensor
from torch.utils.data import Dataset, WeightedRandomSampler


class ShuffledLoader(DataLoader):
    """MONAI's DataLoader over shuffled batches: one seed gives one order, whatever else draws random numbers.

    Args:
        dataset: batches are joined by its ``collate``, if it has one.
        batch_size: items a batch; None, or with ``drop_last`` fewer items than that: all in one batch.
        seed: of the order.
        drop_last: leave out the items after the last whole batch.
        weights: draw items with replacement, by these weights; None: each once an epoch.
        num_samples: items an epoch, where ``weights`` are given.
        options: of MONAI's DataLoader.

    Attributes:
        count: items an epoch.

    Example:
        >>> loader = ShuffledLoader(list(range(5)), 2, seed=0)
        >>> len(loader), sum(len(batch) for batch in loader), len(ShuffledLoader(list(range(5)), 9, drop_last=True))
        (3, 5, 1)
    """

    def __init__(
        self,
        dataset: Dataset | Sequence[Any],
        batch_size: int | None,
        *,
        seed: int = 0,
        drop_last: bool = False,
        weights: Sequence[float] | None = None,
        num_samples: int | None = None,
        **options: Any,
    ):
        generator = torch.Generator().manual_seed(seed)
        if (collate := getattr(dataset, "collate", None)) is not None:
            options = {"collate_fn": collate} | options
        count = len(dataset)
        order: dict[str, Any] = {"shuffle": True}
        if weights is not None:
            count = num_samples or count
            order = {"sampler": WeightedRandomSampler(weights, count, generator=generator)}
        self.count = count
        if drop_last:
            batch_size = min(batch_size or count, count)
        options = {"num_workers": 0} | options
        super().__init__(
            dataset, batch_size=batch_size or count, drop_last=drop_last, generator=generator, **order, **options
        )


def collate_patches(batch: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The batch as :class:`PatchRows` formed it, or one of its single items.

    Example:
        >>> collate_patches([{"row": torch.tensor(2)}, {"row": torch.tensor(5)}])
        {'row': tensor([2, 5])}
    """
    if isinstance(batch, Mapping):
        return batch
    first = batch[0]
    return {
        key: torch.stack([item[key] for item in batch]) if isinstance(first[key], Tensor) else [i[key] for i in batch]
        for key in first
    }
