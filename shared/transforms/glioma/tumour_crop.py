"""The tumour's image, cut out of the brain, and the one rotation that augments image and point cloud alike.

Wei et al., Multi-modal learning for predicting the genotype of glioma (IEEE TMI, 2023), sections 3.2 and 4.2.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from torch import Tensor
from torch.nn import functional

from shared.data.cache_entry import kept
from shared.errors import DataError
from shared.transforms.glioma.point_cloud import tumour_centroid, tumour_mask

logger = logging.getLogger(__name__)

OUTSIDE = ("box", "mask", "keep")


def crop_volume(volume: Tensor, start: tuple[int, int, int], size: int) -> Tensor:
    """A cube of the volume, zeros where it reaches beyond.

    Shape:
        - volume: ``[C, X, Y, Z]`` -> ``[C, size, size, size]``

    Example:
        >>> crop_volume(torch.ones(1, 4, 4, 4), (-1, 0, 2), 4).sum().item()
        24.0
    """
    low = [max(0, first) for first in start]
    ends = zip(low, start, volume.shape[1:], strict=True)
    high = [max(begin, min(length, first + size)) for begin, first, length in ends]
    out = volume.new_zeros(volume.shape[0], size, size, size)
    within = [slice(b - s, e - s) for b, e, s in zip(low, high, start, strict=True)]
    source = [slice(b, e) for b, e in zip(low, high, strict=True)]
    out[(slice(None), *within)] = volume[(slice(None), *source)]
    return out


@kept("values", "start", "shape")
class BoxedImage:
    """A crop of which only the box of all that is not 0 is kept: a few of the 64^3 voxels, as a rule.

    ``torch.as_tensor`` of it gives the crop.

    Args:
        values: of the box.
        start: its first voxel.
        shape: of the crop.

    Shape:
        - values: ``[C, X, Y, Z]``, start: three numbers, the crop: ``shape``, ``[C, S, S, S]``

    Example:
        >>> image = torch.zeros(2, 4, 4, 4)
        >>> image[:, 1, 2:, 3] = 5.0
        >>> boxed = BoxedImage.of(image)
        >>> boxed.values.shape, boxed.start, torch.equal(torch.as_tensor(boxed), image)
        (torch.Size([2, 1, 2, 1]), (1, 2, 3), True)
    """

    def __init__(self, values: Tensor, start: Sequence[int], shape: Sequence[int]):
        self.values, self.start, self.shape = values, tuple(start), tuple(shape)

    @classmethod
    def of(cls, image: Tensor) -> BoxedImage:
        """The box of a crop ``[C, S, S, S]``."""
        there = (image != 0).any(dim=0)
        lines = [there.any(dim=axes).nonzero().flatten().tolist() for axes in ((1, 2), (0, 2), (0, 1))]
        low, high = zip(*((line[0], line[-1] + 1) if line else (0, 0) for line in lines), strict=True)
        box = tuple(map(slice, low, high))
        return cls(image[(slice(None), *box)].clone(), low, image.shape)  # a view would keep the whole

    def _made(self) -> Tensor:
        image = self.values.new_zeros(self.shape)
        box = (slice(first, first + side) for first, side in zip(self.start, self.values.shape[1:], strict=True))
        image[(slice(None), *box)] = self.values
        return image

    def __dlpack__(self, **options: Any) -> Any:
        return self._made().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple:
        return self.values.__dlpack_device__()


class TumourCropd(MapTransform):
    """A cube centred on the box of the tumour mask, zero outside the box and beyond the image.

    Args:
        size: side of the cube in voxels: 120 in the paper; 64 holds nine of ten tumours at 2 mm.
        spacing: mm of a voxel, which the image must have, its axes along right, anterior, superior.
        outside: what becomes zero: ``"box"``: all outside the mask's box; ``"mask"``: all outside the mask;
            ``"keep"``: nothing.

    Attributes:
        clipped: patients so far whose tumour is larger than the cube.

    Shape:
        - ``data["tumour"]``: ``[C, S, S, S]`` float32; the volumes stay for the brain network
        - ``data["centre"]``: ``[3]`` float32, the tumour's centroid in voxels of the crop: a point of the cloud lies at
          ``centre + points / spacing``
        - ``data["crop"]``: start, affine, and the mask's voxels that are clipped

    Raises:
        DataError: image and mask on different grids, another spacing or orientation, or an unusable mask.
        ValueError: an unknown ``outside``.
    """

    not_settings = ("clipped",)

    def __init__(
        self,
        size: int = 64,
        *,
        spacing: float = 2.0,
        outside: str = "box",
    ):
        super().__init__(["image"])
        if outside not in OUTSIDE:
            raise ValueError(f"outside must be one of {OUTSIDE}, got {outside!r}.")
        self.size, self.spacing, self.outside = size, spacing, outside
        self.clipped: set[str] = set()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cut one patient's tumour out."""
        out = dict(data)
        patient = str(out.get("patient", "?"))
        image, affine = torch.as_tensor(out["image"]), np.asarray(out["affine"], dtype=np.float64)
        mask = tumour_mask(out["mask"], patient)
        self._check(image, mask, affine, patient)
        inside = np.argwhere(mask)
        low, high = inside.min(axis=0), inside.max(axis=0) + 1
        start = tuple(int(a + b - self.size) // 2 for a, b in zip(low, high, strict=True))
        lost = int(((inside < start) | (inside >= np.add(start, self.size))).any(axis=1).sum())
        if lost:
            self.clipped.add(patient)
            sides = " x ".join(f"{side * self.spacing:.0f}" for side in high - low)
            logger.warning(
                "%s: the tumour measures %s mm, more than the crop of %.0f mm; %d of its %d voxels (%.1f %%) are cut "
                "off; patients so far: %d. Raise the crop where memory allows.",
                *(patient, sides, self.size * self.spacing, lost, len(inside)),
                *(100 * lost / len(inside), len(self.clipped)),
            )
        crop = crop_volume(image.float(), start, self.size)
        if self.outside != "keep":
            box = np.zeros_like(mask)
            box[tuple(map(slice, low, high))] = True
            kept = torch.from_numpy(mask if self.outside == "mask" else box)
            crop = crop * crop_volume(kept[None].float(), start, self.size)
        shifted = affine.copy()
        shifted[:3, 3] += affine[:3, :3] @ start
        out["tumour"] = crop
        out["centre"] = torch.from_numpy((tumour_centroid(mask, np.eye(4)) - start).astype(np.float32))
        out["crop"] = {"start": start, "affine": shifted, "clipped": lost, "voxels": len(inside)}
        return out

    def _check(self, image: Tensor, mask: np.ndarray, affine: np.ndarray, patient: str) -> None:
        if image.ndim != 4 or tuple(image.shape[1:]) != mask.shape:
            raise DataError(
                f"{patient}: image [C, X, Y, Z] and mask must lie on one grid, got {list(image.shape)} and "
                f"{list(mask.shape)}. Prepare the patient again."
            )
        if not np.allclose(affine[:3, :3], self.spacing * np.eye(3), atol=1e-3):
            step = ", ".join(f"{length:.3g}" for length in np.linalg.norm(affine[:3, :3], axis=0))
            raise DataError(
                f"{patient}: the tumour is cut from images with voxels of {self.spacing:g} mm along right, anterior, "
                f"superior; these have {step} mm or other axes. Prepare the patient in MNI152 space first."
            )


def rotation_matrices(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotations about an axis (of any length but zero) by an angle in radians.

    Shape:
        - axis: ``[B, 3]``, angle: ``[B]`` -> ``[B, 3, 3]``

    Example:
        >>> turn = rotation_matrices(torch.tensor([[0.0, 0, 2]]), torch.tensor([math.pi / 2]))
        >>> bool(torch.allclose(turn @ torch.tensor([1.0, 0, 0]), torch.tensor([[0.0, 1, 0]]), atol=1e-6))
        True
    """
    x, y, z = functional.normalize(axis, dim=1).unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).unflatten(1, (3, 3))
    sin, cos = angle.sin()[:, None, None], angle.cos()[:, None, None]
    return torch.eye(3, dtype=axis.dtype, device=axis.device) + sin * cross + (1 - cos) * cross @ cross


def rotate_image(image: Tensor, rotation: Tensor, centre: Tensor, *, mode: str = "bilinear") -> Tensor:
    """Rotate cubes about a centre; what comes from beyond the cube is zero.

    Args:
        image: crops.
        rotation: of each, in the order of the image's axes.
        centre: of each, in voxels.
        mode: ``"bilinear"`` (trilinear) or ``"nearest"``.

    Shape:
        - image: ``[B, C, S, S, S]``, rotation: ``[B, 3, 3]``, centre: ``[B, 3]``
    """
    # where each voxel of the output comes from: back by the transposed rotation; grid_sample takes the last axis first
    back = rotation.transpose(1, 2)
    middle = 2 * centre / (image.shape[-1] - 1) - 1
    shift = middle - (back @ middle[:, :, None])[:, :, 0]
    theta = torch.cat([back.flip(1, 2), shift.flip(1)[:, :, None]], dim=2)
    grid = functional.affine_grid(theta.to(image.dtype), list(image.shape), align_corners=True)
    return functional.grid_sample(image, grid, mode=mode, padding_mode="zeros", align_corners=True)


class SequenceDropout:
    """Which sequences of each patient of a batch are kept: each but with a probability, and at least one.

    What is left out is 0 in image and brain network, the mean of the sequence over the brain.

    Args:
        probability: of leaving out a sequence; 0: all are kept.
        seed: of the generator.

    Shape:
        - returns: ``[B, C]`` bool, on the CPU

    Raises:
        ValueError: a probability outside [0, 1).

    Example:
        >>> SequenceDropout(0.5, seed=0)(2, 3).any(dim=1).tolist(), SequenceDropout()(1, 2).tolist()
        ([True, True], [[True, True]])
    """

    def __init__(self, probability: float = 0.0, *, seed: int = 0):
        if not 0 <= probability < 1:
            raise ValueError(f"The probability of leaving out a sequence must lie in [0, 1), got {probability:g}.")
        self.probability = probability
        self.generator = torch.Generator().manual_seed(seed) if probability else None

    def __call__(self, count: int, sequences: int) -> Tensor:
        """Draw for so many patients."""
        if self.generator is None:
            return torch.ones(count, sequences, dtype=torch.bool)
        drawn = torch.rand(count, sequences, generator=self.generator)
        return (drawn >= self.probability) | (drawn == drawn.max(dim=1, keepdim=True).values)


class TumourRotation:
    """A random rotation about the tumour's centroid for each patient of a batch, the same for image and points.

    Graphs stay as they are, and so do the brain network and the tracts that points cross, which belong to where the
    tumour really lies. Draws come from a generator on the CPU, so that a run repeats whatever the device.

    Args:
        degrees: largest angle, to either side of an axis that is uniform on the sphere.
        probability: of rotating a patient.
        seed: of the generator.

    Shape:
        - image: ``[B, C, S, S, S]`` or None, points: ``[B, P, 3]`` or None, centre: ``[B, 3]`` (see
          :class:`TumourCropd`; needed with an image)
        - returns: image and points, rotated

    Raises:
        ValueError: neither image nor points, an image without a centre, or a setting out of range.

    Example:
        >>> rotate = TumourRotation(seed=0)
        >>> image, points = rotate(torch.rand(2, 4, 16, 16, 16), torch.rand(2, 8, 3), torch.full((2, 3), 7.5))
        >>> image.shape, points.shape
        (torch.Size([2, 4, 16, 16, 16]), torch.Size([2, 8, 3]))
    """

    def __init__(self, degrees: float = 180.0, *, probability: float = 1.0, seed: int = 0):
        if not 0 <= degrees <= 180 or not 0 <= probability <= 1:
            raise ValueError(
                f"degrees must lie in [0, 180] and probability in [0, 1], got {degrees:g} and {probability:g}."
            )
        self.degrees, self.probability = degrees, probability
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, count: int) -> Tensor:
        """Rotations of so many patients, ``[B, 3, 3]``, on the CPU."""
        axis = torch.randn(count, 3, generator=self.generator)
        angle = (2 * torch.rand(count, generator=self.generator) - 1) * math.radians(self.degrees)
        turned = torch.rand(count, generator=self.generator) < self.probability
        return rotation_matrices(axis, angle * turned)

    def __call__(
        self, image: Tensor | None, points: Tensor | None, centre: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Rotate every patient by a draw of its own."""
        given = points if image is None else image
        if given is None or (image is not None and centre is None):
            raise ValueError("There is nothing to rotate: give points, or an image with its centre, or all three.")
        rotation = self.draw(len(given)).to(given.device)
        if image is not None:
            image = rotate_image(image, rotation, centre.to(image.device, torch.float32))
        if points is not None:
            points = points @ rotation.transpose(1, 2).to(points)
        return image, points
