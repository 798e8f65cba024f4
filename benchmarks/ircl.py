"""IRCL's speed and memory as ratios to plainer ways of doing the same, measured in one run.

One thread, CPU time, interleaved, medians; a matrix product (GEMM) beside each part as the yardstick. From anywhere:

    python benchmarks/ircl.py                                   # all parts, about five minutes on the CPU
    python benchmarks/ircl.py --only bank --sizes 3000 12000    # one part, without the longest size
    python benchmarks/ircl.py --only stage1 --paper-size        # the paper's sizes (minutes on a CPU)

The parts: bank (Algorithm 1), eq5 (contrastive loss), stage2 (an epoch on cached features), stage1 (a training step in
float32 and in bfloat16), masks (Eq. 10), contributions (of the additive predictor), shapley (against shap's Exact).
Where there is CUDA, stage2, stage1, masks and contributions run on it, in wall time between synchronisations. A table
of target and finding closes the run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

PARTS = ("bank", "eq5", "stage2", "stage1", "masks", "contributions", "shapley")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, metavar="NAME", help="run these parts")
    parser.add_argument("--sizes", type=int, nargs="+", help="N of the bank update (default: 3000 12000 33000)")
    parser.add_argument("--paper-size", action="store_true", help="the paper's sizes instead of the CPU overlay's")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that the parts run: no verdicts")
    parser.add_argument("--device", help="of stage2, stage1 and masks (default: cuda where there is one, else cpu)")
    parser.add_argument("--measure-memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--groups", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    import _ircl_bank
    import torch

    torch.set_num_threads(1)
    if given.measure_memory:
        print(_ircl_bank.measure_memory(given.measure_memory, bool(given.groups)))
        return 0
    import _ircl_explain
    import _ircl_training
    from _timing import summary

    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, one thread"
    print(f"torch {torch.__version__}; stage2, stage1 and masks on: {name}")
    sizes = sorted(given.sizes or ([256, 512] if given.tiny else [3000, 12000, 33000]))
    size = {"tiny": given.tiny, "paper_size": given.paper_size}
    parts = {
        "bank": lambda: _ircl_bank.bank(sizes, tiny=given.tiny),
        "eq5": lambda: _ircl_bank.eq5(tiny=given.tiny),
        "stage2": lambda: _ircl_training.stage_two(device=device, **size),
        "stage1": lambda: _ircl_training.stage_one(device=device, **size),
        "masks": lambda: _ircl_explain.masks(device=device, **size),
        "contributions": lambda: _ircl_explain.contributions(device=device, **size),
        "shapley": lambda: _ircl_explain.shapley(**size),
    }
    findings = [finding for part in PARTS if part in given.only for finding in parts[part]()]
    summary(findings, judged=not given.tiny)
    return 0


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
