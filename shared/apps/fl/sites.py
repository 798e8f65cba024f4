"""Simulated hospitals: phantom data drawn for each, seen through a scanner or a stain of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.io import atomic_path, write_json

PATHS = ("image", "mask", "planted")
# amounts of haematoxylin, eosin and a third stain, then brightness; exponent and scale of MR intensities
STAINS = {
    "public": ((1.0, 1.0, 1.0), 1.0),
    "north": ((1.0, 1.0, 1.0), 1.0),
    "south": ((1.5, 0.7, 1.0), 0.9),
    "east": ((0.7, 1.4, 1.0), 1.05),
    "unseen": ((1.3, 1.2, 1.0), 0.95),
}
SCANNERS = {"north": (1.0, 1.0), "south": (0.7, 3.0), "east": (1.4, 0.4), "unseen": (0.85, 1.5)}


def make_site(script: Path, folder: Path, name: str, options: Sequence[str]) -> None:
    """Make a site's data, in its look, unless they are there.

    Args:
        script: ``make_phantom_patches.py`` or ``make_phantom_cohort.py``.
        folder: of the site; complete where it exists.
        name: of the site, which decides its look.
        options: of the script.
    """
    if folder.is_dir():
        return
    raw = folder.with_name(f".{folder.name}")
    shutil.rmtree(raw, ignore_errors=True)
    subprocess.run([sys.executable, str(script), "--output", str(raw), *options], check=True, capture_output=True)
    content = json.loads((raw / "datalist.json").read_text(encoding="utf-8"))
    for part in ("training", "testing", "unlabelled"):
        for entry in content.get(part, []):
            images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
            for image in images:
                _restain(raw / image, name) if image.endswith(".png") else _rescale(raw / image, name)
    raw.rename(folder)


def site_datalist(root: Path, training: Sequence[str], testing: str) -> dict[str, Any]:
    """Datalist below ``root``: all of some sites to train on, the testing section of another.

    Args:
        root: folder of the sites' folders.
        training: names of the sites that train together.
        testing: name of the site whose testing section is held out.
    """
    parts = {name: json.loads((root / name / "datalist.json").read_text()) for name in {*training, testing}}
    own = [_below(name, entry) for name in training for entry in parts[name]["training"]]
    held = [_below(testing, entry) for entry in parts[testing]["testing"]]
    return {**parts[testing], "unlabelled": [], "training": own, "testing": held}


def _below(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry whose paths begin with the site's folder, and its patient with the site's name."""
    moved = dict(entry, patient=f"{name}-{entry['patient']}")
    for key in PATHS:
        if key in moved:
            value = moved[key]
            moved[key] = [f"{name}/{path}" for path in value] if isinstance(value, list) else f"{name}/{value}"
    return moved


def _restain(path: Path, name: str) -> None:
    import torch
    from PIL import Image

    from shared.transforms.batched import scale_stains

    stains, gain = STAINS[name]
    with Image.open(path) as picture:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    changed = (scale_stains(pixels, torch.tensor([stains])) * gain).clamp(0, 1)
    with atomic_path(path) as temporary:
        Image.fromarray((changed[0].permute(1, 2, 0) * 255).round().byte().numpy()).save(temporary)


def _rescale(path: Path, name: str) -> None:
    import nibabel as nib

    from shared.apps.preparation.files import save_nifti

    exponent, scale = SCANNERS[name]
    image = nib.load(path)
    values = np.asarray(image.dataobj, dtype=np.float32)
    top = float(values.max()) or 1.0
    save_nifti(path, (np.clip(values / top, 0, None) ** exponent * top * scale).astype(np.float32), image.affine)


def write_datalists(root: Path, sites: Sequence[str], held: str) -> dict[str, str]:
    """Write a datalist for every site and one of all together; their paths by name."""
    groups = {name: [name] for name in sites} | {"pooled": list(sites)}
    for name, members in groups.items():
        write_json(root / f"{name}.json", site_datalist(root, members, held))
    return {name: str(root / f"{name}.json") for name in groups}
