"""Cells and openings of a synthetic H&E patch: what is painted into and between the outlines of ``phantom_glands``."""

from __future__ import annotations

from typing import Any

from shared.apps.phantoms.patch_glands import Gland

# Cells of a crypt, in pixels of a patch of 128: how deep they stand, how far apart, how many of the places are taken,
# mean and spread of their half axes.
NUCLEUS: dict[str, Any] = {
    "depth": 4.6,
    "gap": 3.9,
    "chance": 0.94,
    "long": (3.3, 0.35),
    "short": (1.75, 0.2),
    "dark": (0.8, 1.15),
}
VACUOLE: dict[str, Any] = {
    "depth": 9.2,
    "gap": 5.6,
    "chance": 0.5,
    "long": (2.9, 0.4),
    "short": (2.0, 0.3),
    "dark": (1.0, 1.0),
}


def smooth_step(x, width: float = 1.0):
    """0 to 1 over about ``width`` pixels around 0."""
    import numpy as np

    return np.clip(x / width + 0.5, 0.0, 1.0)


class Ellipses:
    """Nuclei, vacuoles, blood cells: collected one by one, painted together."""

    def __init__(self):
        self.rows: list = []

    def add(self, x, y, long, short, angle, dark) -> None:
        """Centres, half axes, direction of the longer one and darkness: numbers or arrays."""
        import numpy as np

        self.rows.append(np.stack(np.broadcast_arrays(x, y, long, short, angle, dark), -1).reshape(-1, 6))

    def paint(self, size: int):
        """How dark the darkest ellipse on every pixel is, ``[size, size]``."""
        import numpy as np

        if not sum(map(len, self.rows)):
            return np.zeros((size, size))
        x, y, long, short, angle, dark = np.concatenate(self.rows).T[..., None, None]
        half = int(np.ceil(long.max())) + 1
        offset = np.arange(-half, half + 1)
        col, row = np.rint(x) + offset[None, None, :], np.rint(y) + offset[None, :, None]
        dx, dy = col - x, row - y
        u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        radius = np.hypot(u / long, v / short)
        # paler inside than at the membrane
        value = smooth_step((1 - radius) * short, 1.2) * dark * (0.82 + 0.18 * np.minimum(radius, 1))
        keep = (value > 0) & (col >= 0) & (col < size) & (row >= 0) & (row < size)
        index = (row * size + col + np.zeros_like(value))[keep].astype(np.intp)
        out = np.zeros(size * size)
        np.maximum.at(out, index, value[keep])
        return out.reshape(size, size)


def epithelium(rng, gland: Gland, nuclei: Ellipses, cells: float, unit: float):
    """Add a crypt's nuclei, which stand on its basement membrane; return how pale its mucin is, ``[size, size]``."""
    import numpy as np
    from skimage.measure import find_contours

    size = gland.depth.shape[0]
    slope = np.gradient(gland.depth)
    mucin = Ellipses()
    for cell in (NUCLEUS, VACUOLE):
        target, density = (nuclei, cells) if cell is NUCLEUS else (mucin, 1.0)
        for line in find_contours(gland.depth, cell["depth"] * unit):
            length = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
            count = int(length[-1] * density / (cell["gap"] * unit))
            if count < 2:
                continue
            at = (np.arange(count) + rng.uniform(-0.25, 0.25, count)) * length[-1] / count
            row, col = (np.interp(at, length, line[:, axis]) for axis in (0, 1))
            index = tuple(np.clip(np.rint(value).astype(int), 0, size - 1) for value in (row, col))
            normal = np.arctan2(slope[0][index], slope[1][index])
            keep = rng.random(count) < cell["chance"]
            if cell is VACUOLE:
                keep &= gland.lumen[index] < -1.5 * unit
            shift = rng.normal(0, 0.7 * unit, count)
            place = (col + shift * np.cos(normal), row + shift * np.sin(normal))
            long, short = (np.clip(rng.normal(*cell[axis], count), 1.1, 4.5) * unit for axis in ("long", "short"))
            turn, dark = normal + rng.normal(0, 0.16, count), rng.uniform(*cell["dark"], count)
            target.add(*(value[keep] for value in (*place, long, short, turn, dark)))
    return mucin.paint(size)


def stroma(rng, free, nuclei: Ellipses, cells: float, unit: float) -> None:
    """Scatter spindle and round nuclei between the crypts, and in some patches a lymphoid aggregate."""
    import numpy as np

    size = free.shape[0]

    def scatter(x, y, long, short, dark) -> None:
        inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
        inside[inside] = free[y[inside].astype(int), x[inside].astype(int)]
        angle = rng.uniform(0, np.pi, len(x))
        nuclei.add(*(value[inside] for value in (x, y, long * unit, short * unit, angle, dark)))

    area = size**2 / unit**2
    for density, long, short in ((0.0052, 3.6, 1.05), (0.0055, 1.95, 1.75)):
        count = rng.poisson(density * cells * area)
        x, y = rng.uniform(0, size, (2, count))
        longs, shorts = (np.clip(rng.normal(mean, 0.12 * mean, count), 0.8, 5.0) for mean in (long, short))
        scatter(x, y, longs, shorts, rng.uniform(0.75, 1.15, count))
    if rng.random() < 0.35:
        centre, count = rng.uniform(0, size, 2), rng.integers(60, 130)
        x, y = centre[:, None] + rng.normal(0, 7.5 * unit, (2, count))
        scatter(x, y, np.full(count, 1.9), np.full(count, 1.75), rng.uniform(0.95, 1.2, count))


def fat(rng, free, nuclei: Ellipses, x, y, unit: float):
    """A few fat cells in most patches: brighter than a lumen and as round, without a crypt around."""
    import numpy as np

    pale = np.zeros_like(x)
    if rng.random() < 0.85:
        start, found = rng.uniform(0, len(x), 2), []
        for _ in range(rng.integers(15, 40)):
            cx, cy = start + rng.normal(0, 11 * unit, 2)
            radius = rng.uniform(5.0, 9.0) * unit
            distance = np.hypot(x - cx, y - cy)
            if free[distance < radius + unit].all() and all(
                np.hypot(cx - a, cy - b) > radius + r + 1.2 * unit for a, b, r in found
            ):
                found.append((cx, cy, radius))
                pale = np.maximum(pale, smooth_step(radius - distance, 1.5))
                angle = rng.uniform(0, 2 * np.pi)
                where = (cx + radius * np.cos(angle), cy + radius * np.sin(angle))
                nuclei.add(*where, 2.4 * unit, 0.8 * unit, angle + np.pi / 2, 1.0)
    return pale


def vessels(rng, free, nuclei: Ellipses, x, y, unit: float):
    """Openings of small vessels, and the blood in them, between the crypts."""
    import numpy as np

    size = free.shape[0]
    opening, blood = np.zeros((size, size)), np.zeros((size, size))
    for _ in range(rng.integers(0, 4)):
        for _ in range(15):
            cx, cy = rng.uniform(0, size, 2)
            a, b, turn = rng.uniform(4, 8) * unit, rng.uniform(2.2, 4.2) * unit, rng.uniform(0, np.pi)
            u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
            v = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
            inside = (1 - np.hypot(u / a, v / b)) * b
            if not free[inside > -3 * unit].all():
                continue
            opening = np.maximum(opening, smooth_step(inside, 1.5))
            angle = np.arange(rng.integers(3, 7)) * 2.1 + rng.uniform(0, np.pi)
            px, py = (a + 1.2 * unit) * np.cos(angle), (b + 1.2 * unit) * np.sin(angle)
            along = turn + np.arctan2(b * np.cos(angle), -a * np.sin(angle))
            where = (cx + px * np.cos(turn) - py * np.sin(turn), cy + px * np.sin(turn) + py * np.cos(turn))
            nuclei.add(*where, 2.6 * unit, 0.8 * unit, along, 1.0)
            if rng.random() < 0.6:
                cells = Ellipses()
                count = rng.integers(5, 12)
                spread = np.sqrt(rng.random(count)) * 0.75
                phase = rng.uniform(0, 2 * np.pi, count)
                px, py = a * spread * np.cos(phase), b * spread * np.sin(phase)
                where = (cx + px * np.cos(turn) - py * np.sin(turn), cy + px * np.sin(turn) + py * np.cos(turn))
                cells.add(*where, 1.7 * unit, 1.5 * unit, 0.0, 1.0)
                blood = np.maximum(blood, cells.paint(size) * smooth_step(inside + unit, 1.5))
            break
    return opening, blood
