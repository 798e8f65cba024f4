"""What networks and inferers of several bundles share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def check_views(views: int) -> None:
    """Raise ValueError unless so many views of a square exist, see :func:`turned`."""
    if not 1 <= views <= 8:
        raise ValueError(f"A square has 8 flips and right-angle rotations: views must be 1 to 8, got {views}.")


def turned(x: Tensor, view: int) -> Tensor:
    """One of a square's eight flips and right-angle rotations; 0 leaves it as it is.

    Shape:
        - x: ``[B, C, H, H]`` -> ``[B, C, H, H]``

    Example:
        >>> len({tuple(turned(torch.arange(4.0).reshape(1, 1, 2, 2), view).flatten().tolist()) for view in range(8)})
        8
    """
    x = torch.rot90(x, view % 4, [2, 3])
    return x.flip(3) if view >= 4 else x


def turned_back(x: Tensor, view: int) -> Tensor:
    """The inverse of :func:`turned`.

    Shape:
        - x: ``[B, C, H, H]`` -> ``[B, C, H, H]``

    Example:
        >>> x = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> all(torch.equal(turned_back(turned(x, view), view), x) for view in range(8))
        True
    """
    x = x.flip(3) if view >= 4 else x
    return torch.rot90(x, -(view % 4), [2, 3])


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths, the input's first, with a ReLU between any two.

    Shape:
        - x: ``[*, widths[0]]`` -> ``[*, widths[-1]]``

    Example:
        >>> [type(layer).__name__ for layer in mlp((8, 4, 2))]
        ['Linear', 'ReLU', 'Linear']
    """
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class GatedAttention(nn.Module):
    r"""Weights of the members of a set (Ilse et al., Attention-based deep multiple instance learning, 2018, Eq. 9).

    .. math:: a_i = \mathrm{softmax}_i\; w^\top \big(\tanh(V h_i) \odot \mathrm{sigm}(U h_i)\big)

    Args:
        dim: width of the features.
        hidden: width of V and U.

    Shape:
        - h: ``[*, n, dim]``; mask: bool ``[*, n]``, False where a row only fills up a batch (None: nowhere)
        - returns: ``[*, n]``, 0 where the mask is False

    Example:
        >>> GatedAttention(8)(torch.rand(2, 3, 8)).sum(dim=1).allclose(torch.ones(2))
        True
    """

    def __init__(self, dim: int, hidden: int = 64):
        super().__init__()
        self.value = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        """The weights."""
        scores = self.score(torch.tanh(self.value(h)) * torch.sigmoid(self.gate(h))).squeeze(-1)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return scores.softmax(dim=-1)


def full_precision(x: Tensor) -> Tensor:
    """The same in float32 at least, also under autocast: for softmax, similarities and what a loss gets.

    Example:
        >>> full_precision(torch.ones(1, dtype=torch.bfloat16)).dtype, full_precision(torch.ones(1).double()).dtype
        (torch.float32, torch.float64)
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
