"""Tumour masks from DICOM segmentations and structure sets, on the grid of the image that they were drawn on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shared.data.dicom.headers import SEGMENTATION, STRUCTURES, Instance, scrubbed
from shared.data.dicom.library import dicom_library
from shared.data.volumes import Volume, resample
from shared.errors import DataError

IN_PLANE = 0.25  # of a slice's step, by which a contour's points may lie off its plane
KEPT = 0.99  # of a segment's voxels, which the image's grid must hold


class Regions(NamedTuple):
    """What a segmentation or structure set holds: names of its regions by number, and what it refers to."""

    names: dict[int, str]
    series: frozenset[str]
    frame_of_reference: str


def is_mask(one: Instance) -> bool:
    """Whether an instance is a segmentation or a structure set."""
    return one.values.get("SOPClassUID") in (SEGMENTATION, STRUCTURES)


def read_regions(one: Instance) -> Regions:
    """Names of the regions, and to which series and frame of reference they belong."""
    dataset = dicom_library("pydicom").dcmread(one.path, stop_before_pixels=True, force=True)
    series = {
        str(found) for found in _values_of(dataset, "SeriesInstanceUID") if found != dataset.get("SeriesInstanceUID")
    }
    if one.values.get("SOPClassUID") == SEGMENTATION:
        names = {int(item.SegmentNumber): str(item.get("SegmentLabel") or "") for item in dataset.SegmentSequence}
        frame = str(dataset.get("FrameOfReferenceUID") or "")
    else:
        rois = dataset.get("StructureSetROISequence") or []
        names = {int(item.ROINumber): str(item.get("ROIName") or "") for item in rois}
        frames = {str(item.get("ReferencedFrameOfReferenceUID") or "") for item in rois}
        frame = next(iter(frames)) if len(frames) == 1 else ""
    return Regions(names, frozenset(series), frame)


def choose_regions(regions: Regions, wanted: Sequence[str], hidden: Iterable[str]) -> list[int]:
    """Numbers of the regions that are the tumour: those that are named, or the only one.

    Args:
        regions: of the file.
        wanted: names, with ``*`` for any letters, whatever their capitals; empty: there must be one region.
        hidden: words that a message must not show.

    Raises:
        DataError: none has such a name, or there are several and none is named.
    """
    hidden = [*hidden]
    there = ", ".join(repr(scrubbed(name, hidden)) for name in regions.names.values()) or "none"
    if not wanted:
        if len(regions.names) != 1:
            raise DataError(f"it has {len(regions.names)} regions ({there}); say which are the tumour: --segments NAME")
        return [*regions.names]
    found = [
        number
        for number, name in regions.names.items()
        if any(fnmatch(name.strip().casefold(), one.strip().casefold()) for one in wanted)
    ]
    if not found:
        raise DataError(f"none of its regions ({there}) is named {' or '.join(wanted)} (--segments)")
    return found


def segmentation_mask(path: Path, numbers: Sequence[int], shape: Sequence[int], affine: Any) -> np.ndarray:
    """Chosen segments of a DICOM segmentation together, on an image's grid.

    Args:
        path: the file.
        numbers: of the segments.
        shape: of the image.
        affine: of the image, voxel to world (RAS, mm).

    Shape:
        - returns: uint8, 0 and 1, of the image's shape

    Raises:
        DataError: it is fractional, is no volume, is empty, or reaches outside the image.
    """
    found = dicom_library("highdicom.seg").segread(path)
    if found.segmentation_type.value == "FRACTIONAL":
        raise DataError("it is a fractional segmentation (probabilities); export it as a binary one")
    out = np.zeros(tuple(shape), bool)
    for number in numbers:
        try:
            volume = found.get_volume(
                segment_numbers=[number], combine_segments=True, relabel=True, allow_missing_positions=True
            )
        except (RuntimeError, ValueError) as error:
            raise DataError(
                f"its frames make no volume ({str(error).splitlines()[0][:120]}); export it again"
            ) from error
        # highdicom's axes are slices, rows, columns, in LPS
        matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(volume.affine)
        mask = np.asarray(volume.array) > 0
        placed = resample(Volume(mask.astype(np.uint8), matrix), tuple(shape), affine, nearest=True).array > 0
        to_image = np.linalg.inv(affine) @ matrix
        centres = np.argwhere(mask) @ to_image[:3, :3].T + to_image[:3, 3]
        # half a voxel about the centres, and a hundredth for rounding
        held = ((centres > -0.51) & (centres < np.asarray(shape) - 0.49)).all(axis=1)
        if len(held) and held.mean() < KEPT:
            raise DataError(
                f"{1 - held.mean():.0%} of segment {number} lies outside the image's grid; it was drawn on another "
                "series: choose that one, or leave the mask out"
            )
        out |= placed
    if not out.any():
        raise DataError("its segments hold no voxel of the image; export it again, or leave the mask out")
    return out.astype(np.uint8)


def structure_mask(
    path: Path, numbers: Sequence[int], shape: Sequence[int], affine: Any
) -> tuple[np.ndarray, list[str]]:
    """Chosen structures of an RTSTRUCT together, on the grid of the image they were drawn on.

    Voxels whose centre a contour encloses are inside; contours of one slice inside another are holes (even-odd rule).

    Args:
        path: the file.
        numbers: of the structures.
        shape: of the image, columns, rows, slices in any order.
        affine: of the image, voxel to world (RAS, mm).

    Returns:
        uint8 of the image's shape, and what a person should look at.

    Raises:
        DataError: a contour is not closed, lies between slices or outside the image; nothing is enclosed.
    """
    from matplotlib.path import Path as Outline

    dataset = dicom_library("pydicom").dcmread(path, force=True)
    inverse = np.linalg.inv(np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, float))
    out, flags, contours = np.zeros(tuple(shape), bool), list[str](), dict[int, list[np.ndarray]]()
    for item in dataset.get("ROIContourSequence") or []:
        if int(item.ReferencedROINumber) not in numbers:
            continue
        for contour in item.get("ContourSequence") or []:
            kind = str(contour.get("ContourGeometricType"))
            if kind not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
                raise DataError(f"its contours are {kind}, closed planar ones are needed; export it again")
            points = np.asarray(contour.ContourData, float).reshape(-1, 3)
            voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
            contours.setdefault(int(item.ReferencedROINumber), []).append(voxels)
    # across all contours: one alone may be a line, flat along two axes
    spreads = [np.ptp(voxels, axis=0) for many in contours.values() for voxels in many]
    axis = int(np.max(spreads, axis=0).argmin()) if spreads else 0
    for number, many in contours.items():
        own, slices = np.zeros(tuple(shape), bool), set[int]()
        for voxels in many:
            level = round(float(voxels[:, axis].mean()))
            if np.abs(voxels[:, axis] - level).max() > IN_PLANE:
                raise DataError(
                    "a contour lies between the slices of the image or across them; it was drawn on another series: "
                    "choose that one, or have the structure set exported for this one"
                )
            if not 0 <= level < shape[axis]:
                raise DataError("a contour lies outside the image; it was drawn on another series: choose that one")
            plane = [a for a in range(3) if a != axis]
            centres = np.stack(np.meshgrid(*(np.arange(shape[a]) for a in plane), indexing="ij"), -1).reshape(-1, 2)
            inside = Outline(voxels[:, plane]).contains_points(centres).reshape([shape[a] for a in plane])
            where: list[Any] = [slice(None)] * 3
            where[axis] = level
            own[tuple(where)] ^= inside
            slices.add(level)
        gaps = [k for k in range(min(slices, default=0), max(slices, default=0)) if k not in slices]
        if gaps:
            flags.append(f"structure {number} has contours on {len(slices)} slices and {len(gaps)} gaps")
        out |= own
    if not out.any():
        raise DataError("its contours enclose no voxel; export it again")
    return out.astype(np.uint8), flags


def _values_of(dataset: Any, keyword: str) -> Iterator[Any]:
    """Values of an attribute at any depth."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _values_of(item, keyword)
        elif element.keyword == keyword:
            yield element.value
