"""Tracts, voxel sampling and incidence, one streamline, region and point at a time."""

import itertools

import numpy as np


def voxel_of(point, affine):
    return tuple(int(v) for v in np.floor(np.linalg.inv(affine)[:3] @ np.append(point, 1.0) + 0.5))


def inside(voxel, shape):
    return all(0 <= v < n for v, n in zip(voxel, shape, strict=True))


def voxels_of_line(line, shape, affine, step=0.05):
    """All voxels on the straight pieces of a streamline, by very small steps (mm)."""
    found = set()
    for a, b in itertools.pairwise(np.asarray(line, dtype=float)):
        for share in np.linspace(0, 1, int(np.linalg.norm(b - a) / step) + 2):
            voxel = voxel_of(a + share * (b - a), affine)
            if inside(voxel, shape):
                found.add(voxel)
    return found


def region_at(point, labels, affine, tolerance):
    """Label whose voxel holds the point, or else the one with the nearest voxel centre within the tolerance, or 0."""
    voxel = voxel_of(point, affine)
    if inside(voxel, labels.shape) and labels[voxel]:
        return int(labels[voxel])
    best = (tolerance, 0)
    for index in np.argwhere(labels > 0):
        distance = np.linalg.norm(affine[:3, :3] @ index + affine[:3, 3] - point)
        best = min(best, (float(distance), int(labels[tuple(index)])))
    return best[1]


def tracts_of(streamlines, labels, labels_affine, shape, affine, min_streamlines, tolerance):
    """``{(region, region): (streamlines, {voxel: probability})}`` of the pairs that enough streamlines join."""
    joined = {}
    for line in streamlines:
        pair = tuple(sorted(region_at(line[end], labels, labels_affine, tolerance) for end in (0, -1)))
        if pair[0] and pair[0] != pair[1]:
            joined.setdefault(pair, []).append(voxels_of_line(line, shape, affine))
    tracts = {}
    for pair, lines in sorted(joined.items()):
        if len(lines) >= min_streamlines:
            voxels = set().union(*lines)
            tracts[pair] = len(lines), {v: sum(v in line for line in lines) / len(lines) for v in voxels}
    return tracts


def rows_of(volume, lists):
    """The values of each list of voxels, channel after channel."""
    return [[float(channel.flatten()[i]) for channel in volume for i in voxels] for voxels in lists.tolist()]


def tracts_at(point, atlas, threshold, dilation):
    """Tracts with a voxel above the threshold within so many steps through faces of the point's voxel."""
    voxel, found = np.array(voxel_of(point, atlas.affine)), []
    for edge in range(atlas.num_tracts):
        voxels, probabilities = atlas.tract(edge)
        near = np.stack(np.unravel_index(voxels[probabilities > threshold], atlas.shape), axis=1)
        if inside(voxel, atlas.shape) and (np.abs(near - voxel).sum(axis=1) <= dilation).any():
            found.append(edge)
    return found
