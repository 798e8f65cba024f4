"""2D images (PNG, JPEG, TIFF, BMP) of a cohort and their masks, checked, and as NIfTI of one slice.

FOLDER holds them at any depth; a mask lies beside its image as ``NAME_mask.png`` or in a folder for masks. The label
table names each image's file.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.apps.preparation.cohort import settle
from shared.apps.preparation.label_table import LabelTable, picture_names, read_label_table
from shared.apps.preparation.matching import is_nifti
from shared.apps.preparation.patient_images import PatientImages
from shared.data.clutter import walk_files
from shared.data.masks import size_flags, square_millimetres, tumour_of, whole_values
from shared.data.names import differing_in_case, look_alikes, nfc
from shared.data.patches.files import ENDINGS, scan
from shared.data.tables import some
from shared.data.volumes import Volume
from shared.errors import DataError

if TYPE_CHECKING:
    import numpy as np

IMAGE_COLUMN = "image"
FURTHER_MASKS = "further masks of an image that has one"


def holds_pictures(folder: Path) -> bool:
    """Whether a folder's images are 2D: no NIfTI lies in it, and something that ends as a picture."""
    found = False
    for path in walk_files(folder) if folder.is_dir() else ():
        if is_nifti(path):
            return False
        found = found or path.suffix.lower() in ENDINGS
    return found


def collect_pictures(
    options: argparse.Namespace, check: Callable[[str, dict], list[str]]
) -> tuple[dict[str, dict], list[str]]:
    """:func:`shared.apps.preparation.cohort.collect` of 2D images; ``options`` get the same."""
    table = LabelTable() if options.labels is None else read_label_table(options)
    options.told, options.label_values = table.told, table.values
    found = scan(options.folder)
    images = {nfc(image.inner.as_posix()): image for image in found.images}
    problems, missing = list(table.problems), list[str]()
    rows: dict[str, dict[str, Any]] = table.patients
    if options.labels is None:
        for name, path in zip(picture_names([*images]), images, strict=True):
            if rows.setdefault(name, {"picture": path})["picture"] != path:
                problems.append(f"{path} and {rows[name]['picture']} have one name; rename one")
        problems += [f"{a} and {b} differ in capitals only; rename one" for a, b in differing_in_case(rows)]
    named = {row["picture"] for row in rows.values()}
    unnamed = [path for path in images if path not in named]
    hints = look_alikes([path for path in named if path not in images], unnamed)
    if unnamed:
        missing.append(f"{len(unnamed)} images of {options.folder} have no row in {options.labels}: {some(unnamed)}")
    owner: dict[str, str] = {}
    patients: dict[str, dict] = {}
    [modality] = options.modalities
    for name, row in rows.items():
        path = row["picture"]
        problems += table.wrong.get(name, [])
        problems += [f"{name}: the name holds {sign!r}, no folder can have it" for sign in "/\\" if sign in name]
        if name in table.unlabelled and not options.inference:
            missing.append(f"{name}: {table.unlabelled[name]}")
        elif path not in images:
            missing.append(f"{name}: {path!r} is in {options.labels} and no image of {options.folder}{hints[path]}")
        elif owner.setdefault(path, name) != name:
            problems.append(f"{name}: {path} is the image of {owner[path]}, too; correct one")
        else:
            mask = None if options.mask_pattern == "none" else found.mask_of(images[path])
            patient = {"pixel_mm": options.pixel_size or 1.0, **row, "files": {modality: images[path].path}}
            patients[name] = {**patient, "mask_file": None if mask is None else mask.path, "others": []}
            problems += check(name, patients[name])
    if further := found.not_taken.get(FURTHER_MASKS):
        options.told.append(f"look at {len(further)} further masks of images that have one; not read: {some(further)}")
    if not found.masks and options.mask_pattern != "none":
        problems.append(
            f"{options.folder}: no image has a mask (NAME_mask.png beside NAME.png, or a folder for masks); give "
            "--mask-pattern none where none is meant"
        )
    return settle(patients, missing, problems, options)


def picture_volume(values: np.ndarray, pixel_mm: float) -> Volume:
    """A picture as a volume of one slice of 1 mm, in whose axes it hangs upright as it lies in its file.

    Shape:
        - values: ``[H, W]`` -> ``[W, H, 1]``, first axis to the patient's left, second to the back

    Example:
        >>> import numpy as np
        >>> volume = picture_volume(np.arange(6).reshape(2, 3), 0.5)
        >>> volume.array.shape, volume.affine.diagonal().tolist(), volume.affine[:2, 3].tolist()
        ((3, 2, 1), [-0.5, -0.5, 1.0, 1.0], [0.5, 0.25])
    """
    import numpy as np

    affine = np.diag([-pixel_mm, -pixel_mm, 1.0, 1.0])
    rows, columns = values.shape
    affine[:2, 3] = pixel_mm * (columns - 1) / 2, pixel_mm * (rows - 1) / 2
    return Volume(np.ascontiguousarray(values.T[:, :, None]), affine)


@dataclass
class PictureImages(PatientImages):
    """What was found of the patients' 2D images, by patient.

    Args:
        luminance: take coloured images' luminance.

    Attributes:
        tumour_mm2: area of each tumour.
    """

    luminance: bool = False
    tumour_mm2: dict[str, float] = field(default_factory=dict)

    def check(self, name: str, patient: Mapping) -> list[str]:
        """What is wrong with a patient's image and mask."""
        from shared.data.patches.reading import read_grey, read_mask_values

        [path], mask = patient["files"].values(), patient["mask_file"]
        problems = list[str]()
        try:
            image, turned = read_grey(path, luminance=self.luminance)
        except DataError as error:
            problems += [f"{name}: {line}" for line in error.problems]
        else:
            digest = hashlib.sha256(f"{image.shape} {image.dtype}".encode() + image.tobytes()).hexdigest()
            self.note(digest, name, patient)
        if mask is None:
            return problems
        try:
            values, mask_turned = read_mask_values(mask)
        except DataError as error:
            problems += [f"{name}: {line}" for line in error.problems]
        if problems:
            return problems
        if image.shape != values.shape:
            sizes = [f"{width} x {height}" for height, width in (values.shape, image.shape)]
            upright = " upright (its EXIF tag turns it)" if turned else ""
            return [f"{name}: {mask} has {sizes[0]} pixels, its image {sizes[1]}{upright}; save the two at one size"]
        if turned and not mask_turned:
            self.flags.append(f"{name}: an EXIF tag turns the image; its mask has none and is taken as drawn upright")
        self.held[name] = whole_values(values)
        volume = picture_volume(values, patient["pixel_mm"])
        try:
            tumour = tumour_of(volume.array, volume.affine, self.labels)
        except DataError as error:
            return [f"{name}: {mask}: {line}" for line in error.problems]
        self.tumour_mm2[name] = round(square_millimetres(tumour, volume.affine), 3)
        return []

    def image(self, patient: Mapping) -> Volume:
        """The image of a patient who was checked, as it is stored."""
        from shared.data.patches.reading import read_grey

        [path] = patient["files"].values()
        return picture_volume(read_grey(path, luminance=self.luminance)[0], patient["pixel_mm"])

    def tumour(self, patient: Mapping) -> Volume:
        """The tumour of a patient who was checked, 0 and 1."""
        import numpy as np

        from shared.data.patches.reading import read_mask_values

        array, affine = picture_volume(read_mask_values(patient["mask_file"])[0], patient["pixel_mm"])
        return Volume(tumour_of(array, affine, self.labels).astype(np.uint8), affine)

    def record(self, patients: Mapping[str, Mapping]) -> dict[str, Any]:
        """What manifest.json says of the tumours' sizes and of the pixels'."""
        return {"tumour_mm2": self.tumour_mm2, "pixel_mm": {name: one["pixel_mm"] for name, one in patients.items()}}

    def lines(self) -> list[str]:
        """What to print."""
        flags = [f"look at {line}" for line in self.flags + size_flags(self.tumour_mm2, unit="mm2")]
        if not self.tumour_mm2:
            return flags
        areas = sorted(self.tumour_mm2.values())
        middle = areas[len(areas) // 2]
        return [
            f"tumours: {len(areas)} masks, median {middle:.1f} mm2 ({areas[0]:.1f} to {areas[-1]:.1f} mm2)",
            *flags,
        ]
