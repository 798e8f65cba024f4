"""Streamed computations over IRCL's memory bank (Eq. 3-5): entropies, nearest rows and the likelihood of positives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_BLOCK = 128  # rows of the N x N similarities that exist at a time
_CHUNK = 128  # columns whose maximum is taken before the top-s search looks inside
_TILE = 1 << 19  # similarities the entropy handles together on a CPU, so that they stay in its cache
_COLUMNS = 1024  # rows of the bank that Eq. 5 sees at a time
_PAIRS = 1 << 18  # excluded (row, candidate) pairs listed at a time
_BITS = 1 / math.log(2)  # scores are held in bits: torch.exp2 takes 0.4 of torch.exp's time on a CPU
_MASKED = -1e30  # finite, so that exp2(masked) * masked is 0 and not NaN


def scan_similarities(
    bank: Tensor,
    rows: Tensor,
    temperature: float,
    *,
    count: int = 0,
    groups: Tensor | None = None,
    entropy: bool = False,
    include_self: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Entropies (Eq. 4) and ``count`` nearest rows of the given rows, from one pass over the similarities (Eq. 3).

    Args:
        bank: unit rows.
        rows: rows to scan.
        temperature: tau.
        count: neighbours of each row, 0 for none.
        groups: ids of every row, negative for none; rows that share one are no neighbours.
        entropy: whether to compute entropies.
        include_self: whether they count a row's similarity to itself.

    Shape:
        - bank: :math:`(N, D)`; rows: :math:`(R)`; groups: :math:`(N, G)`.
        - Output: :math:`(R)` and :math:`(R, s)`, or None where not asked for.

    Example:
        >>> bank = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> scan_similarities(bank, torch.tensor([0, 2]), 0.07, count=1)[1]
        tensor([[1],
                [1]])
    """
    shared = None if groups is None else _SharedGroups(groups)
    # Columns beyond N fill up the last chunk and stay masked; mm writes left of them.
    width = -(-len(bank) // _CHUNK) * _CHUNK
    buffer = bank.new_full((min(_BLOCK, len(rows)), width), _MASKED)
    scratch = torch.empty_like(buffer[: max(1, _TILE // width)] if bank.device.type == "cpu" else buffer)
    entropies, neighbours = [], []
    for part in rows.split(_BLOCK):
        block = buffer[: len(part)]
        torch.mm(bank[part] * (_BITS / temperature), bank.t(), out=block[:, : len(bank)])
        if entropy and include_self:
            entropies.append(_entropy(block, scratch))
        block.scatter_(1, part[:, None], _MASKED)
        if entropy and not include_self:
            entropies.append(_entropy(block, scratch))
        if count:
            if shared is not None:
                shared.mask(block, part)
            neighbours.append(_largest(block, count))
    return torch.cat(entropies) if entropy else None, torch.cat(neighbours) if count else None


class BankLikelihood(torch.autograd.Function):
    """Mean of log sum_all exp - log sum_positives exp; its forward pass computes the gradient of z on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        embeddings: Tensor,
        members: Tensor,
        kept: Tensor,
        excluded: Tensor | None,
        temperature: float,
        bounded: bool,
        with_gradient: bool,
    ) -> Tensor:
        """Return the loss, and keep its gradient instead of any B x N tensor."""
        scaled = z / temperature
        log_all, mean_all = _stream(scaled, embeddings, excluded, bounded, with_gradient)
        rows = embeddings.index_select(0, members.flatten()).view(*members.shape, z.shape[1]).to(z.dtype)
        scores = torch.einsum("bd,bpd->bp", scaled, rows).masked_fill_(~kept, _MASKED)
        valid = kept.any(dim=1)
        count = valid.sum().clamp(min=1)
        if with_gradient:
            mean_positives = torch.einsum("bp,bpd->bd", scores.softmax(dim=1), rows)
            gradient = (mean_all - mean_positives) * (valid.to(z.dtype) / count / temperature)[:, None]
            ctx.save_for_backward(gradient)
        return (log_all - scores.logsumexp(dim=1)).masked_fill(~valid, 0.0).sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradient that the forward pass left."""
        return grad_output * ctx.saved_tensors[0], *([None] * 7)


def _stream(
    scaled: Tensor, embeddings: Tensor, excluded: Tensor | None, bounded: bool, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Return logsumexp over the bank of scaled @ bank^T, and the bank's mean row under that softmax."""
    # Scores are held as [rows of the bank, B]: both products then read the bank row by row.
    query = (scaled * _BITS).t().contiguous()
    maximum = scaled.new_full((1, len(scaled)), 0.0 if bounded else _MASKED)
    total = torch.zeros_like(maximum)
    weighted = torch.zeros_like(scaled)
    buffer = scaled.new_empty(min(_COLUMNS, len(embeddings)), len(scaled))
    for start in range(0, len(embeddings), _COLUMNS):
        rows = embeddings[start : start + _COLUMNS].to(scaled.dtype)
        scores = torch.mm(rows, query, out=buffer[: len(rows)])
        if excluded is not None:
            local = excluded[None] - start
            inside = (local >= 0) & (local < len(rows))
            local = local.clamp(0, len(rows) - 1)
            scores.scatter_(0, local, scores.gather(0, local).masked_fill_(inside, _MASKED))
        if not bounded:
            higher = torch.maximum(maximum, scores.amax(dim=0, keepdim=True))
            rescale = (maximum - higher).exp2_()
            total.mul_(rescale)
            weighted.mul_(rescale.t())
            scores.sub_(higher)
            maximum = higher
        scores.exp2_()
        total.add_(scores.sum(dim=0, keepdim=True))
        if with_gradient:
            weighted.addmm_(scores.t(), rows)
    total.clamp_(min=torch.finfo(total.dtype).tiny)  # a bank of one row, itself excluded
    return (maximum + total.log2())[0] / _BITS, weighted.div_(total.t())


class _SharedGroups:
    """For each row the rows that share one of its groups, as lists of members per group (never N x N)."""

    def __init__(self, groups: Tensor):
        row, column = torch.nonzero(groups >= 0, as_tuple=True)
        _, group, counts = torch.unique(groups[row, column], return_inverse=True, return_counts=True)
        self.members = row[group.argsort(stable=True)]
        self.length = torch.zeros_like(groups, dtype=torch.long)
        self.length[row, column] = counts[group]
        self.start = torch.zeros_like(self.length)
        self.start[row, column] = (counts.cumsum(0) - counts)[group]
        self.longest = max(1, int(self.length.sum(dim=1).max()))

    def mask(self, block: Tensor, rows: Tensor) -> None:
        """Mask in ``block``, the similarities of ``rows``, every candidate that shares a group."""
        for part, part_rows in self._parts(block, rows):
            length = self.length[part_rows].flatten()
            pair = torch.repeat_interleave(length)
            # Position within the pair's group, from the position in the list of all pairs' members.
            offset = self.start[part_rows].flatten() - (length.cumsum(0) - length)
            member = self.members[torch.arange(len(pair), device=pair.device).add_(offset[pair])]
            row = pair.div_(self.length.shape[1], rounding_mode="floor")
            part.view(-1).index_fill_(0, row.mul_(part.shape[1]).add_(member), _MASKED)

    def _parts(self, block: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        at_once = max(1, _PAIRS // self.longest)
        yield from zip(block.split(at_once), rows.split(at_once), strict=True)


def _entropy(block: Tensor, scratch: Tensor) -> Tensor:
    """Entropy in nats of each row's softmax, from scores in bits: log sum 2^s - sum(p * s), no log-probabilities."""
    result = []
    for scores in block.split(max(1, len(scratch))):
        top = scores.amax(dim=1, keepdim=True)
        weights = torch.sub(scores, top, out=scratch[: len(scores)]).exp2_()
        mass = weights.sum(dim=1)
        entropy = mass.log2() + top[:, 0] - weights.mul_(scores).sum(dim=1) / mass
        result.append(entropy.masked_fill_(top[:, 0] <= _MASKED / 2, 0.0))  # a bank of one row has no other
    return torch.cat(result) / _BITS


def _largest(block: Tensor, count: int) -> Tensor:
    """Columns of each row's largest scores, -1 where only masked ones are left.

    The largest ``count`` scores lie in the ``count`` chunks of largest maximum: reading the maxima is ten times faster
    than torch.topk over all columns.
    """
    chunks = block.unflatten(1, (-1, _CHUNK))
    best = chunks.amax(dim=2).topk(min(count, chunks.shape[1]), dim=1).indices
    scores = chunks.gather(1, best[:, :, None].expand(-1, -1, _CHUNK)).flatten(1)
    top, place = scores.topk(min(count, scores.shape[1]), dim=1)
    found = best.gather(1, place // _CHUNK) * _CHUNK + place % _CHUNK
    found.masked_fill_(top <= _MASKED / 2, -1)
    return nn.functional.pad(found, (0, count - found.shape[1]), value=-1)


def collision_free_rounds(indices: Tensor) -> list[Tensor]:
    """Split a batch into rounds of distinct indices, occurrences of one index in order, so that no writes collide."""
    ordered, order = indices.sort(stable=True)
    occurrence = torch.arange(len(ordered), device=ordered.device) - torch.searchsorted(ordered, ordered)
    rounds = int(occurrence.max()) + 1 if len(ordered) else 0
    return [order] if rounds == 1 else [order[occurrence == number] for number in range(rounds)]
