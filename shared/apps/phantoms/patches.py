"""Synthetic H&E patches in which a few crypts, serrated or straight, are painted at known places and drive the label.

Colours follow Beer and Lambert from amounts of two stains and of blood. ``scripts/make_phantom_patches.py`` writes
sets of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared.apps.phantoms.patch_cells import Ellipses, epithelium, fat, smooth_step, stroma, vessels
from shared.apps.phantoms.patch_glands import Gland, cross_section, long_section

if TYPE_CHECKING:
    import numpy as np

PLANTED = {"straight": 1, "serrated": 2}
CLASSES = ("straight crypts", "serrated crypts")
ANNOTATORS = 7
SCALE = 2  # painted at twice the size, then averaged
# Optical density per stain of red, green and blue: haematoxylin, eosin (Macenko et al. 2009), red blood cells.
STAINS = ((0.563, 0.720, 0.406), (0.216, 0.801, 0.558), (0.06, 0.62, 0.56))


@dataclass
class Slide:
    """What the patches of one slide share: stains ``[3, 3]``, their strengths, the lamp's colour, focus and cells."""

    stains: Any
    strength: Any
    lamp: Any
    blur: float
    cells: float


def draw_slide(rng: np.random.Generator) -> Slide:
    """A slide as another laboratory might stain it."""
    import numpy as np

    return Slide(
        stains=np.asarray(STAINS) * np.exp(rng.normal(0, 0.10, (3, 3))),
        strength=np.array([rng.uniform(0.75, 1.25), rng.uniform(0.70, 1.35), rng.uniform(0.8, 1.2)]),
        lamp=np.clip(rng.uniform(232, 250) + rng.normal(0, 4, 3), 215, 254),
        blur=float(rng.uniform(0.25, 0.7)),
        cells=float(rng.uniform(0.8, 1.25)),
    )


def annotate(serrated: bool, clarity: float, accuracy: float, rng: np.random.Generator) -> int:
    """Votes for serrated of the readers, each right with probability ``accuracy + (1 - accuracy) * clarity``."""
    right = int((rng.random(ANNOTATORS) < accuracy + (1 - accuracy) * clarity).sum())
    return right if serrated else ANNOTATORS - right


def label_noise(accuracy: float, clarity: tuple[float, float]) -> float:
    """Share of labels that the readers' majority gets wrong, with clarities uniform between two values.

    Example:
        >>> round(label_noise(0.65, (0.2, 1.0)), 3), label_noise(1.0, (0.2, 1.0))
        (0.024, 0.0)
    """
    import numpy as np
    from scipy.stats import binom

    right = accuracy + (1 - accuracy) * np.linspace(*clarity, 201)
    return float(binom.cdf(ANNOTATORS // 2, ANNOTATORS, right).mean())


def _smooth(field, scale):
    """Noise of a length scale, mean 0, standard deviation 1."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(field, scale, mode="wrap")
    return (field - field.mean()) / field.std()


def _place_glands(rng: np.random.Generator, size: int, serrated: bool, clarity: float) -> list[Gland]:
    """Crypts that do not touch: one to three that tell the class, well inside, and neutral ones, also at the border."""
    import numpy as np

    unit, coarse = size / 128, 4
    y, x = np.mgrid[:size, :size].astype(np.float32)
    taken = np.zeros((size, size), bool)
    strength = 0.75 + 0.35 * clarity
    glands: list[Gland] = []

    def draw(kind: str, seed: int, step: int) -> tuple[Gland, float]:
        """A crypt on every ``step``-th pixel, and the least area of it that must lie in the patch."""
        rng = np.random.default_rng(seed)
        telling = kind != "neutral"
        margin = (20 if telling else -4) * unit
        cx, cy = rng.uniform(margin, size - margin, 2)
        place = (x[::step, ::step] - cx, y[::step, ::step] - cy)
        if rng.random() < (0.45 if telling else 0.3):
            length, width = rng.uniform(44, 66) * unit, rng.uniform(12, 14.5) * unit
            return long_section(rng, *place, kind, length, width, strength), (850 if telling else 350) * unit**2
        gland = cross_section(rng, *place, kind, rng.uniform(16.5, 21) * unit, strength)
        return gland, (550 if telling else 220) * unit**2

    wanted = ["serrated" if serrated else "straight"] * int(rng.choice([1, 2, 3], p=[0.2, 0.4, 0.4]))
    for kind in wanted + ["neutral"] * int(rng.integers(2, 5)):
        for seed in rng.integers(2**62, size=40):
            gland, area = draw(kind, seed, coarse)
            inside = gland.depth > -3 * unit
            if (inside & taken[::coarse, ::coarse]).any() or (gland.depth > 0).sum() * coarse**2 < area:
                continue
            gland, _ = draw(kind, seed, 1)
            taken |= gland.depth > -3 * unit
            glands.append(gland)
            break
    return glands


def paint_patch(slide: Slide, serrated: bool, clarity: float, rng: np.random.Generator, *, size: int = 128) -> dict:
    """Draw one patch.

    Args:
        slide: where it lies.
        serrated: which crypts it shows.
        clarity: 0 to 1, how deep the serration is.
        rng: numpy random generator; everything about the patch comes from it.
        size: side in pixels.

    Returns:
        ``image`` (uint8 ``[size, size, 3]``), ``mask`` (uint8: 255 in every crypt) and ``planted`` (uint8: a code of
        ``PLANTED`` in the crypts that tell the class).
    """
    import numpy as np
    from scipy.ndimage import gaussian_filter

    full = size * SCALE
    unit = full / 128
    glands = _place_glands(rng, full, serrated, clarity)
    y, x = np.mgrid[:full, :full].astype(np.float32)
    depth = np.max([gland.depth for gland in glands], axis=0)
    lumen = np.max([np.minimum(gland.lumen, gland.depth - 5 * unit) for gland in glands], axis=0)
    free = depth < -3.0 * unit

    nuclei = Ellipses()
    mucin = np.max([epithelium(rng, gland, nuclei, slide.cells, unit) for gland in glands], axis=0)
    pale = fat(rng, depth < -4.0 * unit, nuclei, x, y, unit)
    free &= pale == 0
    stroma(rng, free, nuclei, slide.cells, unit)
    opening, blood = vessels(rng, free & (depth < -4.0 * unit), nuclei, x, y, unit)
    opening = np.maximum(opening, pale)

    # Fibres run around the crypts: noise read off at positions that follow the depth.
    grain = [_smooth(rng.standard_normal((full, full)), scale * unit) for scale in (0.7, 1.6, 5.0)]
    fibres = np.sin((depth / unit) * 0.9 + 2.6 * grain[2] + 1.1 * grain[1])
    tissue = smooth_step(depth, 1.5 * unit)
    hollow = smooth_step(lumen, 1.2 * unit)
    eosin = (0.42 + 0.10 * fibres + 0.07 * grain[1]) * (1 - tissue)
    haema = (0.10 + 0.04 * grain[2]) * (1 - tissue)
    sheath = np.exp(-(((depth / unit + 0.7) / 0.8) ** 2))
    gap = np.exp(-(((depth / unit + 2.6) / 0.9) ** 2)) * smooth_step(grain[2] - 0.7, 1.0)
    eosin = eosin * (1 - 0.75 * gap) + 0.22 * sheath * (1 - tissue)
    apical = np.clip(1 + lumen / (5 * unit), 0, 1) * (lumen < 0)
    body = tissue * (1 - hollow)
    eosin += body * (0.34 + 0.05 * grain[1] + 0.06 * apical) * (1 - 0.8 * mucin)
    haema += body * (0.26 + 0.05 * grain[1] - 0.08 * apical) * (1 - 0.55 * mucin)
    # Mucus makes a lumen duller than fat cells and vessels: the brightest place does not tell the class.
    mucus = rng.uniform(0.03, 0.09)
    eosin += hollow * (0.4 * mucus + 0.03 * np.clip(grain[2], 0, 2))
    haema += hollow * (mucus + 0.04 * np.clip(grain[1], 0, 2))

    dark = nuclei.paint(full) * (1 - hollow)
    cover = np.clip(dark * 1.3, 0, 1)
    eosin = eosin * (1 - 0.5 * cover) * (1 - opening)
    haema = (haema * (1 - cover) + 1.25 * dark * (1 + 0.13 * grain[0])) * (1 - opening * (1 - cover))
    red = 0.95 * blood
    amounts = np.stack([haema, eosin, red], -1).clip(0) * slide.strength
    light = np.exp(-amounts @ slide.stains)
    light = gaussian_filter(light, (slide.blur * SCALE, slide.blur * SCALE, 0))
    light = light.reshape(size, SCALE, size, SCALE, 3).mean((1, 3))
    tilt = rng.normal(0, 0.015, 2)
    fall = 1 + tilt[0] * np.linspace(-1, 1, size)[:, None, None] + tilt[1] * np.linspace(-1, 1, size)[None, :, None]
    image = light * slide.lamp * fall + rng.normal(0, 2.0, (size, size, 3))

    def shrunk(area):
        return area.reshape(size, SCALE, size, SCALE).mean((1, 3)) >= 0.5

    planted = np.zeros((size, size), np.uint8)
    for gland in glands:
        if gland.kind in PLANTED:
            planted[shrunk(gland.depth > 0)] = PLANTED[gland.kind]
    return {
        "image": np.clip(np.rint(image), 0, 255).astype(np.uint8),
        "mask": np.where(shrunk(depth > 0), 255, 0).astype(np.uint8),
        "planted": planted,
    }
