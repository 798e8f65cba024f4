"""From a tumour mask to the point cloud of its surface, in mm relative to the tumour's centroid.

Wei et al., Multi-modal learning for predicting the genotype of glioma (IEEE TMI, 2023), section 3.2: points sampled by
farthest point sampling from the surface mesh of the mask.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from skimage.measure import marching_cubes

from shared.errors import DataError
from shared.transforms.glioma.point_graph import MAX_NEIGHBOURS, RADII, build_point_graph, farthest_point_sampling

MIN_VOXELS = 10


def tumour_centroid(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Mean position of the mask's voxels, mm.

    Shape:
        - mask: ``[X, Y, Z]``, affine: ``[4, 4]`` -> ``[3]``

    Example:
        >>> mask = np.zeros((4, 4, 4), bool); mask[1:3, 1, 2] = True
        >>> tumour_centroid(mask, np.diag([2.0, 2, 2, 1])).tolist()
        [3.0, 2.0, 4.0]
    """
    affine = np.asarray(affine, dtype=np.float64)
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


def surface_points(mask: np.ndarray, affine: np.ndarray, num_points: int) -> np.ndarray:
    """Points of the surface of a mask, mm, spread evenly over all of its components.

    Marching cubes at half height; where its mesh has fewer vertices than asked for (small tumours), every triangle is
    divided into four until there are enough; then farthest point sampling.

    Args:
        mask: not empty.
        affine: from voxels to mm.
        num_points: P.

    Shape:
        - mask: ``[X, Y, Z]``, affine: ``[4, 4]``
        - returns: ``[P, 3]`` float32, each the farthest from all before it

    Example:
        >>> mask = np.zeros((8, 8, 8), bool); mask[2:6, 2:6, 2:6] = True
        >>> points = surface_points(mask, np.diag([2.0, 2, 2, 1]), 100)
        >>> points.shape, points.min().item(), points.max().item()
        ((100, 3), 3.0, 11.0)
    """
    inside = np.argwhere(mask)
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    # one empty voxel around it closes the surface where the tumour touches the edge of the image
    box = np.pad(np.asarray(mask)[tuple(map(slice, low, high))].astype(np.float32), 1)
    vertices, faces, _, _ = marching_cubes(box, 0.5)
    while len(vertices) < num_points:
        vertices, faces = _subdivided(vertices, faces)
    affine = np.asarray(affine, dtype=np.float64)
    vertices = (vertices + low - 1) @ affine[:3, :3].T + affine[:3, 3]
    # relative to their mean: float32 keeps more digits of what is compared
    middle = vertices.mean(axis=0)
    chosen = farthest_point_sampling(torch.from_numpy((vertices - middle).astype(np.float32)), num_points)
    return vertices[chosen.numpy()].astype(np.float32)


def _subdivided(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same surface with the midpoint of every edge as a vertex."""
    pairs = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    edges, which = np.unique(pairs, axis=0, return_inverse=True)
    middle = which.reshape(-1, 3) + len(vertices)
    a, b, c = faces.T
    ab, bc, ca = middle.T
    parts = [[a, ab, ca], [ab, b, bc], [ca, bc, c], [ab, bc, ca]]
    quarters = np.concatenate([np.stack(part, axis=1) for part in parts])
    return np.concatenate([vertices, vertices[edges].mean(axis=1)]), quarters


class PointCloudd(MapTransform):
    """The tumour's point cloud and its graphs, computed once per patient: a deterministic, cacheable transform.

    Args:
        num_points: P.
        radii: of each level's graph, mm; see :func:`shared.transforms.build_point_graph`.
        max_neighbours: nearest neighbours kept within a radius.
        ratio: share of a level's points that survive it.

    Shape:
        - ``data["points"]``: ``[P, 3]`` float32, mm relative to the tumour's centroid
        - ``data["centroid"]``: ``[3]`` float32, mm: ``points + centroid`` lies in the image's space
        - ``data["graph"]``: :class:`shared.data.PointGraph`

    Raises:
        DataError: a mask that is not ``[1, X, Y, Z]``, is empty, or has fewer than ``MIN_VOXELS`` voxels.

    Example:
        >>> mask = torch.zeros(1, 16, 16, 16); mask[:, 4:10, 4:12, 5:9] = 1
        >>> out = PointCloudd(num_points=128)({"mask": mask, "affine": np.diag([2.0, 2, 2, 1]), "patient": "P1"})
        >>> out["points"].shape, out["centroid"].tolist(), len(out["graph"].survivors[-1])
        (torch.Size([128, 3]), [13.0, 15.0, 13.0], 4)
    """

    def __init__(
        self,
        *,
        num_points: int = 1024,
        radii: Sequence[float] = RADII,
        max_neighbours: int = MAX_NEIGHBOURS,
        ratio: float = 0.5,
    ):
        super().__init__(["mask"])
        self.num_points = num_points
        self.graph = {"radii": tuple(radii), "max_neighbours": max_neighbours, "ratio": ratio}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sample one patient's surface."""
        out = dict(data)
        mask = tumour_mask(out["mask"], str(out.get("patient", "?")))
        affine = np.asarray(out["affine"], dtype=np.float64)
        centroid = tumour_centroid(mask, affine)
        # in float64 up to here: far from the origin, float32 would round the distances
        near = affine.copy()
        near[:3, 3] -= centroid
        points = torch.from_numpy(surface_points(mask, near, self.num_points))
        out["points"] = points
        out["centroid"] = torch.from_numpy(centroid.astype(np.float32))
        out["graph"] = build_point_graph(points, **self.graph)
        return out


def tumour_mask(mask: Any, patient: str) -> np.ndarray:
    """The mask as a boolean array ``[X, Y, Z]``.

    Raises:
        DataError: see :class:`PointCloudd`.
    """
    array = np.asarray(torch.as_tensor(mask))
    if array.ndim != 4 or array.shape[0] != 1:
        raise DataError(
            f"{patient}: a tumour mask has the shape [1, X, Y, Z], got {list(array.shape)}. Give one mask of the whole "
            "tumour, its parts joined."
        )
    array = array[0] > 0
    count = int(array.sum())
    if count < MIN_VOXELS:
        state = "is empty" if count == 0 else f"has {count} voxel{'s' if count > 1 else ''}"
        raise DataError(
            f"{patient}: the tumour mask {state}; a surface needs at least {MIN_VOXELS} voxels. Check that mask and "
            "image belong together and that the registration kept the mask, or leave the patient out."
        )
    return array
