"""Small NIfTI cases and in-memory cohorts for the tests."""

import nibabel as nib
import numpy as np
import torch
from monai.transforms import EnsureTyped

from shared.data import CaseDataset


def affine_of(spacing=(1.0, 1.0, 3.0), *, degrees=0.0):
    """RAS affine, rotated about an oblique axis by so many degrees (voxel axes keep their order and sign)."""
    axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14.0)
    x, y, z = axis * np.sin(np.radians(degrees) / 2)
    w = np.cos(np.radians(degrees) / 2)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.asarray(spacing)
    affine[:3, 3] = (-20.0, 13.0, 41.0)
    return affine


def save(path, volume, affine=None, *, codes="RAS"):
    """Write a volume given in RAS order in the storage order ``codes``; its voxels stay where they are in space."""
    affine = affine_of() if affine is None else affine
    volume = np.asarray(volume)
    volume = volume.astype(np.uint8 if volume.dtype == bool else volume.dtype)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    stored = nib.orientations.apply_orientation(volume, turn)
    nib.save(nib.Nifti1Image(stored, affine @ nib.orientations.inv_ornt_aff(turn, volume.shape)), path)
    return str(path)


def ball(shape=(24, 20, 7), *, centre=(14, 8, 3), radius=5.0, spacing=(1.0, 1.0, 3.0)):
    """Mask of the voxels within ``radius`` mm of a voxel; larger in the slices near it."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return (((index - centre) * np.asarray(spacing)) ** 2).sum(axis=-1) <= radius**2


def texture(shape=(24, 20, 7), *, seed=0):
    """Positive noise, no two voxels alike."""
    return np.random.default_rng(seed).uniform(50, 200, shape).astype(np.float32)


def write_case(folder, patient="P1", *, mask=None, modalities=1, codes="RAS", affine=None, label=0, seed=0):
    """A case of the datalist with its files; the mask is a ball unless given, none with ``mask=False``."""
    folder.mkdir(parents=True, exist_ok=True)
    image = [
        save(folder / f"{patient}_{c}.nii.gz", texture(seed=seed + c), affine, codes=codes) for c in range(modalities)
    ]
    case = {"patient": patient, "image": image, "label": label}
    if mask is not False:
        case["mask"] = save(folder / f"{patient}_mask.nii.gz", ball() if mask is None else mask, affine, codes=codes)
    return case


def cohort(images, labels=None, covariates=None, names=()):
    """A CaseDataset of images [n, m, H, W] that lie in memory already."""
    count = len(images)
    labels = [i % 2 for i in range(count)] if labels is None else labels
    data = [
        {
            "patient": f"P{i}",
            "image": images[i],
            "label": labels[i],
            "covariates": dict(zip(names, covariates[i], strict=True)) if covariates is not None else {},
        }
        for i in range(count)
    ]
    return CaseDataset(data, EnsureTyped("image", track_meta=False), covariates=names, progress=False)


def lively_images(count=5, num_images=4, size=16, *, seed=1):
    """Noise whose brightness and sidedness differ from image to image."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, num_images, size, size, generator=generator)
    gain, slope = torch.rand(2, count, num_images, 1, 1, generator=generator)
    return x * gain * torch.linspace(0, 1, size) ** (4 * slope)


def tiny_classifier(network, **settings):
    """A small IRCLClassifier whose patients, images and biomarkers differ visibly, as if it had been trained."""
    torch.manual_seed(0)
    given = {"num_images": 4, "num_biomarkers": 3, "channels": (4, 8), "embedding_dim": 6}
    net = network(**{**given, "dim": 8, "num_layers": 2, "num_heads": 2, "mlp_dim": 12, **settings})
    x = lively_images(12, net.num_images, seed=7)
    with torch.no_grad():
        # BatchNorm statistics of data, biomarkers among embeddings, no parameter at its start
        net.encoder.train()
        for _ in range(20):
            net.encoder(x.flatten(0, 1).unsqueeze(1))
        net.eval()
        z = net.encode(x)[1].flatten(0, 1)
        net.biomarkers.copy_(z[torch.linspace(0, len(z) - 1, len(net.biomarkers)).long()])
        for parameter in net.predictor.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net
