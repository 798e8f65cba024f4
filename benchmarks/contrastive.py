"""NT-Xent's speed and memory beside other libraries' and the two matrix products it cannot do without.

Forward and backward, D = 128, one thread, CPU time, interleaved, medians; tensors held at the peak. From anywhere:

    python benchmarks/contrastive.py                      # about three minutes on a CPU
    python benchmarks/contrastive.py --sizes 128 256      # some batches only

Peers that are not installed are left out; they are no requirements of this repository:

    pip install --no-deps lightly==1.6.0 pytorch-metric-learning==2.9.0

"two products" are S = z z^T and S z, without which neither loss nor gradient is to be had; as S is symmetric, half of
the first is enough. Where there is CUDA it runs there, in wall time between synchronisations. A table of target and
finding closes the run.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import types
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

DIM, SIZES, TEMPERATURES = 128, (128, 256, 512, 2048), (0.7, 0.01)
LARGEST = {"pytorch-metric-learning": 128, "MONAI": 256}  # they hold [2B, 4B^2] and [2B, 2B, D]: gigabytes beyond
PLAIN = "matmul + cross_entropy"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="B", help="samples in a batch")
    parser.add_argument("--temperatures", type=float, nargs="+", default=TEMPERATURES, metavar="T", help="tau")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs: no verdicts")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    return parser.parse_args(arguments)


def lightly_loss() -> Any:
    """lightly's NTXentLoss, or None; without torchvision from its file alone, its packages' own imports left out."""
    try:
        return importlib.import_module("lightly.loss.ntx_ent_loss").NTXentLoss
    except ImportError:
        found = importlib.util.find_spec("lightly")
    if found is None:
        return None
    before = set(sys.modules)
    for name in ("lightly.loss", "lightly.models", "lightly.models.modules"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(Path(found.origin).parent.joinpath(*name.split(".")[1:]))]
    # What the loss takes from there is for several processes with a memory bank.
    sys.modules["lightly.models"].utils = sys.modules["lightly.models.utils"] = types.ModuleType("lightly.models.utils")
    try:
        return importlib.import_module("lightly.loss.ntx_ent_loss").NTXentLoss
    finally:
        for name in [name for name in sys.modules if name.startswith("lightly.") and name not in before]:
            del sys.modules[name]


def losses(temperature: float) -> dict[str, Callable]:
    """Each loss there is, as a function of two views; ours comes first, the slow ones last."""
    import torch
    from torch.nn.functional import cross_entropy, normalize

    from shared.losses import NTXentLoss

    def plain(view_a, view_b):
        z = normalize(torch.cat((view_a, view_b)), dim=1)
        scores = (z @ z.t() / temperature).fill_diagonal_(float("-inf"))
        return cross_entropy(scores, torch.arange(len(z), device=z.device).roll(len(view_a)))

    found: dict[str, Callable] = {"ours": NTXentLoss(temperature), PLAIN: plain}
    if (peer := lightly_loss()) is not None:
        found["lightly"] = peer(temperature=temperature)
    if importlib.util.find_spec("pytorch_metric_learning"):
        peer = importlib.import_module("pytorch_metric_learning.losses")
        found["pytorch-metric-learning"] = peer.SelfSupervisedLoss(peer.NTXentLoss(temperature=temperature))
    from monai.losses import ContrastiveLoss

    return {**found, "MONAI": ContrastiveLoss(temperature)}


def make_views(batch: int, device: Any) -> tuple:
    """Two noisy views of random samples, as leaves of the graph."""
    import torch

    generator = torch.Generator().manual_seed(0)
    samples, *noise = torch.randn(3, batch, DIM, generator=generator)
    return tuple((samples + part).to(device).requires_grad_() for part in noise)


def step(loss: Callable, views: tuple) -> Callable:
    """Forward and backward pass; returns the loss and both gradients."""

    def call():
        views[0].grad = views[1].grad = None
        value = loss(*views)
        value.backward()
        return value.detach(), views[0].grad, views[1].grad

    return call


def products(batch: int, device: Any) -> Callable:
    """The two matrix products, into memory that is there already."""
    import torch

    z, scores = torch.rand(2 * batch, DIM, device=device), torch.empty(2 * batch, 2 * batch, device=device)
    out = torch.empty_like(z)
    return lambda: torch.mm(torch.mm(z, z.t(), out=scores), z, out=out)


def measure_time(batch: int, temperature: float, device: Any, *, tiny: bool = False) -> tuple[dict, dict]:
    """Seconds of each, and how far loss and gradient of each are from ours."""
    from _timing import interleaved

    views = make_views(batch, device)
    calls = {name: step(loss, views) for name, loss in losses(temperature).items() if batch <= LARGEST.get(name, batch)}
    calls["two products"] = products(batch, device)
    value, *gradients = (part.double() for part in calls["ours"]())
    differs = {}
    for name in [name for name in calls if name not in ("ours", "two products")]:
        other, *others = (part.double() for part in calls[name]())
        scale = max(part.abs().max() for part in gradients)
        differs[name] = {
            "loss": (other - value).abs().item(),
            "gradient": max((a - b).abs().max() / scale for a, b in zip(gradients, others, strict=True)).item(),
        }
    fast = {name: call for name, call in calls.items() if name not in LARGEST}
    interleaved(fast, 1 if tiny else 3)
    seconds = interleaved(fast, 1 if tiny else max(9, 25600 // batch), device)
    slow = {name: call for name, call in calls.items() if name in LARGEST}
    return {**seconds, **interleaved(slow, 1 if tiny else 3, device)}, differs


def added_memory(call: Callable, device: Any) -> float:
    """MiB of tensors that a call adds at its peak: every allocation that PyTorch's profiler sees, or CUDA's count."""
    import torch

    call()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
    changes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]
    return max(accumulate(changes, initial=0)) / 2**20


def measure_memory(batch: int, temperature: float, device: Any) -> dict:
    """MiB that a forward and backward pass hold at their peak, gradients included."""
    views = make_views(batch, device)
    kinds = {name: loss for name, loss in losses(temperature).items() if name not in LARGEST}

    def call(loss):
        step(loss, views)()
        views[0].grad = views[1].grad = None

    return {name: added_memory(lambda loss=loss: call(loss), device) for name, loss in kinds.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports each start and stop otherwise
    import torch
    from _timing import Finding, report, summary

    torch.set_num_threads(1)
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    sizes = [8, 16] if given.tiny else sorted(given.sizes)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, one thread"
    print(f"torch {torch.__version__}; on: {name}")
    missing = [peer for peer in ("lightly", "pytorch-metric-learning") if peer not in losses(0.7)]
    if missing:
        print(f"left out, as not installed: {', '.join(missing)} (pip install --no-deps {' '.join(missing)})")
    findings, times, differences, held = [], [], [], []
    for temperature in given.temperatures:
        for batch in sizes:
            seconds, differs = measure_time(batch, temperature, device, tiny=given.tiny)
            at, ours = {"B": batch, "temperature": temperature}, seconds["ours"]
            times.append({**at, **{kind: f"{1000 * value:.3f}" for kind, value in seconds.items()}})
            differences += [{**at, "of": kind, **by} for kind, by in differs.items()]
            for kind in ("lightly", PLAIN, "two products"):
                if kind in seconds:
                    limit = None if kind != "lightly" else 0.5 if batch <= 512 else 0.4
                    findings.append(ratio(Finding, f"time / {kind}", at, ours / seconds[kind], limit))
            held.append({**at, **(memory := measure_memory(batch, temperature, device))})
            if "lightly" in memory:
                findings.append(ratio(Finding, "memory / lightly", at, memory["ours"] / memory["lightly"], 0.65))
    report("forward and backward (milliseconds)", times)
    report("loss and gradient (its share) differ from ours by", differences)
    report("MiB that forward and backward add", held)
    summary(findings, judged=not given.tiny)
    return 0


def ratio(finding: type, quantity: str, at: dict, value: float, limit: float | None) -> Any:
    """A line of the closing table."""
    text = f"{quantity}, B = {at['B']:,}, temperature {at['temperature']}"
    met = None if limit is None else value <= limit
    return finding(text, "" if limit is None else f"<= {limit}", f"{value:.2f}", met)


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
