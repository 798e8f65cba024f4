"""What must hold of a tract atlas, all of it looked at before any of it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from shared.data.atlas import TractAtlas


def atlas_problems(atlas: TractAtlas) -> list[str]:
    """Everything in an atlas that does not fit together; the caller says whose it is."""
    edges, size, count = len(atlas.pairs), atlas.regions.size, len(atlas.voxels)
    if atlas.regions.ndim != 3 or atlas.affine.shape != (4, 4) or not np.isfinite(atlas.affine).all():
        return [f"regions must be [X, Y, Z] and affine [4, 4], got {atlas.regions.shape} and {atlas.affine.shape}"]
    if not edges:
        return ["has no tract"]
    if len(atlas.counts) != edges or len(atlas.starts) != edges + 1 or len(atlas.probabilities) != count:
        return [
            f"pairs [E, 2], counts [E], starts [E + 1], voxels and probabilities [N] must agree: got {edges} pairs"
            f", {len(atlas.counts)} counts, {len(atlas.starts)} starts, {count} voxels, {len(atlas.probabilities)} "
            "probabilities"
        ]
    sizes = np.diff(atlas.starts)
    if atlas.starts[0] != 0 or atlas.starts[-1] != count or (sizes < 0).any():
        return [f"starts must ascend from 0 to the number of voxels {count}, got {atlas.starts[[0, -1]].tolist()}"]
    problems = []
    present = np.bincount(atlas.regions[atlas.regions > 0].ravel(), minlength=atlas.num_regions + 1)
    if len(present) > atlas.num_regions + 1 or atlas.regions.min() < 0:
        problems.append(
            f"regions must hold 0 to {atlas.num_regions} (as many as names), got {atlas.regions.min()} to "
            f"{atlas.regions.max()}"
        )
    if empty := [f"{name} ({r + 1})" for r, name in enumerate(atlas.names) if present[r + 1] == 0]:
        problems.append(f"{_some(empty, 'region')} without a voxel on the grid; take a finer grid or fewer labels")
    low, high = atlas.pairs.T
    if (low >= high).any() or low.min() < 0 or high.max() >= atlas.num_regions:
        problems.append(
            f"a pair must name two regions of 0 to {atlas.num_regions - 1}, the smaller first; got "
            f"{atlas.pairs[(low >= high) | (low < 0) | (high >= atlas.num_regions)][:3].tolist()}"
        )
    if len(np.unique(atlas.pairs, axis=0)) < edges:
        problems.append("a pair of regions has two tracts; join them")
    if empty := [f"tract {edge} {tuple(atlas.pairs[edge].tolist())}" for edge in np.flatnonzero(sizes == 0)]:
        problems.append(f"{_some(empty, 'tract')} without a voxel on the grid; leave them out or take a larger grid")
    if count and (atlas.voxels.min() < 0 or atlas.voxels.max() >= size):
        problems.append(f"voxels must lie in the grid (0 to {size - 1}), got up to {atlas.voxels.max()}")
    inner = np.setdiff1d(np.arange(1, count), atlas.starts)  # where a voxel follows one of the same tract
    if (atlas.voxels[inner] <= atlas.voxels[inner - 1]).any():
        problems.append("the voxels of a tract must ascend, each once")
    if not ((atlas.probabilities > 0) & (atlas.probabilities <= 1)).all():
        problems.append("probabilities must lie above 0 up to 1")
    if (atlas.counts < 1).any():
        problems.append("every tract must have a streamline")
    return problems


def _some(names: Sequence[str], kind: str) -> str:
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} {kind}{'s' if len(names) > 1 else ''} ({shown})"
