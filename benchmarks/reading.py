"""CPU seconds that a bundle's training spends on reading: from the files, and from what is kept on disk.

Each row is a process of its own with one thread: no cache, the first start with an empty cache, the second start.
With ``--runs`` every row reads so many folds, one after another, as a cross-validation does. Imports and the network
are not counted. From anywhere:

    python benchmarks/reading.py ircl_mvi data/phantom
    python benchmarks/reading.py ircl_mvi data/tcga_lgg --runs 25 --set num_modalities=3
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

TARGET = 0.2  # of the first start's reading
READ = {
    "ircl_mvi": ["datalist", "train#dataset", "validate#dataset"],
    "glioma_idh": ["datalist", "nodes#dataset", "edges#dataset", "cases", "validate#dataset"],
    "sscl_crc": ["datalist", "pretrain#dataset", "train#dataset", "validate#dataset"],
}
IMPORTED = """nibabel scipy.ndimage scipy.spatial scipy.sparse PIL.Image PIL.ImageOps tqdm monai.data monai.transforms
shared.data.cases shared.data.mixup shared.data.patches.datalist shared.data.patches.cache shared.data.patches.looks
shared.data.brain.cases shared.data.brain.attribute_rows shared.transforms.load shared.transforms.roi_slices
shared.transforms.glioma.cases"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", choices=sorted(READ))
    parser.add_argument("data", type=Path, help="folder with datalist.json")
    parser.add_argument("--runs", type=int, default=1, help="trainings that read, each of another fold of five")
    parser.add_argument("--fold", type=int, default=0, help="of the first of them; -1: all of them without a fold")
    parser.add_argument("--config", nargs="*", default=["cpu"], help="overlays of train.json")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="override keys of the configs")
    parser.add_argument("--repeats", type=int, default=3, help="of every row; the least is shown")
    parser.add_argument("--only", action="store_true", help="one row as configured, in this process")
    return parser.parse_args(arguments)


def read(args: argparse.Namespace) -> dict[str, float]:
    """CPU seconds of all runs: of the datalist's check, and of the datasets."""
    import torch
    from monai.bundle import ConfigWorkflow

    torch.set_num_threads(1)
    for name in IMPORTED.split():
        importlib.import_module(name)
    logging.disable(logging.WARNING)
    bundle, seconds = ROOT / "bundles" / args.bundle, {"check": 0.0, "datasets": 0.0}
    given = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in args.set)}
    for run in range(args.runs):
        with tempfile.TemporaryDirectory() as folder:
            configs = [str(bundle / "configs" / f"{name}.json") for name in ("train", *args.config)]
            places = {"bundle_root": str(bundle), "ckpt_dir": folder + "/models", "output_dir": folder + "/eval"}
            fold = args.fold if args.fold < 0 else (args.fold + run) % 5
            places |= {"dataset_dir": str(args.data.resolve()), "fold": fold, "device": "$torch.device('cpu')"}
            flow = ConfigWorkflow(configs, workflow_type="train", logging_file=False, **places, **given)
            flow.initialize()
            flow.parser.get_parsed_content("network")
            for name in READ[args.bundle]:
                start = time.process_time()
                flow.parser.get_parsed_content(name)
                seconds["check" if name == "datalist" else "datasets"] += time.process_time() - start
    return seconds


def started(args: argparse.Namespace, cache: str | None) -> dict[str, float]:
    """The reading of a process of its own."""
    setting = "cache_dir=" + json.dumps(cache)
    command = [sys.executable, __file__, args.bundle, str(args.data), "--only", "--runs", str(args.runs)]
    command += ["--fold", str(args.fold), "--config", *args.config, "--set", *args.set, setting]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    args = parse(arguments)
    if args.only:
        print(json.dumps(read(args)))
        return
    from _timing import Finding, report, summary

    rows = []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            rows.append([started(args, place) for place in (None, folder + "/cache", folder + "/cache")])
            files = [path.stat().st_size for path in Path(folder).rglob("*.npz")]
    best = [min(row, key=lambda seconds: sum(seconds.values())) for row in zip(*rows, strict=True)]
    names = ("no cache", "first start", "second start")
    report(
        f"{args.bundle}, {args.data.name}, {args.runs} trainings: CPU seconds of reading, one thread",
        [{"row": name, **seconds, "both": sum(seconds.values())} for name, seconds in zip(names, best, strict=True)],
    )
    none, first, second = (sum(seconds.values()) for seconds in best)
    findings = [Finding("second start / first", f"<= {TARGET}", f"{second / first:.2f}", second <= TARGET * first)]
    datasets = best[2]["datasets"] / best[1]["datasets"]
    findings.append(Finding("of it the datasets alone", "", f"{datasets:.2f}"))
    findings.append(Finding("first start / no cache", "", f"{first / none:.2f}"))
    findings.append(Finding("kept on disk, MB", "", f"{sum(files) / 1e6:.0f} in {len(files)} entries"))
    summary(findings)


if __name__ == "__main__":
    main()
