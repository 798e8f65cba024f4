"""The loss of the multi-modal stage: bi-level contrast of whatever encoders there are, and classification beside it.

Wei et al., Multi-modal learning for predicting the genotype of glioma (IEEE TMI, 2023), Eq. 4 to 7, Algorithm 1, and
section 4.4 (ablations: an MLP with binary cross-entropy, with and without the contrastive loss).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shared.losses.bilevel import BiLevelContrastiveLoss, EdgeContrastiveLoss, InfoNCELoss

if TYPE_CHECKING:
    from shared.networks.glioma.network import GliomaOutput


class GliomaLoss(nn.Module):
    """Contrast (Eq. 7, or the one of its levels that two encoders allow) plus binary cross-entropy of the MLP's logits.

    Args:
        contrast: the bi-level loss.
        contrastive_weight: of it; 0: no contrastive loss.
        classification_weight: of the cross-entropy, where the network gives logits (``objective="multitask"``, or
            ``"unimodal"``, where there are only the encoders' own).
        unimodal_weight: of each encoder's own cross-entropy, relative to the joint one, where the network gives them.
        pos_weight: weight of the positives.

    Shape:
        - output: :class:`GliomaOutput`; label: ``[B]``
        - returns: scalar

    Raises:
        ValueError: neither term is there.
    """

    def __init__(
        self,
        contrast: BiLevelContrastiveLoss,
        *,
        contrastive_weight: float = 1.0,
        classification_weight: float = 1.0,
        unimodal_weight: float = 1.0,
        pos_weight: float | None = None,
    ):
        super().__init__()
        self.contrast = contrast
        self.contrastive_weight, self.classification_weight = contrastive_weight, classification_weight
        self.unimodal_weight, self.pos_weight = unimodal_weight, pos_weight
        self.last: dict[str, Tensor] = {}

    def terms(self) -> dict[str, Tensor]:
        """The last batch's terms, unweighted, for the log."""
        return self.last

    def forward(self, output: GliomaOutput, label: Tensor | None = None) -> Tensor:
        """Weighted sum."""
        parts = []
        self.last = {}
        if self.contrastive_weight and (contrast := self._contrast(output)) is not None:
            self.last["contrast"] = contrast.detach()
            parts.append(self.contrastive_weight * contrast)
        if label is not None and self.classification_weight:
            if output.logits is not None:
                bce = self._cross_entropy(output.logits, label)
                self.last["BCE"] = bce.detach()
                parts.append(self.classification_weight * bce)
            if output.unimodal_logits is not None and self.unimodal_weight:
                alone = sum(self._cross_entropy(logits, label) for logits in output.unimodal_logits.unbind(1))
                self.last["unimodal_BCE"] = alone.detach()
                parts.append(self.classification_weight * self.unimodal_weight * alone)
        if not parts:
            raise ValueError(
                "Nothing to train by: without a contrastive loss (its weight is 0, or there is one encoder) the "
                "network needs objective 'multitask' or 'unimodal', and a classification_weight above 0."
            )
        return torch.stack(parts).sum()

    def _cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        weight = None if self.pos_weight is None else logits.new_tensor(self.pos_weight)
        return nn.functional.binary_cross_entropy_with_logits(logits, label.to(logits), pos_weight=weight)

    def _contrast(self, output: GliomaOutput) -> Tensor | None:
        within, across = output.z_image is not None, output.z_tumour is not None
        if within and across:
            return self.contrast(output.z_image, output.z_points, output.z_tumour, output.z_brain)
        pair = self.contrast.contrast
        if within:
            return (pair(output.z_image, output.z_points) + pair(output.z_points, output.z_image)) / 2
        return pair(output.z_brain, output.z_tumour) if across else None


class TractLoss(nn.Module):
    """Eq. 1 of a tract's MRI and FA; or, without FA, the mean squared error of the reconstructed voxels.

    Args:
        use_fa: whether there are FA maps.
        temperature: tau of Eq. 1.
        decoupled: see :class:`InfoNCELoss`.

    Shape:
        - prediction: of :class:`shared.networks.TractPretraining`; target: pairs to leave out ``[B, B]``, or the rows
        - returns: scalar
    """

    def __init__(self, *, use_fa: bool, temperature: float = 0.1, decoupled: bool = True):
        super().__init__()
        self.loss = EdgeContrastiveLoss(InfoNCELoss(temperature, decoupled)) if use_fa else nn.MSELoss()

    def forward(self, prediction: tuple[Tensor, Tensor] | Tensor, target: Tensor) -> Tensor:
        """Loss of a batch."""
        return self.loss(prediction, target)


class PopulationLoss(nn.Module):
    """Binary cross-entropy of every member of the population graph and of the MLP; none shares a parameter.

    Args:
        pos_weight: weight of the positives' loss; None: 1.

    Shape:
        - logits: of :class:`shared.networks.PopulationTraining`; label: ``[R]``
        - returns: scalar
    """

    def __init__(self, pos_weight: float | None = None):
        super().__init__()
        self.pos_weight = pos_weight

    def forward(self, logits: tuple[Tensor | None, ...], label: Tensor) -> Tensor:
        """Sum of the means."""
        weight = None if self.pos_weight is None else label.new_tensor(self.pos_weight)
        return sum(
            len(part) * nn.functional.binary_cross_entropy_with_logits(part, label.expand_as(part), pos_weight=weight)
            for part in logits
            if part is not None
        )
