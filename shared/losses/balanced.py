"""Classes that count equally in training, and probabilities of the population as it is.

Menon et al., Long-tail learning via logit adjustment (ICLR 2021), section 4: weights (or a sampler) that make classes
equally frequent multiply a class's odds by its weight; a loss on logits plus the weights' logarithm leaves the logits
themselves those of the real frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def balanced_class_weights(labels: Tensor, num_classes: int = 2) -> Tensor:
    """Weights ``n / (num_classes * count)`` of the classes, for ``torch.nn.CrossEntropyLoss``.

    Example:
        >>> balanced_class_weights(torch.tensor([0, 1, 1, 1])).tolist()
        [2.0, 0.6666666865348816]
    """
    count = torch.bincount(labels.long(), minlength=num_classes).clamp(min=1)
    return len(labels) / (num_classes * count.float())


class BalancedCrossEntropyLoss(nn.Module):
    """Cross-entropy in which all classes count equally, of logits whose softmax is the probability in the population.

    Args:
        labels: of the training cases, each once; their frequencies are taken as the population's.
        num_classes: logits.
        balance: False: plain cross-entropy.
        sampled: the batches are balanced already, by a sampler: rows are not weighted again.

    Shape:
        - labels: ``[n]`` long; logits: ``[B, num_classes]``; target: ``[B]`` long, or probabilities of the classes
        - returns: scalar

    Example:
        >>> loss = BalancedCrossEntropyLoss(torch.tensor([0, 1, 1, 1]))
        >>> at_the_frequencies = torch.tensor([[0.25, 0.75]]).log()  # odds of 1 : 1 where classes count equally
        >>> loss(at_the_frequencies, torch.tensor([1]))
        tensor(0.6931)
    """

    weight: Tensor | None
    log_weight: Tensor

    def __init__(self, labels: Tensor, num_classes: int = 2, *, balance: bool = True, sampled: bool = False):
        super().__init__()
        weight = balanced_class_weights(labels, num_classes) if balance else torch.ones(num_classes)
        self.register_buffer("weight", None if sampled or not balance else weight, persistent=False)
        self.register_buffer("log_weight", weight.log(), persistent=False)

    @torch.no_grad()
    def start(self, head: nn.Linear) -> None:
        """Move a new head's bias to the classes' log frequencies: training begins where all classes are equal."""
        head.bias.sub_(self.log_weight.to(head.bias))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of a batch."""
        return nn.functional.cross_entropy(logits + self.log_weight, target, self.weight)
