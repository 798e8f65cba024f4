"""Timing that the benchmarks share: interleaved medians of one thread's CPU time, a matrix product as the yardstick."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple


class Finding(NamedTuple):
    """A line of the closing table; ``met`` is None for a quantity without a target."""

    quantity: str
    target: str
    found: str
    met: bool | None = None


def interleaved(calls: dict[str, Callable[[], object]], repeats: int, device: Any = "cpu") -> dict[str, float]:
    """Median seconds of each call, the calls taking turns: CPU time, or on CUDA wall time between synchronisations.

    On CUDA, where a call takes milliseconds and a few of them say little, more than one repeat means ten at least.
    """
    synchronise, clock = (lambda: None), time.process_time
    if str(device).startswith("cuda"):
        import torch

        synchronise, clock = torch.cuda.synchronize, time.perf_counter
        repeats = max(repeats, 10) if repeats > 1 else repeats
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            synchronise()
            start = clock()
            call()
            synchronise()
            seconds[name].append(clock() - start)
    return {name: median(values) for name, values in seconds.items()}


def product(device: Any = "cpu", size: int = 512) -> Callable[[], object]:
    """The yardstick: a float32 matrix product ``[size, size] @ [size, size]``, called ``GEMM`` in the tables."""
    import torch

    a, out = torch.rand(size, size, device=device), torch.empty(size, size, device=device)
    return lambda: torch.mm(a, a, out=out)


def report(title: str, rows: Sequence[dict]) -> None:
    """Print a table as aligned text."""
    print(f"\n{title}")
    for row in rows:
        print("  " + "   ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))


def summary(findings: Sequence[Finding], *, judged: bool = True) -> None:
    """Print the closing table: quantity, target, found."""
    rows = [("quantity", "target", "found", "")]
    words = {True: "met", False: "MISSED", None: ""}
    rows += [(f.quantity, f.target, f.found, words[f.met] if judged else "") for f in findings]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def resident_peak() -> float:
    """Largest resident memory of this process so far, MiB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10
