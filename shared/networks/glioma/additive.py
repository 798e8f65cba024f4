"""An answer that is a sum: each encoder's own score and each covariate adds to the log odds, and nothing else does.

A generalised additive model (Hastie and Tibshirani 1986) with linear terms, stacked on the encoders' scores of patients
whom these encoders did not see (Wolpert, Stacked Generalization, Neural Networks 1992). Not in the paper of the
bundle, whose answer is the population graph's (Wei et al., IEEE TMI 2023, section 3.4).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AdditiveAnswer(nn.Module):
    r"""The log odds as a sum of terms, one an encoder and one a covariate.

    .. math:: \mathrm{logit} = b + \sum_e w_e s_e + \sum_c v_c u_c

    :math:`s_e` is the logit of encoder e's own classifier, :math:`u_c` a covariate in its unit. Of such a sum the
    Shapley values are known without sampling (Lundberg and Lee, NeurIPS 2017, Corollary 1): a term less its mean over
    the training patients.

    Args:
        num_scores: K, encoders with a score of their own.
        num_covariates: C.

    Attributes:
        weight: of the scores, then of the covariates, ``[K + C]``; mean, spread: of the patients fitted to; bias.

    Shape:
        - scores: ``[B, K]``, covariates: ``[B, C]`` or None (taken as the training mean, as is a NaN)
        - returns: logits ``[B]``, float64

    Example:
        >>> answer = AdditiveAnswer(2, 1)
        >>> answer.fill(weight=[1.0, 0.5, -0.1], bias=0.25, mean=[0.0, 0.0, 50.0], spread=[1.0, 1.0, 10.0])
        >>> terms = answer.contributions(torch.tensor([[2.0, -1.0]]), torch.tensor([[60.0]]))
        >>> terms.tolist(), answer(torch.tensor([[2.0, -1.0]]), torch.tensor([[60.0]])).tolist()
        ([[2.0, -0.5, -6.0]], [-4.25])
    """

    def __init__(self, num_scores: int, num_covariates: int = 0):
        super().__init__()
        self.num_scores, self.num_covariates = num_scores, num_covariates
        # double: what the terms add up to shall be the logit to the last digit
        for name, value in (("weight", 0.0), ("mean", 0.0), ("spread", 1.0)):
            self.register_buffer(name, torch.full((num_scores + num_covariates,), value, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(1, dtype=torch.float64))

    @torch.jit.unused
    def fill(self, **values: object) -> None:
        """Set the buffers."""
        for name, value in values.items():
            buffer = getattr(self, name)
            buffer.copy_(torch.as_tensor(value, dtype=torch.float64).reshape(buffer.shape))

    def _known(self, scores: Tensor, covariates: Tensor | None) -> Tensor:
        """Scores and covariates ``[B, K + C]``; unknown ones are the training mean."""
        scores = scores.double()
        if self.num_covariates == 0:
            return scores
        mean = self.mean[self.num_scores :].expand(scores.shape[0], self.num_covariates)
        if covariates is None:
            return torch.cat([scores, mean], dim=1)
        known = covariates.double()
        return torch.cat([scores, torch.where(known.isnan(), mean, known)], dim=1)

    def forward(self, scores: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Logits of each patient."""
        return (self._known(scores, covariates) * self.weight).sum(dim=1) + self.bias

    @torch.jit.unused
    def contributions(self, scores: Tensor, covariates: Tensor | None = None) -> Tensor:
        """What each score and covariate adds, ``[B, K + C]``: with ``bias`` all of the logit."""
        return self._known(scores, covariates) * self.weight

    @torch.jit.unused
    def shapley(self, scores: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Exact Shapley values ``[B, K + C]``: with :attr:`base`, the average patient's logit, all of the logit."""
        return (self._known(scores, covariates) - self.mean) * self.weight

    @property
    @torch.jit.unused
    def base(self) -> float:
        """Logit of the average training patient."""
        return float(self.bias[0] + (self.weight * self.mean).sum())
