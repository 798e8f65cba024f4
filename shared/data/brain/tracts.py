"""From streamlines and a parcellation to tracts: which regions a streamline joins, which voxels it runs through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from shared.errors import DataError

STEP = 0.1  # of a voxel: points this close together miss but the corners that a streamline cuts


class Tracts(NamedTuple):
    """Tracts of pairs of regions, their voxels one tract after another.

    Attributes:
        pairs: regions ``[E, 2]``, the smaller number first, in lexical order.
        counts: streamlines of every tract ``[E]``.
        starts: where each tract's voxels begin, and their number at the end ``[E + 1]``.
        voxels: flat (C order) index in the grid ``[N]``, ascending within a tract.
        probabilities: share of the tract's streamlines that run through the voxel ``[N]``.
    """

    pairs: np.ndarray
    counts: np.ndarray
    starts: np.ndarray
    voxels: np.ndarray
    probabilities: np.ndarray


class VoxelPaths(NamedTuple):
    """The voxels of a grid that streamlines run through, in order, and the points at which that was found.

    Attributes:
        voxels: flat index of every visit ``[M]``; -1 outside the grid.
        points: along the streamlines, a tenth of a voxel apart or less ``[K, 3]`` (mm).
        visit: to which visit a point belongs ``[K]``.
        line: to which streamline a point belongs ``[K]``.
    """

    voxels: np.ndarray
    points: np.ndarray
    visit: np.ndarray
    line: np.ndarray


def number_regions(parcellation: Any, labels: int | None = None) -> tuple[np.ndarray, list[int]]:
    """Number the labels of a parcellation from 1 in their order.

    Args:
        parcellation: whole numbers, 0 or less outside the regions.
        labels: take this many, the smallest ones; None: all.

    Returns:
        the volume with numbers 1 .. R, and the label of each number.

    Raises:
        DataError: labels that are no whole numbers, or fewer than asked for.

    Example:
        >>> number_regions(np.array([0, 2001, 2002, 9170]), labels=2)
        (array([0, 1, 2, 0]), [2001, 2002])
    """
    parcellation = np.asarray(parcellation)
    whole = np.round(np.nan_to_num(parcellation, nan=0.5)).astype(np.int64)
    if not np.array_equal(whole, parcellation):
        raise DataError("a parcellation holds whole numbers, this one has others; resample it with nearest neighbour")
    values = [int(value) for value in np.unique(whole) if value > 0]
    if len(values) < (labels or 1):
        raise DataError(f"the parcellation has {len(values)} labels, but {labels or 1} are asked for; lower --labels")
    values = values[:labels]
    number = np.searchsorted(values, whole).clip(max=len(values) - 1)
    return np.where(np.asarray(values)[number] == whole, number + 1, 0), values


def voxel_paths(streamlines: Sequence[np.ndarray], shape: Sequence[int], affine: np.ndarray) -> VoxelPaths:
    """Follow streamlines (mm) through a grid.

    Example:
        >>> line = np.array([[0.0, 0, 0], [4, 0, 0]])
        >>> voxel_paths([line], (3, 1, 1), np.diag([2.0, 2, 2, 1])).voxels
        array([0, 1, 2])
    """
    lengths = np.array([len(line) for line in streamlines])
    points = np.concatenate([np.asarray(line, dtype=np.float64) for line in streamlines])
    line = np.repeat(np.arange(len(lengths)), lengths)
    spacing = np.linalg.norm(affine[:3, :3], axis=0).min()
    steps = np.diff(points, axis=0)
    parts = np.maximum(np.ceil(np.linalg.norm(steps, axis=1) / (STEP * spacing)), 1).astype(np.int64)
    parts[line[1:] != line[:-1]] = 1  # from one streamline's end to the next one's start there is no way
    parts = np.append(parts, 1)
    source = np.repeat(np.arange(len(points)), parts)
    share = (np.arange(len(source)) - np.repeat(np.cumsum(parts) - parts, parts)) / parts[source]
    points = points[source] + share[:, None] * np.concatenate([steps, np.zeros((1, 3))])[source]
    line = line[source]
    voxels = flat_voxels(points, shape, affine)
    starts = np.append(True, (voxels[1:] != voxels[:-1]) | (line[1:] != line[:-1]))
    return VoxelPaths(voxels[starts], points, np.cumsum(starts) - 1, line)


def flat_voxels(points: np.ndarray, shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Flat (C order) index of the voxels that hold points ``[..., 3]`` (mm); -1 outside the grid.

    Example:
        >>> flat_voxels(np.array([[2.0, 0, 2], [9, 0, 0]]), (3, 3, 3), np.diag([2.0, 2, 2, 1]))
        array([10, -1])
    """
    inverse = np.linalg.inv(affine)
    index = np.floor(points @ inverse[:3, :3].T + inverse[:3, 3] + 0.5).astype(np.int64)
    inside = ((index >= 0) & (index < np.asarray(shape))).all(axis=-1)
    flat = (index[..., 0] * shape[1] + index[..., 1]) * shape[2] + index[..., 2]
    return np.where(inside, flat, -1)


def nearest_regions(points: np.ndarray, labels: np.ndarray, affine: np.ndarray, tolerance: float) -> np.ndarray:
    """Label of the region that holds each of points ``[n, 3]`` (mm), or whose voxels are nearest within ``tolerance``.

    Returns:
        labels ``[n]``, 0 where no region is near enough.
    """
    flat = flat_voxels(points, labels.shape, affine)
    found = np.where(flat >= 0, labels.ravel()[flat], 0)
    outside = np.flatnonzero(found == 0)
    if tolerance > 0 and len(outside):
        index = np.argwhere(labels > 0)
        tree = cKDTree(index @ affine[:3, :3].T + affine[:3, 3])
        distance, nearest = tree.query(points[outside], distance_upper_bound=tolerance + 1e-6)
        near = np.isfinite(distance)
        found[outside[near]] = labels[tuple(index[nearest[near]].T)]
    return found


def build_tracts(
    streamlines: Sequence[np.ndarray],
    labels: np.ndarray,
    labels_affine: np.ndarray,
    *,
    shape: Sequence[int],
    affine: np.ndarray,
    min_streamlines: int,
    tolerance: float,
    passing: bool,
) -> Tracts:
    """Tracts of all pairs of regions that enough streamlines join.

    Args:
        streamlines: ``[n_i, 3]`` each, mm.
        labels: regions 1 .. R of a grid, 0 elsewhere.
        labels_affine: that grid's voxel to mm.
        shape: of the grid whose voxels are counted.
        affine: its voxel to mm.
        min_streamlines: pairs with fewer have no tract.
        tolerance: mm from a streamline's end to the voxels of its region.
        passing: a streamline also joins the regions it runs through; such a pair's tract is the part of it between
            entering the first of them and leaving the last.
    """
    paths = voxel_paths(streamlines, shape, affine)
    line, first, last, low, high = (_passed if passing else _ended)(
        streamlines, paths, labels, labels_affine, tolerance
    )
    order = np.lexsort((line, high, low))
    low, high = low[order], high[order]
    changes = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    edges = np.flatnonzero(np.append(True, changes)[: len(low)])
    groups = np.split(order, edges[1:]) if len(low) else []
    pairs, counts, voxels, probabilities = [], [], [], []
    for group, start in zip(groups, edges, strict=True):
        if len(group) < min_streamlines:
            continue
        visits = ranges(first[group], last[group])
        member = np.repeat(np.arange(len(group)), last[group] - first[group] + 1)
        voxel = paths.voxels[visits]
        inside = voxel >= 0
        # a streamline counts once in a voxel, however often it comes back
        once = np.unique(np.stack([voxel[inside], member[inside]]), axis=1)[0]
        found, through = np.unique(once, return_counts=True)
        pairs.append((low[start] - 1, high[start] - 1))
        counts.append(len(group))
        voxels.append(found)
        probabilities.append(through / len(group))
    starts = np.cumsum([0, *(len(v) for v in voxels)])
    return Tracts(
        np.array(pairs, dtype=np.int64).reshape(-1, 2),
        np.array(counts, dtype=np.int64),
        starts.astype(np.int64),
        np.concatenate([np.zeros(0), *voxels]).astype(np.int64),
        np.concatenate([np.zeros(0), *probabilities]).astype(np.float32),
    )


def _ended(streamlines, paths: VoxelPaths, labels, labels_affine, tolerance) -> tuple[np.ndarray, ...]:
    """Streamline, its first and last visit, and the two regions at its ends."""
    ends = np.array([[line[0], line[-1]] for line in streamlines], dtype=np.float64)
    region = nearest_regions(ends.reshape(-1, 3), labels, labels_affine, tolerance).reshape(-1, 2)
    line = np.flatnonzero((region > 0).all(axis=1) & (region[:, 0] != region[:, 1]))
    bounds = np.searchsorted(paths.line, np.arange(len(streamlines) + 1))
    first, last = paths.visit[bounds[:-1]], paths.visit[bounds[1:] - 1]
    return line, first[line], last[line], region[line].min(axis=1), region[line].max(axis=1)


def _passed(streamlines, paths: VoxelPaths, labels, labels_affine, tolerance) -> tuple[np.ndarray, ...]:
    """The same of all pairs of regions that a streamline runs through or ends near."""
    flat = flat_voxels(paths.points, labels.shape, labels_affine)
    region = np.where(flat >= 0, labels.ravel()[flat], 0)
    bounds = np.searchsorted(paths.line, np.arange(len(streamlines) + 1))
    for ends in (bounds[:-1], bounds[1:] - 1):
        region[ends] = nearest_regions(paths.points[ends], labels, labels_affine, tolerance)
    within = np.flatnonzero(region)
    key = paths.line[within] * (int(labels.max()) + 1) + region[within]
    order = np.argsort(key, kind="stable")
    key, visit = key[order], paths.visit[within[order]]
    starts = np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(key) else np.zeros(0, dtype=np.int64)
    line, region = np.divmod(key[starts], int(labels.max()) + 1)
    first, last = visit[starts], visit[np.append(starts[1:], len(key)) - 1]
    # all pairs a < b of one streamline's regions
    after = np.searchsorted(line, line, side="right")
    a = np.repeat(np.arange(len(line)), after - np.arange(len(line)) - 1)
    b = ranges(np.arange(len(line)) + 1, after - 1)
    return line[a], np.minimum(first[a], first[b]), np.maximum(last[a], last[b]), region[a], region[b]


def ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """``first[0] .. last[0], first[1] .. last[1], ...``, the last ones included.

    Example:
        >>> ranges(np.array([3, 0]), np.array([5, 1]))
        array([3, 4, 5, 0, 1])
    """
    sizes = last - first + 1
    return np.repeat(first - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
