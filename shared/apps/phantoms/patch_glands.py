"""Outlines of synthetic crypts, smooth or serrated, cut across or along; ``phantom_patches`` fills them with cells.

Serrated or straight, a crypt has the same outlines, area of lumen and cells: only the shape of its lumen and of its
base tells them apart. Neutral crypts are of one kind in both classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass
class Gland:
    """A crypt on the grid: ``depth`` inside its outline and ``lumen`` inside its lumen (pixels, negative outside)."""

    kind: str
    depth: Any
    lumen: Any


def _teeth(phase, sharpness: float = 1.7):
    """Saw teeth from -1 to 1 with a period of 2 pi: narrow points outward, broad folds of cells between them."""
    import numpy as np

    triangle = np.abs((phase / np.pi) % 2.0 - 1.0)
    return 2.0 * triangle**sharpness - 1.0


def _wave(rng: np.random.Generator, angle, orders, amplitude: float):
    """Sum of cosines of these orders, the lower the stronger."""
    import numpy as np

    total = 0.0
    for order in orders:
        total = total + rng.normal() / order * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    return amplitude * total


def _turned(rng: np.random.Generator, x, y):
    import numpy as np

    turn = rng.uniform(0, 2 * np.pi)
    return x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)


def cross_section(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, kind: str, radius: float, strength: float = 1.0
) -> Gland:
    """A crypt cut across.

    Args:
        rng: numpy random generator.
        x: pixels right of the centre.
        y: pixels below it.
        kind: ``straight`` (round lumen), ``serrated`` (a star) or ``neutral`` (a dot, a slit or none).
        radius: of the outline.
        strength: of the serration, about 1.
    """
    import numpy as np

    u, v = _turned(rng, x, y)
    squeeze = rng.uniform(0.78, 1.0)
    angle, distance = np.arctan2(v / squeeze, u), np.hypot(u, v / squeeze)
    depth = (radius * (1 + _wave(rng, angle, (2, 3, 4), 0.05)) - distance) * np.sqrt(squeeze)
    share = rng.uniform(0.42, 0.52)
    if kind == "serrated":
        number, phase, wobble = rng.integers(5, 8), rng.uniform(0, 2 * np.pi), _wave(rng, angle, (1, 2), 0.35)
        amplitude = strength * rng.uniform(0.48, 0.62)
        profile = 1 + amplitude * _teeth(number * angle + phase + wobble)
        # The area of the lumen is that of the circle.
        profile = profile / np.sqrt(np.mean((1 + amplitude * _teeth(np.linspace(0, 2 * np.pi, 720))) ** 2))
    else:
        profile = 1 + _wave(rng, angle, (2, 3), 0.06)
    if kind == "neutral":
        drawn = rng.random()
        if drawn < 0.35:
            share = rng.uniform(0.12, 0.18)
        elif drawn < 0.7:
            long, short = rng.uniform(0.40, 0.55), rng.uniform(0.08, 0.14)
            lumen = (1 - np.hypot(u / (long * radius), v / (short * radius))) * short * radius
            return Gland(kind, depth, lumen)
        else:
            share = -1.0
    return Gland(kind, depth, (radius * share * profile - distance) * np.sqrt(squeeze))


def long_section(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    kind: str,
    length: float,
    width: float,
    strength: float = 1.0,
) -> Gland:
    """A crypt cut along its bent axis.

    Args:
        rng: numpy random generator.
        x: pixels right of the centre.
        y: pixels below it.
        kind: ``straight`` (even lumen), ``serrated`` (saw-toothed lumen, wide base) or ``neutral`` (none).
        length: of the tube.
        width: half of its breadth.
        strength: of the serration, about 1.
    """
    import numpy as np

    u, v = _turned(rng, x, y)
    bend = rng.uniform(-0.35, 0.35) / length
    v = v - bend * (u**2 - length**2 / 12)
    half = length / 2 - width
    row = np.linspace(-length / 2, length / 2, 400)

    def base(at):
        return np.exp(-(((at - half) / (0.9 * width)) ** 2))

    flare = 0.30 if kind == "serrated" else 0.0
    breadth = (1 + flare * base(u)) / (1 + flare * base(row)).mean()
    depth = width * (breadth + _wave(rng, u / width, (1, 2), 0.04)) - np.hypot(u - np.clip(u, -half, half), v)
    share, inner = rng.uniform(0.24, 0.32), half + 0.5 * width
    taper = 1 - np.clip(np.abs(u) / inner, 0, 1) ** 6
    if kind == "serrated":
        period, phase, offset = rng.uniform(0.75, 0.95) * width, rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 3.0)
        amplitude, wide = strength * rng.uniform(0.75, 0.95), rng.uniform(0.6, 1.0)
        profile = 1 + amplitude * _teeth(2 * np.pi * u / period + phase + np.where(v > 0, offset, 0.0)) + wide * base(u)
        mean = 1 + amplitude * _teeth(np.linspace(0, 2 * np.pi, 720)).mean() + wide * base(row).mean()
        profile = profile / mean
    else:
        profile = 1 + _wave(rng, u / width, (1, 2), 0.06)
    lumen = width * share * profile * taper - np.abs(v)
    if kind == "neutral":
        lumen = np.full_like(depth, -width)
    return Gland(kind, depth, np.minimum(lumen, inner - np.abs(u)))
