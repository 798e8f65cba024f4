"""Inference under bfloat16 autocast, on CUDA and CPU alike."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import Tensor, nn


def bf16_is_fast(device: str | torch.device) -> bool:
    """Whether the device computes bfloat16 in hardware.

    Example:
        >>> bf16_is_fast("meta")
        False
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


class AutocastInferer(SimpleInferer):
    """MONAI's ``SimpleInferer`` under bfloat16 autocast.

    The trainers' own ``amp`` is for CUDA only; bfloat16 needs no gradient scaler, so the inferer is enough.

    Args:
        bf16: run the network in bfloat16 where autocast holds it safe.

    Example:
        >>> AutocastInferer(bf16=True)(torch.ones(1, 2), nn.Linear(2, 1)).dtype
        torch.bfloat16
    """

    def __init__(self, bf16: bool = False):
        super().__init__()
        self.bf16 = bf16

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The network's output."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.bf16):
            return super().__call__(inputs, network, *args, **kwargs)
