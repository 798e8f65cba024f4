"""Changes of an image or a mask that should not change what a model says: as files of the same kind and grid."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MILLIMETRES = (1.0, 2.0, 3.0)
NOISE = (0.1, 0.2)  # of the standard deviation of the voxels that are not background
BIAS = 0.1  # largest coefficient of the polynomials whose sum is the log of the field
COARSER = 1.5  # times as long voxels, and back
STAINS = {"stains stronger": (1.15, 1.15), "stains weaker": (0.85, 0.85), "stains shifted": (1.15, 0.85)}
BLURS = (1.0, 2.0)  # pixels
GREY_NOISE = 8.0  # of 255
FEWEST = 20  # voxels that a shrunk mask must keep: of fewer there is no surface

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def grown(mask: np.ndarray, voxel: Sequence[float], millimetres: float) -> np.ndarray:
    """A mask with all that lies within so many millimetres of it; with a negative number without what lies so near to
    its outside.

    Args:
        mask: inside or not.
        voxel: its size in mm along each axis.
        millimetres: how far, between centres of voxels.

    Shape:
        - mask: ``[X, Y, Z]`` bool; returns: alike

    Example:
        >>> row = np.zeros((7, 1, 1), bool)
        >>> row[3] = True
        >>> grown(row, (1, 1, 5), 2).ravel().astype(int).tolist()
        [0, 1, 1, 1, 1, 1, 0]
    """
    from scipy.ndimage import distance_transform_edt

    # a single slice has no outside above and below it, nor has the volume beyond its border
    if millimetres >= 0:
        return distance_transform_edt(~mask, sampling=voxel) <= millimetres + 1e-6
    return distance_transform_edt(mask, sampling=voxel) > -millimetres + 1e-6


def noisy(array: np.ndarray, random: np.random.Generator, share: float) -> np.ndarray:
    """Gaussian noise of a share of the standard deviation of what is not background."""
    shown = array[array != array.flat[0]]
    return array + random.normal(0, share * (shown if len(shown) else array).std(), array.shape)


def biased(array: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """MONAI's polynomial bias field of degree 3."""
    from monai.transforms import RandBiasField

    field = RandBiasField(degree=3, coeff_range=(-BIAS, BIAS), prob=1.0)
    field.set_random_state(int(random.integers(2**31)))
    return np.asarray(field(array[None].astype(np.float32)))[0]


def coarser(array: np.ndarray, voxel: Sequence[float]) -> np.ndarray:
    """To longer voxels and back, linear, along the axes of the finest voxels."""
    from skimage.transform import resize

    fine = [n >= 8 and size <= 1.5 * min(voxel) for n, size in zip(array.shape, voxel, strict=True)]
    small = [round(n / COARSER) if is_fine else n for n, is_fine in zip(array.shape, fine, strict=True)]
    given: dict[str, Any] = {"order": 1, "preserve_range": True, "mode": "edge"}
    return resize(resize(array.astype(float), small, anti_aliasing=True, **given), array.shape, **given)


def restained(rgb: np.ndarray, haematoxylin: float, eosin: float) -> np.ndarray:
    """A patch whose stains are as many times as strong (Ruifrok and Johnston, Anal Quant Cytol Histol 2001).

    With scikit-image's matrices, without its clipping of stains below 0, which would change what is not scaled.

    Shape:
        - rgb: uint8 ``[H, W, 3]``; returns: alike

    Example:
        >>> x = np.array([[[120, 60, 140], [200, 150, 190]]], np.uint8)
        >>> bool((restained(x, 1, 1) == x).all()), bool((restained(x, 1.2, 1.2) < x).all())
        (True, True)
    """
    from skimage.color import hed_from_rgb, rgb_from_hed

    density = -np.log(np.maximum(rgb, 1) / 255)
    stains = density @ hed_from_rgb * (haematoxylin, eosin, 1.0)
    return np.clip(np.rint(255 * np.exp(-stains @ rgb_from_hed)), 0, 255).astype(np.uint8)


def patch_changes() -> dict[str, Change]:
    """What is done to patches: name to a function of RGB uint8 ``[H, W, 3]``."""
    from scipy.ndimage import gaussian_filter
    from skimage.transform import resize

    def stain(strength: tuple[float, float]) -> Change:
        return lambda x, _: restained(x, *strength)

    def blur(sigma: float) -> Change:
        return lambda x, _: np.rint(gaussian_filter(x.astype(float), (sigma, sigma, 0))).astype(np.uint8)

    def resampled(x: np.ndarray, _: np.random.Generator) -> np.ndarray:
        small = [round(n / COARSER) for n in x.shape[:2]] + [3]
        given: dict[str, Any] = {"order": 1, "preserve_range": True, "mode": "edge"}
        back = resize(resize(x.astype(float), small, anti_aliasing=True, **given), x.shape, **given)
        return np.clip(np.rint(back), 0, 255).astype(np.uint8)

    def grainy(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return np.clip(np.rint(x + random.normal(0, GREY_NOISE, x.shape)), 0, 255).astype(np.uint8)

    changes = {name: stain(strength) for name, strength in STAINS.items()}
    changes |= {f"blur, {sigma:g} pixels": blur(sigma) for sigma in BLURS}
    return {**changes, f"noise, {GREY_NOISE:g} of 255": grainy, f"resampled, {COARSER:g} x": resampled}


def perturbed_patch(case: Mapping[str, Any], folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """A patch in all its forms, by their names, ``unchanged`` first; files ``folder/NAME_<number>.png``.

    Args:
        case: of a datalist, with an absolute path.
        folder: for the files.
        name: of the case, for the files.
    """
    from PIL import Image

    from shared.data.patches.reading import read_patch

    pixels = read_patch(case["image"]).transpose(1, 2, 0)
    forms: dict[str, Change] = {"unchanged": lambda x, _: x, **patch_changes()}
    found = {}
    for number, (form, change) in enumerate(forms.items()):
        path = folder / f"{name}_{number:02}.png"
        Image.fromarray(change(pixels, _random(name, form))).save(path)
        found[form] = {**_plain(case), "image": path.name}
    return found


def perturbed_volumes(case: Mapping[str, Any], folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """A patient in all forms, by their names, ``unchanged`` first; a mask that would nearly vanish is not shrunk.

    Images keep their grid. Masks become 0 and 1.

    Args:
        case: of a datalist, with absolute paths.
        folder: for the files, whose names begin with ``name`` and the form's number.
        name: of the case.
    """
    import nibabel as nib

    from shared.data.masks import tumour_of

    images = [nib.load(path) for path in case["image"]]
    arrays = [np.asarray(image.dataobj, np.float32) for image in images]
    sizes = [nib.affines.voxel_sizes(image.affine) for image in images]
    whole = [_squeezed(array) for array in arrays]
    masks: dict[str, np.ndarray] = {}
    if case.get("mask"):
        drawn = nib.load(case["mask"])
        values = _squeezed(np.asarray(drawn.dataobj, np.float32))
        inside = tumour_of(values, drawn.affine, case.get("tumour_labels") or (), joined=True)
        voxel = nib.affines.voxel_sizes(drawn.affine)
        for length in MILLIMETRES:
            masks[f"mask grown, {length:g} mm"] = grown(inside, voxel, length)
        for length in MILLIMETRES:
            masks[f"mask shrunk, {length:g} mm"] = grown(inside, voxel, -length)
        masks = {form: mask for form, mask in masks.items() if mask.sum() >= FEWEST}

    def noise(share: float) -> Callable[[int, np.random.Generator], np.ndarray]:
        return lambda k, random: noisy(whole[k], random, share)

    changes: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {}
    for share in NOISE:
        changes[f"noise, {share:g} sd"] = noise(share)
    changes["bias field"] = lambda k, random: biased(whole[k], random)
    changes[f"resampled, {COARSER:g} x"] = lambda k, random: coarser(whole[k], sizes[k])
    found: dict[str, dict[str, Any]] = {}
    for number, form in enumerate(["unchanged", *masks, *changes]):
        new = _plain(case)
        paths = [folder / f"{name}_{number:02}_{k}.nii.gz" for k in range(len(images))]
        for k, (image, path) in enumerate(zip(images, paths, strict=True)):
            if form in changes:
                array = changes[form](k, _random(f"{name} {k}", form)).astype(np.float32)
                nib.save(nib.Nifti1Image(array, image.affine), path)
            else:
                _link(Path(case["image"][k]), path)
        new["image"] = [path.name for path in paths]
        if case.get("mask"):
            path = folder / f"{name}_{number:02}_mask.nii.gz"
            if form in masks:
                nib.save(nib.Nifti1Image(masks[form].astype(np.uint8), drawn.affine), path)
                new.pop("tumour_labels", None)
            else:
                _link(Path(case["mask"]), path)
            new["mask"] = path.name
        if case.get("fa"):
            path = folder / f"{name}_{number:02}_fa.nii.gz"
            _link(Path(case["fa"]), path)
            new["fa"] = path.name
        found[form] = new
    return found


def _plain(case: Mapping[str, Any]) -> dict[str, Any]:
    """A case without what would be checked against files that are not there, and without its split."""
    left = ("planted", "mask", "fa", "mni_places", "fold", "group", "soft_label")
    return {k: v for k, v in case.items() if k not in left}


def _squeezed(array: np.ndarray) -> np.ndarray:
    return array.reshape(array.shape[:3])


def _random(name: str, form: str) -> np.random.Generator:
    """The same draws for the same case and change, whatever else is looked at."""
    return np.random.default_rng(zlib.crc32(f"{name}/{form}".encode()))


def _link(source: Path, target: Path) -> None:
    """Another name of a file, where the disk allows it, else a copy; a compressed file's ending is kept."""
    import os
    import shutil

    import nibabel as nib

    if not source.name.endswith(".gz"):
        nib.save(nib.load(source), target)
        return
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
