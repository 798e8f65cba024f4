"""From a glioma patient's files to what the network reads: crop, points and their graphs, voxels of regions and tracts.

Wei et al., Multi-modal learning for predicting the genotype of glioma (IEEE TMI, 2023), section 3.2. All of it is
deterministic, so that a cached dataset computes it once per patient; the rotation that augments comes later.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor
from scipy.ndimage import distance_transform_edt

from shared.data.brain.atlas import TractAtlas
from shared.data.masks import LABELS_KEY
from shared.errors import DataError
from shared.transforms.glioma.brain_network import BrainRowsd, RegionSampler, TractIncidence, TractSampler
from shared.transforms.glioma.point_cloud import PointCloudd, tumour_mask
from shared.transforms.glioma.point_graph import MAX_NEIGHBOURS, RADII
from shared.transforms.glioma.tumour_crop import BoxedImage, TumourCropd, crop_volume
from shared.transforms.load import LoadCased

INSIDE = 0.5  # of the mask's voxels lie in the brain at least, else mask and image do not belong together
MARGIN_MM = 4.0  # about the tumour, where the brain is not healthy either
LEFT = 0.05  # of the brain lie outside tumour and margin at least, else there is nothing to standardise by


class LoadGliomad(MapTransform):
    """A patient's sequences, tumour mask and, where asked for, FA map, on the atlas's grid, brightness standardised.

    Every sequence is brought to mean 0 and SD 1 over the brain (what is not 0) but the tumour and a margin about it: a
    tract far from the tumour says nothing of its size. Outside the brain is 0. A sequence that the case is ``lacking``
    (name to place) is 0 everywhere, as in training with :class:`SequenceDropout`.

    Args:
        atlas: whose grid the images must have.
        fa: also load the FA map, which every case then needs; ``"known"``: of the cases that have one.
        margin: mm about the tumour that are not taken for healthy; None: the whole brain counts, with the tumour, as it
            did for models trained before there was a margin.

    Shape:
        - ``data["image"]``: ``[C, X, Y, Z]`` float32, ``data["mask"]``: ``[1, X, Y, Z]`` bool, ``data["fa"]``:
          ``[1, X, Y, Z]``, ``data["affine"]``: ``[4, 4]``
        - ``data["files"]``: paths of the images, the mask and, where there is one, the planted map

    Raises:
        DataError: what :class:`LoadCased` refuses, another grid than the atlas's, no mask, a mask outside the brain, a
            brain that is nearly all tumour or of one brightness.
    """

    def __init__(self, atlas: TractAtlas, *, fa: bool | str = False, margin: float | None = MARGIN_MM):
        super().__init__(["image"])
        self.atlas, self.fa, self.margin = atlas, fa, margin
        self._load = LoadCased(whole_allowed=False)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load one patient."""
        patient = str(data.get("patient", "?"))
        if not data.get("mask"):
            raise DataError(f"{patient}: a tumour mask is needed; draw it, or leave the patient out")
        files = {"images": list(data["image"]), "mask": data["mask"], "planted": data.get("planted")}
        files |= {key: data[key] for key in (LABELS_KEY, "lacking", "mni_places") if data.get(key)}
        out = self._load(data)
        self.atlas.check_grid(out["image"].shape[1:], out["affine"], what=patient)
        brain = (out["image"] != 0).any(dim=0, keepdim=True)
        share = float((out["mask"] & brain).sum() / out["mask"].sum())
        if share < INSIDE:
            raise DataError(
                f"{patient}: only {share:.0%} of the tumour mask lie in the brain (where the images are not 0); check "
                "that mask and images belong together, and that the images' background is 0"
            )
        image, mask = (np.asarray(convert_to_tensor(out[key], track_meta=False)) for key in ("image", "mask"))
        healthy = np.ones_like(mask[0])
        if self.margin is not None:
            spacing = np.linalg.norm(self.atlas.affine[:3, :3], axis=0)
            healthy = distance_transform_edt(~mask[0], sampling=spacing) > self.margin
        out["image"] = torch.from_numpy(np.stack([standardised(one, healthy, patient) for one in image]))
        out["image"][list((data.get("lacking") or {}).values())] = 0
        if self.fa and (data.get("fa") or self.fa != "known"):
            if not data.get("fa"):
                raise DataError(f"{patient}: has no FA map; leave the patient out of this stage, or prepare one")
            loaded = self._load({"image": data["fa"], "patient": patient})
            self.atlas.check_grid(loaded["image"].shape[1:], loaded["affine"], what=f"{patient}, FA map,")
            out["fa"] = loaded["image"]
        return {**out, "files": files}


def standardised(volume: np.ndarray, healthy: np.ndarray, patient: str) -> np.ndarray:
    """A sequence with mean 0 and SD 1 over its brain (what is not 0) in ``healthy``; outside the brain 0.

    Args:
        volume: the sequence.
        healthy: voxels that count, if they are brain.
        patient: for messages.

    Shape:
        - volume, healthy (bool), returns (float32): ``[X, Y, Z]``

    Raises:
        DataError: hardly a voxel is left, or all have one brightness.

    Example:
        >>> volume = np.array([[[0.0, 2.0, 6.0, 90.0]]])
        >>> standardised(volume, volume < 10, "P1").tolist()
        [[[0.0, -1.0, 1.0, 43.0]]]
    """
    brain = volume != 0
    values = volume[brain & healthy].astype(np.float64)
    if len(values) < max(2, LEFT * brain.sum()) or not (spread := values.std()):
        raise DataError(
            f"{patient}: outside the tumour {len(values)} of {brain.sum()} voxels of the brain are left to standardise "
            "the brightness by, and they must differ; check mask and images"
        )
    return np.where(brain, (volume - values.mean()) / spread, 0.0).astype(np.float32)


class PrepareGliomad(MapTransform):
    """One patient's network inputs; the whole volumes are dropped.

    Args:
        atlas: regions and tracts.
        size: side of the crop.
        outside: of the mask's box: see :class:`TumourCropd`.
        num_points: of the cloud.
        radii: of its graphs, mm.
        max_neighbours: of a point.
        num_voxels: sampled of each region and tract.
        threshold: probability above which a tract crosses a point.
        dilation: voxels by which tracts are grown for that.
        seed: of the voxel lists.
        margin: not used here: of :class:`LoadGliomad`, since a model keeps both transforms' numbers in one section.

    Attributes:
        regions: the sampler of regions; tracts: of tracts; crop: the :class:`TumourCropd`, which counts what it clips.

    Shape:
        - ``fa_rows`` ``[E, V]``, where the FA map was loaded
        - ``image`` ``[C, S, S, S]``, as :class:`BoxedImage`, ``mask`` ``[1, S, S, S]`` bool, ``points`` ``[P, 3]``,
          ``centroid`` ``[3]``, ``centre`` ``[3]``, ``graph``, ``incidence`` ``[P, T]``, ``region_rows`` ``[R, C * V]``,
          ``tract_rows`` ``[E, C * V]``
    """

    def __init__(
        self,
        atlas: TractAtlas,
        *,
        size: int = 64,
        outside: str = "box",
        num_points: int = 1024,
        radii: Sequence[float] = RADII,
        max_neighbours: int = MAX_NEIGHBOURS,
        num_voxels: int = 1000,
        threshold: float = 0.05,
        dilation: int = 1,
        seed: int = 0,
        margin: float | None = None,
    ):
        super().__init__(["image"])
        self.regions = RegionSampler(atlas, num_voxels=num_voxels, seed=seed)
        self.tracts = TractSampler(atlas, num_voxels=num_voxels, seed=seed)
        self.crop = TumourCropd(size, spacing=float(atlas.affine[0, 0]), outside=outside)
        self.steps = (
            PointCloudd(num_points=num_points, radii=radii, max_neighbours=max_neighbours),
            self.crop,
            BrainRowsd(self.regions, self.tracts, TractIncidence(atlas, threshold=threshold, dilation=dilation)),
        )
        self.constants = self.steps[-1].constants

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Prepare one patient."""
        out = dict(data)
        for step in self.steps:
            out = step(out)
        mask = tumour_mask(out["mask"], str(out.get("patient", "?")))
        kept = torch.from_numpy(np.ascontiguousarray(mask))[None].float()
        out["mask"] = crop_volume(kept, out["crop"]["start"], self.crop.size) > 0
        out["image"] = BoxedImage.of(out.pop("tumour"))
        if "fa_rows" in out:
            del out["fa"]
        return out
