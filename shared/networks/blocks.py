"""What networks and inferers of several bundles share."""

from __future__ import annotations

import torch
from torch import Tensor


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
