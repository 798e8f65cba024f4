"""Tiles a second from a whole slide beside the reader's own limit, and memory on a slide of 100,000 x 80,000 pixels.

The slide is generated: a tiled TIFF with three levels whose tiles of glass are left out, so that it is written in
seconds. First the same places are read by OpenSlide alone, as tiles, and as tiles of half the resolution (CPU seconds,
one thread, taking turns); then a process of its own predicts the slide with a network that costs nothing, and its peak
of resident memory (VmHWM, libraries included) is the kernel's. From anywhere, with requirements-slides.txt installed:

    python benchmarks/slides.py
    python benchmarks/slides.py --tissue 40960 --workers 2      # side of the tissue, a multiple of 4,096 pixels

A table of target and finding closes the run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

LIMIT_MIB, READING = 2048, 0.8
LEVELS, BLOCK, MPP = (1, 4, 16), 256, 0.25
UNIT = LEVELS[-1] * BLOCK  # the tissue begins at it and is whole blocks of every level


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=100_000, help="of the slide")
    parser.add_argument("--height", type=int, default=80_000, help="of the slide")
    parser.add_argument("--tissue", type=int, default=3 * UNIT, help="side of its tissue in pixels of level 0")
    parser.add_argument("--workers", type=int, default=0, help="processes that read in the whole prediction")
    parser.add_argument("--tiles", type=int, default=200, help="tiles of each row of the first table")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that the script runs: no verdicts")
    parser.add_argument("--predict", nargs=2, metavar=("SLIDE", "OUTPUT"), help="the prediction, in this process")
    return parser.parse_args(arguments)


def write_slide(path: Path, width: int, height: int, tissue: int) -> None:
    """A slide with a square of noise and nothing elsewhere."""
    import zlib

    import numpy as np
    import tifffile

    noise = np.random.default_rng(0).normal((170, 105, 165), 15, (BLOCK, BLOCK, 3)).clip(0, 255).astype(np.uint8)
    block = zlib.compress(noise.tobytes(), 1)

    def blocks(level: int) -> Iterator[bytes]:
        for row in range(-(-(height // level) // BLOCK)):
            for column in range(-(-(width // level) // BLOCK)):
                inside = all(UNIT <= at * level * BLOCK < UNIT + tissue for at in (row, column))
                yield block if inside else b""

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in LEVELS:
            size = 1e4 / MPP / level
            file.write(
                blocks(level),
                shape=(height // level, width // level, 3),
                dtype=np.uint8,
                tile=(BLOCK, BLOCK),
                photometric="rgb",
                compression="zlib",
                subfiletype=int(level > 1),
                resolution=(size, size),
                resolutionunit="CENTIMETER",
            )


def rates(path: Path, tissue: int, count: int, repeats: int) -> dict[str, float]:
    """Tiles of 224 pixels a second, by OpenSlide alone and as this repository's tiles."""
    import numpy as np
    from _timing import interleaved

    from shared.data.slides.grid import tile_grid
    from shared.data.slides.reading import open_slide, openslide_module
    from shared.data.slides.tiles import SlideTiles

    with open_slide(path) as reader:
        grids = {mpp: tile_grid(reader, size=224, mpp=mpp, slide_mpp=MPP) for mpp in (MPP, 2 * MPP)}
    chosen = {}
    for mpp, grid in grids.items():
        corners = {number: grid.corner(number) for number in range(len(grid))}
        inside = [n for n, at in corners.items() if min(at) >= UNIT and max(at) + grid.side <= UNIT + tissue]
        chosen[mpp] = inside[:count]
    slide = openslide_module().OpenSlide(str(path))
    # OpenSlide keeps decoded blocks: none here, so that no row profits from the one before it
    slide.set_cache(openslide_module().OpenSlideCache(0))
    tiles = {mpp: SlideTiles(path, grid, chosen[mpp]) for mpp, grid in grids.items()}
    for each in tiles.values():
        each.reader.slide.set_cache(openslide_module().OpenSlideCache(0))

    def alone() -> None:
        for number in chosen[MPP]:
            np.asarray(slide.read_region(grids[MPP].corner(number), 0, (224, 224)))

    def alone_half() -> None:
        for number in chosen[2 * MPP]:
            np.asarray(slide.read_region(grids[2 * MPP].corner(number), 0, (448, 448)))

    def batch(mpp: float) -> None:
        for row in range(len(tiles[mpp])):
            tiles[mpp][row]

    calls = {"OpenSlide alone, level 0": alone, "tiles of level 0": lambda: batch(MPP)}
    calls |= {"OpenSlide alone, twice as wide": alone_half, "tiles of half the resolution": lambda: batch(2 * MPP)}
    counts = [len(chosen[MPP])] * 2 + [len(chosen[2 * MPP])] * 2
    seconds = interleaved(calls, repeats)
    return {name: n / value for (name, value), n in zip(seconds.items(), counts, strict=True)}


def predict(slide: str, output: str, workers: int) -> dict[str, float]:
    """The whole stage with a network of one number per colour; tiles, seconds by the clock, memory."""
    import torch
    from _timing import resident_peak
    from torch import nn

    from shared.bundle.record import weights_digest
    from shared.bundle.settings import save_settings
    from shared.engines import DihedralInferer, PreparePatches, SlideStage

    torch.set_num_threads(1)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    folder = Path(output) / "models"
    folder.mkdir()
    torch.save(network.state_dict(), folder / "model.pt")
    save_settings(folder, network={}, mpp=2 * MPP, patch_size=224, weights=weights_digest(network.state_dict()))
    libraries, start = resident_peak(), time.perf_counter()
    given = {"prepare_batch": PreparePatches(), "inferer": DihedralInferer(1), "num_workers": workers}
    SlideStage(slide, output, network, folder, **given).run()
    seconds = time.perf_counter() - start
    found = json.loads(next(Path(output).glob("slides/*/slide.json")).read_text())
    memory = {"libraries MiB": libraries, "peak MiB": resident_peak()}
    return {"tiles": found["tiles"], "tissue mm2": found["tissue_mm2"], "seconds": seconds, **memory}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = parse(arguments)
    if args.predict:
        print(json.dumps(predict(*args.predict, args.workers)))
        return 0
    from _timing import Finding, report, summary

    if args.tiny:
        args.width, args.height, args.tissue, args.tiles = 3 * UNIT, 3 * UNIT, UNIT, 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        write_slide(path, args.width, args.height, args.tissue)
        found = rates(path, args.tissue, args.tiles, 1 if args.tiny else 5)
        report(
            f"{args.width} x {args.height} pixels, {path.stat().st_size / 2**20:.0f} MiB: tiles of 224 pixels",
            [{"row": name, "tiles/s": value} for name, value in found.items()],
        )
        command = [sys.executable, __file__, "--workers", str(args.workers), "--predict", str(path), folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        whole = json.loads(done.stdout.splitlines()[-1])
    report("the whole prediction, in a process of its own", [whole])
    full, half = (
        found["tiles of level 0"] / found["OpenSlide alone, level 0"],
        found["tiles of half the resolution"] / found["OpenSlide alone, twice as wide"],
    )
    peak = whole["peak MiB"]
    findings = [
        Finding("tiles / OpenSlide alone", f">= {READING}", f"{full:.2f}", full >= READING),
        Finding("tiles of half the resolution / OpenSlide alone", "", f"{half:.2f}"),
        Finding("peak of resident memory, MiB", f"<= {LIMIT_MIB}", f"{peak:.0f}", peak <= LIMIT_MIB),
    ]
    summary(findings, judged=not args.tiny)
    return 0


if __name__ == "__main__":
    sys.exit(main())
