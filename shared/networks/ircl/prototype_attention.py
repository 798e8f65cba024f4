"""Prototype attention and the transformer built on it.

Rao et al., Learning Latent Imaging Biomarkers for Interpretable Microvascular Invasion Prediction in Hepatocellular
Carcinoma: Eq. 7 (prototypes), Eq. 8 and 9 (attention).
"""

from __future__ import annotations

import math

import torch
from monai.networks.blocks import MLPBlock
from torch import Tensor, nn


def biomarker_prototypes(h: Tensor, assignment: Tensor, num_biomarkers: int) -> tuple[Tensor, Tensor]:
    """Mean feature of each patient's images assigned to each biomarker (Eq. 7).

    The mean is taken over the patient's own images only, so that it does not depend on who else is in the batch.

    Args:
        h: features of the images.
        assignment: biomarker of each image, in ``[0, num_biomarkers)``.
        num_biomarkers: K.

    Shape:
        - h: ``[B, m, D]``, assignment: ``[B, m]`` long
        - returns: prototypes ``[B, K, D]`` (zero where empty), occupied ``[B, K]`` bool

    Example:
        >>> h = torch.tensor([[[1.0], [3.0], [5.0]]])
        >>> prototypes, occupied = biomarker_prototypes(h, torch.tensor([[0, 0, 2]]), 3)
        >>> prototypes.flatten().tolist(), occupied.flatten().tolist()
        ([2.0, 0.0, 5.0], [True, False, True])
    """
    index = torch.arange(num_biomarkers, device=assignment.device)
    member = (assignment.unsqueeze(-1) == index).to(h.dtype)
    count = member.sum(dim=1)
    prototypes = torch.matmul(member.transpose(1, 2), h) / count.clamp(min=1.0).unsqueeze(-1)
    return prototypes, count > 0


class PrototypeAttention(nn.Module):
    r"""Multi-head attention of a patient's images to that patient's biomarker prototypes (Eq. 8 and 9).

    .. math:: \mathrm{softmax}\big(Q K^\top / (\tau_a \sqrt{d_{head}})\big) V,\quad
              Q = W_Q H,\ K = W_K \bar H,\ V = W_V \bar H

    Prototypes of biomarkers the patient does not show are masked out of the softmax, not left in as zero vectors. With
    ``row`` a patient is looked at under several ``present``; what these have in common is computed once per patient.

    Args:
        dim: D, the width of features and output.
        num_heads: heads; must divide ``dim``.
        temperature: the attention temperature tau_a, 0.5 in the paper (section 4.1).
        dropout: dropout on the attention weights.
        attention: ``"prototype"``, or ``"self"``: plain self-attention, K and V from H itself (Table 3, "w/o
            Prototype"); assignments then play no part, and no biomarker can be hidden.

    Shape:
        - h: ``[B, m, D]``, assignment: ``[B, m]`` long, present: ``[B, K]`` bool or None (False hides a biomarker),
          row: None, or ``[R]`` long, the patient of each row of a present ``[R, K]``
        - returns: ``[B, m, D]`` (``[R, m, D]`` with row); zero before the output projection for a patient all of whose
          prototypes are hidden

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``, ``temperature`` is not positive, an unknown ``attention``, or
            ``present`` of a self-attention.

    Example:
        >>> attention = PrototypeAttention(8, num_heads=2)
        >>> attention(torch.randn(2, 3, 8), torch.tensor([[0, 1, 1], [2, 2, 2]]), 4).shape
        torch.Size([2, 3, 8])
    """

    def __init__(
        self, dim: int, num_heads: int, temperature: float = 0.5, dropout: float = 0.0, attention: str = "prototype"
    ):
        super().__init__()
        if attention not in ("prototype", "self"):
            raise ValueError(f'attention must be "prototype" or "self", got {attention!r}.')
        self.attention = attention
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim: {dim} is no multiple of {num_heads} heads.")
        if temperature <= 0:
            raise ValueError(f"The attention temperature must be positive, got {temperature}.")
        self.num_heads = num_heads
        self.scale = 1.0 / (temperature * math.sqrt(dim // num_heads))
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def weights(self, h: Tensor, prototypes: Tensor, visible: Tensor, row: Tensor | None = None) -> Tensor:
        """Attention weights ``[B, heads, m, K]``: exactly zero where ``visible`` ``[B, K]`` is False."""
        query = self._heads(self.query(h))
        key = self._heads(self.key(prototypes))
        scores = torch.matmul(query, key.transpose(-2, -1)) * self.scale
        if row is not None:
            scores = scores[row]
        # biomarkers first: softmax and masking over a last axis of a few entries are ten times slower
        scores = scores.movedim(-1, 0).contiguous()
        visible = visible.t()[:, :, None, None]
        # in float32 also under autocast; a finite fill keeps a row of hidden prototypes free of NaN
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~visible, -1e30)
        return (scores.softmax(dim=0) * visible).movedim(0, -1)

    def forward(
        self,
        h: Tensor,
        assignment: Tensor,
        num_biomarkers: int,
        present: Tensor | None = None,
        row: Tensor | None = None,
    ) -> Tensor:
        """Attend from every image to the prototypes of its patient."""
        if self.attention == "self":
            if present is not None:
                raise ValueError('Plain self-attention (attention "self") has no biomarkers that could be hidden.')
            prototypes, visible = h, torch.ones(h.shape[:2], dtype=torch.bool, device=h.device)
        else:
            prototypes, visible = biomarker_prototypes(h, assignment, num_biomarkers)
        value = self._heads(self.value(prototypes))
        if row is not None:
            visible, value = visible[row], value[row]
        if present is not None:
            visible = visible & present
        weights = self.dropout(self.weights(h, prototypes, visible, row))
        mixed = torch.matmul(weights.to(value.dtype), value)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class PrototypeBlock(nn.Module):
    """Pre-norm transformer block whose attention goes to biomarker prototypes.

    Args:
        dim: D.
        num_heads: attention heads.
        mlp_dim: hidden width of the MLP.
        temperature: tau_a of Eq. 9.
        dropout: dropout in attention and MLP.
        attention: see :class:`PrototypeAttention`.
        residual: add what was attended to the tokens; False: it replaces them.

    Shape:
        - h: ``[B, m, D]`` -> ``[B, m, D]``, or ``[R, m, D]`` with row ``[R]`` (see :class:`PrototypeAttention`)
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        temperature: float = 0.5,
        dropout: float = 0.0,
        attention: str = "prototype",
        *,
        residual: bool = True,
    ):
        super().__init__()
        self.residual = residual
        self.norm1 = nn.LayerNorm(dim)
        self.attention = PrototypeAttention(dim, num_heads, temperature, dropout, attention)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, mlp_dim, dropout)

    def forward(
        self,
        h: Tensor,
        assignment: Tensor,
        num_biomarkers: int,
        present: Tensor | None = None,
        row: Tensor | None = None,
    ) -> Tensor:
        """Attention and MLP, each added to its input (the attention's only with ``residual``)."""
        attended = self.attention(self.norm1(h), assignment, num_biomarkers, present, row)
        h = (h if row is None else h[row]) + attended if self.residual else attended
        return h + self.mlp(self.norm2(h))


class PrototypeTransformer(nn.Module):
    """Stage II: one prediction per patient from image features and their biomarkers (section 3.3).

    Args:
        in_dim: width of the image representation h.
        num_images: m, images per patient.
        num_biomarkers: K.
        dim: token width D.
        num_layers: transformer blocks.
        num_heads: attention heads.
        mlp_dim: hidden width of the blocks' MLP.
        dropout: dropout on tokens, attention and MLP.
        attention: ``"prototype"``, or ``"self"``: to the patient's images, see :class:`PrototypeAttention`.
        temperature: tau_a of Eq. 9.
        num_classes: logits.
        num_covariates: clinical covariates joined at the head (0: none).
        num_modalities: images come modality by modality; needed by ``pooling="modality"``.
        pooling: ``"mean"`` over all tokens, or ``"modality"``: means per modality, concatenated.
        bottleneck: the first block hands on only what its attention brought from the prototypes, so that all the
            prediction knows of a patient has come through a biomarker, and hiding one takes away what it told. With the
            usual residual (the paper's transformer) the images' own features go past the biomarkers to the head.

    Shape:
        - h: ``[B, m, in_dim]``, assignment: ``[B, m]`` long, covariates: ``[B, C]`` or None (taken as the cohort's
          mean), present: ``[B, K]`` bool or None, row: None, or ``[R]`` long, the patient of each row of a present
          ``[R, K]``
        - returns: logits ``[B, num_classes]`` (``[R, num_classes]`` with row)

    Raises:
        ValueError: an unknown ``pooling``, ``num_images`` is no multiple of ``num_modalities``, or a ``bottleneck`` of
            self-attention.

    Example:
        >>> net = PrototypeTransformer(16, num_images=4, num_biomarkers=3, dim=8, num_layers=1, num_heads=2, mlp_dim=16)
        >>> net(torch.randn(5, 4, 16), torch.zeros(5, 4, dtype=torch.long)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_dim: int,
        num_images: int,
        num_biomarkers: int,
        *,
        dim: int = 512,
        num_layers: int = 6,
        num_heads: int = 8,
        mlp_dim: int = 2048,
        dropout: float = 0.5,
        attention: str = "prototype",
        temperature: float = 0.5,
        num_classes: int = 2,
        num_covariates: int = 0,
        num_modalities: int = 1,
        pooling: str = "mean",
        bottleneck: bool = False,
    ):
        super().__init__()
        if bottleneck and attention == "self":
            raise ValueError('A bottleneck of biomarkers needs attention to them (attention "prototype"), got "self".')
        self.attention = attention
        if pooling not in ("mean", "modality"):
            raise ValueError(f'pooling must be "mean" or "modality", got {pooling!r}.')
        if num_images % num_modalities:
            raise ValueError(
                f"Every modality must give the same number of images: {num_images} images are no multiple of "
                f"{num_modalities} modalities."
            )
        self.num_biomarkers = num_biomarkers
        self.groups = num_modalities if pooling == "modality" else 1
        self.input = nn.Linear(in_dim, dim)
        self.position = nn.Parameter(torch.zeros(1, num_images, dim))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            [
                PrototypeBlock(
                    dim, num_heads, mlp_dim, temperature, dropout, attention, residual=not (bottleneck and i == 0)
                )
                for i in range(num_layers)
            ]
        )
        self.norm = nn.LayerNorm(dim)
        self.num_covariates = num_covariates
        self.register_buffer("covariate_mean", torch.zeros(num_covariates))
        self.register_buffer("covariate_std", torch.ones(num_covariates))
        self.head = nn.Linear(dim * self.groups + num_covariates, num_classes)

    @torch.jit.unused
    @torch.no_grad()
    def fit_covariates(self, covariates: Tensor, labels: Tensor) -> None:
        """Standardise covariates by a training cohort and start their weights at its logistic regression's.

        Args:
            covariates: ``[n, C]`` of the training patients.
            labels: ``[n]``.
        """
        from sklearn.linear_model import LogisticRegression

        self.covariate_mean.copy_(covariates.mean(dim=0))
        self.covariate_std.copy_(covariates.std(dim=0).clamp(min=1e-6))
        known = (covariates.to(self.covariate_mean) - self.covariate_mean) / self.covariate_std
        fit = LogisticRegression().fit(known.cpu().numpy(), labels.cpu().numpy())
        weight = torch.as_tensor(fit.coef_, dtype=self.head.weight.dtype)
        bias = torch.as_tensor(fit.intercept_, dtype=self.head.bias.dtype)
        if len(weight) == 1:
            # two classes: half the log odds each way
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        self.head.weight[:, -self.num_covariates :] = weight.to(self.head.weight)
        self.head.bias.copy_(bias)

    def forward(
        self,
        h: Tensor,
        assignment: Tensor,
        covariates: Tensor | None = None,
        present: Tensor | None = None,
        row: Tensor | None = None,
    ) -> Tensor:
        """Logits of each patient, or of each row of ``present``."""
        tokens = self.dropout(self.input(h) + self.position)
        for block in self.blocks:
            tokens = block(tokens, assignment, self.num_biomarkers, present, row)
            if row is not None:
                # from the first mask on, the tokens of one patient's rows differ
                assignment = assignment[row]
                covariates = None if covariates is None else covariates[row]
                row = None
        pooled = self.norm(tokens.unflatten(1, (self.groups, -1)).mean(dim=2)).flatten(1)
        if self.num_covariates > 0:
            if covariates is None:
                known = torch.zeros(pooled.shape[0], self.num_covariates, dtype=pooled.dtype, device=pooled.device)
            else:
                known = ((covariates - self.covariate_mean) / self.covariate_std).to(pooled.dtype)
            pooled = torch.cat([pooled, known], dim=1)
        return self.head(pooled)
