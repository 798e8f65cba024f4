"""Whether two volumes lie on one grid, and what is wrong where they have one shape and two places in space."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

SAME_VOXEL = 0.1  # of a voxel, by which the corners of one grid may lie apart: what writers round off
ROUNDED = 5.01e-4  # by which the steps of one grid may differ, in mm: three decimals are kept of them
ROUNDED_VOXELS = 2.0  # by which the corners of large images may then lie apart


def canonical(shape: Any, affine: Any) -> tuple[tuple[int, ...], Any]:
    """Shape and affine of a volume once its axes run as RAS does, whichever way they are stored.

    Example:
        >>> import numpy as np
        >>> shape, affine = canonical((4, 5, 6), np.diag([-2.0, 1, 1, 1]))
        >>> shape, affine[0].tolist()
        ((4, 5, 6), [2.0, 0.0, 0.0, -6.0])
    """
    import nibabel as nib
    import numpy as np

    turn = nib.io_orientation(affine)
    upright = np.asarray(affine, float) @ nib.orientations.inv_ornt_aff(turn, shape)
    return tuple(int(n) for n in np.asarray(shape)[np.argsort(turn[:, 0])]), upright


def same_grid(first: tuple, second: tuple) -> bool:
    """Whether two grids are one voxel by voxel: the same shape, and no corner a tenth of a voxel apart.

    Affines that agree to three decimals are one, too: over 512 voxels of 0.4 mm what is rounded off adds up.

    Args:
        first: shape, or the voxels themselves, and affine; :func:`canonical` makes it free of the way it is stored.
        second: the same of the other one.

    Example:
        >>> import numpy as np
        >>> one, rounded = np.diag([1.0, 1, 5, 1]), np.diag([1.0001, 1, 5, 1])
        >>> same_grid(((64, 64, 9), one), ((64, 64, 9), rounded)), same_grid(((64, 64, 9), one), ((9, 64, 64), one))
        (True, False)
    """
    import itertools

    import numpy as np

    shape, other = (tuple(getattr(grid[0], "shape", grid[0])[:3]) for grid in (first, second))
    if shape != other:
        return False
    corners = np.array([*itertools.product(*((0, n - 1) for n in shape))])
    matrix, moved = (np.asarray(grid[1], float) for grid in (first, second))
    away = corners @ (moved - matrix)[:3, :3].T + (moved - matrix)[:3, 3]
    apart = np.abs(np.linalg.solve(matrix[:3, :3], away.T)).max(axis=0)
    # the origin that was rounded is that of the stored order: one of the corners
    rounded = np.abs(moved - matrix)[:3, :3].max() <= ROUNDED and apart.min() <= SAME_VOXEL
    return bool(apart.max() <= (ROUNDED_VOXELS if rounded else SAME_VOXEL))


def place_problem(path: str | os.PathLike, grid: tuple, other: str | os.PathLike, other_grid: tuple) -> str | None:
    """What is wrong with an image or mask of the first one's shape that its affine puts elsewhere; else None.

    Voxels drawn on one image and saved with another affine (identity, a sign of LPS for RAS, an image whose affine a
    registration moved, axes that a program exchanged) would be resampled to a wrong place.

    Args:
        path: the first image.
        grid: its shape and affine.
        other: an image or mask to lie on it.
        other_grid: its shape and affine.
    """
    upright = canonical(*grid), canonical(*other_grid)
    if sorted(grid[0]) != sorted(other_grid[0]) or same_grid(*upright):
        return None
    if tuple(grid[0]) == tuple(other_grid[0]) or upright[0][0] == upright[1][0]:
        has, mend = f"the shape of {path}", f"copy the affine (fslcpgeom {Path(path).name} {Path(other).name})"
    else:
        sizes = " x ".join(map(str, other_grid[0]))
        has, mend = f"the shape of {path} with its axes exchanged ({sizes})", "put the axes in the other's order"
    return (
        f"{other} has {has} and lies elsewhere: its affine is {shown(other_grid[1])}, the other's "
        f"{shown(grid[1])}; where both show the same voxels {mend}, or export both again; where both affines are "
        "meant, prepare with --trust-affines (the image is then resampled by them)"
    )


def shown(affine: Any) -> str:
    """An affine for a message.

    Example:
        >>> import numpy as np
        >>> shown(np.diag([1.5, 1, 1, 1]))
        '[1.5 0 0 0; 0 1 0 0; 0 0 1 0]'
    """
    return "[" + "; ".join(" ".join(f"{float(v) + 0.0:.6g}" for v in row) for row in affine[:3]) + "]"
