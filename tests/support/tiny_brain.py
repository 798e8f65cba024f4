"""A brain of a few thousand voxels for the tests: regions, streamlines between them, volumes and patients."""

import numpy as np
import torch

from shared.data.brain.atlas import TractAtlas

SHAPE = (14, 16, 12)
ORIGIN = (-14.0, -20.0, -10.0)
AFFINE = np.array([[2.0, 0, 0, ORIGIN[0]], [0, 2.0, 0, ORIGIN[1]], [0, 0, 2.0, ORIGIN[2]], [0, 0, 0, 1]])
PAIRS = [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)]
NAMES = ["front left", "front right", "back left", "back right", "deep"]
# voxels of the 2 mm grid: first corner and the one after the last
BOXES = [((1, 1, 2), (4, 5, 8)), ((10, 1, 2), (13, 5, 8)), ((1, 11, 2), (4, 15, 8)), ((10, 11, 2), (13, 15, 8))]
BOXES.append(((6, 6, 9), (8, 9, 11)))


def tiny_parcellation(labels=(2001, 2002, 2101, 2102, 4101)):
    """Five boxes on a 1 mm grid whose voxel centres hold those of the atlas, one label each, and its affine."""
    fine = np.zeros(tuple(2 * n for n in SHAPE), dtype=np.int32)
    for label, (low, high) in zip(labels, BOXES, strict=True):
        fine[tuple(slice(2 * a, 2 * b) for a, b in zip(low, high, strict=True))] = label
    affine = AFFINE.copy()
    affine[:3, :3] /= 2
    return fine, affine


def centre(region):
    """Middle of a region's box, mm."""
    low, high = np.array(BOXES[region], dtype=float)
    return AFFINE[:3, :3] @ ((low + high - 1) / 2) + AFFINE[:3, 3]


def tiny_streamlines(pairs=PAIRS, *, each=12, spread=1.0, seed=0):
    """Wavering lines from region to region, in both directions."""
    rng = np.random.default_rng(seed)
    lines = []
    for a, b in pairs:
        for k in range(each):
            share = np.linspace(0, 1, 9)[:, None]
            line = centre(a) * (1 - share) + centre(b) * share + rng.normal(0, spread, (9, 3))
            lines.append(line[:: -1 if k % 2 else 1])
    return lines


def tiny_atlas(**options):
    """The atlas of these lines: five regions, five tracts."""
    labels, affine = tiny_parcellation()
    given = {"shape": SHAPE, "affine": AFFINE, "names": NAMES, **options}
    return TractAtlas.from_streamlines(tiny_streamlines(), labels, affine, **given)


def tiny_volume(channels=4, *, seed=0):
    """Smooth-less noise: no two voxels alike."""
    return torch.randn(channels, *SHAPE, generator=torch.Generator().manual_seed(seed))


def tiny_cases(count=3, *, channels=4, fa=True, seed=0):
    """Patients as a loading transform leaves them; the FA map is a function of the first two channels."""
    cases = []
    for i in range(count):
        image = tiny_volume(channels, seed=seed + i)
        case = {"patient": f"P{i}", "image": image, "affine": AFFINE}
        cases.append({**case, "fa": (image[:1] - image[1 % channels]).sigmoid()} if fa else case)
    return cases
