"""The contrastive loss on a stack of views, as a trainer hands it over (SSCL's pretraining)."""

from __future__ import annotations

from torch import Tensor, nn


class ViewsLoss(nn.Module):
    """A loss of two views, given both in one batch: the first views of all images, then the second ones.

    Args:
        loss: ``(view_a [B, D], view_b [B, D]) -> scalar``.

    Shape:
        - projections: ``[2 B, D]``; source: ``[2 B]``, which image a view is of (as ``PrepareViews`` gives it)
        - returns: scalar

    Raises:
        ValueError: an odd number of views.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0], [2.0], [5.0], [7.0]])
        >>> ViewsLoss(lambda a, b: (b - a).sum())(z, None).item()
        9.0
    """

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, projections: Tensor, source: Tensor | None = None) -> Tensor:
        """Loss of the two halves."""
        if len(projections) % 2:
            raise ValueError(f"Two views of every image are needed, got {len(projections)} views.")
        return self.loss(*projections.chunk(2))
