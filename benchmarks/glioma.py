"""The glioma bundle's speed and memory as ratios to plainer ways of doing the same, measured in one run.

One thread, CPU time, interleaved, medians; a matrix product (GEMM) beside each part as the yardstick. From anywhere:

    python benchmarks/glioma.py                      # all parts, about ten minutes on the CPU
    python benchmarks/glioma.py --only gat gather    # some of them

The parts: gat (attention on brain networks, against torch_geometric), nnconv (convolution on point clouds, against
torch_geometric: time and memory), gather (voxels of all tracts, against a loop over masks), cnn (a step of the 3D CNN
in float32 and in bfloat16), fps (farthest points, against torch_cluster where it is installed and a plain loop), memory
(what a patient takes), population (the graph of patients, against torch_geometric), explain (a patient's explanation
and its pictures, against plainer ways). Where there is CUDA, all but memory and explain run on it, in wall time between
synchronisations. A table of target and finding closes the run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

PARTS = ("gat", "nnconv", "gather", "cnn", "fps", "memory", "population", "explain")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, metavar="NAME", help="run these parts")
    parser.add_argument("--crop", type=int, default=64, help="side of the CNN's image, 120 in the paper (default: 64)")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that the parts run: no verdicts")
    parser.add_argument("--device", help="of all but memory and explain (default: cuda where there is one, else cpu)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    import _glioma_cases
    import _glioma_explain
    import _glioma_networks
    import _glioma_population
    import torch
    from _timing import summary

    torch.set_num_threads(1)
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, one thread"
    print(f"torch {torch.__version__}; on: {name}; memory and explain on: CPU")
    size = {"tiny": given.tiny, "device": device}
    parts = {
        "gat": lambda: _glioma_networks.gat(**size),
        "nnconv": lambda: _glioma_networks.nnconv(**size),
        "gather": lambda: _glioma_cases.gather(**size),
        "cnn": lambda: _glioma_networks.cnn(**size, size=given.crop),
        "fps": lambda: _glioma_networks.fps(**size),
        "memory": lambda: _glioma_cases.memory(tiny=given.tiny),
        "population": lambda: _glioma_population.population(**size),
        "explain": lambda: _glioma_explain.explain(tiny=given.tiny),
    }
    findings = [finding for part in PARTS if part in given.only for finding in parts[part]()]
    summary(findings, judged=not given.tiny)
    return 0


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
