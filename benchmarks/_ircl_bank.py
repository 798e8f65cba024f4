"""Time and memory of IRCL's memory bank (Algorithm 1) and of Eq. 5, beside plainer versions of both."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from _timing import Finding, interleaved, report

DIM, BATCH, COUNT, IMAGES_PER_CASE = 128, 128, 2, 9


def bank(sizes: Sequence[int], *, tiny: bool = False) -> list[Finding]:
    """The update of the whole bank: time at every N, memory at the largest."""
    rows = bank_update(sizes, repeats=1 if tiny else 5)
    report("Algorithm 1, entropy and top-2 of all rows, D = 128 (CPU seconds)", rows)
    kinds = (True,) if tiny else (False, True)
    memory = {f"with{'' if groups else 'out'} groups": update_memory(sizes[-1], groups) for groups in kinds}
    report("Algorithm 1, MiB beside the bank", [{"N": sizes[-1], **memory}])
    ratio, largest = rows[-1]["ours / blocks of 1,024"], max(memory.values())
    return [
        Finding(f"bank update / blocks of 1,024, N = {sizes[-1]:,}", "<= 0.5", f"{ratio:.2f}", ratio <= 0.5),
        Finding(f"  MiB beside the bank, N = {sizes[-1]:,}", "<= 64", f"{largest:.1f}", largest <= 64),
    ]


def eq5(*, tiny: bool = False) -> list[Finding]:
    """The contrastive loss, forward and backward, at two sizes of the bank."""
    rows = contrastive((500, 1000), repeats=1) if tiny else contrastive((33000, 66000))
    report("Eq. 5, forward and backward, 128 x N, D = 128 (CPU seconds)", rows)
    ratios, growth = {row["N"]: row["ours / two products"] for row in rows}, rows[-1]["growth"]
    return [
        *(Finding(f"Eq. 5 / its two GEMMs, N = {n:,}", "<= 1.1", f"{r:.2f}", r <= 1.1) for n, r in ratios.items()),
        Finding("  growth from one to the other", "<= 2.1", f"{growth:.2f}", growth <= 2.1),
    ]


def make_bank(size: int):
    """A seeded bank of random unit rows, and the parent patients of each row: one of 120, mixed rows a second one."""
    import torch

    from shared.losses import MemoryBank

    generator = torch.Generator().manual_seed(0)
    bank = MemoryBank(size, DIM)
    bank.seed(torch.arange(size), torch.randn(size, DIM, generator=generator))
    cases = -(-size // IMAGES_PER_CASE)
    parents = torch.randint(120, (cases, 2), generator=generator)
    parents[: max(1, cases // 31), 1] = -1
    return bank, parents.repeat_interleave(IMAGES_PER_CASE, dim=0)[:size]


def blockwise_update(embeddings, temperature: float, rows: int, block: int):
    """The plain version: log_softmax and topk over blocks of the similarities, for the first ``rows`` rows."""
    import torch

    entropies, neighbours = [], []
    for start in range(0, rows, block):
        part = embeddings[start : min(start + block, rows)]
        scores = part @ embeddings.T / temperature
        scores[torch.arange(len(part)), torch.arange(start, start + len(part))] = -1e30
        log_p = scores.log_softmax(dim=1)
        entropies.append(-(log_p.exp() * log_p).sum(dim=1))
        neighbours.append(scores.topk(COUNT, dim=1).indices)
    return torch.cat(entropies), torch.cat(neighbours)


def bank_update(sizes: Sequence[int], repeats: int = 5, unstreamed_up_to: int = 3000) -> list[dict]:
    """Entropy and top-2 of every row: this repository's, in blocks of 1,024, unstreamed, and the bare product."""
    import torch

    from shared.losses.bank_streaming import scan_similarities

    rows = []
    for size in sizes:
        bank, parents = make_bank(size)
        m = bank.embeddings
        everyone = torch.arange(size)
        block = torch.empty(128, size)

        def product(m=m, block=block) -> None:
            for part in m.split(128):
                torch.mm(part, m.T, out=block[: len(part)])

        def ours(m=m, everyone=everyone, groups=None):
            return scan_similarities(m, everyone, 0.07, count=COUNT, groups=groups, entropy=True)

        calls = {
            "ours": ours,
            "ours, groups": lambda ours=ours, parents=parents: ours(groups=parents),
            "blocks of 1,024": lambda m=m, size=size: blockwise_update(m, 0.07, size, 1024),
            "product": product,
        }
        if size <= unstreamed_up_to:
            calls["unstreamed"] = lambda m=m, size=size: blockwise_update(m, 0.07, size, size)
        (entropy, nearest), (plain_entropy, plain_nearest) = ours(), blockwise_update(m[:], 0.07, min(size, 1024), 1024)
        part = slice(0, len(plain_entropy))
        if size <= 20000:  # minutes at the largest size, where a first call's share is small
            interleaved(calls, repeats=1)
        seconds = interleaved(calls, repeats=1 if size > 20000 else repeats)
        rows.append(
            {
                "N": size,
                **seconds,
                "ours / blocks of 1,024": seconds["ours"] / seconds["blocks of 1,024"],
                "with groups / blocks of 1,024": seconds["ours, groups"] / seconds["blocks of 1,024"],
                "ours / product": seconds["ours"] / seconds["product"],
                "entropy differs by": (entropy[part] - plain_entropy).abs().max().item(),
                "same neighbours": (nearest[part] == plain_nearest).float().mean().item(),
            }
        )
    return rows


def contrastive(sizes: Sequence[int], repeats: int = 7) -> list[dict]:
    """Eq. 5, forward and backward, against its two matrix products and against autograd on the whole B x N."""
    import torch

    from shared.losses import MemoryBankContrastiveLoss

    rows = []
    for size in sizes:
        bank, _ = make_bank(size)
        m = bank.embeddings
        generator = torch.Generator().manual_seed(1)
        z = torch.nn.functional.normalize(torch.randn(BATCH, DIM, generator=generator)).requires_grad_()
        indices = torch.randperm(size, generator=generator)[:BATCH]
        positives = (indices[:, None] + 37 * torch.arange(1, 11)) % size  # distinct, as logsumexp needs them
        members = torch.cat([indices[:, None], positives], dim=1)
        loss = MemoryBankContrastiveLoss(bank)

        def ours(loss=loss, z=z, indices=indices, positives=positives) -> torch.Tensor:
            z.grad = None
            value = loss(z, indices, positives)
            value.backward()
            return value.detach()

        def autograd(m=m, z=z, members=members) -> torch.Tensor:
            z.grad = None
            scores = z @ m.T / 0.07
            value = (scores.logsumexp(dim=1) - scores.gather(1, members).logsumexp(dim=1)).mean()
            value.backward()
            return value.detach()

        def products(m=m, z=z) -> torch.Tensor:
            fixed = z.detach()
            return (fixed @ m.T) @ m

        ours(), autograd(), products()
        difference = (ours() - autograd()).abs().item()
        seconds = interleaved({"ours": ours, "logsumexp": autograd, "two products": products}, repeats)
        rows.append(
            {
                "N": size,
                **seconds,
                "ours / two products": seconds["ours"] / seconds["two products"],
                "logsumexp / two products": seconds["logsumexp"] / seconds["two products"],
                "growth": seconds["ours"] / rows[-1]["ours"] if rows else float("nan"),
                "losses differ by": difference,
            }
        )
    return rows


def update_memory(size: int, groups: bool) -> float:
    """MiB that an update of Algorithm 1 adds to the peak of a fresh process which already holds the bank."""
    script = Path(__file__).with_name("ircl.py")
    command = [sys.executable, script, "--measure-memory", str(size), "--groups", str(int(groups))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(size: int, groups: bool) -> float:
    """Peak resident size of a whole update above what was there before it."""
    bank, parents = make_bank(size)
    small, small_parents = make_bank(512)
    small.positives(1, 1, COUNT, small_parents)  # the libraries' own workspaces
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = _peak()
    bank.positives(1, 1, COUNT, parents if groups else None)
    return _peak() - before


def _peak() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10
