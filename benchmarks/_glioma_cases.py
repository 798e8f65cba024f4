"""A glioma patient's data: the voxels of all tracts in one gather, and the memory that a patient takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from _timing import Finding, interleaved, product, report

GRID, REGIONS, TRACTS = (91, 109, 91), 90, 569  # MNI152 at 2 mm, AAL90, tracts of 3 streamlines of HCP-842's
PAPER_TRACTS = 2309
KINDS = {
    "fp32": {},
    "bf16 + channels-last": {"bf16": True, "channels_last": True},
    "bf16 + channels-last + checkpointing": {"bf16": True, "channels_last": True, "checkpointing": True},
}


def made_atlas(*, tiny: bool = False, tracts: int = TRACTS) -> Any:
    """Balls as regions and straight tubes between them as tracts, about 200 voxels each."""
    import numpy as np

    from shared.data import TractAtlas

    random = np.random.default_rng(0)
    grid, number, tracts, radius = ((24, 28, 24), 8, 12, 2) if tiny else (GRID, REGIONS, tracts, 4)
    index = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1)
    # the cells of a jittered lattice, so that no ball hides another
    side = int(np.ceil(number ** (1 / 3)))
    cells = np.stack(np.unravel_index(random.permutation(side**3)[:number], (side,) * 3), axis=1)
    centres = ((cells + 0.5) * (np.array(grid) / side)).astype(int)
    regions = np.zeros(grid, dtype=np.int16)
    for region, centre in enumerate(centres, 1):
        regions[((index - centre) ** 2).sum(axis=-1) <= radius**2] = region
    upper = np.stack(np.triu_indices(number, 1), axis=1)
    pairs = upper[np.sort(random.permutation(len(upper))[:tracts])]
    parts = []
    for a, b in pairs:
        line = centres[a] + np.linspace(0, 1, 200)[:, None] * (centres[b] - centres[a])
        tube = np.unique(
            (line[:, None] + random.integers(-1, 2, (200, 3, 3))).round().astype(int).reshape(-1, 3), axis=0
        )
        parts.append(np.unique(np.ravel_multi_index(tube.clip(0, np.array(grid) - 1).T, grid)))
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -np.array(grid) + 1
    return TractAtlas(
        pairs=pairs,
        counts=np.full(len(pairs), 3),
        starts=np.cumsum([0, *map(len, parts)]),
        voxels=np.concatenate(parts),
        probabilities=np.ones(sum(map(len, parts))),
        regions=regions,
        affine=affine,
        names=[f"R{i}" for i in range(number)],
    )


def gather(*, tiny: bool = False, device: Any = "cpu") -> list[Finding]:
    """Voxels of all tracts in four sequences: one gather against a boolean mask per tract and sequence."""
    import numpy as np
    import torch

    from shared.transforms.glioma.brain_network import TractSampler

    atlas = made_atlas(tiny=tiny)
    sampler = TractSampler(atlas, num_voxels=1000)
    image = torch.rand(4, *atlas.shape, generator=torch.Generator().manual_seed(0)).to(device)
    masks, places = [], []
    for edge in range(atlas.num_tracts):
        voxels = atlas.tract(edge)[0]
        mask = torch.zeros(image[0].numel(), dtype=torch.bool)
        mask[torch.from_numpy(voxels)] = True
        masks.append(mask.view(atlas.shape).to(device))
        # where a sampled voxel is among those that the mask gives
        places.append(torch.from_numpy(np.searchsorted(voxels, sampler.index[edge].numpy())).to(device))

    def loop() -> Any:
        rows = [
            torch.cat([sequence[mask][place] for sequence in image]) for mask, place in zip(masks, places, strict=True)
        ]
        return torch.stack(rows)

    same = bool(torch.equal(loop(), sampler(image)))
    calls = {"ours": lambda: sampler(image), "mask loop": loop, "GEMM": product(device)}
    interleaved({"ours": calls["ours"], "GEMM": calls["GEMM"]}, 2, device)
    seconds = interleaved(calls, 1 if tiny else 3, device)
    ratio = seconds["mask loop"] / seconds["ours"]
    row = {"tracts": len(masks), "voxels (median)": float(np.median(np.diff(atlas.starts)))}
    report("Voxels of all tracts, four sequences (seconds)", [{**row, **seconds, "mask loop / ours": ratio}])
    return [
        Finding("tract voxels, mask loop / gather", ">= 50", f"{ratio:.0f}", ratio >= 50),
        Finding("  same values", "yes", "yes" if same else "no", same),
    ]


def memory(*, tiny: bool = False) -> list[Finding]:
    """What one patient takes: kept by the cached dataset, and added by a training step of the three encoders."""
    held = {tracts: held_by_a_patient(tiny=tiny, tracts=tracts) for tracts in (TRACTS, PAPER_TRACTS)}
    report("A patient in the cache (MiB)", [{"tracts": tracts, **parts} for tracts, parts in held.items()])
    # what two patients more add to a step of two: workspaces of the libraries fall out
    steps = {kind: (_peak(kind, 4, tiny) - _peak(kind, 2, tiny)) / 2 for kind in KINDS}
    report("A training step of all three encoders, added to its peak by a patient more (MiB)", [steps])
    findings = []
    for tracts, parts in held.items():
        total = sum(parts.values())
        findings.append(Finding(f"a patient in the cache, {tracts} tracts, MiB", "<= 8", f"{total:.1f}", total <= 8))
    findings += [
        Finding(f"a patient in a training step, {kind}, MiB", "-", f"{mib:.0f}") for kind, mib in steps.items()
    ]
    return findings


def held_by_a_patient(*, tiny: bool = False, tracts: int = TRACTS) -> dict[str, float]:
    """MiB of all memory that the bundle's preparation leaves of a patient, by name; what all patients share is none."""
    import numpy as np
    import torch

    from shared.transforms.glioma.brain_network import SampledRows
    from shared.transforms.glioma.tumour_crop import BoxedImage

    counted: set[int] = set()

    def size(value: Any) -> float:
        if isinstance(value, SampledRows | BoxedImage):
            return size(value.voxels if isinstance(value, SampledRows) else value.values)
        if isinstance(value, dict):
            return sum(map(size, value.values()))
        if isinstance(value, tuple | list):
            return sum(map(size, value))
        if isinstance(value, np.ndarray):
            return (value if value.base is None else value.base).nbytes / 2**20
        if not isinstance(value, torch.Tensor) or value.data_ptr() in counted:
            return 0.0
        counted.add(value.data_ptr())
        return value.untyped_storage().nbytes() / 2**20  # a view keeps the whole

    found = {name: size(value) for name, value in made_patient(tiny=tiny, tracts=tracts).items()}
    kept = {name: mib for name, mib in found.items() if mib >= 0.01}
    return {**kept, "the rest": sum(found.values()) - sum(kept.values())}


def made_patient(*, tiny: bool = False, points: Any = None, tracts: int = TRACTS) -> dict[str, Any]:
    """Noise with an ellipsoid as tumour, prepared as the bundle does it."""
    import numpy as np
    import torch

    from shared.transforms import PrepareGliomad

    atlas = made_atlas(tiny=tiny, tracts=tracts)
    index = np.stack(np.meshgrid(*map(np.arange, atlas.shape), indexing="ij"), axis=-1)
    radii = (4.0, 5, 4) if tiny else (14.0, 11, 9)
    mask = (((index - np.array(atlas.shape) // 2) / radii) ** 2).sum(axis=-1) <= 1
    image = torch.rand(4, *atlas.shape, generator=torch.Generator().manual_seed(0))
    data = {"patient": "P", "image": image, "mask": torch.from_numpy(mask)[None], "affine": torch.tensor(atlas.affine)}
    smaller = {"size": 16, "num_points": 64, "radii": (6.0, 9.0), "num_voxels": 20} if tiny else {}
    return PrepareGliomad(atlas, **{**smaller, **({"radii": points} if points else {})})(data)


def _peak(kind: str, batch: int, tiny: bool) -> float:
    command = [sys.executable, Path(__file__), kind, str(batch), str(int(tiny))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_step(kind: str, batch: int, tiny: bool) -> float:
    """MiB that a training step adds to this process's peak, beyond weights and their gradients."""
    import torch
    from _timing import resident_peak

    from shared.data.brain.point_graph import collate_point_graphs
    from shared.networks import GliomaInputs, GliomaNetwork

    torch.set_num_threads(1)
    torch.manual_seed(0)
    atlas, patient = made_atlas(tiny=tiny), made_patient(tiny=tiny)
    graph = patient["graph"]
    settings = {"radii": (6.0, 9.0), "channels": (8, 8)} if tiny else {}
    image = {"channels": (4, 8), "global_pool": True} if tiny else {"global_pool": True}
    network = GliomaNetwork(
        atlas.edge_index.tolist(),
        size=patient["image"].shape[-1],
        objective="multitask",
        image={**image, **KINDS[kind]},
        points=settings,
        brain={"num_regions": atlas.num_regions, "residual": True},
    )
    inputs = {name: torch.stack([torch.as_tensor(patient[name])] * batch) for name in ("image", "points", "incidence")}
    nodes = torch.randn(batch, atlas.num_regions, 16)
    edges = torch.randn(batch, atlas.num_tracts, 16)
    inputs |= {"graph": collate_point_graphs([graph] * batch), "nodes": nodes, "edges": edges}

    def step(inputs: dict[str, Any]) -> None:
        network(GliomaInputs(**inputs)).logits.square().mean().backward()

    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = resident_peak()
    step(inputs)
    return resident_peak() - before


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    print(measure_step(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1"))
