"""Time and memory of starting with many patches: the check decodes them into one file, every list reads from it.

Patches are generated (seeded smooth colours, PNG) and listed; each row is a process of its own with one thread of
torch's, which checks the datalist, makes the lists of pretraining and training, and draws one epoch of batches. Its
memory is limited to 2 GiB (RLIMIT_DATA: all that it may allocate; the system's cache of files is not part of it) and
its peak of resident memory is the kernel's (VmHWM), libraries included. From anywhere:

    python benchmarks/patch_cache.py                        # 5,000, 10,000 and 20,000 patches of 224 px; 9 GB of disk
    python benchmarks/patch_cache.py --counts 2000 4000

Then the same batches from the file and from memory, alone and with the augmentation of 64-pixel views. A table of
target and finding closes the run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

LIMIT_GIB, AGAIN, LINEAR, READING = 2.0, 0.2, 1.15, 0.95
BATCH = 256


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[5000, 10000, 20000], help="patches of each row")
    parser.add_argument("--size", type=int, default=224, help="side of the patches")
    parser.add_argument("--folder", help="where patches and cache are written meanwhile (default: TMPDIR)")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that the script runs: no verdicts")
    parser.add_argument("--start", nargs=3, metavar=("FOLDER", "LIST", "CACHE"), help="one start, in this process")
    parser.add_argument("--batches", nargs=3, metavar=("FOLDER", "LIST", "CACHE"), help="the batches, in this process")
    return parser.parse_args(arguments)


def write_patches(folder: Path, counts: Sequence[int], size: int) -> None:
    """PNG files, and a datalist of the first so many of them for each count."""
    import numpy as np
    from PIL import Image

    def write(number: int) -> None:
        coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.png", compress_level=1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(max(counts))))
    entries = [{"image": f"{k}.png", "patient": f"P{k // 4}", "label": k // 4 % 2} for k in range(max(counts))]
    for count in counts:
        (folder / f"{count}.json").write_text(json.dumps({"training": entries[:count]}))


def started(folder: str, file: str, place: str) -> dict[str, float]:
    """CPU seconds of check, lists and an epoch of batches, and the peak of resident memory."""
    import torch
    from _timing import resident_peak

    from shared.data import DiskCache, PatchCache, PatchDatalist, PatchRows, ShuffledLoader

    resource.setrlimit(resource.RLIMIT_DATA, (int(LIMIT_GIB * 2**30),) * 2)
    torch.set_num_threads(1)
    libraries, start, clock = resident_peak(), time.perf_counter(), [time.process_time()]
    cache = DiskCache(place, limit_gb=100)
    found = PatchDatalist(folder, file, fold=-1, disk_cache=cache)
    clock.append(time.process_time())
    lists = [PatchCache(part, progress=False, disk_cache=cache) for part in (found.pretraining, found.training)]
    clock.append(time.process_time())
    seen = sum(len(batch["image"]) for batch in ShuffledLoader(PatchRows(lists[0]), BATCH))
    clock.append(time.process_time())
    check, made, epoch = (after - before for before, after in pairwise(clock))
    memory = {"libraries MiB": libraries, "peak MiB": resident_peak()}
    found = {"check s": check, "lists s": made, "epoch s": epoch, "start s": check + made}
    return found | {"all by the clock s": time.perf_counter() - start, **memory, "seen": seen}


def batches(folder: str, file: str, place: str) -> dict[str, float]:
    """Patches a second of batches from the file over those from memory, read alone and with the views made of them."""
    import torch
    from _timing import interleaved

    from shared.data import DiskCache, PatchCache, PatchDatalist, PatchRows
    from shared.transforms import ViewAugmentation

    torch.set_num_threads(1)
    cache = DiskCache(place, limit_gb=100)
    on_disk = PatchCache(PatchDatalist(folder, file, fold=-1, disk_cache=cache).training, disk_cache=cache)
    in_memory = PatchCache(on_disk.entries, progress=False)
    rows = torch.randperm(len(on_disk), generator=torch.Generator().manual_seed(0))[:BATCH].tolist()
    sources = {"file": PatchRows(on_disk), "memory": PatchRows(in_memory)}
    assert torch.equal(*(source.__getitems__(rows)["image"] for source in sources.values()))
    views = ViewAugmentation(min(64, on_disk.images.shape[-1]))
    calls = {f"read {name}": (lambda s=source: s.__getitems__(rows)) for name, source in sources.items()}
    calls |= {
        f"views {name}": (lambda s=source: views(s.__getitems__(rows)["image"])) for name, source in sources.items()
    }
    seconds = interleaved(calls, 7)
    return {name: len(rows) / value for name, value in seconds.items()}


def process(option: str, *values: str | Path) -> dict[str, float]:
    """What one of this script's processes found."""
    command = [sys.executable, __file__, option, *map(str, values)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    for call, values in ((started, given.start), (batches, given.batches)):
        if values:
            print(json.dumps(call(*values)))
            return 0
    from _timing import Finding, report, summary

    counts, size = ([20, 40], 32) if given.tiny else (sorted(given.counts), given.size)
    rows = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        data = Path(folder)
        write_patches(data, counts, size)
        for count in counts:
            for start in ("first", "second"):
                found = process("--start", data, f"{count}.json", data / f"cache{count}")
                rows.append({"patches": count, "start": start, **found})
        kept = [path.stat().st_size / 1e9 for path in (data / f"cache{counts[-1]}").rglob("*.pixels")]
        speed = process("--batches", data, f"{counts[0]}.json", data / f"cache{counts[0]}")
    report(f"generated patches of {size} px; CPU seconds of all threads", rows)
    report("patches a second, one thread", [speed])
    first, second = rows[-2], rows[-1]
    peak = max(row["peak MiB"] for row in rows) / 1024
    growth = first["start s"] / rows[0]["start s"] / (counts[-1] / counts[0])
    share = speed["views file"] / speed["views memory"]
    findings = [
        Finding("largest peak of resident memory, GiB", f"< {LIMIT_GIB:g}", f"{peak:.2f}", peak < LIMIT_GIB),
        Finding(f"pixels on disk, {counts[-1]} patches, GB", "", f"{sum(kept):.2f}"),
        Finding(
            f"first start of {counts[-1]} / of {counts[0]}, per patch",
            f"<= {LINEAR}",
            f"{growth:.2f}",
            growth <= LINEAR,
        ),
        Finding(
            "second start / first",
            f"<= {AGAIN}",
            f"{(again := second['start s'] / first['start s']):.2f}",
            again <= AGAIN,
        ),
        Finding("batches from the file / from memory", "", f"{speed['read file'] / speed['read memory']:.2f}"),
        Finding("the same with views of 64 px", f">= {READING}", f"{share:.2f}", share >= READING),
    ]
    summary(findings, judged=not given.tiny)
    return 0


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
