"""The loss of IRCL's stage I: reconstruction plus dual-level contrast (Rao et al., Eq. 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from shared.data.mixup import ContrastiveRows
from shared.losses.memory_bank import MemoryBankContrastiveLoss


class IRCLPretrainLoss(nn.Module):
    """L = L_r + L_c (Eq. 1) on what the autoencoder returns.

    Positives of an image are its intra-patient rows, given by ``rows``, and the inter-patient rows that Algorithm 1
    last wrote into ``inter_positives``. The terms of the last call stay in ``terms`` for logging.

    Args:
        reconstruction: ``(image, reconstruction) -> scalar`` (Eq. 2).
        contrastive: Eq. 5 on the memory bank.
        rows: the rows of the bank.
        reconstruction_weight: weight of L_r, 1 in the paper.
        contrastive_weight: weight of L_c, 1 in the paper.

    Shape:
        - prediction: reconstruction ``[B, 1, H, W]``, h ``[B, D]``, z ``[B, E]``
        - target: ``{"image": [B, 1, H, W], "row": [B]}``
        - returns: scalar
    """

    def __init__(
        self,
        reconstruction: nn.Module,
        contrastive: MemoryBankContrastiveLoss,
        rows: ContrastiveRows,
        *,
        reconstruction_weight: float = 1.0,
        contrastive_weight: float = 1.0,
    ):
        super().__init__()
        self.reconstruction, self.contrastive, self.rows = reconstruction, contrastive, rows
        self.reconstruction_weight, self.contrastive_weight = reconstruction_weight, contrastive_weight
        self.inter_positives: Tensor | None = None
        self.last: dict[str, Tensor] = {}

    def terms(self) -> dict[str, Tensor]:
        """The last batch's terms, unweighted, for the log."""
        return self.last

    def forward(self, prediction: Sequence[Tensor], target: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of both terms, in float32."""
        reconstruction, _, z = prediction
        rows = target["row"]
        positives = self.rows.intra_positives(rows)
        if self.inter_positives is not None:
            positives = torch.cat([positives, self.inter_positives[rows]], dim=1)
        reconstruction_loss = self.reconstruction(target["image"], reconstruction.float())
        contrastive_loss = self.contrastive(z, rows.to(z.device), positives.to(z.device))
        self.last = {"reconstruction": reconstruction_loss.detach(), "contrastive": contrastive_loss.detach()}
        return self.reconstruction_weight * reconstruction_loss + self.contrastive_weight * contrastive_loss
