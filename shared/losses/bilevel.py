"""Contrastive losses across modalities: a tract's MRI and FA (Eq. 1), a tumour's image, points and brain (Eq. 4 to 7).

Wei et al., Multi-modal learning for predicting the genotype of glioma (IEEE TMI, 2023), sections 3.2 and 3.3.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from shared.distributed.processes import gather_rows, rank, world_size
from shared.errors import DataError
from shared.losses.contrastive import check_agreement, not_finite_problem


class InfoNCELoss(nn.Module):
    r"""Contrastive loss of queries and their keys in another modality (Eq. 1; Eq. 4 to 6 with other arguments).

    .. math:: L = \frac{1}{B} \sum_{i=1}^{B} -\log \frac{\exp(S(q_i, k_i) / \tau)}
        {\sum_{j \neq i} \exp(S(q_i, k_j) / \tau)}, \quad S = \text{cosine}

    As printed, the positive is left out of the denominator (the *decoupled* loss of Yeh et al. 2022): no gradient
    vanishes where a pair is told apart already, and the loss may be negative. ``decoupled=False`` sums over all j
    (InfoNCE, van den Oord et al. 2018). Queries repel keys, not the other way round: the loss is not symmetric.

    Computed in float32 (float64 for float64 embeddings), under autocast too. An embedding of length zero has similarity
    0 to all and gradient zero. In several processes of `torch.distributed` the keys are those of all processes; the
    mean of their losses, which DistributedDataParallel's gradient is of, is the loss of the whole batch.

    Args:
        temperature: tau (0.1 in the paper).
        decoupled: leave the positive out of the denominator.
        gather: whether several processes share their keys; False: each has its own loss of its own batch.

    Shape:
        - query, key: :math:`(B, D)`, row i of both from sample i; exclude: :math:`(B, B)` bool, True where key j is no
          negative of query i (of the same tract in another patient, say); :math:`(B, W B)` in W processes that gather,
          in the order of their ranks. Whether it holds its positive, the diagonal, does not matter.
        - Output: scalar.

    Raises:
        DataError: the temperature is not above 0; shapes that do not fit; a query without negatives; embeddings that
            are not finite. One process on an accelerator does not look for the last two, as every step would wait for
            it: such a loss is infinite or NaN.

    Example:
        >>> loss = InfoNCELoss(0.5)
        >>> q = torch.eye(3)  # like its key, at right angles to the others: log 2 - 1 / 0.5
        >>> round(loss(q, q).item(), 4), round(InfoNCELoss(0.5, decoupled=False)(q, q).item(), 4)
        (-1.3069, 0.2395)
    """

    def __init__(self, temperature: float = 0.1, decoupled: bool = True, *, gather: bool = True):
        super().__init__()
        if not 0.0 < temperature < math.inf:
            raise DataError(f"temperature must be a number above 0 (0.1 in the paper), got {temperature}")
        self.temperature, self.decoupled, self.gather = float(temperature), bool(decoupled), gather

    def extra_repr(self) -> str:
        """What `print` shows beside the class."""
        return f"temperature={self.temperature}, decoupled={self.decoupled}, gather={self.gather}"

    def forward(self, query: Tensor, key: Tensor, exclude: Tensor | None = None) -> Tensor:
        """Return the loss of a batch."""
        shared = self.gather and world_size() > 1
        self._check_shapes(query, key, exclude, world_size() if shared else 1)
        device = query.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            self._check_length(query, key, shared)
            query, key = unit_rows(query), unit_rows(key)
            columns = _GatherRows.apply(key) if shared else key
            first = rank() * len(key) if shared else 0
            scores = _Scores.apply(query, columns) / self.temperature
            positives = scores.diagonal(first)
            own = torch.zeros_like(scores, dtype=torch.bool)
            own.diagonal(first).fill_(True)
            left_out = own if exclude is None else own | exclude.to(scores.device)
            if device == "cpu" and not shared and left_out.all(dim=1).any():
                alone = torch.nonzero(left_out.all(dim=1)).flatten().tolist()
                raise DataError(
                    f"every query needs a negative, but exclude leaves {len(alone)} of {len(scores)} without (first: "
                    f"{alone[:5]}): all the others are of the same tract. Shuffle the rows, or raise the batch size"
                )
            negatives = scores.masked_fill(left_out, -math.inf).logsumexp(dim=1)
            margin = negatives - positives
            # softplus: what is near 0 is not the difference of two large numbers
            return (margin if self.decoupled else nn.functional.softplus(margin)).mean()

    @staticmethod
    @torch.no_grad()
    def _check_length(query: Tensor, key: Tensor, shared: bool) -> None:
        norm = torch.linalg.vector_norm(torch.cat((query, key)).to(_precision(query)), dim=1, keepdim=True)
        if shared:
            check_agreement(query, norm, ("query", "key"))
        elif norm.device.type == "cpu" and not norm.sum().isfinite():
            raise DataError(not_finite_problem(norm, ("query", "key")))

    def _check_shapes(self, query: Tensor, key: Tensor, exclude: Tensor | None, processes: int) -> None:
        problems = []
        if query.ndim != 2 or query.shape != key.shape:
            raise DataError(
                f"queries and keys must be embeddings [B, D] of the same samples, got {list(query.shape)} and "
                f"{list(key.shape)}; project both modalities to one width, and flatten what the heads return"
            )
        if len(query) * processes < 2:
            problems.append(
                f"the other samples of a batch are the negatives, so it needs at least 2; got {len(query)}. Raise the "
                "batch size, or drop the last incomplete batch"
            )
        wanted = (len(query), len(query) * processes)
        if exclude is not None and (exclude.dtype != torch.bool or tuple(exclude.shape) != wanted):
            problems.append(
                f"exclude must be bool [B, B] = {list(wanted)}"
                f"{f' (the keys of all {processes} processes)' if processes > 1 else ''}, got "
                f"{str(exclude.dtype).removeprefix('torch.')} {list(exclude.shape)}; see "
                "shared.engines.PrepareTracts for one that leaves the same tract of other patients out"
            )
        if problems:
            raise DataError(problems)


class BiLevelContrastiveLoss(nn.Module):
    r"""Tumour image against points, and brain network against tumour (Eq. 4 to 7).

    .. math:: L = \lambda \frac{l^{P2I} + l^{I2P}}{2} + (1 - \lambda) l^{B2T}

    Each l is an :class:`InfoNCELoss`, the first modality the query.

    Args:
        temperature: tau.
        weight: lambda, the share of the tumour level, 0 to 1.
        decoupled: see :class:`InfoNCELoss`.
        gather: see :class:`InfoNCELoss`.

    Shape:
        - z_image, z_points: :math:`(B, D)`; z_tumour, z_brain: :math:`(B, D')`
        - Output: scalar.

    Raises:
        DataError: weight outside 0 to 1, batches of different sizes, and what InfoNCELoss raises.

    Example:
        >>> z = torch.eye(3)
        >>> round(BiLevelContrastiveLoss(0.5)(z, z, z, z).item(), 4)
        -1.3069
    """

    def __init__(self, temperature: float = 0.1, weight: float = 0.8, decoupled: bool = True, *, gather: bool = True):
        super().__init__()
        if not 0.0 <= weight <= 1.0:
            raise DataError(f"weight (lambda of Eq. 7) must lie in 0 to 1 (0.8 in the paper), got {weight}")
        self.weight = float(weight)
        self.contrast = InfoNCELoss(temperature, decoupled, gather=gather)

    def extra_repr(self) -> str:
        """What `print` shows beside the class."""
        return f"weight={self.weight}"

    def parts(self, z_image: Tensor, z_points: Tensor, z_tumour: Tensor, z_brain: Tensor) -> dict[str, Tensor]:
        """The three losses of Eq. 4 to 6 under the paper's names: ``I2P``, ``P2I`` and ``B2T``."""
        sizes = [len(z) for z in (z_image, z_points, z_tumour, z_brain)]
        if len(set(sizes)) > 1:
            raise DataError(
                "image, points, tumour and brain must be embeddings of the same patients, got batches of "
                f"{', '.join(map(str, sizes))}"
            )
        # before they are used twice: in bf16, two gradients that nearly cancel would leave their rounding
        z_image, z_points, z_tumour, z_brain = (z.to(_precision(z)) for z in (z_image, z_points, z_tumour, z_brain))
        return {
            "I2P": self.contrast(z_image, z_points),
            "P2I": self.contrast(z_points, z_image),
            "B2T": self.contrast(z_brain, z_tumour),
        }

    def forward(self, z_image: Tensor, z_points: Tensor, z_tumour: Tensor, z_brain: Tensor) -> Tensor:
        """Return the loss of a batch."""
        term = self.parts(z_image, z_points, z_tumour, z_brain)
        return self.weight * (term["P2I"] + term["I2P"]) / 2 + (1 - self.weight) * term["B2T"]


class EdgeContrastiveLoss(nn.Module):
    """Eq. 1 as a trainer hands it over: both projections as one prediction, the pairs to leave out as the target.

    Args:
        loss: ``(query, key, exclude) -> scalar``, an :class:`InfoNCELoss`.

    Shape:
        - projections: the MRI's and the FA map's, ``[B, D]`` each; exclude: as of :class:`InfoNCELoss`
        - returns: scalar
    """

    def __init__(self, loss: InfoNCELoss):
        super().__init__()
        self.loss = loss

    def forward(self, projections: tuple[Tensor, Tensor], exclude: Tensor | None = None) -> Tensor:
        """Loss of the two."""
        return self.loss(*projections, exclude)


def unit_rows(z: Tensor) -> Tensor:
    """Rows of length 1, in float32 at least; a row of length zero stays, and has gradient zero.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6..., 0.8...], [0.0, 0.0]]
    """
    z = z.to(_precision(z))
    length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    return z * torch.where(length == 0, 0, 1 / torch.where(length == 0, 1, length))


def _precision(z: Tensor) -> torch.dtype:
    return torch.float64 if z.dtype == torch.float64 else torch.float32


class _Scores(torch.autograd.Function):
    """Inner products of all queries and keys; their gradient keeps its precision in a backward pass under autocast."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor) -> Tensor:
        """Return ``[B, K]``."""
        ctx.save_for_backward(query, key)
        return query @ key.t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Two products in the precision of the forward pass."""
        query, key = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            return gradient @ key, gradient.t() @ query


class _GatherRows(torch.autograd.Function):
    """The rows of all processes; the gradient of a process's own is the sum of what all of them found for it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """Stack the rows in the order of their ranks."""
        return gather_rows(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Sum over the processes, then take the own part."""
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]
