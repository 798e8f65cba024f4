"""A network whose answer is a sum over places, so that the true map is known."""

import torch
from torch import nn


class AdditiveNetwork(nn.Module):
    """Log odds: a weight of each cell times the cell's mean brightness, plus a bias.

    Args:
        images: of a patient.
        size: of an image.
        cell: side of a cell.
        seed: of the weights.
    """

    def __init__(self, images, size, *, cell=4, bias=0.3, seed=0):
        super().__init__()
        self.cell, self.bias = cell, bias
        self.linear = nn.Linear(images * (size // cell) ** 2, 1, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(
                torch.randn(self.linear.weight.shape, generator=torch.Generator().manual_seed(seed))
            )

    def contributions(self, image):
        """Log odds that each cell adds, ``[B, m, h, w]``."""
        means = nn.functional.avg_pool2d(image, self.cell)
        return means * self.linear.weight.reshape(1, *means.shape[1:])

    def forward(self, image, covariates=None):
        """Logits ``[B, 2]``."""
        odds = self.contributions(image).sum((1, 2, 3)) + self.bias
        return torch.stack([torch.zeros_like(odds), odds], dim=1)
