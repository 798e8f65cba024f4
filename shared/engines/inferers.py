"""Inference under bfloat16 autocast, on CUDA and CPU alike, and over all orientations of an image."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import Tensor, nn

from shared.networks.blocks import check_views, turned

AVERAGES = ("probabilities", "logits")


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


class DihedralInferer(AutocastInferer):
    """The mean over flips and right-angle rotations of the image; tissue on a slide has no upright orientation.

    Averaged are the logits, or the class probabilities, which are given back as their logarithms, so that a softmax
    afterwards changes nothing. Only of averaged logits is the mean of the views' additive maps the answer's own map.

    Args:
        views: 1 to 8 of the square's symmetries; 1 is the image as it is.
        bf16: run the network in bfloat16.
        average: ``"logits"`` or ``"probabilities"``.

    Shape:
        - inputs: ``[B, C, H, H]``
        - returns: ``[B, num_classes]`` float32, logits or log probabilities (with one view the network's own logits)

    Raises:
        ValueError: ``views`` is out of range, or ``average`` is neither.

    Example:
        >>> inferer = DihedralInferer(views=8)
        >>> found = inferer(torch.rand(2, 3, 4, 4), nn.Sequential(nn.Flatten(), nn.Linear(48, 2)))
        >>> torch.allclose(found.exp().sum(1), torch.ones(2))
        True
    """

    def __init__(self, views: int = 8, bf16: bool = False, average: str = "probabilities"):
        super().__init__(bf16)
        check_views(views)
        if average not in AVERAGES:
            raise ValueError(f"average must be one of {', '.join(AVERAGES)}, got {average!r}.")
        self.views, self.average = views, average

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """The mean logits, or the log of the mean probabilities."""
        if self.views == 1:
            return super().__call__(inputs, network, *args, **kwargs).float()
        # one view after the other: memory stays that of a single one
        total = 0
        for view in range(self.views):
            logits = super().__call__(turned(inputs, view), network, *args, **kwargs)
            total = total + (logits.float() if self.average == "logits" else logits.float().softmax(dim=1))
        return total / self.views if self.average == "logits" else (total / self.views).log()
