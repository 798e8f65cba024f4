"""``prepare_batch`` functions of the brain network's encoders: regions to reconstruct, tracts to contrast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


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
        columns = tract
        if self.gather and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            columns = tract.new_empty(dist.get_world_size() * len(tract))
            dist.all_gather_into_tensor(columns, tract.contiguous())
        return rows, torch.eq(tract[:, None], columns), (fa,), {}
