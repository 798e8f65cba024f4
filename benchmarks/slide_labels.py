"""Do slides' labels alone teach where the telling glands are? Phantom slides, a frozen encoder, attention over tiles.

Slides are put together from the demo's phantom patches, 16 each, turned at random and of mixed stains: those of class 1
hold a few with serrated crypts among straight ones, the others none. Slides kept apart are of the patches in the
testing section. The bundle is trained on the labels of the slides, evaluated on those kept apart and asked where; the
score of a tile is compared with what was painted there. From anywhere:

    python scripts/make_phantom_patches.py --output data/phantom_patches
    python benchmarks/slide_labels.py --patches data/phantom_patches --encoder models/imagenet_resnet50.pt

A table of scores closes the run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

SIZE, MPP, SIDE = 128, 2.0, 4  # pixels of a patch, micrometres per pixel, patches along a side of the tissue
TISSUE = {"overview_mpp": 4.0, "tissue#pen": 80}  # phantoms' stains vary more than a scanner's


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=Path, required=True, help="what make_phantom_patches.py wrote")
    parser.add_argument("--encoder", type=Path, required=True, help="train#pretrained; ImageNet weights of a ResNet50")
    parser.add_argument("--slides", type=int, default=60, help="half of them of class 1, a third kept apart")
    parser.add_argument("--planted", type=int, default=4, help="serrated patches of a slide of class 1, of 16")
    parser.add_argument("--epochs", type=int, default=60, help="of the training on slides")
    parser.add_argument("--seed", type=int, default=0, help="of slides and training")
    parser.add_argument("--output", type=Path, help="where slides and results stay; default: nowhere")
    return parser.parse_args(arguments)


def write_slides(folder: Path, patches: Path, count: int, planted: int, seed: int) -> dict[str, set[tuple[int, int]]]:
    """Write slides and their table; left and upper edge of every serrated patch, by slide."""
    import numpy as np
    import tifffile
    from PIL import Image

    folder.mkdir(parents=True)
    with (patches / "patches.csv").open(newline="") as file:
        drawn = list(csv.DictReader(file))
    where: dict[str, set[tuple[int, int]]] = {}
    table = [("slide", "label", "patient", "section")]
    for number in range(count):
        name, random, apart = f"s{number:03d}", np.random.default_rng([seed, number]), number // 2 % 3 == 0
        known = [row for row in drawn if (row["section"] == "testing") == apart]
        kinds = [[row["image"] for row in known if row["serrated"] == kind] for kind in "01"]
        serrated = planted * (number % 2)
        chosen = [(path, 0) for path in random.choice(kinds[0], SIDE**2 - serrated, replace=False)]
        chosen += [(path, 1) for path in random.choice(kinds[1], serrated, replace=False)]
        side = (SIDE + 2) * SIZE
        pixels = np.clip(243 + random.normal(0, 1.5, (side, side, 3)), 0, 255).astype(np.uint8)
        where[name] = set()
        for place, row in enumerate(random.permutation(len(chosen)).tolist()):
            y, x = ((1 + at) * SIZE for at in divmod(place, SIDE))
            with Image.open(patches / chosen[row][0]) as image:
                patch = np.rot90(np.asarray(image), random.integers(4))
            pixels[y : y + SIZE, x : x + SIZE] = patch[:, ::-1] if random.random() < 0.5 else patch
            if chosen[row][1]:
                where[name].add((x, y))
        dots = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(folder / f"{name}.tif", pixels, photometric="rgb", compression="zlib", **dots)
        table.append((name, str(number % 2), name, "testing" if apart else "training"))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)
    return where


def bundle(*configs: str, **given: object) -> None:
    """Run the bundle in a process of its own."""
    files = [str(ROOT / f"bundles/sscl_crc/configs/{name}.json") for name in configs]
    options = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files), *options]
    subprocess.run(command, cwd=ROOT, check=True, env={"OMP_NUM_THREADS": "1", **os.environ})


def measure(folder: Path, where: dict[str, set[tuple[int, int]]]) -> dict[str, list[float]]:
    """AUC of attention and contribution for the painted tiles, of each slide of class 1."""
    from sklearn.metrics import roc_auc_score

    found: dict[str, list[float]] = {"attention": [], "contribution": []}
    for name, painted in where.items():
        path = folder / "slides" / name / "tiles.csv"
        if not painted or not path.is_file():
            continue
        with path.open(newline="") as file:
            tiles = list(csv.DictReader(file))
        inside = [(int(tile["x"]), int(tile["y"])) in painted for tile in tiles]
        for key, values in found.items():
            values.append(float(roc_auc_score(inside, [float(tile[key]) for tile in tiles])))
    return found


def run(args: argparse.Namespace, output: Path) -> None:
    """Write, train, evaluate, ask, and print."""
    import numpy as np
    from _timing import report

    slides = output / "slides"
    where = write_slides(slides, args.patches, args.slides, args.planted, args.seed)
    places = {"ckpt_dir": output / "models", "dataset_dir": slides, "bf16": False}
    choice = {f"slide_features#{key}": value for key, value in TISSUE.items()}
    sizes = {"mpp": MPP, "patch_size": SIZE, "size": SIZE, "seed": args.seed, "finetune_epochs": args.epochs}
    training = {**places, **choice, **sizes, "train#pretrained": args.encoder.resolve(), "fold": -1}
    bundle("train", "imagenet", "slide_mil", **training, output_dir=output / "training")
    asked = {**places, **choice, "output_dir": output / "evaluation", "run_id": "evaluate"}
    bundle("train", "imagenet", "slide_mil", "evaluate", **asked)
    apart = output / "apart"
    apart.mkdir()
    with (slides / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["section"] == "testing":
                (slides / f"{row['slide']}.tif").rename(apart / f"{row['slide']}.tif")
    choice = {f"slide_stage#{key}": value for key, value in TISSUE.items()}
    bundle("inference", **places, **choice, slides=apart, output_dir=output / "inference")
    auc = json.loads((output / "evaluation/metrics.json").read_text())["AUC"]
    found = measure(output / "inference", where)
    report("slides kept apart", [{"row": "AUC", **{key: auc[key] for key in ("value", "low", "high")}}])
    rows = [
        {"row": key, "mean AUC": float(np.mean(values)), "least": min(values), "slides": len(values)}
        for key, values in found.items()
    ]
    report("tiles with serrated crypts within each slide of class 1 kept apart", rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = parse(arguments)
    if args.output is not None:
        run(args, args.output.resolve())
        return 0
    with tempfile.TemporaryDirectory() as folder:
        run(args, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
