"""Synthetic liver tumours in which visible patterns are painted at known places and drive the label.

The patterns are those that radiologists tie to microvascular invasion: an interrupted rather than intact capsule, a
mosaic rather than homogeneous interior, a peritumoral halo. ``scripts/make_phantom_cohort.py`` writes cohorts of them.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PATTERNS = {"interrupted_capsule": 1, "mosaic": 2, "halo": 3}
# Added to the liver's brightness of 1.
CONTRAST: dict[str, dict[str, float]] = {
    "T1": {"tumour": -0.28, "capsule": -0.05, "mosaic": 0.38, "halo": 0.0, "vessel": -0.12},
    "T1D": {"tumour": -0.30, "capsule": 0.30, "mosaic": 0.42, "halo": 0.36, "vessel": 0.12},
    "T1V": {"tumour": -0.22, "capsule": 0.62, "mosaic": 0.0, "halo": 0.08, "vessel": 0.30},
}
DIAMETER = (28.0, 56.0)  # mm
PREVALENCE = {True: 0.8, False: 0.2}


def visible_codes(modality: str, least: float = 0.25) -> list[int]:
    """Codes of the patterns painted in a modality with at least this contrast.

    Example:
        >>> visible_codes("T1"), visible_codes("T1D"), visible_codes("T1V")
        ([2], [1, 2, 3], [1])
    """
    painted = {"interrupted_capsule": "capsule", "mosaic": "mosaic", "halo": "halo"}
    return [code for name, code in PATTERNS.items() if CONTRAST[modality][painted[name]] >= least]


def label_probability(count: int, effect: float) -> float:
    """Probability of label 1 for a tumour with ``count`` of the three patterns."""
    return 0.5 * (1.0 + math.tanh(0.5 * effect * (count - len(PATTERNS) / 2)))


def bayes_auc(effect: float) -> float:
    """AUC of the best possible reader of the three patterns, by enumeration (ties count half).

    Example:
        >>> bayes_auc(0.0), round(bayes_auc(4.5), 3)
        (0.5, 0.977)
    """
    size = len(PATTERNS)
    weights = [
        sum(0.5 * math.comb(size, n) * p**n * (1 - p) ** (size - n) for p in PREVALENCE.values())
        for n in range(size + 1)
    ]
    positive = [weight * label_probability(n, effect) for n, weight in enumerate(weights)]
    negative = [weight - share for weight, share in zip(weights, positive, strict=True)]
    wins = sum(
        p * q * (1.0 if n > m else 0.5 if n == m else 0.0)
        for (n, p), (m, q) in itertools.product(enumerate(positive), enumerate(negative))
    )
    return wins / (sum(positive) * sum(negative))


def draw_labels(count: int, effect: float, rng: np.random.Generator) -> list[dict]:
    """Patterns, label and tumour diameter of ``count`` patients; half of them (rounded up) aggressive, in random order.

    Labels and diameters are drawn systematically (one per equal slice of probability) within the patients of one number
    of patterns and of one label: small cohorts then have about the strength asked for, and size unrelated to the label.
    """
    rows = [
        {name: int(rng.random() < PREVALENCE[bool(aggressive)]) for name in PATTERNS}
        for aggressive in rng.permutation([row % 2 == 0 for row in range(count)])
    ]
    groups: dict[int, list[dict]] = {}
    for row in rows:
        groups.setdefault(sum(row.values()), []).append(row)
    for number, group in sorted(groups.items()):
        probability = label_probability(number, effect)
        for row, draw in zip(group, _systematic(len(group), rng), strict=True):
            row.update(label=int(draw < probability), probability=round(probability, 4))
    for label in (0, 1):
        group = [row for row in rows if row["label"] == label]
        for row, draw in zip(group, _systematic(len(group), rng), strict=True):
            row["diameter_mm"] = round(DIAMETER[0] + float(draw) * (DIAMETER[1] - DIAMETER[0]), 2)
    return rows


def _systematic(count: int, rng: np.random.Generator):
    """``count`` uniform draws in random order, one in each of ``count`` equal slices of [0, 1)."""
    return (rng.permutation(count) + rng.random(count)) / max(count, 1)


def _wave(rng: np.random.Generator, theta, orders, amplitude):
    """A smooth random periodic function of an angle."""
    import numpy as np

    return sum(amplitude * rng.uniform(-1, 1) * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) for k in orders)


def _step(distance, width):
    """Soft step in mm: 0 well below zero, 1 well above."""
    import numpy as np

    return 1.0 / (1.0 + np.exp(-np.clip(distance / (0.5 * width), -30, 30)))


def _window(theta, centre, half_width, soft=0.15):
    """Soft indicator of the angles within ``half_width`` of ``centre``."""
    import numpy as np

    return _step(half_width - np.abs(np.angle(np.exp(1j * (theta - centre)))), soft)


def _nodules(rng: np.random.Generator, x, y, z, extent, pitch):
    """Voronoi nodules of about ``pitch`` mm: bright or dark, parted by darker septa; they run along the slices."""
    import numpy as np
    from scipy.spatial import cKDTree

    steps = np.arange(-extent - pitch, extent + 2 * pitch, pitch)
    seeds = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
    seeds = seeds + rng.uniform(-0.38, 0.38, seeds.shape) * pitch
    parity = (np.arange(len(steps))[:, None] + np.arange(len(steps))[None]).reshape(-1) % 2
    tone = np.where(parity == 0, 1.0, -0.75) * rng.uniform(0.8, 1.1, len(seeds))
    tilt = rng.uniform(-0.12, 0.12, 2)
    points = np.stack(np.broadcast_arrays(x + tilt[0] * z, y + tilt[1] * z), -1)
    distance, nearest = cKDTree(seeds).query(points.reshape(-1, 2), k=2)
    septum = np.exp(-(((distance[:, 1] - distance[:, 0]) / 1.6) ** 2))
    return (tone[nearest[:, 0]] * (1 - septum) - 0.8 * septum).reshape(points.shape[:-1])


def _vessels(rng: np.random.Generator, x, y, z, reach):
    """Four to seven straight tubes anywhere in the organ, 0 to 1."""
    import numpy as np

    tubes = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape))
    for _ in range(rng.integers(4, 8)):
        point, direction = rng.uniform(-reach, reach, 3) * (1, 1, 0.3), rng.normal(size=3) * (1, 1, 0.5)
        direction /= np.linalg.norm(direction)
        dx, dy, dz = x - point[0], y - point[1], z - point[2]
        along = dx * direction[0] + dy * direction[1] + dz * direction[2]
        square = dx**2 + dy**2 + dz**2 - along**2
        tubes = np.maximum(tubes, _step(rng.uniform(1.8, 3.6) - np.sqrt(np.maximum(square, 0)), 1.5))
    return tubes


def paint_patient(present: dict, diameter: float, modalities: tuple[str, ...], rng: np.random.Generator) -> dict:
    """Draw one patient in the frame of acquisition (x to the right, y forward, slices along z).

    Args:
        present: 0 or 1 for each of ``PATTERNS``.
        diameter: the largest of the tumour, mm.
        modalities: which of T1, T1D, T1V to paint.
        rng: numpy random generator; everything about the patient comes from it.

    Returns:
        ``images`` (modality to int16 ``[X, Y, Z]``), ``mask`` and ``planted`` (uint8), ``affine``.
    """
    import numpy as np
    from scipy.ndimage import gaussian_filter

    semi = np.array([1.0, rng.uniform(0.78, 1.0), rng.uniform(0.92, 1.08)]) * diameter / 2
    # The organ holds the tumour and a halo of 12 mm.
    organ = np.array([rng.uniform(58, 88), 0.0])
    organ[1] = max(organ[0] * rng.uniform(0.66, 0.85), semi[0] + 18)
    organ[0] = max(organ[0], organ[1] * 1.05)
    spacing = rng.uniform(max(1.2, (2 * organ[0] + 12) / 104), min(2.5, (2 * organ[0] + 12) / 64))
    thickness = float(np.clip(2 * semi[2] / rng.uniform(7.6, 9.5), 3.0, 6.0))
    slices = min(int(np.ceil(2 * semi[2] / thickness)) + 4, 14)
    shape = (*(int(np.ceil((2 * half + 12) / spacing)) for half in organ), slices)
    x, y, z = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, (spacing, spacing, thickness), strict=True)),
        indexing="ij",
        sparse=True,
    )

    angle = np.arctan2(y / organ[1], x / organ[0])
    radius = (np.abs(x / organ[0]) ** 2.3 + np.abs(y / organ[1]) ** 2.3) ** (1 / 2.3)
    edge = 0.96 - 0.10 * (z / np.abs(z).max()) ** 2 + np.minimum(_wave(rng, angle, (2, 3, 4), 0.035), 0.04)
    inside_organ = radius < edge
    # The tumour may lie anywhere where it and its halo stay in the organ.
    reach = np.maximum(1 - (semi[0] + 14) / (0.86 * organ), 0.0) * organ
    phase = rng.uniform(0, 2 * np.pi)
    centre = 0.85 * reach * (np.cos(phase), np.sin(phase)) * np.sqrt(rng.random())
    x, y, z = x - centre[0], y - centre[1], z - rng.uniform(-0.3, 0.3) * thickness

    theta, distance = np.arctan2(y, x), np.hypot(x, y)
    turned = theta - rng.uniform(0, np.pi)
    boundary = semi[0] * semi[1] / np.hypot(semi[1] * np.cos(turned), semi[0] * np.sin(turned))
    boundary = boundary * (1 + _wave(rng, theta, (2, 3, 4, 5), 0.045))
    profile = np.maximum(1 - np.abs(z / semi[2]) ** 2.6, 0.0) ** (1 / 2.6)
    depth = boundary * profile - distance  # mm inside the edge, negative outside
    in_slices = np.abs(z) < semi[2]
    mask = (depth > 0) & in_slices & inside_organ
    tumour = _step(depth, 1.2) * in_slices

    planted = np.zeros(shape, np.uint8)
    rim = np.exp(-(((depth - 1.6) / 1.5) ** 2)) * (0.75 + _wave(rng, theta, (2, 3), 0.08))
    arc_at, gap_side = rng.uniform(-np.pi, np.pi), rng.choice([-1, 1])
    arc = _window(theta, arc_at, rng.uniform(0.75, 0.95))
    gap = _window(theta, arc_at + gap_side * 1.45, 0.5)
    width = min(7.0, 0.38 * semi[1]) + 1.5 * np.cos(7 * theta + phase) + _wave(rng, theta, (3, 5), 0.7)
    thick = _step(depth + 1.2, 1.0) * _step(width - depth, 1.0)
    # Arc and nodules lie apart, so that neither hides the other.
    mosaic_at, halo_at = arc_at + rng.uniform(1.6, 2 * np.pi - 1.6), rng.uniform(-np.pi, np.pi)
    sector = _window(theta, mosaic_at, rng.uniform(1.05, 1.3)) * _step(depth - 2.8, 1.2)
    sector = sector * _step(distance - 0.18 * boundary * profile, 1.5)
    nodules = _nodules(rng, x, y, z, float(semi[0]) * 1.2, rng.uniform(5.5, 7.5))
    span = rng.uniform(1.0, 1.25)
    crescent = 10.0 * np.sqrt(_window(theta, halo_at, span, 0.5)) + _wave(rng, theta, (5, 7), 0.8)
    halo = _step(-depth - 0.5, 1.2) * _step(depth + crescent, 3.0) * _window(theta, halo_at, span + 0.1)
    halo = halo * (np.abs(z) < 0.95 * semi[2])
    if present["mosaic"]:
        planted[(sector > 0.5) & mask] = PATTERNS["mosaic"]
    else:
        nodules = np.zeros_like(nodules)
    if present["interrupted_capsule"]:
        rim = rim * (1 - arc) * (1 - gap) + 1.15 * thick * arc
        near = in_slices & inside_organ & (depth > -1.2)
        planted[near & (((arc > 0.5) & (depth < width)) | ((gap > 0.5) & (depth < 4)))] = PATTERNS[
            "interrupted_capsule"
        ]
    if present["halo"]:
        planted[(halo > 0.4) & inside_organ & ~mask & (planted == 0)] = PATTERNS["halo"]
    else:
        halo = np.zeros_like(halo)
    rim = rim * in_slices

    core = rng.uniform(0, 0.12) * np.exp(-((distance / (0.35 * semi[0])) ** 2)) * tumour
    vessels = _vessels(rng, x, y, z, 0.8 * organ[0]) * _step(-depth - 5, 3)
    grain = (4.0 / spacing, 4.0 / spacing, 4.0 / thickness)
    scale = rng.uniform(250, 1200)
    images = {}
    for name in CONTRAST:  # the same draws whichever modalities are kept
        contrast = CONTRAST[name]
        texture = gaussian_filter(rng.standard_normal(shape), grain)
        texture *= 0.035 / texture.std()
        parenchyma = 1 + texture + contrast["vessel"] * vessels * (1 - tumour)
        lesion = 1 + contrast["tumour"] + rng.uniform(-0.05, 0.05) - core + 0.5 * texture
        lesion = lesion + contrast["mosaic"] * nodules * sector
        value = parenchyma * (1 - tumour) + lesion * tumour
        value = value + contrast["capsule"] * rim + contrast["halo"] * halo
        slope = rng.uniform(-0.15, 0.15, 2)
        bias = np.exp(slope[0] * x / organ[0] + slope[1] * y / organ[1] + rng.uniform(-0.1, 0.1) * radius**2)
        value = value * bias + rng.uniform(0.03, 0.055) * rng.standard_normal(shape)
        value = value * scale * rng.uniform(0.75, 1.3)
        if name in modalities:
            images[name] = np.where(inside_organ, np.clip(np.rint(value), 1, 32000), 0).astype(np.int16)
    return {
        "images": {name: images[name] for name in modalities},
        "mask": mask.astype(np.uint8),
        "planted": planted,
        "affine": _affine(shape, (spacing, spacing, thickness), rng),
    }


def _affine(shape, spacing, rng: np.random.Generator):
    """Affine of the acquisition: two patients in five are oblique, by up to 18 degrees about each axis."""
    import numpy as np
    from scipy.spatial.transform import Rotation

    angles = rng.uniform(-18, 18, 3) * (rng.random() < 0.4)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * np.asarray(spacing)
    affine[:3, 3] = rng.uniform(-60, 60, 3) - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine
