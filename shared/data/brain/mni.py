"""The space of the glioma bundle: MNI152 at 2 mm, its grid and its template."""

from __future__ import annotations

import importlib
import os
from typing import Any, NamedTuple

from shared.data.grids import canonical, same_grid
from shared.data.volumes import Volume, load_volume, resample
from shared.errors import DataError

MNI_SHAPE = (91, 109, 91)


MNI_SPACING = 2.0  # mm


MNI_ORIGIN = (-90.0, -126.0, -72.0)  # RAS mm of the first voxel's centre


_TEMPLATE_REMEDY = "pip install nilearn, or give a skull-stripped T1 image in MNI152 space with --template FILE"


class Template(NamedTuple):
    """The brain of the template, and its mask, on one grid; tissue probabilities where they are known."""

    image: Volume
    mask: Volume
    grey: Volume | None = None
    white: Volume | None = None


def mni_affine(spacing: float = MNI_SPACING):
    """Affine of the MNI152 grid that starts at its left, posterior, inferior corner.

    Example:
        >>> mni_affine().tolist()[0]
        [2.0, 0.0, 0.0, -90.0]
    """
    import numpy as np

    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = MNI_ORIGIN
    return affine


def mni_shape(spacing: float = MNI_SPACING) -> tuple[int, int, int]:
    """Shape of the MNI152 grid at ``spacing``: 91 x 109 x 91 at 2 mm, 181 x 217 x 181 at 1 mm.

    Example:
        >>> mni_shape(), mni_shape(1.0)
        ((91, 109, 91), (181, 217, 181))
    """
    return tuple(round((n - 1) * MNI_SPACING / spacing) + 1 for n in MNI_SHAPE)


def mni_grid_problem(shape: tuple[int, ...], affine: Any) -> str | None:
    """What keeps an image from lying on the MNI152 2 mm grid, whichever way its axes run; None where nothing does.

    Example:
        >>> mni_grid_problem(MNI_SHAPE, mni_affine()) is None
        True
        >>> mni_grid_problem((240, 240, 155), mni_affine(1.0))
        'must lie on the MNI152 2 mm grid of 91 x 109 x 91 voxels, ... got 240 x 240 x 155 voxels of 1 x 1 x 1 mm ...'
    """
    import nibabel as nib
    import numpy as np

    upright = canonical(shape, affine)
    if same_grid(upright, (MNI_SHAPE, mni_affine())):
        return None
    mm = nib.affines.voxel_sizes(affine)
    return (
        f"must lie on the MNI152 2 mm grid of {' x '.join(map(str, MNI_SHAPE))} voxels, the first centre at "
        f"{MNI_ORIGIN} mm; got {' x '.join(map(str, shape))} voxels of {' x '.join(f'{s:g}' for s in mm)} mm from "
        f"{tuple(float(v) for v in np.round(upright[1][:3, 3], 2))} mm; "
        "register it with scripts/prepare_glioma.py, without --already-mni"
    )


def _coarser(volume: Volume, spacing: float) -> Volume:
    """A fine volume on the MNI grid of ``spacing``, smoothed first so that nothing aliases (and nothing rings)."""
    import nibabel as nib
    from scipy.ndimage import gaussian_filter

    finer = spacing / nib.affines.voxel_sizes(volume.affine)
    blur = [0.42 * step if step > 1.5 else 0.0 for step in finer]
    array = gaussian_filter(volume.array, blur) if any(blur) else volume.array
    return resample(Volume(array, volume.affine), mni_shape(spacing), mni_affine(spacing))


def load_template(file: str | os.PathLike | None = None, spacing: float = MNI_SPACING) -> Template:
    """The skull-stripped T1 template on the MNI152 grid: nilearn's ICBM152 2009, or a file.

    Args:
        file: skull-stripped T1 image in MNI152 space, of any grid; None: nilearn's, with its tissue probabilities.
        spacing: of the grid, mm.

    Raises:
        DataError: nilearn is not installed, or the file is no image of the MNI152 brain.
    """
    import numpy as np

    if file is not None:
        image = load_volume(file)
        brain = resample(
            Volume((image.array > 0).astype(np.float32), image.affine), mni_shape(spacing), mni_affine(spacing)
        )
        mask = brain.array > 0.5
        litres = float(mask.sum()) * spacing**3 / 1e6
        if not 1.0 < litres < 2.3:
            raise DataError(
                f"{file}: a template is a skull-stripped brain in MNI152 space (about 1.9 litres of non-zero voxels), "
                f"{litres:.2f} litres of this one's lie there; give another, or none and install nilearn"
            )
        image = _coarser(image, spacing)
        parts = [Volume(image.array * mask, image.affine), Volume(mask.astype(np.uint8), image.affine)]
        return Template(*parts)
    try:
        datasets = importlib.import_module("nilearn.datasets")
    except ImportError as error:
        raise DataError(f"there is no MNI152 template: {_TEMPLATE_REMEDY}") from error
    found = {}
    for name in ("template", "brain_mask", "gm_template", "wm_template"):
        loaded = getattr(datasets, f"load_mni152_{name}")(resolution=1)
        found[name] = _coarser(Volume(np.asarray(loaded.dataobj, np.float32), loaded.affine), spacing)
    mask = found["brain_mask"].array > 0.5
    image, grey, white = (
        Volume(found[name].array * mask, found[name].affine) for name in ("template", "gm_template", "wm_template")
    )
    return Template(image, Volume(mask.astype(np.uint8), image.affine), grey, white)
