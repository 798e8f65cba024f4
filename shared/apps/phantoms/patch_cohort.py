"""Make synthetic H&E patches in which planted crypts drive the label: demo data, and the tests' truth.

A patch shows one to three crypts that tell its class, straight (smooth lumen: round, or an even slit) or serrated (star
or saw-tooth lumen, wide base), among neutral ones (dot, flat or no lumen), vessels, fat cells and lymphoid aggregates,
which say nothing. Outlines, area of lumen and number of cells are drawn alike, and every slide, each with stains of its
own, has patches of both classes: neither colour nor darkness tells them. `mask/` holds all crypts (255), `planted/`
those that tell: 1 straight, 2 serrated.

Seven simulated readers vote; each is right with probability a + (1 - a) * clarity, where a is --reader-accuracy and the
clarity of a patch, uniform in 0.2 .. 1, is also the depth of its serration. The label is their majority, `soft_label`
their share for serrated: at a = 0.65, the default, 2.4 % of the labels are wrong. What was drawn is in patches.csv, the
AUC of a reader who sees the true class in manifest.json. Patches of one slide (`patient`) stay in one part and fold.
"""

from __future__ import annotations

from pathlib import Path

from shared.apps.phantoms import patch_cells, patch_glands, patches
from shared.apps.phantoms.patches import ANNOTATORS, CLASSES, PLANTED, annotate, draw_slide, label_noise, paint_patch
from shared.apps.preparation.files import (
    phantom_is_there,
    positive_int,
    run_script,
    script_parser,
    seal_phantom,
    software_versions,
    write_datalist,
    write_manifest,
)
from shared.data.splits import grouped_folds
from shared.digests import sha256
from shared.io import DATALIST, atomic_path, write_csv

CLARITY = (0.2, 1.0)
WIDTH_UM = 256.0  # of a patch: crypts are then as wide as those of a colon
GENERATOR = (patches.__file__, patch_cells.__file__, patch_glands.__file__, __file__)


def save_png(path: Path, array) -> None:
    """Write an 8-bit PNG, atomically; the same array gives the same bytes."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(array).save(temporary)


def draw_rows(counts: dict[str, int], per_slide: int, accuracy: float, seed: int) -> tuple[list[dict], list]:
    """What every patch shows, one row a patch, and the slides; the two kinds of patches take turns on each."""
    import numpy as np

    rows, slides = [], []
    for number, (section, count) in enumerate(counts.items()):
        rng = np.random.default_rng([seed, 0, number])
        first = len(slides)
        slides += [draw_slide(rng) for _ in range(-(-count // per_slide))]
        for index in range(count):
            serrated, clarity = index % 2, float(rng.uniform(*CLARITY))
            votes = annotate(bool(serrated), clarity, accuracy, rng)
            slide = f"S{first + index // per_slide + 1:03d}"
            rows.append(
                {
                    "image": f"image/{slide}-{index % per_slide + 1}.png",
                    "slide": slide,
                    "section": section,
                    "serrated": serrated,
                    "clarity": round(clarity, 4),
                    "votes": votes,
                    "label": int(votes > ANNOTATORS / 2),
                }
            )
    return rows, slides


def make_patches(
    output: Path,
    *,
    patches: int,
    test_patches: int,
    unlabelled: int,
    per_slide: int,
    size: int,
    reader_accuracy: float,
    folds: int,
    seed: int,
) -> dict:
    """Write the patches into ``output``; the same arguments give the same files. Returns the manifest."""
    counts = {"training": patches, "testing": test_patches, "unlabelled": unlabelled}
    recipe = {
        **counts,
        "per_slide": per_slide,
        "size": size,
        "reader_accuracy": reader_accuracy,
        "folds": folds,
        "seed": seed,
        "generator": [sha256(path)[:16] for path in GENERATOR],
    }
    if phantom_is_there(output, recipe):
        print(f"{output}: these patches are there already")
        return {}
    import numpy as np
    from sklearn.metrics import roc_auc_score
    from tqdm import tqdm

    rows, slides = draw_rows(counts, per_slide, reader_accuracy, seed)
    training = [row for row in rows if row["section"] == "training"]
    fold_of = grouped_folds([r["slide"] for r in training], [CLASSES[r["label"]] for r in training], folds, seed)
    parts: dict[str, list[dict]] = {section: [] for section in counts}
    for row in rows:
        entry = {"image": row["image"], "patient": row["slide"]}
        if row["section"] != "unlabelled":
            entry |= {key: row["image"].replace("image", key, 1) for key in ("mask", "planted")}
            entry |= {"label": row["label"], "soft_label": round(row["votes"] / ANNOTATORS, 4)}
        if row["section"] == "training":
            entry["fold"] = fold_of[row["slide"]]
        parts[row["section"]].append(entry)

    # A marker first, the datalist last: an interrupted run is seen to be one and can be run again.
    (output / DATALIST).unlink(missing_ok=True)
    write_manifest(output, phantom={"unfinished": True})
    entries = [entry for part in parts.values() for entry in part]
    for number, (row, entry) in enumerate(zip(tqdm(rows, desc="phantom patches", unit="patch"), entries, strict=True)):
        rng = np.random.default_rng([seed, 1, number])
        drawn = paint_patch(slides[int(row["slide"][1:]) - 1], bool(row["serrated"]), row["clarity"], rng, size=size)
        for key in ("image", "mask", "planted"):
            if key in entry:
                save_png(output / entry[key], drawn[key])
    write_csv(output / "patches.csv", rows)

    def auc_of(section: str) -> float | None:
        chosen = [row for row in rows if row["section"] == section]
        if len({row["label"] for row in chosen}) < 2:
            return None
        return round(float(roc_auc_score([row["label"] for row in chosen], [row["serrated"] for row in chosen])), 4)

    write_manifest(
        output,
        phantom=recipe,
        versions=software_versions(("numpy", "scipy", "scikit-image", "pillow", "scikit-learn")),
        pattern_codes=PLANTED,
        label=f"majority of {ANNOTATORS} readers, each right with probability a + (1 - a) * clarity",
        labels_wrong_expected=round(label_noise(reader_accuracy, CLARITY), 4),
        labels_wrong={
            section: sum(r["label"] != r["serrated"] for r in rows if r["section"] == section) for section in counts
        },
        auc_best_reader_drawn={section: auc_of(section) for section in ("training", "testing")},
    )
    write_datalist(output, name="phantom crypts", classes=CLASSES, **parts, mpp=WIDTH_UM / size)
    return seal_phantom(output)


def report(manifest: dict, output: Path) -> None:
    """Print what was made and how hard it is."""
    if manifest:
        made = manifest["phantom"]
        shown = ", ".join(f"{made[section]} {section}" for section in ("training", "testing", "unlabelled"))
        print(f"{output}: {shown} patches of {made['per_slide']} a slide")
        print(f"AUC of a reader who sees the true class, with the labels drawn: {manifest['auc_best_reader_drawn']}")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and make the patches."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="new or empty folder, or one this script made")
    add("--patches", type=positive_int, default=240, help="for training and validation (240)")
    add("--test-patches", type=int, default=120, help="in the testing section (120)")
    add("--unlabelled", type=int, default=120, help="without labels, for pretraining (120)")
    add("--per-slide", type=positive_int, default=6, help="patches of one slide (6)")
    add("--size", type=int, default=128, help="side of a patch in pixels (128)")
    add("--reader-accuracy", type=float, default=0.65, help="of a reader of the least clear patch (0.65); 1: no noise")
    add("--folds", type=int, default=5, help="stratified folds of the training slides (5)")
    add("--seed", type=int, default=0, help="of everything drawn (0)")
    options = vars(parser.parse_args(arguments))
    if min(options["test_patches"], options["unlabelled"], options["seed"]) < 0:
        parser.error("--test-patches, --unlabelled and --seed must be at least 0")
    if options["size"] < 48:
        parser.error("--size must be at least 48 for a crypt's cells to be seen")
    if not 0.5 <= options["reader_accuracy"] <= 1:
        parser.error("--reader-accuracy must lie in [0.5, 1]")
    return run_script(lambda: report(make_patches(**options), options["output"]))
