"""Small patches of a few patients, whose class shows in their colour, for tests of evaluation and controls."""

import json

import numpy as np
from PIL import Image

CLASSES = ["HP", "SSA"]


def write_patches(folder, patients=12, *, each=3, side=32, section="training", first=0, contrast=40.0, seed=0):
    """Entries of noisy patches, paths relative to ``folder``; class 1 is redder by ``contrast`` grey levels."""
    random, entries = np.random.default_rng(seed + 1000 * first), []
    for number in range(first, first + patients):
        label = number % 2
        for k in range(each):
            pixels = random.normal([150 + contrast * label, 120, 150], 25, (side, side, 3))
            name = f"{CLASSES[label]}/{section}_{number:02}_{k}.png"
            (folder / CLASSES[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name)
            entries.append({"image": name, "patient": f"P{number:02}", "label": label})
    return entries


def write_patch_data(folder, *, training=12, testing=6, **settings):
    """A folder of patches with its datalist: training, testing and two unlabelled patients."""
    content = {"name": "tiny", "classes": CLASSES, "training": write_patches(folder, training, **settings)}
    content["testing"] = write_patches(folder, testing, section="testing", first=training, **settings)
    others = write_patches(folder, 2, section="unlabelled", first=training + testing, **settings)
    content["unlabelled"] = [{key: entry[key] for key in ("image", "patient")} for entry in others]
    (folder / "datalist.json").write_text(json.dumps(content))
    return content
