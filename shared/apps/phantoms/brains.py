"""Synthetic glioma patients whose genotype shows in three separate ways: tumour shape, brightness, spread along tracts.

Each way (a sign) is one that the literature ties to IDH: wild type is irregular and infiltrates tracts; mutant is
smooth and shows the T2-FLAIR mismatch. Two decoys: calcifications, as dark on FLAIR as the mismatch, at its other end;
and an enhancing rim in half of either genotype. Where there is no mismatch, a calcification may have its place. A map
of brightness finds them, too, and neither the volume that is dark on FLAIR nor the one that is dark on T2 tells the
sign (AUC 0.69 each): both must be seen together.
``scripts/make_phantom_brains.py`` writes cohorts of these patients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from shared.apps.phantoms.brain_anatomy import Anatomy

SEQUENCES = ("T1", "T1c", "T2", "FLAIR")
# brightness of tissues; of oedema, what it adds
CONTRAST = {
    "T1": {"grey": 0.50, "white": 0.72, "fluid": 0.22, "oedema": -0.10, "tumour": 0.44, "calcium": 0.36, "rim": 0.48},
    "T1c": {"grey": 0.52, "white": 0.72, "fluid": 0.22, "oedema": -0.10, "tumour": 0.46, "calcium": 0.38, "rim": 0.90},
    "T2": {"grey": 0.52, "white": 0.36, "fluid": 0.95, "oedema": 0.22, "tumour": 0.74, "calcium": 0.36, "rim": 0.70},
    "FLAIR": {"grey": 0.52, "white": 0.42, "fluid": 0.12, "oedema": 0.28, "tumour": 0.76, "calcium": 0.34, "rim": 0.74},
}
SUPPRESSED = CONTRAST["FLAIR"]["calcium"]  # FLAIR of the mismatch, whose T2 stays the tumour's
FA = {"grey": 0.14, "white": 0.50, "fluid": 0.04, "tumour": 0.12, "lost": 0.55}
SIGNS = ("shape", "intensity", "tracts")
# of the planted map: signs of wild type but mismatch, which is mutant's; two decoys; and what has the mismatch's place,
# which speaks for wild type
PLANTED = {
    "spicules": 1,
    "mismatch": 2,
    "enhancing_rim": 3,
    "infiltrated_tracts": 4,
    "calcification": 5,
    "calcification_instead": 6,
}
DIAMETER = (24.0, 42.0)  # mm, of a ball of the tumour's volume
STRETCH = 0.5  # of an axis: its logarithm, at most
SPICULES = (6, 8)
HEIGHT = (0.55, 0.95)  # of a spicule, shares of the radius below it
TRACTS = 12  # infiltrated, of a patient who has any
SPREAD_MM = 40.0  # along a tract, until infiltration falls to 1/e
POCKET = {"radius": 0.5, "off_centre": 0.6, "margin": 0.1}  # mismatch, calcification: shares of the tumour's radius
LEVELS = 32  # of brightness: few, so that files stay small


def bayes_auc(strengths: Mapping[str, float]) -> float:
    """AUC of the best possible reader of the signs, by enumeration (ties count half).

    Args:
        strengths: by sign the probability that it agrees with the genotype: 0.5 says nothing, 1 everything.

    Example:
        >>> bayes_auc({"shape": 0.9}), round(bayes_auc(dict.fromkeys(SIGNS, 0.9)), 3)
        (0.9, 0.991)
    """
    outcomes = []
    for agree in itertools.product((1, 0), repeat=len(strengths)):
        mutant = math.prod(p if a else 1 - p for a, p in zip(agree, strengths.values(), strict=True))
        wild = math.prod(1 - p if a else p for a, p in zip(agree, strengths.values(), strict=True))
        outcomes.append((mutant, wild, mutant / (mutant + wild) if mutant + wild else 0.5))
    auc = sum(
        a[0] * b[1] * (1.0 if a[2] > b[2] + 1e-12 else 0.5 if abs(a[2] - b[2]) <= 1e-12 else 0.0)
        for a, b in itertools.product(outcomes, outcomes)
    )
    return round(auc, 12)


def draw_patients(
    count: int,
    strengths: Mapping[str, float],
    covariate_effect: float,
    rng: Any,
    *,
    volume_effect: float = 0.0,
    location_effect: float = 0.0,
) -> list[dict]:
    """Genotype, signs, decoys, size, age and grade of patients; half of them mutant.

    Signs, decoys, size and covariates are drawn systematically within each genotype: small cohorts then have about the
    strength that was asked for, and size says nothing. A sign is 1 where it looks mutant. A calcification is at the end
    opposite to the mismatch in half of the patients, and in half of those without a mismatch in its place.

    Args:
        count: how many.
        strengths: by sign the probability that it agrees with the genotype.
        covariate_effect: difference of the genotypes' means of age and of grade, in standard deviations.
        rng: numpy random generator.
        volume_effect: likewise of the normal score of size: above 0, wild types are larger; 0: size says nothing.
        location_effect: likewise of the place from back to front, ``anterior`` (a share of all places): above 0,
            mutants lie further in front, as they do (Lai et al., Journal of Clinical Oncology 2011); 0: any place.
    """
    from scipy.stats import norm

    rows = [{"label": int(label)} for label in rng.permutation([row % 2 for row in range(count)])]
    for label in (0, 1):
        group = [row for row in rows if row["label"] == label]
        for sign in SIGNS:
            for row, draw in zip(group, _systematic(len(group), rng), strict=True):
                row[sign] = label if draw < strengths[sign] else 1 - label
        draws = [_systematic(len(group), rng) for _ in range(6)]
        shift = covariate_effect * (0.5 - label)  # mutants are younger and of lower grade
        for row, decoy, opposite, instead, size, age, grade in zip(group, *draws, strict=True):
            row["enhancing"] = int(decoy < 0.5)
            row["calcified"] = int(opposite < 0.5)
            row["calcified_instead"] = int(instead < 0.5 and not row["intensity"])
            if volume_effect:
                size = norm.cdf(norm.ppf(size) + volume_effect * (0.5 - label))
            row["diameter_mm"] = round(DIAMETER[0] + float(size) * (DIAMETER[1] - DIAMETER[0]), 2)
            row["age"] = round(min(max(52 + 12 * (float(norm.ppf(age)) + shift), 18), 88))
            row["grade"] = 2 + sum(float(norm.ppf(grade)) + shift > cut for cut in (-0.5, 0.5))
        if location_effect:
            for row, place in zip(group, _systematic(len(group), rng), strict=True):
                row["anterior"] = round(float(norm.cdf(norm.ppf(place) - location_effect * (0.5 - label))), 4)
    return rows


def _systematic(count: int, rng: Any):
    """``count`` uniform draws in random order, one in each of ``count`` equal slices of (0, 1)."""
    return (rng.permutation(count) + rng.uniform(0.01, 0.99, count)) / max(count, 1)


def _smooth_noise(rng: Any, shape: tuple[int, ...], step: int) -> Any:
    """Gaussian noise of standard deviation 1 and a grain of ``step`` voxels."""
    import numpy as np
    from scipy.ndimage import gaussian_filter, zoom

    coarse = gaussian_filter(rng.standard_normal([-(-n // step) + 2 for n in shape]).astype(np.float32), 0.7)
    noise = zoom(coarse, step, order=1)[tuple(slice(n) for n in shape)]
    return noise / noise.std()


def _soft(distance: Any, width: float) -> Any:
    """Soft step: 0 well below zero, 1 well above."""
    import numpy as np

    return 1.0 / (1.0 + np.exp(-np.clip(distance / (0.5 * width), -30, 30)))


def tumour_shape(
    anatomy: Anatomy, diameter: float, irregular: bool, rng: Any, *, anterior: float | None = None, visible: float = 1.0
) -> tuple[Any, Any, Any]:
    """A tumour in the brain: mm inside its edge (negative outside), its mask, and the part of it that is spicules.

    Smooth tumours are ellipsoids, a little wavy; irregular ones carry spicules as well. Both have the volume of a ball
    of ``diameter``, so that only the shape tells. Spicules stand on the flat sides: what is far from the middle need be
    no spicule. ``anterior``: the share of places behind it; None: any place. ``visible``: factor on spicules' height.
    """
    import numpy as np
    from scipy.ndimage import distance_transform_edt

    inner = distance_transform_edt(anatomy.brain) * 2.0
    places = np.argwhere((inner > 0.5 * diameter) & (anatomy.white + anatomy.grey > 0.6))
    if not len(places):
        places = np.argwhere(inner > 0.8 * inner.max())
    if anterior is not None:  # a twentieth of the places, those about so far in front
        width = max(len(places) // 20, 1)
        first = min(max(int(anterior * len(places)) - width // 2, 0), len(places) - width)
        places = places[np.argsort(places[:, 1], kind="stable")[first : first + width]]
    centre = places[rng.integers(len(places))] + rng.uniform(-0.5, 0.5, 3)
    index = np.stack(np.meshgrid(*map(np.arange, anatomy.brain.shape), indexing="ij"), -1)
    low = np.maximum((centre - diameter).astype(int), 0)
    box = tuple(slice(a, b) for a, b in zip(low, (centre + diameter).astype(int) + 1, strict=True))
    offset = (index[box] - centre) * 2.0
    length = np.maximum(np.linalg.norm(offset, axis=-1), 1e-6)
    direction = offset / length[..., None]
    stretch = np.exp(rng.uniform(-STRETCH, STRETCH, 3))
    base = 1 / np.linalg.norm(direction / stretch, axis=-1)
    waves = rng.normal(size=(4, 3)) * 2.0
    base = base * (1 + 0.03 * np.cos(direction @ waves.T + rng.uniform(0, 6.3, 4)).sum(-1))
    spikes = np.zeros(length.shape)
    if irregular:
        count = int(rng.integers(SPICULES[0], SPICULES[1] + 1))
        golden = np.arange(2 * count) + rng.uniform(-0.3, 0.3, 2 * count)
        height = 1 - 2 * (np.clip(golden, 0, 2 * count - 1) + 0.5) / (2 * count)
        angle = golden * 2.39996 + rng.uniform(0, 6.3)
        ring = np.sqrt(np.maximum(1 - height**2, 0))
        axes = np.stack([ring * np.cos(angle), ring * np.sin(angle), height], -1)
        # on the flat sides: at the long ends a spicule would be no more than what is farthest from the middle
        axes = axes[np.argsort(np.linalg.norm(axes / stretch, axis=1))[::-1][:count]]
        tall = visible * rng.uniform(*HEIGHT, count)
        spikes = (tall * np.exp(22 * (direction @ axes.T - 1))).max(-1)
    wanted, inside = np.pi / 6 * diameter**3 / 8, anatomy.brain[box]
    ratio = np.where(inside, length / (base * (1 + spikes)), np.inf)
    scale = np.partition(ratio.ravel(), int(wanted))[int(wanted)]  # so many voxels lie within this radius
    depth = np.full(anatomy.brain.shape, -1e3, np.float32)
    # along the ray; at a spicule's side the edge is nearer than that
    depth[box] = np.where(inside, (scale * base * (1 + spikes) - length) / (1 + 2 * spikes), -1e3)
    spicules = np.zeros(anatomy.brain.shape, bool)
    spicules[box] = (depth[box] > 0) & (length > 1.12 * scale * base)
    return depth, depth > 0, spicules


def pockets(depth: Any, mask: Any, radius: float, rng: Any) -> tuple[Any, Any]:
    """Two balls along a tumour's longest axis, in random order, 0 to 1; the middle itself lies in neither."""
    import numpy as np

    places = 2.0 * np.argwhere(mask)
    centre = places.mean(0)
    axis = np.linalg.eigh(np.cov((places - centre).T))[1][:, -1]
    axis *= rng.choice([-1, 1]) * POCKET["off_centre"] * radius
    found = []
    for side in (1, -1):
        place = centre + side * axis
        away = sum((2.0 * i - c) ** 2 for i, c in zip(np.indices(mask.shape, sparse=True), place, strict=True)) ** 0.5
        found.append(_soft(POCKET["radius"] * radius - away, 1.5) * _soft(depth - POCKET["margin"] * radius, 1.5))
    return found[0], found[1]


def infiltrated(atlas: Any, mask: Any, brain: Any, count: int, rng: Any) -> tuple[Any, list[int]]:
    """How far infiltration reaches along some tracts through the tumour, 0 to 1, and which tracts.

    Of the tracts that cross the tumour those that leave it furthest are taken, in random order of near equals.
    """
    import numpy as np
    from scipy.ndimage import binary_dilation, distance_transform_edt

    away = distance_transform_edt(~mask) * 2.0
    near = binary_dilation(mask).ravel()
    far, scores = away.ravel(), []
    for edge in range(atlas.num_tracts):
        voxels, shares = atlas.tract(edge)
        voxels = voxels[shares > 0.05]
        if near[voxels].any():
            scores.append((float((far[voxels] > 6).sum()) * rng.uniform(0.7, 1.0), edge))
    chosen = sorted(edge for _, edge in sorted(scores, reverse=True)[:count])
    spread = np.zeros(mask.size, np.float32)
    for edge in chosen:
        voxels, shares = atlas.tract(edge)
        voxels = voxels[shares > 0.05]
        spread[voxels] = np.maximum(spread[voxels], np.exp(-far[voxels] / SPREAD_MM))
    return spread.reshape(mask.shape) * (brain & ~mask), chosen


def paint_patient(
    row: Mapping[str, Any], anatomy: Anatomy, atlas: Any, rng: Any, *, tracts: int = TRACTS, visible: float = 1.0
) -> dict[str, Any]:
    """Paint one patient.

    Args:
        row: of :func:`draw_patients`: signs, decoys and diameter.
        anatomy: the brain.
        atlas: tracts along which a tumour may spread.
        rng: numpy random generator; everything about the patient comes from it.
        tracts: how many are infiltrated.
        visible: how strongly the signs are drawn, up to 1: factor on the height of spicules, on the mismatch and on
            what infiltration changes. The planted map has them whole.

    Returns:
        ``images`` by sequence, ``mask``, ``planted`` (uint8), ``fa`` (uint8, 250 is 1), all ``[91, 109, 91]``;
        ``tracts``: the infiltrated ones; ``centre_mm``.
    """
    import numpy as np
    from scipy.ndimage import gaussian_filter

    place = row.get("anterior")
    depth, mask, spicules = tumour_shape(
        anatomy, row["diameter_mm"], not row["shape"], rng, anterior=place, visible=visible
    )
    spread, chosen = np.zeros(mask.shape, np.float32), []
    if not row["tracts"]:
        spread, chosen = infiltrated(atlas, mask, anatomy.brain, tracts, rng)
    spread = gaussian_filter(spread, 0.5) * anatomy.brain
    # what lies in the mask's box is in the tumour's image: only the brain network is to see this sign
    spread[tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero(mask))] = 0
    tumour, radius = _soft(depth, 1.5), row["diameter_mm"] / 2
    oedema = np.maximum(_soft(depth + 3, 2.0) * 0.8, visible * np.minimum(1.6 * spread, 1.0))
    rim = _soft(depth, 1.5) * _soft(0.34 * radius - depth, 1.5) * row["enhancing"]
    there, opposite = pockets(depth, mask, radius, rng)
    suppressed = there * row["intensity"]
    calcified, instead = opposite * row["calcified"], there * row["calcified_instead"]
    calcium = np.maximum(calcified, instead)
    planted = np.zeros(mask.shape, np.uint8)
    planted[(spread > 0.2) & ~mask] = PLANTED["infiltrated_tracts"]
    planted[(rim > 0.5) & mask] = PLANTED["enhancing_rim"]
    planted[(calcified > 0.5) & mask] = PLANTED["calcification"]
    planted[(instead > 0.5) & mask] = PLANTED["calcification_instead"]
    planted[(suppressed > 0.5) & mask] = PLANTED["mismatch"]
    planted[spicules] = PLANTED["spicules"]
    texture = 0.05 * _smooth_noise(rng, mask.shape, 4)
    drift = [0.04 * _smooth_noise(rng, mask.shape, 30) for _ in SEQUENCES]
    images = {}
    for number, name in enumerate(SEQUENCES):
        c = CONTRAST[name]
        healthy = anatomy.grey * c["grey"] + anatomy.white * c["white"] + anatomy.fluid * c["fluid"]
        value = healthy + oedema * c["oedema"] * (1 - anatomy.fluid)
        solid = c["tumour"] + rim * (c["rim"] - c["tumour"])
        solid = solid + calcium * (c["calcium"] - solid)
        if name == "FLAIR":
            solid = solid + visible * suppressed * (SUPPRESSED - solid)
        value = value * (1 - tumour) + (solid + texture) * tumour
        value = value * (1 + drift[number]) + 0.025 * _smooth_noise(rng, mask.shape, 3)
        value = value * rng.uniform(0.95, 1.05)
        step = 256 // LEVELS
        level = np.clip(np.rint(value * 200 / step), 1, LEVELS - 1) * step
        images[name] = np.where(anatomy.brain, level, 0).astype(np.uint8)
    fa = anatomy.grey * FA["grey"] + anatomy.white * FA["white"] + anatomy.fluid * FA["fluid"]
    fa = fa * (1 - visible * FA["lost"] * np.minimum(1.6 * spread, 1.0)) * (1 - tumour) + FA["tumour"] * tumour
    fa = fa * (1 + 0.08 * _smooth_noise(rng, mask.shape, 3))
    centre = np.argwhere(mask).mean(0) * 2.0 + (-90.0, -126.0, -72.0)
    return {
        "images": images,
        "mask": mask.astype(np.uint8),
        "planted": planted,
        "fa": np.where(anatomy.brain, np.clip(np.rint(fa * 31.25), 0, 31) * 8, 0).astype(np.uint8),
        "tracts": chosen,
        "centre_mm": [round(float(mm), 1) for mm in centre],
    }
