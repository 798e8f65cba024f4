"""Small synthetic heads and a registration by affines alone, for the tests of the glioma preparation."""

import nibabel as nib
import numpy as np

from shared.apps.phantoms.brain_anatomy import ellipsoid_anatomy
from shared.apps.preparation.files import save_nifti
from shared.data.brain.mni import mni_affine, mni_shape
from shared.data.volumes import Volume, resample

SPACING = 4.0
SHAPE = (46, 56, 46)


def native_affine(spacing=SPACING):
    """Affine of a patient's grid, its centre at the scanner's."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -spacing * (np.asarray(SHAPE) - 1) / 2 + (0, -18, 8)
    return affine


def coordinates(affine=None, shape=SHAPE):
    """Millimetres of every voxel, ``[X, Y, Z, 3]``."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    affine = native_affine() if affine is None else affine
    return index @ affine[:3, :3].T + affine[:3, 3]


def brain(affine=None, shape=SHAPE):
    """An ellipsoid of 1.5 litres."""
    return np.linalg.norm((coordinates(affine, shape) - (0, -18, 8)) / (68, 86, 62), axis=-1) < 1


def tumour(affine=None, shape=SHAPE, radius=16.0):
    """A ball in the right hemisphere."""
    return np.linalg.norm(coordinates(affine, shape) - (30, -10, 15), axis=-1) < radius


def stripped(seed=0, affine=None, shape=SHAPE):
    """A skull-stripped image: bright and noisy within the brain, 0 outside."""
    rng = np.random.default_rng(seed)
    mm = coordinates(affine, shape)
    value = 300 + 80 * np.cos(mm[..., 0] / 20) + 60 * np.sin(mm[..., 1] / 15) + rng.normal(0, 5, shape)
    return np.where(brain(affine, shape), value + 150 * tumour(affine, shape), 0).astype(np.float32)


def with_skull(seed=0, noise=True):
    """A head: brain, dark bone, bright scalp; noise around it as scanners leave it."""
    rng = np.random.default_rng(seed)
    radius = np.linalg.norm((coordinates() - (0, -18, 8)) / (68, 86, 62), axis=-1)
    value = np.select([radius < 1, radius < 1.1, radius < 1.22], [300.0, 20.0, 500.0], 0.0)
    return (value + (np.abs(rng.normal(0, 4, SHAPE)) if noise else 0)).astype(np.float32)


def write_patient(folder, name, *, names=("t1", "t1c", "t2", "flair"), seed=0, mask=None, image=None, suffix="seg"):
    """A patient's folder with four images and a mask."""
    for number, sequence in enumerate(names):
        # no two sequences are one image
        array = stripped(seed + number) if image is None else np.where(image > 0, image + number, image)
        save_nifti(folder / name / f"{name}_{sequence}.nii.gz", array.astype(np.int16), native_affine())
    array = tumour() * 4 if mask is None else mask
    save_nifti(folder / name / f"{name}_{suffix}.nii.gz", array.astype(np.uint8), native_affine())


def write_template(path):
    """An ellipsoid's T1 image in MNI152 space at 2 mm."""
    anatomy = ellipsoid_anatomy()
    image = anatomy.brain * (20 + 50 * anatomy.grey + 70 * anatomy.white)
    save_nifti(path, image.astype(np.float32), mni_affine())
    return path


def on_mni(volume, *, nearest=False):
    """A native volume on the MNI152 2 mm grid."""
    return resample(Volume(np.asarray(volume, np.float32), native_affine()), mni_shape(), mni_affine(), nearest=nearest)


class HeaderRegistration:
    """Moves volumes by a translation that it is told; stands in for a library that is not installed."""

    method, note = "headers", ""

    def __init__(self, shift=(0.0, 0.0, 0.0)):
        self.shift = np.asarray(shift, float)
        self.calls = []

    def rigid(self, fixed, moving):
        self.calls.append("rigid")
        return self.shift

    def to_template(self, template, moving, metric_mask):
        self.calls.append(("to_template", template.array.shape, int(metric_mask.sum())))
        self.metric_mask = metric_mask
        return np.zeros(3)

    def apply(self, warps, moving, fixed, *, nearest=False, inverse=False):
        affine = moving.affine.copy()
        affine[:3, 3] += (-1 if inverse else 1) * sum(warps, np.zeros(3))
        array = np.asarray(moving.array, np.float32)
        return resample(Volume(array, affine), fixed.array.shape, fixed.affine, nearest=nearest)

    def n4(self, volume, mask):
        self.calls.append("n4")
        return volume


def volume_of(path):
    """Array of a NIfTI file."""
    return np.asarray(nib.load(path).dataobj)
