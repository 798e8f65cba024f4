"""From NIfTI volumes and a tumour mask to the sequence of region-of-interest slices a network reads, and back."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.transforms import MapTransform
from torch.nn import functional

from shared.data.masks import millilitres
from shared.errors import DataError

logger = logging.getLogger(__name__)

_ROUNDING = 1e-3  # mm


class ROISlicesd(MapTransform):
    """Cut the slices of largest tumour area out of a case and bring the tumour's window to the network's size.

    Images come modality by modality, each with its slices in anatomical order: the paper's sequence of m images
    (section 3.3). Every modality is scaled per case over all its slices at once, never per slice.

    Args:
        num_slices: k, slices per modality.
        size: H = W of the output, in pixels.
        roi: ``"box"``: the tumour's bounding square plus ``margin``, rescaled (the tumour's size is lost);
            ``"fixed_mm"``: a window of ``extent_mm`` around the tumour's centre (size is kept). Lesions that do not fit
            into it together: slices and window are the largest lesion's, and a logged line tells of the others.
        margin: margin of the box on every side, as a share of its longer side.
        extent_mm: side of the fixed window in mm.
        mask_background: zero what lies outside the tumour mask.
        mask_margin_mm: grow the mask by this much before zeroing, to keep the peritumoral rim.
        normalise: ``"roi"``: the range of the region of interest, but for ``tails`` of its values at either end,
            becomes 0 to 1; ``"organ"``: the mean of the image's foreground becomes ``1 / organ_range``, clipped to
            [0, 1], which keeps contrast between patients; for images whose values are positive.
        organ_range: multiples of the organ's mean that fit into [0, 1].
        tails: share of the region's values, at least one of them, that its range leaves out at either end: a voxel of
            metal must not set it; 0: minimum and maximum.
        slice_axis: ``"auto"`` (the axis of the thickest voxels, the third where none stands out) or 0, 1, 2 in RAS.

    Shape:
        - ``data["image"]`` becomes ``[C * k, size, size]`` float32 in [0, 1], the mask likewise (bool)
        - ``data["geometry"]``: what :func:`masks_to_volume` needs to undo it

    Raises:
        DataError: fewer tumour slices than ``num_slices``, a region of interest that is constant, or, scaled by the
            organ, one with values below 0.
        ValueError: an unknown ``roi``, ``normalise`` or ``slice_axis``, or ``tails`` out of range.
    """

    def __init__(
        self,
        num_slices: int,
        *,
        size: int = 64,
        roi: str = "box",
        margin: float = 0.1,
        extent_mm: float = 100.0,
        mask_background: bool = False,
        mask_margin_mm: float = 0.0,
        normalise: str = "roi",
        organ_range: float = 3.0,
        tails: float = 0.005,
        slice_axis: str | int = "auto",
    ):
        super().__init__(["image"])
        for name, value, allowed in (
            ("roi", roi, ("box", "fixed_mm")),
            ("normalise", normalise, ("roi", "organ")),
            ("slice_axis", slice_axis, ("auto", 0, 1, 2)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")
        if not 0 <= tails < 0.5:
            raise ValueError(f"tails must lie in [0, 0.5), got {tails!r}.")
        self.num_slices, self.size = num_slices, size
        self.roi, self.margin, self.extent_mm = roi, margin, extent_mm
        self.mask_background, self.mask_margin_mm = mask_background, mask_margin_mm
        self.normalise, self.organ_range, self.tails, self.slice_axis = normalise, organ_range, tails, slice_axis

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cut one case."""
        out = dict(data)
        patient = str(out.get("patient", "?"))
        image, mask = out["image"], out["mask"][0]
        spacing = np.linalg.norm(out["affine"][:3, :3], axis=0)
        axis = thickest_axis(spacing) if self.slice_axis == "auto" else int(self.slice_axis)
        plane = [i for i in range(3) if i != axis]
        masked = bool(out.get("masked", True))
        slices = self._slices(mask, axis, patient, masked=masked)
        # slice axis first: [C, k, rows, columns]
        picked_mask = aimed = mask.movedim(axis, 0)[slices]
        if masked and self.roi == "fixed_mm" and max(_sides(aimed, spacing[plane])) > self.extent_mm:
            lesion = self._largest_lesion(mask, out["affine"], patient)
            slices = self._slices(lesion, axis, patient, masked=True)
            picked_mask, aimed = mask.movedim(axis, 0)[slices], lesion.movedim(axis, 0)[slices]
        picked = image.movedim(axis + 1, 1)[:, slices]
        window = self._window(aimed, spacing[plane], patient)
        cut = _crop(picked, window)
        cut_mask = _crop(picked_mask[None].float(), window) > 0
        inside = cut_mask[0]
        region_of = _inside_source(window, picked.shape[-2:], inside)  # padding must not set the minimum
        keep = _grow(inside, spacing[plane], self.mask_margin_mm) if self.mask_background else None
        for channel in range(cut.shape[0]):
            region = cut[channel][region_of if keep is None else region_of & keep]
            cut[channel] = self._scale(cut[channel], region, image[channel], patient, channel)
        if keep is not None:
            cut = cut * keep
        images = functional.interpolate(cut, (self.size, self.size), mode="bilinear", antialias=True)
        small = functional.interpolate(inside[None].float(), (self.size, self.size), mode="bilinear", antialias=True)
        out["image"] = images.clamp(0, 1).flatten(0, 1).contiguous()
        out["mask"] = (small > 0.5).expand(image.shape[0], -1, -1, -1).flatten(0, 1).contiguous()
        out["geometry"] = {
            "axis": axis,
            "slices": list(slices),
            "window": window,
            "shape": tuple(image.shape[1:]),
            "affine": out["affine"],
            "num_modalities": image.shape[0],
            "source": out.get("source"),
        }
        return out

    def _slices(self, mask: torch.Tensor, axis: int, patient: str, masked: bool) -> list[int]:
        count = mask.shape[axis]
        if not masked:
            if count < self.num_slices:
                raise DataError(
                    f"{patient}: {self.num_slices} slices are needed, the image has {count}. Lower num_slices or "
                    "leave the patient out."
                )
            first = (count - self.num_slices) // 2
            return list(range(first, first + self.num_slices))
        area = mask.movedim(axis, 0).flatten(1).sum(dim=1)
        found = int((area > 0).sum())
        if found < self.num_slices:
            raise DataError(
                f"{patient}: {self.num_slices} slices with tumour are needed, the mask has {found}. Lower num_slices, "
                "check the mask, or leave the patient out."
            )
        return sorted(torch.argsort(area, descending=True, stable=True)[: self.num_slices].tolist())

    def _largest_lesion(self, mask: torch.Tensor, affine: np.ndarray, patient: str) -> torch.Tensor:
        """The largest of the lesions (voxels that touch), where they do not fit into the window together."""
        from scipy.ndimage import label

        lesions, count = label(mask.numpy(), np.ones((3, 3, 3)))
        if count == 1:
            return mask
        sizes = np.bincount(lesions.ravel())[1:]
        largest = torch.as_tensor(lesions == 1 + sizes.argmax())
        logger.warning(
            "%s: %d lesions do not fit into a window of %.0f mm: it is laid on the largest (%.1f ml); of the others "
            "(%.1f ml) only what it reaches is seen (extent_mm).",
            patient,
            count,
            self.extent_mm,
            millilitres(largest, affine),
            millilitres(mask & ~largest, affine),
        )
        return largest

    def _window(self, mask: torch.Tensor, spacing: np.ndarray, patient: str) -> tuple[int, int, int, int]:
        """Rows and columns ``(r0, r1, c0, c1)`` of a window that is square in mm; it may reach outside the image."""
        bounds, sides = _bounds(mask), _sides(mask, spacing)
        side = max(sides) * (1 + 2 * self.margin) if self.roi == "box" else self.extent_mm
        if side < max(sides):
            logger.warning(
                "%s: the tumour measures %.0f mm, more than the window of %.0f mm; its edge is cut off (extent_mm).",
                patient,
                max(sides),
                side,
            )
        window: list[int] = []
        for (low, high), step in zip(bounds, spacing, strict=True):
            length = max(round(side / step), 1)
            start = round((low + high) / 2 - length / 2)
            window += [start, start + length]
        return tuple(window)

    def _scale(
        self, cut: torch.Tensor, region: torch.Tensor, volume: torch.Tensor, patient: str, channel: int
    ) -> torch.Tensor:
        low, high = _range(region, self.tails if self.normalise == "roi" else 0.0)
        if high <= low:
            raise DataError(
                f"{patient}: modality {channel} is constant ({low:g}) in the region of interest. Check that mask and "
                "image belong together."
            )
        if self.normalise == "roi":
            return ((cut - low) / (high - low)).clamp(0, 1)
        organ = volume[foreground(volume)]
        mean = float(organ.mean()) if len(organ) else 0.0
        if mean <= 0 or float((region < 0).float().mean()) > 0.05:
            raise DataError(
                f"{patient}: modality {channel} has values below 0 in the region of interest ({low:g} to {high:g}), as "
                'after standardisation or in CT; scaling by the organ\'s mean would lose them. Set normalise to "roi" '
                "(--roi#normalise roi), or give the images before standardisation."
            )
        return (cut / (mean * self.organ_range)).clamp(0, 1)


def _range(values: torch.Tensor, tails: float) -> tuple[float, float]:
    """Lowest and highest value but for a share at either end (at least one value), where others are left between."""
    ordered = values.flatten().sort().values
    cut = min(max(round(tails * len(ordered)), 1), len(ordered) // 4) if tails else 0
    low, high = float(ordered[cut]), float(ordered[-1 - cut])
    return (low, high) if high > low else (float(ordered[0]), float(ordered[-1]))


def _bounds(mask: torch.Tensor) -> list[tuple[int, int]]:
    """First and last but one row and column of a mask ``[k, R, C]``."""
    bounds = []
    for dim in (1, 2):
        hit = torch.nonzero(mask.any(dim=0).any(dim=2 - dim)).flatten()
        bounds.append((int(hit[0]), int(hit[-1]) + 1))
    return bounds


def _sides(mask: torch.Tensor, spacing: np.ndarray) -> list[float]:
    """Height and width of a mask ``[k, R, C]`` in mm."""
    return [float((high - low) * step) for (low, high), step in zip(_bounds(mask), spacing, strict=True)]


def foreground(volume: torch.Tensor) -> torch.Tensor:
    """Voxels of the organ or body: above a tenth of the volume's 99th percentile (bool, same shape).

    Example:
        >>> foreground(torch.tensor([0.0, 0.0, 5.0, 10.0])).tolist()
        [False, False, True, True]
    """
    # numpy: torch.quantile refuses more than 16 M elements
    return volume > 0.1 * float(np.percentile(volume.numpy(), 99))


def thickest_axis(spacing: Sequence[float]) -> int:
    """Axis across the slices: the one of the thickest voxels, the third where none is 1.2 times thicker.

    Example:
        >>> thickest_axis([5.0, 0.7, 0.7]), thickest_axis([1.0, 1.0, 1.0])
        (0, 2)
    """
    order = np.argsort(spacing)
    return int(order[2]) if spacing[order[2]] > 1.2 * spacing[order[1]] else 2


def radiological(images: torch.Tensor) -> torch.Tensor:
    """Slices in RAS order turned as radiologists hang them: anterior (or superior) up, the patient's right on the left.

    Shape:
        - images: ``[..., H, W]``, rows along the first in-plane axis -> ``[..., W, H]``

    Example:
        >>> radiological(torch.tensor([[1, 2], [3, 4]])).tolist()
        [[4, 2], [3, 1]]
    """
    return images.transpose(-2, -1).flip(-2, -1)


def source_slices(geometry: Mapping[str, Any]) -> list[int]:
    """Indices of the cut slices along the source volume's own axis, as a viewer of the stored file counts them."""
    axis = geometry["axis"]
    orientation = nib.orientations.io_orientation(geometry["source"]["affine"])
    flipped = orientation[orientation[:, 0] == axis][0, 1] < 0
    last = geometry["shape"][axis] - 1
    return [last - index if flipped else index for index in geometry["slices"]]


def pixel_area(geometry: Mapping[str, Any], size: int) -> float:
    """Area in mm2 of a pixel of the network's images of ``size`` x ``size``, from ``data["geometry"]``."""
    r0, r1, c0, c1 = geometry["window"]
    spacing = np.linalg.norm(np.asarray(geometry["affine"])[:3, :3], axis=0)
    plane = [step for i, step in enumerate(spacing) if i != geometry["axis"]]
    return float((r1 - r0) * plane[0] * (c1 - c0) * plane[1] / size**2)


def labels_to_images(path: str | Path, geometry: Mapping[str, Any], size: int) -> torch.Tensor:
    """A label map on the source's grid, cut as the images were: the commonest code of each pixel's area.

    Args:
        path: NIfTI of integer codes.
        geometry: what :class:`ROISlicesd` left in ``data["geometry"]``.
        size: of the images.

    Shape:
        - returns: ``[k, size, size]`` long, one per slice of a modality
    """
    volume = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)
    picked = torch.as_tensor(volume.astype(np.int64)).movedim(geometry["axis"], 0)[geometry["slices"]]
    cut = _crop(picked, geometry["window"])
    planes = functional.one_hot(cut, int(cut.max()) + 1).movedim(-1, 1).float()
    shares = functional.interpolate(planes, (size, size), mode="bilinear", antialias=True)
    return shares.argmax(dim=1)


def masks_to_volume(
    masks: torch.Tensor | np.ndarray, geometry: Mapping[str, Any], *, mode: str = "bilinear"
) -> nib.Nifti1Image:
    """Put masks of the network's images back onto the grid of the source volume (crop, resize and RAS order undone).

    Args:
        masks: one mask per image, values kept as they are.
        geometry: what :class:`ROISlicesd` left in ``data["geometry"]``.
        mode: ``"bilinear"``, ``"nearest"`` (codes), or ``"sum"``: each value is shared out among the voxels it covers,
            by area, so that the volume's sum is the masks' (but for what lies outside the source).

    Shape:
        - masks: ``[C * k, H, W]``
        - returns: NIfTI of the source's shape and affine; ``[X, Y, Z]`` for one modality, else ``[X, Y, Z, C]``
    """
    count = geometry["num_modalities"]
    masks = torch.as_tensor(np.asarray(masks), dtype=torch.float32).unflatten(0, (count, -1))
    r0, r1, c0, c1 = geometry["window"]
    if mode == "bilinear":
        patch = functional.interpolate(masks, (r1 - r0, c1 - c0), mode="bilinear", align_corners=False)
    elif mode == "sum":
        patch = _covered(r1 - r0, masks.shape[-2]) @ masks @ _covered(c1 - c0, masks.shape[-1]).T
    elif mode == "nearest":
        patch = functional.interpolate(masks, (r1 - r0, c1 - c0), mode="nearest-exact")
    else:
        raise ValueError(f'mode must be "bilinear", "nearest" or "sum", got {mode!r}.')
    axis, shape = geometry["axis"], geometry["shape"]
    plane = [size for i, size in enumerate(shape) if i != axis]
    volume = torch.zeros(count, shape[axis], *plane)
    rows, columns = slice(max(r0, 0), min(r1, plane[0])), slice(max(c0, 0), min(c1, plane[1]))
    inner = patch[..., rows.start - r0 : rows.stop - r0, columns.start - c0 : columns.stop - c0]
    for i, index in enumerate(geometry["slices"]):
        volume[:, index, rows, columns] = inner[:, i]
    ras = volume.movedim(1, axis + 1).movedim(0, -1).numpy()
    if count == 1:
        ras = ras[..., 0]
    source = geometry["source"]
    start = nib.orientations.axcodes2ornt("RAS")
    end = nib.orientations.io_orientation(source["affine"])
    stored = nib.orientations.apply_orientation(ras, nib.orientations.ornt_transform(start, end))
    kind = np.int16 if mode == "nearest" else np.float32
    return nib.Nifti1Image(np.ascontiguousarray(stored, dtype=kind), source["affine"])


def _covered(voxels: int, places: int) -> torch.Tensor:
    """Part of each of ``places`` along a side that each of ``voxels`` along it covers, ``[voxels, places]``."""
    edge, place = torch.arange(voxels + 1)[:, None] * (places / voxels), torch.arange(places)
    return (torch.minimum(edge[1:], place + 1) - torch.maximum(edge[:-1], place)).clamp(min=0)


def _crop(volume: torch.Tensor, window: tuple[int, int, int, int]) -> torch.Tensor:
    """Rows and columns of the window from ``[..., R, C]``; zero outside the image."""
    r0, r1, c0, c1 = window
    rows, columns = volume.shape[-2:]
    pad = (max(-c0, 0), max(c1 - columns, 0), max(-r0, 0), max(r1 - rows, 0))
    inner = volume[..., max(r0, 0) : min(r1, rows), max(c0, 0) : min(c1, columns)]
    return functional.pad(inner, pad)


def _inside_source(window: tuple[int, int, int, int], shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Which pixels of the window lie in the image: padding must not set the minimum."""
    return (_crop(torch.ones(1, *shape), window) > 0).expand(like.shape)


def _grow(mask: torch.Tensor, spacing: np.ndarray, margin_mm: float) -> torch.Tensor:
    """Mask ``[k, R, C]`` grown in plane by ``margin_mm``."""
    if margin_mm <= 0:
        return mask
    from scipy.ndimage import distance_transform_edt

    # a whole number of voxels is often exactly the margin: an oblique affine's rounding must not decide
    reach = margin_mm + _ROUNDING
    grown = [distance_transform_edt(~part.numpy(), sampling=spacing) <= reach for part in mask]
    return torch.as_tensor(np.stack(grown))
