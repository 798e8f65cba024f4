"""NT-Xent, the contrastive loss of SimCLR (Chen et al. 2020, Eq. 1), which the SSCL paper trains its encoder with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from shared.distributed.processes import gather_rows, rank, world_size
from shared.errors import DataError

_ROWS = 128  # rows of similarities handled together on a CPU, so that they stay in its cache
_TILE = 1 << 26  # similarities handled together on an accelerator
_RANGE = 100.0  # 2^+-100, summed over any batch, stays inside float32
VIEWS = ("view_a", "view_b")  # what messages call the two halves of a batch
_BITS = 1 / math.log(2)  # torch.exp2 takes 0.4 of torch.exp's time on a CPU


class NTXentLoss(nn.Module):
    r"""Normalised temperature-scaled cross-entropy of two views of a batch, SimCLR's Eq. 1 averaged over all 2B rows.

    .. math:: L = \frac{1}{2B} \sum_{i=1}^{2B} -\log \frac{\exp(z_i \cdot z_{p(i)} / \tau)}
        {\sum_{k \neq i} \exp(z_i \cdot z_k / \tau)}, \quad z = x / |x|

    with p(i) the other view of i's sample. Embeddings of one direction give log(2B - 1), the value of no information.
    The forward pass leaves with the gradient, so that nothing 2B x 2B outlives it, and the similarities, symmetric, are
    held as half a matrix (whole in several processes, and below temperature 0.0144 where float32 asks for it). Computed
    in float32 (float64 for float64 embeddings), under autocast too. An embedding of length zero has similarity 0 to all
    and gradient zero.

    In several processes of `torch.distributed` the negatives are those of all processes. Each then returns the loss of
    the whole batch, with its own rows' gradient times the number of processes: the mean over the processes, which
    DistributedDataParallel takes, is the gradient of one process with the whole batch.

    Args:
        temperature: tau, 0.7 in the SSCL paper.
        gather: whether several processes share their negatives; False: each has its own loss of its own batch.

    Shape:
        - view_a, view_b: :math:`(B, D)`, row k of both from sample k; equal in all processes.
        - Output: scalar.

    Raises:
        DataError: the temperature is not above 0; or the views' shapes differ, a batch of all processes has fewer than
            two samples, or an embedding is not finite. One process on an accelerator does not look for the last, as
            every step would wait for it: such a loss is NaN.
        RuntimeError: the backward pass is asked for a second derivative (``create_graph=True``).

    Example:
        >>> loss = NTXentLoss(temperature=0.5)
        >>> view = torch.eye(2)  # each sample like its other view, unlike the other sample: log(1 + 2 exp(-1 / 0.5))
        >>> round(loss(view, view).item(), 4)
        0.2395
        >>> torch.isclose(loss(torch.ones(8, 4), torch.ones(8, 4)), torch.tensor(15.0).log()).item()
        True
    """

    def __init__(self, temperature: float = 0.7, *, gather: bool = True):
        super().__init__()
        if not 0.0 < temperature < math.inf:
            raise DataError(
                f"temperature must be a number above 0 (SSCL: 0.7, SimCLR: 0.1 to 0.5), got {temperature}; it divides "
                "the similarities"
            )
        self.temperature, self.gather = float(temperature), gather

    def extra_repr(self) -> str:
        """What `print` shows beside the class."""
        return f"temperature={self.temperature}, gather={self.gather}"

    def forward(self, view_a: Tensor, view_b: Tensor) -> Tensor:
        """Return the loss of a batch."""
        shared = self.gather and world_size() > 1
        if view_a.ndim != 2 or view_a.shape != view_b.shape:
            raise DataError(
                f"both views must be embeddings [B, D] of the same samples, got {list(view_a.shape)} and "
                f"{list(view_b.shape)}; project each view with the same head, and flatten what it returns"
            )
        if len(view_a) < (1 if shared else 2):
            raise DataError(
                f"the other samples of a batch are the negatives, so it needs at least 2; got {len(view_a)}. Raise the "
                "batch size, or drop the last incomplete batch"
            )
        device = view_a.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            with_gradient = torch.is_grad_enabled() and (view_a.requires_grad or view_b.requires_grad)
            return _NTXent.apply(view_a, view_b, self.temperature, shared, with_gradient)


class _NTXent(torch.autograd.Function):
    """The loss; its forward pass computes the gradient on the way."""

    @staticmethod
    def forward(
        ctx: Any, view_a: Tensor, view_b: Tensor, temperature: float, shared: bool, with_gradient: bool
    ) -> Tensor:
        """Return the loss, and keep the gradient of both views instead of any 2B x 2B tensor."""
        views = torch.cat((view_a, view_b))
        views = views if views.dtype == torch.float64 else views.float()
        norm = torch.linalg.vector_norm(views, dim=1, keepdim=True)
        if shared:
            check_agreement(view_a, norm)
        elif norm.device.type == "cpu" and not math.isfinite(norm.sum().item()):
            raise DataError(not_finite_problem(norm))
        inverse = norm.reciprocal_().nan_to_num_(math.nan, 0.0)
        z = views.mul_(inverse)
        found = None if shared else _symmetric(z, temperature, with_gradient)
        loss, gradient = found or _rowwise(z, temperature, shared, with_gradient)
        if with_gradient:
            # Through the normalisation: the part along z vanishes.
            gradient.addcmul_(z, torch.linalg.vecdot(gradient, z)[:, None], value=-1.0)
            ctx.save_for_backward(gradient.mul_(inverse.div_(len(z) * temperature)))
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradient that the forward pass left."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "NTXentLoss has a first derivative only, and create_graph=True asks for a second one; write the loss "
                "with torch.nn.functional.cross_entropy where you need that"
            )
        (gradient,) = ctx.saved_tensors
        view_a, view_b = (gradient * grad_output).chunk(2)
        return view_a, view_b, None, None, None


def _symmetric(z: Tensor, temperature: float, with_gradient: bool) -> tuple[Tensor, Tensor | None] | None:
    """Return the loss and (P + P^T - 2 I_p) z, P the softmax of the similarities, from their upper triangle.

    Positives are kept apart, so that a loss near 0 and its gradient come from the negatives and nothing cancels. The
    exponents have one shift for all rows; None, where some row's sum would leave float32 with it.
    """
    size, half, rows = len(z), len(z) // 2, _rows_at_once(z, len(z))
    scale, keys = _BITS / temperature, z.t()
    shift = max(0.0, scale - _RANGE)
    if shift and z.device.type != "cpu":  # whether it fits is only known after a wait
        return None
    negatives, positive, blocks = z.new_zeros(size, 1), z.new_empty(half), []
    for start in range(0, size, rows):
        stop = min(start + rows, size)
        # What lies left of the block is the transpose of others.
        block = z.new_empty(stop - start, size - start).addmm_(z[start:stop], keys[:, start:], beta=0.0, alpha=scale)
        (block.sub_(shift) if shift else block).exp2_().fill_diagonal_(0.0)
        if start < half:
            pairs = block[: half - start].diagonal(half)
            positive[start : start + len(pairs)] = pairs
            pairs.zero_()
        if len(block) > half:
            block.diagonal(-half).zero_()
        negatives[start:stop].add_(block.sum(dim=1, keepdim=True))
        if stop < size:
            negatives[stop:].add_(block[:, rows:].sum(dim=0)[:, None])
        blocks.append(block if with_gradient else None)
    if shift and min(negatives.min().item(), positive.min().item()) < 2.0**-_RANGE:
        return None
    negatives = negatives.view(2, half)
    margin = (negatives.log2() - positive.log2()).div_(_BITS)
    loss = nn.functional.softplus(margin).mean()
    if not with_gradient:
        return loss, None
    weight, gradient = (negatives + positive).reciprocal_(), _pull(z, margin.sigmoid_())
    weight = weight.view(size, 1)
    for start, block in zip(range(0, size, rows), blocks, strict=True):
        stop = start + len(block)
        block.mul_(weight[start:stop] + weight[start:].t())
        gradient[start:stop].addmm_(block, z[start:])
        if stop < size:
            gradient[stop:].addmm_(block[:, rows:].t(), z[start:stop])
    return loss, gradient


def _rowwise(z: Tensor, temperature: float, shared: bool, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """As `_symmetric`, at any temperature and with the columns of all processes: P^T from the columns' log-sum-exp."""
    size = len(z)
    columns, first = (gather_rows(z), rank() * size) if shared else (z, 0)
    rows = _rows_at_once(z, len(columns))
    scale, keys = _BITS / temperature, columns.t()
    partner = torch.arange(first, first + size, device=z.device).roll(size // 2)[:, None]
    positive, negatives, blocks = z.new_empty(size, 1), z.new_empty(size, 1), []  # log2 of either part of the sum
    for start in range(0, size, rows):
        stop = min(start + rows, size)
        block = z.new_empty(stop - start, len(columns)).addmm_(z[start:stop], keys, beta=0.0, alpha=scale)
        torch.gather(block, 1, partner[start:stop], out=positive[start:stop])
        block.diagonal(first + start).fill_(-math.inf)
        block.scatter_(1, partner[start:stop], -math.inf)
        top = block.amax(dim=1, keepdim=True)
        torch.add((block - top).exp2_().sum(dim=1, keepdim=True).log2_(), top, out=negatives[start:stop])
        blocks.append(block if with_gradient else None)
    margin = (negatives - positive).div_(_BITS)
    summed = torch.cat((torch.logaddexp2(negatives, positive), nn.functional.softplus(margin)), dim=1)
    summed_all = gather_rows(summed) if shared else summed
    loss = summed_all[:, 1].mean()
    if not with_gradient:
        return loss, None
    own, everyone, gradient = summed[:, :1], summed_all[:, 0], _pull(z, margin.sigmoid_().view(2, size // 2))
    for start, block in zip(range(0, size, rows), blocks, strict=True):
        stop = start + len(block)
        weights = (block - own[start:stop]).exp2_()
        gradient[start:stop].addmm_(weights.add_(block.sub_(everyone).exp2_()), columns)
    return loss, gradient


def _pull(z: Tensor, missed: Tensor) -> Tensor:
    """Positives' part of the gradient: -(1 - P_ab + 1 - P_ba) times the other view, from 1 - P as [2, B]."""
    other = z.roll(missed.shape[1], dims=0)
    other.view(2, missed.shape[1], -1).mul_(missed.sum(dim=0).neg_()[:, None])
    return other


def _rows_at_once(z: Tensor, columns: int) -> int:
    return _ROWS if z.device.type == "cpu" else max(_ROWS, _TILE // columns)


def check_agreement(view: Tensor, norm: Tensor, names: Sequence[str] = VIEWS) -> None:
    """Raise in every process what is wrong in any: a process alone would leave the others waiting for its rows."""
    own = torch.tensor([[*view.shape, norm.element_size()]], device=norm.device)
    finite = norm.sum().isfinite().long().view(1, 1)
    found = gather_rows(torch.cat((own, finite), dim=1)).tolist()
    problems = []
    if len({tuple(row[:3]) for row in found}) > 1:
        shapes = ", ".join(f"rank {rank}: [{b}, {d}] float{8 * size}" for rank, (b, d, size, _) in enumerate(found))
        problems.append(
            f"every process must bring embeddings of one shape and precision, got {shapes}; drop the last incomplete "
            "batch, or set gather=False"
        )
    if broken := [rank for rank, row in enumerate(found) if not row[3]]:
        problems.append(
            not_finite_problem(norm, names) if rank() in broken else f"embeddings of ranks {broken} are not finite"
        )
    if problems:
        raise DataError(problems)


def not_finite_problem(norm: Tensor, names: Sequence[str] = VIEWS) -> str:
    """Which embeddings are not finite, and what to do."""
    bad, half = torch.nonzero(~norm.flatten().isfinite()).flatten().tolist(), len(norm) // 2
    where = ", ".join(f"{names[row // half]}[{row % half}]" for row in bad[:5])
    return (
        f"embeddings must be finite with a finite length; {len(bad)} of {len(norm)} are not (first: {where}). Lower "
        "the learning rate or switch bf16 off, and look for NaN in the images"
    )


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
