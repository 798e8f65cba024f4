"""Memory bank of IRCL's stage I and its contrastive loss; nothing N x N, or B x N, is ever held."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shared.distributed.processes import mean_of_all, world_size
from shared.losses.bank_streaming import BankLikelihood, collision_free_rounds, scan_similarities

_SAFE = 60.0  # exp of scores within +-60, summed over any bank, stays inside float32


class MemoryBank(nn.Module):
    """One unit embedding per training image, with the entropies and neighbours of IRCL's Algorithm 1 (Eq. 3-4).

    The rows are a non-persistent buffer: a checkpoint loads without knowing N. They start empty; fill all of them with
    `seed` from a first pass of the encoder. Whatever needs the bank before that raises. Everything is computed in
    float32, under autocast too, over blocks of 128 rows: at N = 33,000 about 30 MiB exist beside the bank.

    Args:
        size: N, the number of training images, mixed ones included.
        dim: D, the length of an embedding.
        momentum: share of the old row that `update` keeps.
        temperature: tau of Eq. 3.

    Shape:
        - embeddings: :math:`(N, D)`, float32.

    Raises:
        ValueError: a size, dimension, momentum or temperature outside its range.

    Example:
        >>> bank = MemoryBank(4, 2)
        >>> bank.seed(torch.arange(4), torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]))
        >>> bank.nearest([0, 3], 1)
        tensor([[1],
                [2]])
        >>> bank.nearest([0], 3, groups=torch.tensor([[7], [7], [8], [9]]))  # row 1 shares row 0's patient
        tensor([[ 3,  2, -1]])
    """

    embeddings: Tensor

    def __init__(self, size: int, dim: int, momentum: float = 0.5, temperature: float = 0.07):
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"a memory bank needs size >= 1 and dim >= 1, got size={size}, dim={dim}")
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        if not temperature > 0.0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.size, self.dim, self.momentum, self.temperature = size, dim, momentum, temperature
        self.register_buffer("embeddings", torch.zeros(size, dim), persistent=False)
        self._checked: tuple[int, int] | None = None
        self._largest_norm = 1.0

    def extra_repr(self) -> str:
        """What `print` shows beside the class."""
        return f"size={self.size}, dim={self.dim}, momentum={self.momentum}, temperature={self.temperature}"

    def check_seeded(self) -> float:
        """Return the largest norm of a row; raise RuntimeError while a row is empty or not finite.

        The rows are looked at again only after something other than this class wrote to them.
        """
        state = (self.embeddings.data_ptr(), self.embeddings._version)
        if state != self._checked:
            norms = self.embeddings.norm(dim=1)
            empty = torch.nonzero((norms == 0) | ~norms.isfinite()).flatten().tolist()
            if empty:
                raise RuntimeError(
                    f"every row of the memory bank must hold a finite embedding before it is used; {len(empty)} of "
                    f"{self.size} are empty (first: {', '.join(map(str, empty[:5]))}). Call seed(indices, z) for all "
                    "training images, with z from a first pass of the encoder"
                )
            self._largest_norm, self._checked = norms.max().item(), state
        return self._largest_norm

    @torch.no_grad()
    def seed(self, indices: Tensor, z: Tensor) -> None:
        """Overwrite rows with normalised embeddings; of an index given twice the last one stays.

        Args:
            indices: rows of the batch's images, :math:`(B)`.
            z: their embeddings, :math:`(B, D)`.

        Raises:
            ValueError: an embedding is zero or not finite, or the shapes do not fit.
            IndexError: an index is outside the bank.
        """
        indices, z = self._batch(indices, z)
        norm = z.norm(dim=1, keepdim=True)
        bad = ((norm == 0) | ~norm.isfinite()).flatten()
        if bad.any():
            raise ValueError(
                f"embeddings that seed the bank must be finite and not zero; those of rows {indices[bad].tolist()[:5]} "
                "are not. Look for NaN or a constant zero output in the encoder"
            )
        for pick in collision_free_rounds(indices):
            self.embeddings[indices[pick]] = (z / norm)[pick]

    @torch.no_grad()
    def update(self, indices: Tensor, z: Tensor) -> None:
        """Momentum update, m <- normalise(momentum * m + (1 - momentum) * z); call it after the optimiser's step.

        An index given twice is updated twice, in the batch's order. A row whose sum vanishes or is not finite (an
        overflowed half-precision step) stays as it was; an empty row becomes z's direction.

        Args:
            indices: rows of the batch's images, :math:`(B)`.
            z: their embeddings, :math:`(B, D)`.

        Raises:
            ValueError: the shapes do not fit.
            IndexError: an index is outside the bank.
        """
        indices, z = self._batch(indices, z)
        known = self._checked == (self.embeddings.data_ptr(), self.embeddings._version)
        for pick in collision_free_rounds(indices):
            old = self.embeddings[indices[pick]]
            new = self.momentum * old + (1.0 - self.momentum) * z[pick]
            norm = new.norm(dim=1, keepdim=True)
            usable = norm.isfinite() & (norm > 1e-6)
            self.embeddings[indices[pick]] = torch.where(usable, new / norm, old)
        if known:  # own writes keep complete rows complete: no second look at the whole bank
            self._checked = (self.embeddings.data_ptr(), self.embeddings._version)
            self._largest_norm = max(self._largest_norm, 1.0)

    def entropy(self, include_self: bool = False) -> Tensor:
        """Entropy of every row's similarities to the bank, Eq. 4.

        Args:
            include_self: count a row's similarity to itself, as the paper's letter does. It alone carries
                e^(1/tau), so that outliers then look concentrated.

        Shape:
            - Output: :math:`(N)`, float32, in nats.
        """
        return self._scan(None, entropy=True, include_self=include_self)[0]

    def nearest(self, rows: Tensor | list[int], count: int, groups: Tensor | None = None) -> Tensor:
        """Most similar rows of each given row, the most similar first; never the row itself.

        Args:
            rows: rows to find neighbours of.
            count: s, the neighbours of each.
            groups: ids (parent patients) of every row, negative for none; rows that share one are no candidates.

        Shape:
            - rows: :math:`(R)`; groups: :math:`(N, G)`.
            - Output: :math:`(R, s)`, long; -1 where candidates have run out.
        """
        rows = torch.as_tensor(rows, dtype=torch.long)
        self._check_rows(rows)
        return self._scan(rows.to(self.embeddings.device), count=_at_least_one(count), groups=groups)[1]

    def positives(
        self, epoch: int, epochs: int, count: int, groups: Tensor | None = None, *, include_self: bool = False
    ) -> Tensor:
        """Rebuild the inter-patient positives, one update of Algorithm 1, in a single pass over the bank.

        Args:
            epoch: current epoch, counted from 1.
            epochs: E, all epochs of stage I; later epochs count as the last.
            count: s, the positives of each selected row.
            groups: as in `nearest`.
            include_self: as in `entropy`.

        Shape:
            - Output: :math:`(N, s)`, long: the `nearest` of the floor(N * epoch / E) rows of lowest entropy; rows of
              -1 for all others.
        """
        if epoch < 1 or epochs < 1:
            raise ValueError(f"epochs are counted from 1, got epoch={epoch} of epochs={epochs}")
        entropy, nearest = self._scan(
            None, count=_at_least_one(count), groups=groups, entropy=True, include_self=include_self
        )
        selected = entropy.argsort(stable=True)[: self.size * min(epoch, epochs) // epochs]
        result = torch.full_like(nearest, -1)
        result[selected] = nearest[selected]
        return result

    @torch.no_grad()
    def _scan(
        self,
        rows: Tensor | None,
        *,
        count: int = 0,
        groups: Tensor | None = None,
        entropy: bool = False,
        include_self: bool = False,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Stream the similarities of the given rows (all, for None): entropies and the ``count`` nearest of each."""
        self.check_seeded()
        bank = self.embeddings.float()
        rows = torch.arange(self.size, device=bank.device) if rows is None else rows
        if groups is not None:
            groups = torch.as_tensor(groups).to(bank.device)
            if groups.ndim != 2 or len(groups) != self.size:
                raise ValueError(
                    f"groups must be [N, G] with a row for each of the bank's {self.size}, got {list(groups.shape)}"
                )
        return scan_similarities(
            bank, rows, self.temperature, count=count, groups=groups, entropy=entropy, include_self=include_self
        )

    def _batch(self, indices: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Check a batch and bring it to the bank's device, the embeddings in float32."""
        indices = torch.as_tensor(indices, dtype=torch.long)
        if indices.ndim != 1 or z.shape != (len(indices), self.dim):
            raise ValueError(
                f"the bank takes indices [B] and embeddings [B, {self.dim}], got {list(indices.shape)} and "
                f"{list(z.shape)}"
            )
        self._check_rows(indices)
        return indices.to(self.embeddings.device), z.detach().to(self.embeddings.device, torch.float32)

    def _check_rows(self, rows: Tensor) -> None:
        if rows.numel() and not (rows.min() >= 0 and rows.max() < self.size):
            found = f"{rows.min().item()} to {rows.max().item()}"
            raise IndexError(f"rows of a memory bank of {self.size} are 0 to {self.size - 1}, got {found}")


class MemoryBankContrastiveLoss(nn.Module):
    r"""Contrastive loss of live embeddings against the bank, IRCL Eq. 5 with the logarithm inside the sum over k.

    .. math:: L = \frac{1}{B} \sum_k -\log \sum_{j \in \{k\} \cup D_k \cup N_k} P_k(j),
        \quad P_k = \mathrm{softmax}(z_k M^\top / \tau)

    The row itself is always a positive, and a positive listed twice counts once. No B x N tensor is kept: the forward
    pass streams the bank once and leaves with the gradient of z, so that both passes cost two matrix products. Computed
    in float32 (float64 for float64 z), under autocast too; the bank gets no gradient.

    In several processes each returns the loss of its own rows, weighted so that their mean, which
    DistributedDataParallel takes of the gradients, is the loss of the whole batch.

    Args:
        bank: the memory bank, shared with whatever updates it.
        exclude_self: take the row itself out of numerator and denominator, so that it cannot satisfy the loss alone.
            Rows without another positive are then left out of the mean; if all are, the loss is 0.

    Shape:
        - z: :math:`(B, D)`; indices: :math:`(B)`, the rows of z in the bank; positives: :math:`(B, P)`, padded with -1.
        - Output: scalar.

    Raises:
        ValueError: shapes that do not fit each other or the bank.
        IndexError: an index or a positive is outside the bank (checked for tensors on the CPU).
        RuntimeError: the bank is not seeded.

    Example:
        >>> bank = MemoryBank(4, 2)
        >>> bank.seed(torch.arange(4), torch.ones(4, 2))
        >>> loss = MemoryBankContrastiveLoss(bank)  # equal rows: P = 1/4 each, two positives of four
        >>> z = torch.nn.functional.normalize(torch.ones(1, 2))
        >>> value = loss(z, torch.tensor([0]), torch.tensor([[2, -1]]))
        >>> bool(torch.isclose(value, torch.tensor(2.0).log()))
        True
    """

    def __init__(self, bank: MemoryBank, exclude_self: bool = False):
        super().__init__()
        self.bank, self.exclude_self = bank, exclude_self

    def forward(self, z: Tensor, indices: Tensor, positives: Tensor) -> Tensor:
        """Return the loss of a batch."""
        bank = self.bank
        if z.ndim != 2 or z.shape[1] != bank.dim or indices.shape != z.shape[:1] or positives.shape[:-1] != z.shape[:1]:
            raise ValueError(
                f"the loss takes z [B, {bank.dim}], indices [B] and positives [B, P], got {list(z.shape)}, "
                f"{list(indices.shape)} and {list(positives.shape)}"
            )
        for rows in (indices, positives.clamp(min=0)):  # negative positives are padding
            if rows.device.type == "cpu":  # on an accelerator the check would make every step wait
                bank._check_rows(rows)
        largest_norm = bank.check_seeded()
        indices, positives = indices.to(z.device), positives.to(z.device)
        with torch.autocast(z.device.type, enabled=False):
            z = z if z.dtype == torch.float64 else z.float()
            candidates = positives.masked_fill(positives == indices[:, None], -1) if self.exclude_self else positives
            if not self.exclude_self:
                candidates = torch.cat([indices[:, None], candidates], dim=1)
            members = candidates.sort(dim=1).values
            kept = members >= 0
            kept[:, 1:] &= members[:, 1:] != members[:, :-1]
            # Scores that cannot leave +-60 need no running maximum; asking would make an accelerator wait.
            bounded = z.device.type == "cpu" and (
                z.detach().norm(dim=1).amax().item() * largest_norm <= _SAFE * bank.temperature if len(z) else True
            )
            excluded = indices if self.exclude_self else None
            with_gradient = torch.is_grad_enabled() and z.requires_grad
            loss = BankLikelihood.apply(
                z, bank.embeddings, members.clamp(min=0), kept, excluded, bank.temperature, bounded, with_gradient
            )
            if not (self.exclude_self and world_size() > 1):
                return loss
            counted = kept.any(dim=1).sum().to(loss.dtype)
            return loss * (counted / mean_of_all(counted).clamp(min=torch.finfo(loss.dtype).tiny))


def _at_least_one(count: int) -> int:
    if count < 1:
        raise ValueError(f"count, the neighbours of each row, must be at least 1, got {count}")
    return count
