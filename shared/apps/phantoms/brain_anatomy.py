"""Anatomy of phantom brains: tissue maps of the MNI152 template, or of ellipsoids, and tracts made for them."""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

from shared.data.brain.mni import MNI_SHAPE, load_template, mni_affine


class Anatomy(NamedTuple):
    """Brain mask and shares of grey matter, white matter and fluid, ``[91, 109, 91]`` at 2 mm."""

    brain: Any
    grey: Any
    white: Any
    fluid: Any
    name: str


def template_anatomy() -> Anatomy:
    """Tissue maps of nilearn's ICBM152 template.

    Raises:
        DataError: nilearn is not installed.
    """
    import numpy as np

    template = load_template()
    brain = template.mask.array > 0
    grey, white = np.clip(template.grey.array, 0, 1), np.clip(template.white.array, 0, 1)
    total = np.maximum(grey + white, 1.0)
    grey, white = grey / total, white / total
    return Anatomy(brain, grey, white, np.where(brain, 1 - grey - white, 0), "ICBM152 2009 (nilearn)")


def ellipsoid_anatomy() -> Anatomy:
    """A brain of ellipsoids: folded cortex, white matter, deep nuclei and two ventricles; needs no template."""
    import numpy as np
    from scipy.ndimage import gaussian_filter

    x, y, z = (axis.astype(float) for axis in _millimetres())
    x, y, z = np.abs(x), y + 18, z - 8
    radius = np.sqrt((x / 68) ** 2 + (y / 86) ** 2 + (z / 62) ** 2)
    brain = radius < 1
    folds = 0.035 * np.cos(y / 4.5) * np.cos(z / 4.0) + 0.02 * np.cos(x / 4.0)
    ventricle = np.sqrt(((x - 11) / 7) ** 2 + (y / 30) ** 2 + ((z - 8) / 9) ** 2) < 1
    nuclei = np.sqrt(((x - 20) / 9) ** 2 + (y / 20) ** 2 + ((z + 2) / 10) ** 2) < 1
    fluid = brain & (ventricle | (radius > 0.975) | ((x < 2) & (z > 16)))
    grey = brain & ~fluid & ((radius > 0.9 + folds) | nuclei)
    maps = [gaussian_filter(part.astype(np.float32), 0.6) * brain for part in (grey, brain & ~grey & ~fluid, fluid)]
    total = np.maximum(sum(maps), 1e-6)
    grey, white, fluid = (np.where(brain, part / total, 0) for part in maps)
    return Anatomy(brain, grey, white, fluid, "ellipsoids")


def choose_anatomy(kind: str = "auto") -> Anatomy:
    """Anatomy by name: ``template``, ``ellipsoid``, or ``auto``, the template where nilearn is installed."""
    if kind == "template" or (kind == "auto" and importlib.util.find_spec("nilearn")):
        return template_anatomy()
    return ellipsoid_anatomy()


def _millimetres():
    import numpy as np

    index = np.meshgrid(*map(np.arange, MNI_SHAPE), indexing="ij", sparse=True)
    return [axis * 2.0 + start for axis, start in zip(index, mni_affine()[:3, 3], strict=True)]


def phantom_tracts(anatomy: Anatomy, *, regions: int = 90, streamlines: int = 24, seed: int = 0) -> Any:
    """A tract atlas for phantoms: mirrored regions of about equal size, joined to neighbours, far and opposite ones.

    Args:
        anatomy: the brain.
        regions: how many, even; the odd numbers lie left, each even one is its mirror image.
        streamlines: of each tract.
        seed: of everything drawn.

    Returns:
        a :class:`shared.data.brain.atlas.TractAtlas` on the MNI152 2 mm grid.
    """
    import numpy as np
    from scipy.cluster.vq import kmeans2
    from scipy.spatial import cKDTree

    from shared.data.brain.atlas import TractAtlas

    rng = np.random.default_rng([seed, 17])
    affine = mni_affine()
    tissue = np.argwhere(anatomy.brain & (anatomy.grey + anatomy.white > 0.5))
    points = tissue @ affine[:3, :3] + affine[:3, 3]
    left = points[points[:, 0] < -1]
    drawn = left[rng.choice(len(left), min(len(left), 6000), replace=False)]
    centres, _ = kmeans2(drawn, regions // 2, iter=12, minit="++", seed=rng)
    centres = np.stack([centres, centres * (-1, 1, 1)], 1).reshape(-1, 3)
    labels = np.zeros(MNI_SHAPE, np.int16)
    labels[tuple(tissue.T)] = 1 + cKDTree(centres).query(points)[1]

    distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    order = distance.argsort(1)
    pairs = set()
    for region in range(regions):
        same = [other for other in order[region, 1:] if other % 2 == region % 2]
        pairs |= {tuple(sorted((region, int(other)))) for other in [*same[:4], rng.choice(same[8:])]}
    pairs |= {(region, region + 1) for region in range(0, regions, 2)}
    t = np.linspace(0, 1, 40)[:, None]
    paths = []
    for first, second in sorted(pairs):
        opposite = first % 2 != second % 2
        # between hemispheres through the callosum's height, within one along the white matter's core
        middle = (centres[first] + centres[second]) / 2
        core = (
            np.array([0.0, middle[1] * 0.6, 18.0]) if opposite else np.array([26 * np.sign(middle[0]), middle[1], 14])
        )
        bend = middle + (core - middle) * (0.9 if opposite else 0.45)
        for _ in range(streamlines):
            start, end, turn = (p + rng.normal(0, 2.5, 3) for p in (centres[first], centres[second], bend))
            paths.append((1 - t) ** 2 * start + 2 * t * (1 - t) * turn + t**2 * end)
    names = [f"Phantom_{1 + region // 2:02d}_{'LR'[region % 2]}" for region in range(regions)]
    return TractAtlas.from_streamlines(paths, labels, affine, names=names, min_streamlines=3, source="phantom tracts")
