"""Resizing of batches of patches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def resize_images(images: Tensor, size: int) -> Tensor:
    """Resize bilinearly, antialiased where that shrinks; uint8 stays uint8, other types become float32.

    Shape:
        - images: ``[B, C, H, W]`` -> ``[B, C, size, size]``
    """
    if images.shape[2:] == (size, size):
        return images if images.dtype == torch.uint8 else images.float()
    out = functional.interpolate(images.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
    return out.round().clamp(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else out
