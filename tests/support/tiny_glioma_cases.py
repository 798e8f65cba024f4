"""Patients with a small tumour in the tiny brain, as files and as samples, and a network for them."""

import nibabel as nib
import numpy as np
import torch
from monai.transforms import Compose

from shared.networks import GliomaNetwork
from shared.transforms import PointCloudd, TractIncidence, TumourCropd
from tests.support.tiny_brain import AFFINE, SHAPE, tiny_atlas
from tests.support.tiny_brains import lively

SIZE, RADII = 16, (6.0, 10.0)
CODES = {"spicules": (1, 0), "mismatch": (2, 1), "enhancing_rim": (3, None), "infiltrated_tracts": (4, 0)}


def tiny_network(atlas, **settings):
    """A multitask network for the tiny atlas, in eval mode."""
    torch.manual_seed(0)
    given = {
        "size": SIZE,
        "in_channels": 2,
        "objective": "multitask",
        "image": {"channels": (4, 8), "hidden": (16,)},
        "points": {"channels": (6, 10), "hidden": (16,), "radii": RADII},
        "brain": {"num_regions": atlas.num_regions, "channels": (8, 12), "hidden": (16,)},
    }
    return lively(GliomaNetwork(atlas.edge_index, **{**given, **settings})).eval()


def tiny_patient(folder, name="P1", *, label=0, seed=0):
    """One patient's files and sample; the planted map has every code."""
    rng, folder = np.random.default_rng(seed), folder / name
    folder.mkdir(parents=True)
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    away = (((index - (6, 7, 6)) / (3.2, 4.0, 2.6)) ** 2).sum(axis=-1)
    mask = away <= 1
    planted = np.where(mask, np.where(away > 0.5, 3, 2), 0)
    planted[mask & (index[..., 1] > 9)] = 1
    planted[(away > 1) & (away < 1.6)] = 4
    images = (rng.random((2, *SHAPE)) * 100 + 10 * mask).astype(np.float32)
    files = {"images": [str(folder / f"{i}.nii.gz") for i in range(2)]}
    files |= {key: str(folder / f"{key}.nii.gz") for key in ("mask", "planted")}
    arrays = [*images, mask.astype(np.uint8), planted.astype(np.uint8)]
    for path, array in zip([*files["images"], files["mask"], files["planted"]], arrays, strict=True):
        nib.save(nib.Nifti1Image(array, AFFINE), path)
    atlas = tiny_atlas()
    case = {"image": torch.from_numpy(images / 100), "mask": torch.from_numpy(mask[None]), "affine": AFFINE}
    case |= {"patient": name, "label": label, "files": files}
    made = Compose([PointCloudd(num_points=96, radii=RADII), TumourCropd(SIZE)])(case)
    made["image"] = made.pop("tumour")
    made["incidence"] = TractIncidence(atlas)(made["points"].double() + made["centroid"].double())
    generator = torch.Generator().manual_seed(seed)
    made["nodes"] = torch.randn(atlas.num_regions, 16, generator=generator)
    made["edges"] = torch.randn(atlas.num_tracts, 16, generator=generator)
    return made
