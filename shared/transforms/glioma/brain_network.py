"""From a patient's volumes to what the brain network is made of: the voxels of all regions and tracts, and which tracts
the points of the tumour's surface lie on (Wei et al. 2023, sections 3.2 and 3.3).
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from shared.data.brain.atlas import TractAtlas
from shared.data.brain.tracts import flat_voxels, ranges
from shared.data.cache_entry import kept
from shared.errors import DataError

logger = logging.getLogger(__name__)


class VoxelSampler:
    """A fixed list of voxels for each of several parts of the brain, read out of a volume by one indexing operation.

    The list is drawn once: ``num_voxels`` of a part's voxels without repetition; in a smaller part every voxel equally
    often, up to one.

    Args:
        parts: flat (C order) voxel indices of every part.
        atlas: whose grid the volumes must have.
        kind: what a part is called in messages.
        num_voxels: V, per part (1,000 in the paper).
        seed: of the draw; a part's list depends on the seed, its number and its voxels only.

    Attributes:
        index: the lists ``[K, V]``, ascending within a part.
        small: how many parts have fewer than V voxels.

    Shape:
        - image: ``[C, X, Y, Z]`` or ``[B, C, X, Y, Z]``
        - returns: ``[K, C * V]`` or ``[B, K, C * V]``, the V values of the first channel first

    Raises:
        DataError: a part without a voxel; a volume of another grid than the atlas's.
    """

    not_settings = ("_gather",)

    def __init__(
        self, parts: Sequence[np.ndarray], atlas: TractAtlas, *, kind: str, num_voxels: int = 1000, seed: int = 0
    ):
        if num_voxels < 1:
            raise DataError(f"num_voxels must be at least 1 (1,000 in the paper), got {num_voxels}")
        if empty := [number for number, part in enumerate(parts) if not len(part)]:
            raise DataError(
                f"{atlas.source}: {kind} {', '.join(map(str, empty[:5]))} has no voxel to sample; lower the threshold, "
                f"or build the atlas without {'it' if len(empty) == 1 else 'them'}"
            )
        self.atlas, self.kind, self.num_voxels = atlas, kind, num_voxels
        self.index = torch.from_numpy(np.stack([_draw(part, num_voxels, [seed, k]) for k, part in enumerate(parts)]))
        sizes = np.array([len(part) for part in parts])
        self.small = int((sizes < num_voxels).sum())
        if self.small:
            logger.info(
                "%s: %d of %d %ss have fewer than the %d voxels sampled (the smallest: %d); theirs are repeated",
                *(atlas.source, self.small, len(parts), kind, num_voxels, sizes.min()),
            )
        self._gather: dict[tuple[int, torch.device], Tensor] = {}

    def __len__(self) -> int:
        return len(self.index)

    def checked(self, image: Tensor, patient: str = "the image") -> Tensor:
        """The volumes as a plain tensor, if they are on the atlas's grid."""
        if image.ndim not in (4, 5):
            raise DataError(f"{patient}: a volume is [C, X, Y, Z] or [B, C, X, Y, Z], got {list(image.shape)}")
        self.atlas.check_grid(
            image.shape[-3:], image.affine if isinstance(image, MetaTensor) and image.ndim == 4 else None, what=patient
        )
        return image.as_tensor() if isinstance(image, MetaTensor) else image

    def __call__(self, image: Tensor, *, patient: str = "the image") -> Tensor:
        """The rows of all parts of one patient, or of several."""
        image = self.checked(image, patient)
        channels, lead = image.shape[-4], image.shape[:-4]
        # int32 and index_select: a third of the time of the same with [...] or take
        rows = image.reshape(*lead, -1).index_select(len(lead), self._positions(channels, image.device))
        return rows.view(*lead, len(self), channels * self.num_voxels)

    def _positions(self, channels: int, device: torch.device) -> Tensor:
        key = (channels, device)
        if key not in self._gather:
            offsets = torch.arange(channels) * int(np.prod(self.atlas.shape))
            self._gather[key] = (self.index[:, None] + offsets[:, None]).flatten().int().to(device)
        return self._gather[key]


class RegionSampler(VoxelSampler):
    """Voxels of all regions: the node autoencoder's input.

    Args:
        atlas: with the regions.
        num_voxels: per region (1,000 in the paper).
        seed: of the draw.

    Shape:
        - image: ``[(B,) C, X, Y, Z]`` -> ``[(B,) R, C * num_voxels]``
    """

    def __init__(self, atlas: TractAtlas, *, num_voxels: int = 1000, seed: int = 0):
        regions = atlas.regions.ravel()
        order = np.argsort(regions, kind="stable")
        bounds = np.searchsorted(regions[order], np.arange(1, atlas.num_regions + 2))
        parts = [order[a:b] for a, b in pairwise(bounds)]
        super().__init__(parts, atlas, kind="region", num_voxels=num_voxels, seed=seed)


class TractSampler(VoxelSampler):
    """Voxels of all tracts: the edge encoders' input; the same voxels in the MRI and in the FA map.

    Args:
        atlas: with the tracts.
        num_voxels: per tract (1,000 in the paper).
        seed: of the draw.
        threshold: voxels of a tract are those with a probability above it.

    Shape:
        - image: ``[(B,) C, X, Y, Z]`` -> ``[(B,) E, C * num_voxels]``
    """

    def __init__(self, atlas: TractAtlas, *, num_voxels: int = 1000, seed: int = 0, threshold: float = 0.0):
        tracts = (atlas.tract(edge) for edge in range(atlas.num_tracts))
        parts = [voxels[probabilities > threshold] for voxels, probabilities in tracts]
        super().__init__(parts, atlas, kind="tract", num_voxels=num_voxels, seed=seed)


class TractIncidence:
    """Which tracts the points of a tumour's surface lie on, for the edge attention (Eq. 2).

    A point lies on a tract where the tract's probability is above ``threshold``, or next to such a voxel.

    Args:
        atlas: with the tracts.
        threshold: of the probability; it filters nothing in tracts of fewer than 1 / threshold streamlines.
        dilation: voxels by which a tract is grown (through faces) before the points are looked up.

    Shape:
        - points: ``[P, 3]``, mm in the atlas's world
        - returns: tracts ``[P, T]`` long, ascending, padded with -1; T is the most a point lies on, at least 1
    """

    def __init__(self, atlas: TractAtlas, *, threshold: float = 0.05, dilation: int = 1):
        self.shape, self.affine, self.num_tracts = atlas.shape, atlas.affine, atlas.num_tracts
        tract = np.repeat(np.arange(atlas.num_tracts), np.diff(atlas.starts))
        inside = atlas.probabilities > threshold
        size = int(np.prod(self.shape))
        keys = tract[inside] * size + atlas.voxels[inside]
        for _ in range(dilation):
            keys = _dilate(keys, self.shape)
        tract, voxel = np.divmod(keys, size)
        order = np.argsort(voxel, kind="stable")
        self._tracts = tract[order]
        self._starts = np.searchsorted(voxel[order], np.arange(size + 1))

    def __call__(self, points: Any) -> Tensor:
        """Tracts of every point."""
        points = np.asarray(points, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 3:
            raise DataError(f"points must be [P, 3] in mm, got {list(points.shape)}")
        voxel = flat_voxels(points, self.shape, self.affine)
        first = np.where(voxel >= 0, self._starts[voxel], 0)
        counts = np.where(voxel >= 0, self._starts[voxel + 1] - first, 0)
        found = np.full((len(points), max(1, counts.max(initial=0))), -1, dtype=np.int64)
        column = ranges(np.zeros_like(counts), counts - 1)
        found[np.repeat(np.arange(len(points)), counts), column] = self._tracts[ranges(first, first + counts - 1)]
        return torch.from_numpy(found)


@kept("voxels", "index")
class SampledRows:
    """Rows of all parts of one patient, made when they are asked for; kept is each voxel once, however many read it.

    ``torch.as_tensor`` of it gives the rows.

    Args:
        voxels: values of the voxels that any row reads.
        index: which of these are in each row.

    Shape:
        - voxels: ``[C, U]``, index: ``[K, V]`` long
        - the rows: ``[K, C * V]``, the V values of the first channel first

    Example:
        >>> rows = SampledRows(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0, 0], [1, 0]]))
        >>> torch.as_tensor(rows).tolist(), rows.shape
        ([[1.0, 1.0, 3.0, 3.0], [2.0, 1.0, 4.0, 3.0]], torch.Size([2, 4]))
    """

    def __init__(self, voxels: Tensor, index: Tensor):
        self.voxels, self.index = voxels, index

    @property
    def shape(self) -> torch.Size:
        """Of the rows."""
        return torch.Size([len(self.index), len(self.voxels) * self.index.shape[1]])

    def _made(self) -> Tensor:
        rows = self.voxels.index_select(1, self.index.flatten())
        return rows.unflatten(1, self.index.shape).movedim(0, 1).flatten(1)

    def __dlpack__(self, **options: Any) -> Any:
        return self._made().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple:
        return self.voxels.__dlpack_device__()


class BrainRowsd(MapTransform):
    """One patient's region and tract rows and, where there is a point cloud, its incidence: cacheable, deterministic.

    Args:
        regions: sampler of the nodes.
        tracts: sampler of the edges.
        incidence: of the points; None: no incidence.

    Shape:
        - ``data["region_rows"]``: ``[R, C * V]``, ``data["tract_rows"]``: ``[E, C * V]``, as :class:`SampledRows`: of
          2,309 tracts they are 38 MB a patient, their voxels 3
        - ``data["fa_rows"]``: ``[E, V]``, where there is FA
        - ``data["incidence"]``: ``[P, T]`` long, padded with -1

    Raises:
        DataError: a volume of another grid than the atlas's, or one with values that are not finite.
    """

    def __init__(
        self,
        regions: RegionSampler,
        tracts: TractSampler,
        incidence: TractIncidence | None = None,
    ):
        super().__init__(["image"])
        self.regions, self.tracts, self.incidence = regions, tracts, incidence
        lists = regions.index, tracts.index
        self._used, place = torch.unique(torch.cat([index.flatten() for index in lists]), return_inverse=True)
        parts = place.split([index.numel() for index in lists])
        # one for all patients: what is kept on disk refers to it
        self.constants = self._index = [part.view_as(index) for part, index in zip(parts, lists, strict=True)]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sample one patient's volumes."""
        out = dict(data)
        patient, image = str(out.get("patient", "?")), torch.as_tensor(out["image"])
        if "affine" in out:
            self.regions.atlas.check_grid(image.shape[-3:], out["affine"], what=patient)
        voxels = self.regions.checked(image, patient).flatten(1)[:, self._used]
        out["region_rows"], out["tract_rows"] = (SampledRows(voxels, index) for index in self._index)
        if not voxels.isfinite().all():
            raise DataError(f"{patient}: the images hold NaN or Inf in the atlas's voxels; prepare the patient again")
        if isinstance(out.get("fa"), Tensor):  # not only its path
            fa = self.tracts.checked(out["fa"], f"{patient}, FA map,").flatten(1)[:, self._used]
            out["fa_rows"] = SampledRows(fa, self._index[1])
        if self.incidence is not None and "points" in out:
            points = torch.as_tensor(out["points"]).double() + torch.as_tensor(out["centroid"]).double()
            out["incidence"] = self.incidence(points)
        return out


def _draw(voxels: np.ndarray, count: int, seed: Sequence[int]) -> np.ndarray:
    """``count`` of the voxels, each as often as any other or once more; ascending."""
    whole, rest = divmod(count, len(voxels))
    drawn = np.random.default_rng(seed).choice(voxels, rest, replace=False)
    return np.sort(np.concatenate([np.tile(voxels, whole), drawn]))


def _dilate(keys: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Add the voxels that share a face to sorted keys ``tract * voxels + voxel``."""
    size, (height, depth) = int(np.prod(shape)), shape[1:]
    x, y, z = np.unravel_index(keys % size, shape)
    grown = [keys]
    for coordinate, step, length in ((x, height * depth, shape[0]), (y, depth, height), (z, 1, depth)):
        grown += [keys[coordinate > 0] - step, keys[coordinate < length - 1] + step]
    return np.unique(np.concatenate(grown))
