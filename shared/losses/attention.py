"""Losses of the networks with attention to a patient's images that IRCL is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from shared.distributed.processes import gather_rows
from shared.losses.balanced import BalancedCrossEntropyLoss


class LossAttentionLoss(nn.Module):
    r"""Bag loss, attention-weighted loss of the images, and consistency of the attention over epochs.

    .. math:: L = \mathrm{CE}(\text{bag}) + \lambda_1\, \frac{1}{m} \sum_i \alpha_i\, \mathrm{CE}(\text{image}_i)
              + \lambda_2\, r(t)\, \frac{1}{m} \sum_i (\alpha_i - \bar\alpha_i)^2

    Every image takes its patient's label. The target of the consistency is the bias-corrected running mean of a case's
    attention in earlier epochs (temporal ensembling, Laine and Aila 2017), and its weight rises over the first epochs,
    :math:`r(t) = \exp(-5 (1 - t / T)^2)`, 0 in the first. Shi et al., Loss-Based Attention for Deep Multiple Instance
    Learning (AAAI 2020): the terms are in the abstract, their form follows the authors' code, where the first two train
    bags (``MIL``, :math:`\lambda_1 = 2`) and all three train images (:math:`\lambda_2 = 400`, momentum 0.6, T = 80 of
    200 epochs). The running means are part of the loss's state.

    Args:
        classification: cross-entropy of patients; the images' classes are balanced alike.
        num_cases: training cases.
        num_images: m, images per case.
        instance_weight: lambda_1; 0: none.
        consistency_weight: lambda_2; 0: none.
        ramp_epochs: T, epochs over which the consistency's weight rises.
        momentum: share of the running mean that an epoch keeps.

    Shape:
        - output: logits ``[B, C]``, logits of the images ``[B, m, C]``, attention ``[B, m]``
        - target: ``{"label": [B], "row": [B]}``, the row being the case's among the training cases
        - returns: scalar

    Example:
        >>> loss = LossAttentionLoss(BalancedCrossEntropyLoss(torch.tensor([0, 1])), 2, 3, instance_weight=0.0)
        >>> output = (torch.zeros(2, 2), torch.zeros(2, 3, 2), torch.full((2, 3), 1 / 3))
        >>> loss(output, {"label": torch.tensor([0, 1]), "row": torch.tensor([0, 1])})
        tensor(0.6931)
    """

    average: Tensor
    seen: Tensor

    def __init__(
        self,
        classification: BalancedCrossEntropyLoss,
        num_cases: int,
        num_images: int,
        *,
        instance_weight: float = 2.0,
        consistency_weight: float = 400.0,
        ramp_epochs: int = 14,
        momentum: float = 0.6,
    ):
        super().__init__()
        self.classification = classification
        self.instance_weight, self.consistency_weight = instance_weight, consistency_weight
        self.ramp_epochs, self.momentum = ramp_epochs, momentum
        self.register_buffer("average", torch.zeros(num_cases, num_images))
        self.register_buffer("seen", torch.zeros(num_cases))
        self.last: dict[str, Tensor] = {}

    def terms(self) -> dict[str, Tensor]:
        """The last batch's terms, unweighted, for the log."""
        return self.last

    def forward(self, output: Sequence[Tensor], target: Mapping[str, Tensor]) -> Tensor:
        """Loss of a batch; in training mode the running means take in its attention."""
        logits, instances, attention = output
        row = target["row"].to(self.seen.device)
        terms = {
            "bag": self.classification(logits, target["label"]),
            "instance": self._instance(instances, target["label"], attention),
            "consistency": self._consistency(attention, row),
        }
        if self.training:
            self._remember(gather_rows(attention.detach()), gather_rows(row))
        self.last = {name: term.detach() for name, term in terms.items()}
        weighted = self.instance_weight * terms["instance"] + self.consistency_weight * terms["consistency"]
        return terms["bag"] + weighted

    def _instance(self, instances: Tensor, label: Tensor, attention: Tensor) -> Tensor:
        balance = self.classification
        losses = nn.functional.cross_entropy(
            instances.flatten(0, 1) + balance.log_weight, label.repeat_interleave(instances.shape[1]), reduction="none"
        )
        case = (attention * losses.unflatten(0, attention.shape)).mean(dim=1)
        weight = torch.ones_like(case) if balance.weight is None else balance.weight[label]
        return (weight * case).sum() / weight.sum()

    def _consistency(self, attention: Tensor, row: Tensor) -> Tensor:
        seen = self.seen[row]
        expected = self.average[row] / (1 - self.momentum ** seen.clamp(min=1.0))[:, None]
        progress = (seen / self.ramp_epochs).clamp(max=1.0)
        weight = torch.exp(-5 * (1 - progress) ** 2) * (seen > 0)
        return (weight * (attention - expected).square().mean(dim=1)).mean()

    @torch.no_grad()
    def _remember(self, attention: Tensor, row: Tensor) -> None:
        self.average[row] = self.momentum * self.average[row] + (1 - self.momentum) * attention.to(self.average)
        self.seen[row] += 1


class AttentionConsistencyLoss(nn.Module):
    r"""Cross-entropy, and the squared distance of two branches' attention.

    .. math:: L = \mathrm{CE} + \lambda \sum_i (a_i - b_i)^2

    After HA_CSL (Pang et al. 2025), of which IRCL says that it "aligns the attention weights of the two branches"; the
    distance is chosen here.

    Args:
        classification: cross-entropy of patients.
        consistency_weight: lambda; 0: none.

    Shape:
        - output: logits ``[B, C]``, both branches' weights of the images ``[B, m]``; target: ``[B]``
        - returns: scalar

    Example:
        >>> loss = AttentionConsistencyLoss(BalancedCrossEntropyLoss(torch.tensor([0, 1])))
        >>> weights = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
        >>> loss((torch.zeros(1, 2), *weights), torch.tensor([0]))
        tensor(1.1931)
    """

    def __init__(self, classification: nn.Module, *, consistency_weight: float = 1.0):
        super().__init__()
        self.classification, self.consistency_weight = classification, consistency_weight
        self.last: dict[str, Tensor] = {}

    def terms(self) -> dict[str, Tensor]:
        """The last batch's terms, unweighted, for the log."""
        return self.last

    def forward(self, output: Sequence[Tensor], target: Tensor) -> Tensor:
        """Loss of a batch."""
        logits, one, other = output
        bag, consistency = self.classification(logits, target), (one - other).square().sum(dim=1).mean()
        self.last = {"bag": bag.detach(), "consistency": consistency.detach()}
        return bag + self.consistency_weight * consistency
