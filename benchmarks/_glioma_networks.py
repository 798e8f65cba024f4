"""Networks and point clouds of the glioma bundle beside torch-geometric, torch-cluster and plain float32."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _timing import Finding, interleaved, product, report

REGIONS, FEATURES = 90, 16
BRAIN_WIDTHS, POINT_WIDTHS = (64, 128, 128, 256, 256, 256), (32, 64, 64, 128, 128)


def gat(*, tiny: bool = False, device: Any = "cpu") -> list[Finding]:
    """The six attention layers of the brain encoder on a batch of 20, forward and backward, against GATConv."""
    import torch
    from torch_geometric.nn.conv import GATConv

    from shared.networks.glioma.brain_encoder import TractGATConv

    batch, tracts = (2, 60) if tiny else (20, 2309)
    widths = (FEATURES, *(BRAIN_WIDTHS[:2] if tiny else BRAIN_WIDTHS))
    torch.manual_seed(0)
    upper = torch.triu_indices(REGIONS, REGIONS, 1)
    pairs = upper[:, torch.randperm(upper.shape[1])[:tracts]].to(device)
    nodes = torch.randn(batch, REGIONS, FEATURES, device=device)
    edges = torch.randn(batch, tracts, FEATURES, device=device)
    both = torch.cat([pairs, pairs.flip(0)], dim=1)
    joined = torch.cat([both + number * REGIONS for number in range(batch)], dim=1)
    doubled = torch.cat([edges, edges], dim=1).flatten(0, 1)
    theirs = torch.nn.ModuleList(GATConv(a, b, edge_dim=FEATURES) for a, b in itertools.pairwise(widths))
    ours = torch.nn.ModuleList(TractGATConv(a, b, edge_dim=FEATURES) for a, b in itertools.pairwise(widths))
    ours.load_state_dict(theirs.state_dict())
    ours, theirs = ours.to(device), theirs.to(device)

    def run(layers: Any, x: Any, *arguments: Any) -> Any:
        for layer in layers:
            x = torch.nn.functional.elu(layer(x, *arguments))
        return x

    def dense() -> Any:
        return run(ours, nodes, edges, pairs)

    def sparse() -> Any:
        return run(theirs, nodes.flatten(0, 1), joined, doubled)

    differ = float((dense().flatten(0, 1) - sparse()).detach().abs().max())
    calls = {
        "ours": dense,
        "GATConv": sparse,
        "ours, backward": lambda: dense().sum().backward(),
        "GATConv, backward": lambda: sparse().sum().backward(),
        "GEMM": product(device),
    }
    interleaved(calls, 1, device)
    seconds = interleaved(calls, 1 if tiny else 3, device)
    gains = {kind: seconds[f"GATConv{kind}"] / seconds[f"ours{kind}"] for kind in ("", ", backward")}
    report(
        f"Brain graph attention, {batch} patients, {REGIONS} regions, {tracts} tracts (seconds)",
        [{**seconds, "GATConv / ours": gains[""], "with backward": gains[", backward"], "differ by": differ}],
    )
    return [
        Finding("brain GAT, GATConv / ours", ">= 20", f"{gains['']:.1f}", gains[""] >= 20),
        Finding("  forward and backward", ">= 20", f"{gains[', backward']:.1f}", gains[", backward"] >= 20),
        Finding("  differ by", "<= 1e-5", f"{differ:.1e}", differ <= 1e-5),
    ]


def nnconv(*, tiny: bool = False, device: Any = "cpu") -> list[Finding]:
    """Each convolution of the geometric encoder, forward and backward, against NNConv: time, and the peak of memory."""
    rows = [_nnconv_row(level, 1 if tiny else 3, tiny, device) for level in range(2 if tiny else len(POINT_WIDTHS))]
    report("Convolutions on the point cloud, forward and backward (seconds)", rows)
    # of a process of its own, at the level that holds most
    level = 0 if tiny else 3
    memory = {kind: peak(kind, level, tiny) for kind in ("ours", "NNConv")}
    report("  MiB added to the peak", [{"level": level, **memory}])
    times = [row["ours / NNConv"] for row in rows]
    total = sum(row["ours"] for row in rows) / sum(row["NNConv"] for row in rows)
    ratio = memory["ours"] / max(memory["NNConv"], 1e-3)
    differ = max(row["differ by"] for row in rows)
    return [
        Finding("point convolutions, ours / NNConv", "<= 1", f"{total:.3f}", total <= 1),
        Finding("  slowest level", "<= 1", f"{max(times):.3f}", max(times) <= 1),
        Finding(f"  peak memory at level {level}", "<= 0.3", f"{ratio:.3f}", ratio <= 0.3),
        Finding("  differ by (relative)", "<= 1e-5", f"{differ:.1e}", differ <= 1e-5),
    ]


def _nnconv_calls(level: int, tiny: bool, device: Any) -> tuple[dict[str, Callable[[], Any]], int]:
    import torch
    from torch_geometric.nn.conv import NNConv

    from shared.networks.glioma.geometric_encoder import DistanceNNConv
    from shared.transforms import build_point_graph

    torch.manual_seed(0)
    batch, count = (1, 64) if tiny else (4, 1024 >> level)
    points = torch.nn.functional.normalize(torch.randn(batch, count, 3), dim=2) * 25
    graph = build_point_graph(points, radii=(8 * 2 ** (level / 2),))
    neighbours, distances = graph.neighbours[0], graph.distances[0] / 25
    patient, target, slot = torch.nonzero(neighbours >= 0, as_tuple=True)
    source = neighbours[patient, target, slot] + patient * count
    edge_index = torch.stack([source, target + patient * count]).to(device)
    lengths = distances[patient, target, slot, None].to(device)
    width, out = (3, *POINT_WIDTHS)[level], POINT_WIDTHS[level]
    ours = DistanceNNConv(width, out).to(device)
    theirs = NNConv(width, out, torch.nn.Linear(1, width * out), aggr="mean").to(device)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(batch, count, width, device=device, requires_grad=True)
    neighbours, distances = neighbours.to(device), distances.to(device)
    calls = {
        "ours": lambda: ours(x, neighbours, distances),
        "NNConv": lambda: theirs(x.flatten(0, 1), edge_index, lengths).view(batch, count, out),
    }
    return calls, len(lengths)


def _nnconv_row(level: int, repeats: int, tiny: bool, device: Any) -> dict[str, Any]:
    calls, edges = _nnconv_calls(level, tiny, device)
    values = {name: call().detach() for name, call in calls.items()}
    differ = float((values["ours"] - values["NNConv"]).abs().max() / values["NNConv"].abs().max())
    steps = {name: (lambda call=call: call().square().sum().backward()) for name, call in calls.items()}
    interleaved(steps, 1, device)
    seconds = interleaved({**steps, "GEMM": product(device)}, repeats, device)
    ratio = seconds["ours"] / seconds["NNConv"]
    return {"level": level, "edges": edges, **seconds, "ours / NNConv": ratio, "differ by": differ}


def peak(kind: str, level: int, tiny: bool) -> float:
    """MiB that a forward and backward pass adds to the peak of a fresh process (Linux)."""
    command = [sys.executable, Path(__file__), kind, str(level), str(int(tiny))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(kind: str, level: int, tiny: bool) -> float:
    """The same in this process."""
    import torch
    from _timing import resident_peak

    torch.set_num_threads(1)
    small, _ = _nnconv_calls(0, True, "cpu")
    small[kind]().sum().backward()  # the libraries' own workspaces
    calls, _ = _nnconv_calls(level, tiny, "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = resident_peak()
    calls[kind]().square().sum().backward()
    return resident_peak() - before


def cnn(*, tiny: bool = False, device: Any = "cpu", size: int = 64, batch: int = 2) -> list[Finding]:
    """A training step of the image encoder: float32 against bfloat16 and channels-last, and checkpointing."""
    import torch

    from shared.engines import bf16_is_fast
    from shared.networks import ImageEncoder

    size, batch = (32, 1) if tiny else (size, batch)
    kinds = {
        "fp32": {},
        "bf16 + channels-last": {"bf16": True, "channels_last": True},
        "checkpointing": {"checkpointing": True},
    }
    image = torch.rand(batch, 4, size, size, size, device=device)

    def step(net: Any, optimizer: Any) -> None:
        optimizer.zero_grad()
        net(image).square().mean().backward()
        optimizer.step()

    calls = {}
    for name, settings in kinds.items():
        torch.manual_seed(0)
        net = ImageEncoder(4, size, **settings).to(device).train()
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        calls[name] = lambda net=net, optimizer=optimizer: step(net, optimizer)
    calls["GEMM"] = product(device)
    interleaved(calls, 1, device)
    seconds = interleaved(calls, 1 if tiny else 2, device)
    ratio, again = (seconds[name] / seconds["fp32"] for name in ("bf16 + channels-last", "checkpointing"))
    native = bf16_is_fast(device)
    row = {"size": size, "batch": batch, **seconds, "bf16 / fp32": ratio, "checkpointing / fp32": again}
    report(f"Image encoder, a training step (seconds; bfloat16 is{'' if native else ' not'} in this hardware)", [row])
    judged = ratio <= 0.6 if native else None
    return [Finding(f"3D CNN step at {size}^3, bf16 + channels-last / fp32", "<= 0.6", f"{ratio:.2f}", judged)]


def fps(*, tiny: bool = False, device: Any = "cpu") -> list[Finding]:
    """1,024 of 6,000 points of four patients, against a plain loop, and torch-cluster where it is installed."""
    import torch

    from shared.transforms import build_point_graph, farthest_point_sampling

    batch, number, count = (2, 200, 50) if tiny else (4, 6000, 1024)
    points = torch.randn(batch, number, 3, generator=torch.Generator().manual_seed(0)).to(device) * 20

    def loop() -> Any:
        found = []
        for cloud in points:
            chosen, nearest = [0], torch.full((number,), float("inf"), device=device)
            for _ in range(count - 1):
                nearest = torch.minimum(nearest, (cloud - cloud[chosen[-1]]).square().sum(dim=1))
                chosen.append(int(nearest.argmax()))
            found.append(torch.tensor(chosen))
        return torch.stack(found).to(device)

    calls: dict[str, Callable[[], Any]] = {"ours": lambda: farthest_point_sampling(points, count, start=0)}
    calls["plain loop"] = loop
    if importlib.util.find_spec("torch_cluster"):
        cluster = importlib.import_module("torch_cluster")
        owner = torch.arange(batch, device=device).repeat_interleave(number)
        flat, ratio = points.flatten(0, 1), count / number
        calls["torch-cluster"] = lambda: cluster.fps(flat, owner, ratio=ratio, random_start=False)
    cloud = points[:, :count]
    calls["graphs of all levels"] = lambda: build_point_graph(cloud, **({"radii": (8, 11)} if tiny else {}))
    calls["GEMM"] = product(device)
    interleaved(calls, 1, device)
    seconds = interleaved(calls, 1 if tiny else 3, device)
    plain, ours = seconds["ours"] / seconds["plain loop"], calls["ours"]()
    row: dict[str, Any] = {"patients": batch, "points": number, "taken": count, **seconds, "ours / plain loop": plain}
    row["same points as the loop's"] = float((ours == loop()).float().mean())
    findings = [Finding("FPS / plain loop", "-", f"{plain:.2f}")]
    if "torch-cluster" in calls:
        first = torch.arange(batch, device=device)[:, None] * number
        row["same points as torch-cluster's"] = float(
            ((ours + first).flatten() == calls["torch-cluster"]()).float().mean()
        )
        row["ours / torch-cluster"] = ratio = seconds["ours"] / seconds["torch-cluster"]
        findings.append(Finding("FPS / torch-cluster", "<= 0.25", f"{ratio:.2f}", ratio <= 0.25))
    else:
        findings.append(Finding("FPS / torch-cluster", "<= 0.25", "not installed"))
    report("Farthest point sampling (seconds)", [row])
    return findings


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    print(measure_peak(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1"))
