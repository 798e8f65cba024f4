"""Small prepared folders of each bundle, and the same with other pixels, labels and covariates of who is left out."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from tests.support.tiny import ball, write_case
from tests.support.tiny_glioma import write_cohort
from tests.support.tiny_patches import write_patch_data

FOLD = 0  # who validates
# a small network of each bundle, trained for long enough that every part of a stage runs
SMALL = {
    "ircl_mvi": {
        "num_modalities": 2,
        "num_slices": 2,
        "roi#size": 16,
        "covariates": ["age"],
        "network_def#channels": [4, 8],
        "network_def#num_biomarkers": 2,
        "network_def#views": 2,
        "network_def#dim": 8,
        "network_def#num_heads": 2,
        "network_def#mlp_dim": 8,
        "network_def#additive#num_biomarkers": 3,
        "members": 2,
        "pretrain#epochs": 2,
        "pretrain#max_epochs": 4,
        "pretrain#patience": 1,
        "pretrain#update_every": 1,
        "pretrain#batch_size": 16,
        "train#epochs": 2,
        "mixup_ratio": 1,
        "val_interval": 1,
    },
    "glioma_idh": {
        "covariates": ["age"],
        "shares#self_supervised": 0.3,
        "preparing#size": 16,
        "preparing#num_points": 32,
        "preparing#radii": [8.0, 14.0],
        "preparing#num_voxels": 8,
        "network_def#image#channels": [4, 8],
        "network_def#image#hidden": [8],
        "network_def#points#channels": [4, 8],
        "network_def#points#hidden": [8],
        "network_def#brain#channels": [8],
        "network_def#brain#hidden": [8],
        "network_def#projection": [8, 8, 16],
        "network_def#attribute_widths": [16, 8],
        "network_def#embedding_dim": 8,
        "edges#fa_widths": [8, 8],
        "nodes#epochs": 1,
        "edges#epochs": 1,
        "contrast#epochs": 2,
        "contrast#batch_size": 4,
        "train#epochs": 2,
        "val_interval": 1,
    },
    "sscl_crc": {
        "cache_size": 32,
        "size": 32,
        # fewer than 8: PyTorch's strided 1 x 1 convolution crashes backward, channels last, on CPUs without AVX-512
        "network_def#encoder#channels": [8, 8, 8, 8],
        "pretrain#size": 32,
        "pretrain#projection": [8],
        "pretrain#epochs": 1,
        "pretrain#batch_size": 8,
        "train#samples_per_epoch": 16,
        "train#batch_size": 8,
        "finetune_epochs": 2,
        "val_interval": 1,
        "views": 2,
    },
}
CONFIGS = {"ircl_mvi": ("train", "cpu"), "glioma_idh": ("train", "cpu"), "sscl_crc": ("train", "cpu")}


def settings(bundle):
    """Overrides of a small training that leaves out fold 0."""
    return {**SMALL[bundle], "fold": FOLD, "bf16": False}


def write_data(bundle, folder, *, changed=False):
    """The bundle's folder; changed: who validates and tests has other voxels, masks, labels and covariates."""
    {"ircl_mvi": _write_volumes, "glioma_idh": _write_brains, "sscl_crc": _write_patches}[bundle](folder)
    if changed:
        content = json.loads((folder / "datalist.json").read_text())
        for case in left_out(content):
            _change(folder, case)
        (folder / "datalist.json").write_text(json.dumps(content))
    return folder


def left_out(content):
    """Entries of a datalist that train nothing: of the fold and of the testing part, and others of their patients."""
    apart = [case for case in content["training"] if case["fold"] == FOLD] + content["testing"]
    names = {case["patient"] for case in apart}
    return apart + [case for case in content.get("unlabelled", ()) if case["patient"] in names]


def _change(folder, case):
    """Other pixels, the mask turned round, the other label, an age of 1,000."""
    for key in ("image", "mask", "fa"):
        for name in [case[key]] if isinstance(case.get(key), str) else case.get(key) or ():
            _change_file(folder / name, mask=key == "mask")
    if "label" in case:
        case["label"] = 1 - case["label"]
    if "covariates" in case:
        case["covariates"] = dict.fromkeys(case["covariates"], 1000.0)


def _change_file(path: Path, *, mask: bool):
    if path.suffix == ".png":
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
        return
    image = nib.load(path)
    array = np.asarray(image.dataobj)
    array = array[::-1, ::-1, ::-1] if mask else (array.max() + array.min() - array) * 3
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array).astype(image.get_data_dtype()), image.affine), path)


def _write_volumes(folder):
    cases = []
    for k in range(13):
        mask = ball(centre=(9 + k % 4, 8 + k % 3, 3), radius=5 + k % 2)
        case = write_case(folder, f"P{k:02d}", modalities=2, mask=mask, label=k % 2, seed=10 * k)
        case |= {"image": [Path(name).name for name in case["image"]], "mask": Path(case["mask"]).name}
        cases.append(case | {"covariates": {"age": 40.0 + 3 * k}} | ({"fold": k // 5} if k < 10 else {}))
    content = {"modalities": ["T1", "T2"], "classes": ["no", "yes"], "training": cases[:10], "testing": cases[10:]}
    (folder / "datalist.json").write_text(json.dumps(content))


def _write_brains(folder):
    write_cohort(folder, training=28, testing=3)


def _write_patches(folder):
    content = write_patch_data(folder, training=8, testing=3, each=2)
    content["training"].pop()  # classes that are not equally frequent
    for case in content["training"]:
        case["fold"] = int(case["patient"][1:]) // 4
    content["unlabelled"][0]["patient"] = content["testing"][0]["patient"]
    (folder / "datalist.json").write_text(json.dumps(content))
