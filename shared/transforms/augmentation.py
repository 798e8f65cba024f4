"""Augmentation of a whole batch at once, on whatever device it lies, each sample with its own draw."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from shared.transforms.batched import rotations


class BatchedAugmentation:
    """Random flips, rotation, scale, translation and intensity changes of images in [0, 1].

    One affine grid and one intensity map per sample, the same for all its channels; zero background stays zero. The
    draws come from a generator of its own on the CPU, so that a run repeats whatever the device.

    Args:
        flip: probability of a left-right and, independently, of an up-down flip.
        rotation: largest rotation in degrees, to either side.
        scale: largest relative change of size.
        translation: largest shift, as a share of the side.
        gain: largest relative change of brightness.
        gamma: largest exponent; drawn between its inverse and itself on a log scale (1: none).
        noise: standard deviation of Gaussian noise on non-zero pixels.
        seed: of the generator.

    Shape:
        - images: ``[B, C, H, W]`` -> ``[B, C, H, W]``

    Example:
        >>> x = torch.rand(4, 1, 16, 16)
        >>> y = BatchedAugmentation(rotation=20, seed=0)(x)
        >>> y.shape, bool((BatchedAugmentation(rotation=20, seed=0)(x) == y).all())
        (torch.Size([4, 1, 16, 16]), True)
    """

    def __init__(
        self,
        *,
        flip: float = 0.5,
        rotation: float = 0.0,
        scale: float = 0.0,
        translation: float = 0.0,
        gain: float = 0.0,
        gamma: float = 1.0,
        noise: float = 0.0,
        seed: int = 0,
    ):
        if gamma < 1:
            raise ValueError(f"gamma is the largest exponent and must be at least 1, got {gamma}.")
        self.flip, self.rotation, self.scale, self.translation = flip, rotation, scale, translation
        self.gain, self.gamma, self.noise = gain, gamma, noise
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, images: Tensor) -> Tensor:
        """Augment every image with its own draw."""
        count, device = len(images), images.device
        theta = self._affine(count).to(device, torch.float32)
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        out = functional.grid_sample(images.float(), grid, padding_mode="zeros", align_corners=False)
        content = out > 1e-3
        if self.gamma > 1:
            exponent = torch.exp(self._uniform(count) * math.log(self.gamma)).to(device)
            out = out.clamp(min=1e-6) ** exponent[:, None, None, None]
        if self.gain:
            out = out * (1 + self.gain * self._uniform(count)).to(device)[:, None, None, None]
        if self.noise:
            out = out + self.noise * torch.randn(out.shape, generator=self.generator).to(device)
        return torch.where(content, out, torch.zeros_like(out)).clamp(0, 1)

    def _uniform(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator) * 2 - 1

    def _affine(self, count: int) -> Tensor:
        """Matrices ``[B, 2, 3]`` from output to input coordinates."""
        angle = self._uniform(count) * math.radians(self.rotation)
        zoom = torch.exp(self._uniform(count) * math.log1p(self.scale))
        sign = torch.where(torch.rand(count, 2, generator=self.generator) < self.flip, -1.0, 1.0)
        shift = torch.stack([self._uniform(count), self._uniform(count)], 1) * 2 * self.translation
        return torch.cat([rotations(angle, zoom) * sign[:, None, :], shift[:, :, None]], dim=2)
