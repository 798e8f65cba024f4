"""A slide's class from its tiles, learnt from the slides' labels alone: attention over features of a frozen encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shared.networks.blocks import GatedAttention, full_precision
from shared.networks.sscl import PatchEncoder

LEAST = 1e-4  # of a feature's spread: one that never changes says nothing


class SlideOutput(NamedTuple):
    """What :class:`SlideMIL` says of slides.

    Attributes:
        logits: of the slides, ``[B, C]``, float64.
        attention: of each tile, ``[B, n]``; sums to 1.
        contributions: what each tile adds to each logit, ``[B, n, C]``, float64; with the bias they sum to the logits.
    """

    logits: Tensor
    attention: Tensor
    contributions: Tensor


class SlideMIL(nn.Module):
    r"""Gated attention over a slide's tiles and one linear layer (Ilse et al. 2018, embedding level, Eq. 7 and 9).

    .. math:: x_i = (h_i - \mu) / \sigma, \qquad
              y_c = b_c + w_c^\top \sum_i a_i x_i = b_c + \sum_i a_i\, w_c^\top x_i

    h of a tile is the encoder's, which stays as it is, in eval mode. Between h and the logit there is nothing but the
    weights a and one linear layer, so that a tile's contribution :math:`a_i\, w_c^\top x_i` is a part of the logit and
    no estimate. As x is measured from the training slides' mean, a contribution of 0 is that of their average tile.

    Args:
        encoder: settings of :class:`PatchEncoder`.
        num_classes: logits.
        hidden: width of the attention's V and U.
        dropout: of x.
        freeze_encoder: nothing else is possible, since features are computed once.

    Shape:
        - h: ``[B, n, D]``, features of the tiles; mask: bool ``[B, n]``, False where a row only fills up the batch
        - returns: logits ``[B, num_classes]``

    Raises:
        ValueError: an encoder that is to be trained; of the call: images instead of features.

    Example:
        >>> net = SlideMIL(dict(block="basic", layers=(1, 1, 1, 1), channels=(8, 8, 16, 16))).eval()
        >>> h = net.encoder(torch.rand(5, 3, 64, 64))[None]
        >>> found = net.details(h)
        >>> net(h).shape, torch.allclose(found.contributions.sum(dim=1) + net.head.bias, found.logits)
        (torch.Size([1, 2]), True)
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        encoder: Mapping[str, Any] | None = None,
        *,
        num_classes: int = 2,
        hidden: int = 64,
        dropout: float = 0.0,
        freeze_encoder: bool = True,
    ):
        super().__init__()
        if not freeze_encoder:
            raise ValueError("The encoder of a model of slides stays as it is: freeze_encoder must be True.")
        self.settings = {"class": "shared.networks.SlideMIL", "encoder": dict(encoder or {})}
        self.settings |= {"num_classes": num_classes, "hidden": hidden, "dropout": dropout}
        self.encoder = PatchEncoder(**self.settings["encoder"]).requires_grad_(False).eval()
        self.register_buffer("mean", torch.zeros(self.encoder.width))
        self.register_buffer("spread", torch.ones(self.encoder.width))
        self.dropout = nn.Dropout(dropout)
        self.attention = GatedAttention(self.encoder.width, hidden)
        self.head = nn.Linear(self.encoder.width, num_classes)

    def train(self, mode: bool = True) -> SlideMIL:
        """Set the mode; the encoder stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def standardise(self, moments: Tensor) -> None:
        """Set mean and spread of the features; every slide counts alike, however many tiles it has.

        Args:
            moments: of each training slide the mean of its tiles' h, and that of their squares.

        Shape:
            - moments: ``[slides, 2, D]``
        """
        first, second = moments.double().mean(dim=0)
        self.mean.copy_(first)
        spread = (second - first.square()).clamp(min=0).sqrt()
        self.spread.copy_(spread.masked_fill(spread < LEAST, torch.inf))  # (h - mean) / inf is 0 in new slides, too

    def details(self, h: Tensor, mask: Tensor | None = None) -> SlideOutput:
        """Logits of slides, and the parts that their tiles have in them."""
        if h.ndim != 3:
            raise ValueError(
                f"A model of slides takes features of tiles [B, n, D], got {list(h.shape)}: predict slides with "
                "--slides FOLDER; single patches need a model of patches."
            )
        x = self.dropout((full_precision(h) - self.mean) / self.spread)
        attention = self.attention(x, mask)
        # summed in float64: many small parts
        contributions = attention.double().unsqueeze(-1) * (x @ self.head.weight.T).double()
        return SlideOutput(contributions.sum(dim=1) + self.head.bias, attention, contributions)

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of every slide, float32."""
        return self.details(h, mask).logits.float()
