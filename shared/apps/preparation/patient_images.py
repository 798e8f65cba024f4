"""Whether a patient's images and tumour mask belong together: grids, labels, volumes; before anything is copied."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.data.checks import image_header_problem
from shared.data.grids import canonical, place_problem, same_grid
from shared.data.masks import (
    LARGEST_SHARE,
    absent_labels,
    differing_tumours,
    millilitres,
    read_mask,
    share_of_body,
    size_flags,
    tumour_of,
    whole_values,
)
from shared.data.tables import some
from shared.data.volumes import Volume, load_volume, resample
from shared.errors import DataError

LIMIT_SHARE = 1e-3  # of the voxels at the largest value of 16 bits, above which an image is cut off there
CHANGED = 0.05  # of a mask's volume, above which the grid's is told
LEAST_KEPT = 0.9  # of a mask's volume, once it is on the image's grid


@dataclass
class PatientImages:
    """What was found of the patients' images, by patient.

    Args:
        labels: values of the masks that are tumour; empty: a mask has two values.
        trust_affines: images of one shape at two places are meant.
        finite: NaN and Inf voxels are refused, not set to 0 later.

    Attributes:
        same: of each image, by the digest of its voxels, the patients by group.
        tumour_ml: volume of the tumour in its mask.
        resampled_ml: the same on the grid of the first modality, where that has another shape.
        held: whole numbers in the mask.
        trusted: patients whose images have one shape and lie at two places.
        flags: lines on what a person should look at.
    """

    labels: Sequence[int] = ()
    trust_affines: bool = False
    finite: bool = True
    same: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    tumour_ml: dict[str, float] = field(default_factory=dict)
    resampled_ml: dict[str, float] = field(default_factory=dict)
    held: dict[str, list[int]] = field(default_factory=dict)
    trusted: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)

    def check(self, name: str, patient: Mapping) -> list[str]:
        """What is wrong with a patient's images and mask, whose headers can be read."""
        mask, problems = patient["mask_file"], self.check_voxels(name, patient)
        first, *others = patient["files"].values()
        grid = image_header_problem(first)[1]
        for path in [*others, *([mask] if mask else [])]:
            problem = place_problem(first, grid, path, image_header_problem(path)[1])
            if problem and self.trust_affines:
                self.trusted += [name] if name not in self.trusted else []
            elif problem:
                problems.append(f"{name}: {problem}")
        return problems if mask is None or problems else self._check_mask(name, first, grid, mask)

    def check_voxels(self, name: str, patient: Mapping) -> list[str]:
        """What is wrong with the voxels of a patient's images, all of which are read."""
        problems, seen = list[str](), dict[str, str]()
        for kind, path in patient["files"].items():
            try:
                values, digest = _stored(path)
            except Exception as error:  # as many kinds as ways to be broken
                said = f"{type(error).__name__}: {error}"
                problems.append(f"{name}: {path}: its voxels cannot be read ({said}); copy or export it again")
                continue
            wrong, doubt = _values_problem(values, finite=self.finite)
            problems += [f"{name}: {path}: {wrong}"] if wrong else []
            self.flags += [f"{name}: {path.name} {doubt}"] if doubt else []
            other = seen.setdefault(digest, kind)
            if other != kind:
                problems.append(f"{name}: {path}: is {other}'s image again; give {kind} its own")
            else:
                self.note(digest, name, patient)
        return problems

    def note(self, digest: str, name: str, patient: Mapping) -> None:
        """Remember whose image it is."""
        groups = self.same.setdefault(digest, {})
        groups.setdefault(patient.get("group", name), []).append(name)

    def image(self, patient: Mapping) -> Volume:
        """The first image of a patient."""
        return load_volume(next(iter(patient["files"].values())), repair=False)

    def record(self, patients: Mapping[str, Mapping]) -> dict[str, Any]:
        """What manifest.json says of the tumours' sizes."""
        return {"tumour_ml": self.tumour_ml, "tumour_ml_on_image_grid": self.resampled_ml}

    def tumour(self, patient: Mapping) -> Volume:
        """The tumour of a patient who was checked, 0 and 1, on its mask's own grid."""
        return read_mask(patient["mask_file"], self.labels, joined=False)

    def check_cohort(self, *, inference: bool = False) -> None:
        """Compare the masks' values and the images, once every patient is checked.

        Args:
            inference: new patients, few of them: a label that none of their masks holds, and an image of two patients,
                are told, not refused.

        Raises:
            DataError: no mask holds a label that is named, or none is named and the tumour's differs; an image is that
                of two patients of two groups, and would train and test.
        """
        absent = absent_labels(self.held, self.labels) if self.labels else []
        again = [
            f"{' and '.join(some(names) for names in groups.values())} have the same image; give them one group "
            "(--group-column), or leave one out"
            for groups in self.same.values()
            if len(groups) > 1
        ]
        doubts = [*absent, *dict.fromkeys(again)]  # of several images of the same patients once
        problems = [] if self.labels else differing_tumours(self.held)
        if problems := problems if inference else [*problems, *doubts]:
            raise DataError(problems)
        self.flags += doubts

    def _check_mask(self, name: str, first: Path, grid: tuple, mask: Path) -> list[str]:
        import numpy as np

        try:
            given = load_volume(mask, repair=False)
            self.held[name] = whole_values(given.array)
            volume = Volume(tumour_of(given.array, given.affine, self.labels).astype(np.uint8), given.affine)
        except DataError as error:
            return [f"{name}: {mask}: {line}" for line in error.problems]
        found = self.tumour_ml[name] = round(millilitres(*volume), 3)
        shape, affine = canonical(*grid)
        if not same_grid(volume, (shape, affine)):
            there = self.resampled_ml[name] = round(millilitres(*resample(volume, shape, affine, nearest=True)), 3)
            if not there:
                return [f"{name}: {mask}: no voxel of the tumour lies in {first}; check the affines of both"]
            line = f"{name}: the mask has {found:.1f} ml, {there:.1f} ml on the grid of {first.name}"
            if abs(there - found) > CHANGED * found:
                self.flags.append(f"{line}; it reaches outside the image" if there < LEAST_KEPT * found else line)
        box = millilitres(volume.array >= 0, volume.affine)
        # the image is read where the tumour fills much of its box, a body or head a tenth of it at least
        if found > 0.1 * LARGEST_SHARE * box:
            share = share_of_body(found, first)
            if share > LARGEST_SHARE:
                self.flags.append(
                    f"{name}: the tumour of {found:.1f} ml is {share:.0%} of what {first.name} shows; is it an organ?"
                )
        return []

    def lines(self) -> list[str]:
        """What to print."""
        flags = [f"look at {line}" for line in self.flags + size_flags(self.tumour_ml)]
        if not self.tumour_ml:
            return flags
        volumes = sorted(self.tumour_ml.values())
        middle = volumes[len(volumes) // 2]
        count = len(self.resampled_ml)
        return [
            f"tumours: {len(volumes)} masks, median {middle:.1f} ml ({volumes[0]:.1f} to {volumes[-1]:.1f} ml)",
            *([f"masks on another grid than the image's, to be resampled: {count} (manifest.json)"] if count else []),
            *flags,
        ]


def _stored(path: Path) -> tuple[Any, str]:
    """Voxels of an image as they are stored, and the digest of what they mean.

    Raises:
        Exception: it cannot be read to its end, where gzip has a check sum, which a reader of the voxels never reaches.
    """
    import nibabel as nib
    import numpy as np
    from nibabel.volumeutils import apply_read_scaling

    if path.suffix == ".gz":
        with gzip.open(path) as file:
            while file.read(1 << 24):
                pass
    data = nib.load(path).dataobj
    values = np.asarray(data.get_unscaled())
    scaled = apply_read_scaling(values, data.slope, data.inter)
    meant = np.ascontiguousarray(scaled, dtype="<f4")  # however it is stored
    return values, hashlib.sha256(str(values.shape).encode() + meant.data).hexdigest()


def _values_problem(values: Any, *, finite: bool) -> tuple[str, str]:
    """What is wrong with stored voxels, and what a person should look at."""
    import numpy as np

    whole = values.dtype.kind in "iu"
    with np.errstate(over="ignore"):
        used = values if whole else values.astype(np.float32)  # as they are read later
    good = used if whole else used[np.isfinite(used)]
    if finite and good.size < values.size:
        return f"holds {values.size - good.size} NaN or Inf voxels; repair or export it again", ""
    low, high = (good.min(), good.max()) if good.size else (0, 0)
    if low == high:
        return f"every voxel is {float(low):g}, an image must vary; export the series again", ""
    if bool(((good == low) | (good == high)).all()):
        return f"has the values {float(low):g} and {float(high):g} alone, as a mask does; give the image itself", ""
    if not whole or values.dtype.itemsize != 2:
        return "", ""
    ends = np.iinfo(values.dtype)
    if ends.min < 0 and low < 0.95 * ends.min and high > 0.95 * ends.max:
        return "", f"holds values from {low} to {high}, both ends of 16 bits: did its values overflow?"
    share = float((values == ends.max).mean())
    return (
        "",
        f"has {share:.1%} of its voxels at {high}, the end of 16 bits: is it cut off?" if share > LIMIT_SHARE else "",
    )
