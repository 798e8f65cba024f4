"""The volume that a series' frames make, by their positions alone; what is no regular volume is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from shared.data.dicom.headers import Instance
from shared.errors import DataError

LEAST_SLICES = 3
SAME_PLACE = 0.02  # mm, below which two slices lie at one place
EVEN = 0.05  # of a step, by which steps may differ
STRAIGHT = 0.1  # of a pixel, by which the last slice may lie beside the first one's normal
# what tells apart the acquisitions that lie in one series
SPLITS = (
    *("AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "EchoTime", "DiffusionBValue", "ImageType"),
    "TriggerTime",
)


class Stack(NamedTuple):
    """Frames in the order of their positions, and the grid they make.

    Args:
        order: instance and frame in it, of each slice along the normal (the cross product of row and column).
        shape: columns, rows, slices.
        affine: voxel to world (RAS, mm), ``[4, 4]``.
    """

    order: tuple[tuple[int, int], ...]
    shape: tuple[int, int, int]
    affine: Any


def build_stack(instances: Sequence[Instance]) -> Stack:
    """Order the frames of one series, and check that they make one regular volume.

    Args:
        instances: of one series.

    Raises:
        DataError: positions are missing; sizes, orientations or pixel spacings differ; slices are few, double, missing,
            unevenly spaced, or shifted against their normal (a tilted gantry); colours.
    """
    places = [(i, f) for i, one in enumerate(instances) for f in range(len(one.frames))]
    frames = [instances[i].frames[f] for i, f in places]
    _check_pixels(instances)
    lost = sum(not frame.placed for frame in frames)
    if lost:
        raise DataError(
            f"{lost} of {len(frames)} images lack ImagePositionPatient, ImageOrientationPatient or PixelSpacing: where "
            "they lie is unknown; export the original series"
        )
    if len(frames) < LEAST_SLICES:
        raise DataError(f"has {len(frames)} images, a volume has at least {LEAST_SLICES}; is it a scout?")
    orientation = np.array([frame.orientation for frame in frames])
    spacing = np.array([frame.spacing for frame in frames])
    if np.abs(orientation - orientation[0]).max() > 1e-3:
        raise DataError(
            f"its images have {_groups(orientation)} orientations (a scout, or several stacks); choose one by a rule "
            "on ImageOrientationPatient or AcquisitionNumber, or export the original series"
        )
    if np.abs(spacing / spacing[0] - 1).max() > 1e-3:
        raise DataError(f"its images have {_groups(spacing)} values of PixelSpacing; export the original series")
    row, column = orientation.mean(axis=0)[:3], orientation.mean(axis=0)[3:]
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    if abs(float(row @ column)) > 1e-3:
        raise DataError("rows and columns of its images are not perpendicular; export the original series")
    normal = np.cross(row, column)
    positions = np.array([frame.position for frame in frames])
    along = positions @ normal
    ranked = np.argsort(along, kind="stable")
    steps = np.diff(along[ranked])
    _check_places(instances, places, along, steps)
    base = float(steps.min())
    ratio = steps / base
    if ratio.max() - 1 > EVEN:
        whole = np.abs(ratio - np.round(ratio)) < 0.1
        if whole.all() and ratio.max() > 1.5:  # steps of 1.07, say, leave out no slice
            gaps = [f"{round(float(r)) - 1} after slice {k + 1}" for k, r in enumerate(ratio) if r > 1.5]
            raise DataError(
                f"slices are missing ({', '.join(gaps[:5])}, counted along the normal; the step is {base:.4g} mm); "
                "export all of the series"
            )
        raise DataError(
            f"the steps between its slices vary from {base:.4g} to {float(steps.max()):.4g} mm; such a series is no "
            "regular volume: reconstruct it with one spacing"
        )
    step = (positions[ranked[-1]] - positions[ranked[0]]) / (len(frames) - 1)
    beside = positions - positions[ranked[0]] - np.outer(along - along[ranked[0]], normal)
    shift = float(np.linalg.norm(beside, axis=1).max())
    if shift > STRAIGHT * float(spacing[0].min()):
        angle = np.degrees(np.arctan2(np.linalg.norm(step - (step @ normal) * normal), abs(float(step @ normal))))
        raise DataError(
            f"its slices are shifted by up to {shift:.3g} mm against their normal (about {angle:.1f} degrees: a tilted "
            "gantry, or stacks moved between slices); have it reconstructed perpendicular, or convert and resample it"
        )
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = row * spacing[0][1], column * spacing[0][0]
    matrix[:3, 2] = normal * float(along[ranked[-1]] - along[ranked[0]]) / (len(frames) - 1)
    matrix[:3, 3] = positions[ranked[0]]
    size = instances[0].values
    return Stack(
        tuple(places[k] for k in ranked),
        (int(size["Columns"]), int(size["Rows"]), len(frames)),
        np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix,
    )


def _check_pixels(instances: Sequence[Instance]) -> None:
    sizes = {(one.values.get("Columns"), one.values.get("Rows")) for one in instances}
    if (None, None) in sizes:
        raise DataError("its images lack Rows and Columns; export the original series")
    if len(sizes) > 1:
        shown = ", ".join(sorted(f"{c} x {r}" for c, r in sizes))
        raise DataError(f"its images have {len(sizes)} sizes ({shown}); export the original series")
    if any((one.values.get("NumberOfFrames") or 1) != len(one.frames) for one in instances):
        raise DataError(
            "it is multi-frame and says of its frames not where they lie; export it as enhanced or single images"
        )
    kinds = {str(one.values.get("PhotometricInterpretation") or "MONOCHROME2") for one in instances}
    if kinds != {"MONOCHROME2"}:
        other = ", ".join(sorted(kinds - {"MONOCHROME2"}))
        raise DataError(f"its images are {other}, grey values of MONOCHROME2 are needed; export the original series")


def _check_places(instances: Sequence[Instance], places: Sequence[tuple], along: np.ndarray, steps: np.ndarray) -> None:
    """Refuse several images at one place, with what tells them apart."""
    apart = steps[steps > SAME_PLACE]
    if len(apart) == len(steps):
        return
    if not len(apart):
        raise DataError(f"its {len(along)} images lie at one place (a time series?); choose or export a volume")
    grid = np.round((along - along.min()) / float(apart.min()), 1)
    _, counts = np.unique(grid, return_counts=True)
    found = (
        f"{int((counts > 1).sum())} of {len(counts)} places have several images (up to {int(counts.max())}; double "
        "slices, or several acquisitions in one series)"
    )
    for key in SPLITS:
        by_value: dict[str, list[float]] = {}
        for (i, _), place in zip(places, grid, strict=True):
            by_value.setdefault(_shown(instances[i].values.get(key)), []).append(float(place))
        if len(by_value) > 1 and all(len(set(group)) == len(group) for group in by_value.values()):
            values = ", ".join(sorted(by_value)[:6])
            raise DataError(f"{found}, which {key} tells apart ({values}); choose one by --series ...={key}=VALUE")
    raise DataError(f"{found}, and no header field tells them apart; export the series again")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "\\".join(map(_shown, value))
    return "none" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


def _groups(values: np.ndarray) -> int:
    return len(np.unique(np.round(values, 3), axis=0))
