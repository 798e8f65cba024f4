"""A glioma cohort of a few thousand voxels a patient, as files: for the tests of the bundle and of its parts."""

import json

import nibabel as nib
import numpy as np

from tests.support.tiny_brain import AFFINE, SHAPE, tiny_atlas

NAMES = {"t1": "T1", "t1c": "T1c", "t2": "T2", "flair": "FLAIR"}
SEQUENCES = tuple(NAMES)


def tiny_mask(rng, *, lumpy=False):
    """An ellipsoid near the middle, with a spike where it is lumpy."""
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    centre = np.array(SHAPE) / 2 + rng.uniform(-1, 1, 3)
    mask = (((index - centre) / rng.uniform(2.2, 3.2, 3)) ** 2).sum(axis=-1) <= 1
    if lumpy:
        spike = index[..., 0] > centre[0]
        mask |= spike & (np.abs(index[..., 1:] - centre[1:]) <= 1).all(axis=-1) & (index[..., 0] < centre[0] + 5)
    return mask


def tiny_patient(label, seed):
    """Volumes of one patient: a mutant's tumour is smooth and dark on FLAIR, and its second tract lies lower in FA."""
    rng = np.random.default_rng(seed)
    mask = tiny_mask(rng, lumpy=label == 0)
    volumes = {}
    for number, name in enumerate(SEQUENCES):
        value = 100 + 10 * number + rng.normal(0, 5, SHAPE)
        value[mask] += {"t2": 60, "flair": -60 if label else 60}.get(name, 20)
        volumes[name] = value.clip(1).astype(np.float32)
    fa = (0.3 + 0.002 * (volumes["t1"] - 100) - 0.1 * mask).clip(0.01, 1).astype(np.float32)
    return volumes | {"mask": mask.astype(np.uint8), "fa": fa}


def write_case(folder, name, label, seed, *, fa=True, affine=AFFINE, sequences=SEQUENCES):
    """Write one patient's files and return the datalist's entry."""
    (folder / name).mkdir(parents=True)
    for kind, array in tiny_patient(label, seed).items():
        if (kind != "fa" or fa) and (kind not in SEQUENCES or kind in sequences):
            nib.save(nib.Nifti1Image(array, affine), folder / name / f"{kind}.nii.gz")
    case = {"patient": name, "image": [f"{name}/{kind}.nii.gz" for kind in sequences], "mask": f"{name}/mask.nii.gz"}
    case |= {"fa": f"{name}/fa.nii.gz"} if fa else {}
    age, grade = 60.0 - 15 * label + seed % 7, 2.0 + (seed % 3 if label == 0 else seed % 2)
    return case | {"label": label, "covariates": {"age": age, "grade": grade}}


def write_cohort(folder, *, training=20, testing=6, folds=2, fa=True, sequences=SEQUENCES):
    """Write a prepared folder: files, datalist and atlas."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {"fa": fa, "sequences": sequences}
    cases = [write_case(folder, f"P{k:02d}", k % 2, 100 + k, **kept) for k in range(training + testing)]
    for k, case in enumerate(cases[:training]):
        case["fold"] = (k // 2) % folds
    content = {
        "name": "tiny gliomas",
        "modalities": [NAMES[kind] for kind in sequences],
        "classes": ["IDH wild type", "IDH mutant"],
        "training": cases[:training],
        "testing": cases[training:],
    }
    (folder / "datalist.json").write_text(json.dumps(content))
    tiny_atlas().save(folder / "atlas.npz")
    return folder
