"""Datalists of patches, checked whole (every file decoded) before anything runs; imports neither torch nor MONAI."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.data.names import nfc
from shared.data.patches.checks import PREPARE_PATCHES, SECTIONS, PatchDatalistCheck
from shared.errors import DataError

if TYPE_CHECKING:
    from shared.data.disk_cache import DiskCache

logger = logging.getLogger(__name__)


class PatchDatalist:
    """Patches of a dataset folder, with absolute paths, split into training, validation, testing and unlabelled.

    All rules are checked at once: images can be read as 8-bit RGB, are square and have one size, labels and votes are
    in range, masks fit, every class that is trained on has two images, no image (by its pixels) and no patient is in
    two of training, validation and testing or in two folds, no image has two labels.

    Args:
        dataset_dir: the prepared folder; paths in the datalist are relative to it or absolute.
        file: the datalist, relative to ``dataset_dir`` or absolute.
        fold: where there is no ``validation`` section: training patches of this fold are the validation part; -1: all
            are trained on, nothing validates. The testing part never validates.
        num_classes: labels lie in ``range(num_classes)``.
        check_pixels: decode every file; False: headers only, which cannot see truncation, transparency or copies.
        classes: of a trained model: other names, or another order, are refused.
        disk_cache: keeps the decoded patches, which :class:`shared.data.PatchCache` then reads.

    Attributes:
        training: patches to train on.
        validation: patches to validate with, may be empty.
        testing: patches kept apart.
        unlabelled: patches of the datalist's ``unlabelled`` section, all of them.
        pretraining: training and unlabelled patches, without those that share a patient or an image with validation or
            testing.
        classes: names of the classes.
        name: of the data set.
        patch_size: height and width.
        mpp: micrometres per pixel; None: the datalist does not say.

    Raises:
        DataError: with every problem found.

    Example:
        >>> PatchDatalist("no/such/folder")
        Traceback (most recent call last):
            ...
        shared.errors.DataError: no/such/folder: no such dataset folder; prepare one with ...
    """

    def __init__(
        self,
        dataset_dir: str | os.PathLike,
        file: str | os.PathLike = "datalist.json",
        *,
        fold: int = 0,
        num_classes: int = 2,
        check_pixels: bool = True,
        classes: Sequence[str] = (),
        disk_cache: DiskCache | None = None,
    ):
        check = PatchDatalistCheck(dataset_dir, file, num_classes, disk_cache=disk_cache)
        check.match_classes(classes)
        parts = check.run(pixels=check_pixels)
        kept, held = check.training_parts(parts, fold)
        if check.problems:
            raise DataError(check.problems)
        for line in check.warnings:
            logger.warning("%s: %s", check.file, line)
        self.file = check.file
        self.name = str(check.content.get("name", Path(dataset_dir).resolve().name))
        self.classes: list[str] = check.classes
        self.training: list[dict[str, Any]] = kept
        self.validation: list[dict[str, Any]] = held
        self.testing: list[dict[str, Any]] = parts["testing"]
        self.unlabelled: list[dict[str, Any]] = parts["unlabelled"]
        self.patch_size = check.facts[kept[0]["image"]].size
        self.mpp: float | None = check.content.get("mpp")
        apart = held + self.testing
        patients, images = {case["patient"] for case in apart}, {check.identity(case) for case in apart}
        free = [c for c in self.unlabelled if c["patient"] not in patients and check.identity(c) not in images]
        self.pretraining: list[dict[str, Any]] = kept + free
        if len(free) < len(self.unlabelled):
            logger.info(
                "%s: %d of %d unlabelled patches are not pretrained on: their patient or image is in validation or "
                "testing",
                self.file,
                len(self.unlabelled) - len(free),
                len(self.unlabelled),
            )
        for part in ("validation", "testing"):
            found = Counter(case["label"] for case in getattr(self, part))
            if len(found) == 1:
                logger.warning("%s: the %s part has patches of one class only", self.file, part)

    def part(self, name: str) -> list[dict[str, Any]]:
        """The patches of a section, validation by fold included, to evaluate or explain.

        Raises:
            DataError: another name, or a part without patches: figures of another part would be taken for its own.
        """
        if name not in SECTIONS:
            raise DataError(f"split must be one of {', '.join(SECTIONS)}, got {name!r}")
        if not getattr(self, name):
            there = ", ".join(other for other in SECTIONS if getattr(self, other))
            raise DataError(
                f"{self.file}: the {name} part has no patches, there is {there}; "
                + ("give the fold that validates (--fold 0), " if name == "validation" else "prepare one, ")
                + "or name another part with --split"
            )
        return getattr(self, name)


class PatchInferenceDatalist:
    """Patches to predict, with absolute paths: of a datalist, a plain folder or a list of paths; without labels, too.

    Args:
        dataset_dir: a prepared folder; a folder of images without a datalist, searched whole, in order of the paths
            (folders named label, mask, ... are masks and left out; linked folders are followed); or a list of paths.
        file: the datalist, or a list of paths, relative to ``dataset_dir`` or absolute. A list is a text file with a
            path a line, or a CSV with a column ``image`` and, if known, ``patient``; paths are relative to
            ``dataset_dir``, or to the list's folder where ``dataset_dir`` is the list.
        split: of a datalist.
        num_classes: labels that are there lie in ``range(num_classes)``.
        classes: the model's names; a datalist that names its classes must name the same, unless these are numbers.
        group_by: regular expression for the patient of an image without one, see
            :func:`shared.data.patches.groups.group_of`.
        check_pixels: decode every file before anything is predicted.
        disk_cache: keeps the decoded patches, which :class:`shared.data.PatchCache` then reads.
        output_dir: of the prediction, which must not lie in a folder that is searched: its pictures would be patches.

    Attributes:
        cases: the patches.
        classes: names of the classes.
        patch_size: height and width.
        mpp: micrometres per pixel; None: not known.

    Raises:
        DataError: with every problem found, or when there is nothing to predict.
    """

    def __init__(
        self,
        dataset_dir: str | os.PathLike,
        file: str | os.PathLike = "datalist.json",
        split: str = "testing",
        *,
        num_classes: int = 2,
        classes: Sequence[str] | None = None,
        group_by: str | None = None,
        check_pixels: bool = True,
        disk_cache: DiskCache | None = None,
        output_dir: str | os.PathLike | None = None,
    ):
        if split not in SECTIONS:
            raise DataError(f"split must be one of {', '.join(SECTIONS)}, got {split!r}")
        root, file = Path(dataset_dir), Path(file)
        if root.is_file():
            root, file = root.parent, Path(root.name)
        content = None
        if file.suffix.lower() in (".csv", ".txt", ".tsv"):
            content = {split: listed_patches(root, root / file, group_by)}
        elif root.is_dir() and not (root / file).exists() and str(file) == "datalist.json":
            if output_dir is not None and Path(output_dir).resolve().is_relative_to(root.resolve()):
                raise DataError(
                    f"output_dir ({output_dir}) lies in the folder of patches ({root}), where its pictures would be "
                    "taken for patches; give another"
                )
            content = {split: folder_patches(root, group_by, classes or ())}
        check = PatchDatalistCheck(root, file, num_classes, content=content, disk_cache=disk_cache)
        if not check.content.get(split):
            there = [name for name in SECTIONS if check.content.get(name)]
            raise DataError(
                f"{check.file}: nothing to predict, split {split!r} is empty"
                + (f"; there is {', '.join(there)}" if there else "; list patches there, or give a folder of them")
            )
        self.cases: list[dict[str, Any]] = check.section(split)
        named = bool(check.content.get("classes"))
        check.match_classes(classes or ())
        check.files(self.cases, pixels=check_pixels)
        if check.problems:
            raise DataError(check.problems)
        for line in check.warnings:
            logger.warning("%s: %s", check.file, line)
        self.classes: list[str] = check.classes if named or not classes else list(classes)
        self.patch_size = check.facts[self.cases[0]["image"]].size
        self.mpp: float | None = check.content.get("mpp")


def folder_patches(folder: Path, group_by: str | None = None, classes: Sequence[str] = ()) -> list[dict[str, str]]:
    """Entries of all images below a folder, sorted by path; masks are left out, whatever is not taken is told.

    Args:
        folder: where.
        group_by: see :func:`shared.data.patches.groups.group_of`.
        classes: folders of these names are no patients.

    Raises:
        DataError: no image, whole slides, several magnifications, a name that cannot be written down, or one that the
            pattern does not fit.
    """
    from shared.data.patches.files import scan
    from shared.data.patches.groups import own_folders
    from shared.data.patches.layout import REMEDY_OF_SLIDES, undecodable
    from shared.data.tables import some

    found = scan(folder, classes)
    problems = undecodable(folder, [image.inner for image in found.images])
    if found.slides:
        problems.append(
            f"{folder}: {len(found.slides)} whole slides are no patches: {some(found.slides)}; {REMEDY_OF_SLIDES}"
        )
    powers = Counter(image.magnification for image in found.images if image.magnification)
    if len(powers) > 1:
        problems.append(
            f"{folder}: its folders name several magnifications, {', '.join(f'{k} ({n})' for k, n in powers.items())}; "
            "give the folder of the one that the model was trained on"
        )
    if not found.images and not problems:
        there = f" (there is {some(found.not_taken)})" if found.not_taken else ""
        problems.append(f"{folder}: holds neither datalist.json nor images that are read{there}; {PREPARE_PATCHES}")
    if problems:
        raise DataError(problems)
    not_taken = found.not_taken | {"masks": sorted({mask.inner.as_posix() for mask in found.masks.values()})}
    for reason, names in not_taken.items():
        if names:
            logger.warning("%s: not taken: %d %s: %s", folder, len(names), reason, some(names))
    paths = [image.inner for image in found.images]
    patients = _patients(paths, group_by, own_folders([image.folders for image in found.images]))
    return [{"image": path.as_posix(), "patient": patient} for path, patient in zip(paths, patients, strict=True)]


def _patients(
    paths: Sequence[Path], group_by: str | None = None, folders: Sequence[Sequence[str]] | None = None
) -> list[str]:
    """The patient of each patch; where it is not clear each is one by itself, and that is told."""
    from shared.data.patches.groups import NO_GROUPS, groups_of, resolve_groups

    try:
        return resolve_groups(paths, group_by, folders=folders)[0]
    except DataError as error:
        if group_by is not None:
            raise
        logger.warning(
            "Every patch is taken for a patient of its own; give --datalist#group_by to tell them apart. %s", error
        )
        return groups_of(paths, NO_GROUPS)


def _found(root: Path, text: str, listings: dict[Path, dict[str, str]]) -> str:
    """A path of a list as the disk has it: without quotation marks, of Windows, or with accents composed otherwise.

    Args:
        root: what relative paths are relative to.
        text: the path as listed.
        listings: names of folders that were looked into, by their composed form; filled here.
    """
    quoted = re.fullmatch(r"""\s*(["'])(.+)\1\s*""", text)
    text = quoted[2].strip() if quoted and not (root / text).exists() else text
    slashed = text.replace("\\", "/")
    forms = dict.fromkeys((text, slashed, re.sub("^[A-Za-z]:(?=/)", "", slashed)))
    for form in forms:
        if (root / form).exists():
            return form
    for form in forms:
        path = Path(Path(form).anchor)
        for name in Path(form).relative_to(path).parts:
            if not (root / path / name).exists():
                folder = root / path
                if folder not in listings:
                    listings[folder] = {nfc(p.name): p.name for p in folder.iterdir()} if folder.is_dir() else {}
                name = listings[folder].get(nfc(name), name)
            path /= name
        if (root / path).exists():
            return str(path)
    return text


def listed_patches(root: Path, file: Path, group_by: str | None = None) -> list[dict[str, str]]:
    """Entries of a text file with a path a line (lines with # are comments), or of a CSV with a column ``image``.

    Raises:
        DataError: no such file, nothing in it, no column ``image``.
    """
    from shared.data.tables import decode, read_table

    if file.suffix.lower() == ".txt":
        if not file.is_file():
            raise DataError(f"{file}: no such list of patches")
        lines = [line.strip() for line in decode(file.read_bytes(), file)[0].splitlines()]
        rows = [{"image": line} for line in lines if line and not line.startswith("#")]
        if not rows:
            raise DataError(f"{file}: lists no patch; write one path a line")
    else:
        rows = read_table(file, ["image"])
    listings: dict[Path, dict[str, str]] = {}
    rows = [{**row, "image": _found(root, row["image"], listings)} for row in rows]
    paths = [Path(row["image"]) for row in rows]
    names = [Path(path.name) for path in paths]
    if all(row.get("patient") for row in rows):
        return [{"image": row["image"], "patient": row["patient"]} for row in rows]
    patients = _patients(names if len(set(names)) == len(names) and "/" not in (group_by or "") else paths, group_by)
    return [
        {"image": row["image"], "patient": row.get("patient") or patient}
        for row, patient in zip(rows, patients, strict=True)
    ]
