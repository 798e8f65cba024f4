"""The rules of a datalist, checked on the JSON and on image headers; no voxel is read. Patches: ``patch_checks``."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.data.grids import canonical, place_problem, same_grid
from shared.data.names import nfc
from shared.data.tables import some
from shared.errors import DataError
from shared.io import disguise

logger = logging.getLogger(__name__)

LARGEST_MM, SMALLEST_MM = 5000.0, 1.0  # of the longest side of an image

_PREPARE = (
    "prepare one with scripts/prepare_patients.py (a folder of NIfTI and a CSV) or scripts/prepare_tcga_lgg.py, "
    "or try `bash scripts/demo.sh`, which makes synthetic patients"
)


def read_datalist(
    dataset_dir: str | os.PathLike, file: str | os.PathLike = "datalist.json", remedy: str = _PREPARE
) -> dict[str, Any]:
    """Parse a datalist; its cases are not checked yet.

    Args:
        dataset_dir: the prepared folder.
        file: the datalist, relative to ``dataset_dir`` or absolute.
        remedy: end of every message: how to come by a datalist.

    Raises:
        DataError: no folder, no file, not JSON, or not an object with a list ``training`` or ``testing``.
    """
    if not Path(dataset_dir).is_dir():
        raise DataError(f"{dataset_dir}: no such dataset folder; {remedy}")
    path = Path(dataset_dir) / file
    if not path.is_file():
        raise DataError(f"{path}: no such datalist; {remedy}")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: is not readable JSON ({error}); {remedy}") from error
    if not isinstance(content, dict) or not {"training", "testing"} & set(content):
        raise DataError(f"{path}: a datalist is an object with the lists 'training' and 'testing'; {remedy}")
    return content


def image_header_problem(path: str | os.PathLike) -> tuple[str | None, tuple | None]:
    """What is wrong with an image as far as its header tells, and its grid (shape and affine) when nothing is.

    A 4D file is accepted when the axes beyond the third have length 1.

    Example:
        >>> image_header_problem("no_such.nii.gz")
        ('file not found', None)
    """
    import nibabel as nib
    import numpy as np

    path = Path(path)
    if not path.is_file():
        return "file not found", None
    if found := disguise(path):
        return found, None
    try:
        image = nib.load(path)
        shape, affine = tuple(int(n) for n in image.shape), np.asarray(image.affine, float)
        dtype = image.get_data_dtype()
    except Exception as error:  # nibabel raises many kinds, down to zlib's and struct's
        return f"not readable as NIfTI ({type(error).__name__}: {error}); export it again", None
    if len(shape) < 3:
        return f"is {len(shape)}D {shape}, a 3D volume is needed; stack the slices of a patient into one NIfTI", None
    if any(n != 1 for n in shape[3:]):
        return f"is {len(shape)}D {shape}, a 3D volume is needed; write each phase or sequence to its own file", None
    if min(shape[:3]) < 1:
        return f"has no voxels, its shape is {shape}; export it again", None
    if dtype.fields is not None or dtype.kind == "c":
        return f"has {'colour' if dtype.fields else 'complex'} voxels, one real value each is needed", None
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        return "has no valid orientation (its affine is not finite or not invertible); export it again", None
    if problem := orientation_problem(image.header) or size_problem(image.header, shape[:3], affine):
        return problem, None
    if path.suffix == ".nii" and path.stat().st_size < image.dataobj.offset + math.prod(shape) * dtype.itemsize:
        return "is shorter than its header says; copy it again", None
    return None, (shape[:3], affine)


def orientation_problem(header: Any) -> str | None:
    """A NIfTI header that gives no orientation: nibabel then makes an affine up. None where it gives one."""
    import nibabel as nib

    if isinstance(header, nib.Nifti1Header) and not int(header["sform_code"]) and not int(header["qform_code"]):
        return "has no affine (sform and qform codes are 0): position and orientation are unknown; convert it again"
    return None


def size_problem(header: Any, shape: Sequence[int], affine: Any) -> str | None:
    """An image that no person fits in, as in metres or micrometres (nibabel reads its numbers as mm). None: it fits."""
    import nibabel as nib
    import numpy as np

    code = int(header["xyzt_units"]) % 8 if isinstance(header, nib.Nifti1Header) else 0
    unit = {1: "meter", 3: "micron"}.get(code, "mm")  # nibabel stumbles over other codes
    steps = np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)
    largest = float((steps * shape).max())
    # a single slice may be a picture of unknown or tiny pixels
    if unit in ("meter", "micron") or largest > LARGEST_MM or (min(shape) > 1 and largest < SMALLEST_MM):
        told = f"; its header says {unit}" if unit in ("meter", "micron") else ""
        sizes = " x ".join(f"{step:.4g}" for step in steps)
        return f"has voxels of {sizes} mm{told}: its affine must be in millimetres; convert it again"
    return None


class SectionCheck:
    """What the datalists of volumes and of patches have in common: classes, labels and folds.

    Args:
        root: the prepared folder.
        file: the datalist, relative to ``root`` or absolute.
        num_classes: labels lie in ``range(num_classes)``.
        content: the parsed datalist, where it is not to be read from ``file``.
    """

    remedy = _PREPARE
    unit = "patient"  # what a message asks to leave out

    def __init__(
        self,
        root: str | os.PathLike,
        file: str | os.PathLike,
        num_classes: int,
        *,
        content: dict[str, Any] | None = None,
    ):
        content = read_datalist(root, file, self.remedy) if content is None else content
        self.root, self.content, self.file = Path(root).resolve(), content, str(Path(root) / file)
        self.num_classes = num_classes
        self.problems: list[str] = []
        classes = content.get("classes")
        if classes is not None and (not isinstance(classes, list) or len(classes) != num_classes):
            self.problems.append(
                f"{self.file}: 'classes' must name {num_classes} classes (num_classes), got {classes!r}"
            )

    @property
    def classes(self) -> list[str]:
        """Names of the classes, the label's digits where the datalist has none."""
        names = self.content.get("classes")
        return list(names) if names and isinstance(names, list) else [str(label) for label in range(self.num_classes)]

    def match_classes(self, trained: Sequence[str]) -> None:
        """The datalist's classes are a model's, in its order; names that are only numbers are not compared."""
        named = self.content.get("classes")
        if named and trained and list(named) != list(trained) and not (are_numbers(named) or are_numbers(trained)):
            self.problems.append(
                f"{self.file}: its classes are {', '.join(map(str, named))}, those of the model "
                f"{', '.join(map(str, trained))}; labels are numbers: prepare the data with --classes in the model's "
                "order, or leave 'classes' and the labels out of the datalist"
            )

    def name_of(self, case: dict) -> str:
        """How messages call a case."""
        return case["patient"]

    def entries(self, section: str) -> list:
        """What the datalist lists in a section."""
        entries = self.content.get(section) or []
        if not isinstance(entries, list):
            self.problems.append(f"{self.file}: {section!r} must be a list of cases, got {type(entries).__name__}")
            return []
        return entries

    def is_label(self, label: Any) -> bool:
        """Whether ``label`` is a class index."""
        return isinstance(label, int) and not isinstance(label, bool) and 0 <= label < self.num_classes

    def labels_present(self, cases: list[dict]) -> None:
        """Every case has a label."""
        self.problems += [
            f"{self.name_of(case)}: label is missing; add it, or leave the {self.unit} out of training"
            for case in cases
            if "label" not in case
        ]

    def check_label(self, case: dict) -> None:
        """A label that is there is a class index; ``null`` is none."""
        if case.get("label") is None:
            case.pop("label", None)
        elif not self.is_label(case["label"]):
            self.problems.append(
                f"{self.name_of(case)}: label must be an integer from 0 to {self.num_classes - 1}, "
                f"got {case['label']!r}; correct it"
            )

    def one_class(self, cases: list[dict], part: str) -> None:
        """The labels of ``cases`` are of more than one class."""
        found = Counter(case["label"] for case in cases if self.is_label(case.get("label")))
        if len(found) == 1:
            label, count = next(iter(found.items()))
            self.problems.append(f"{part} has one class only: {count} cases of label {label}; both are needed")

    def split(self, training: list[dict], fold: int) -> tuple[list[dict], list[dict]]:
        """Training cases outside and inside ``fold``."""
        bad = [c for c in training if not isinstance(c.get("fold"), int) or isinstance(c.get("fold"), bool)]
        if bad and all(case.get("fold") is None for case in training):
            self.problems.append(
                f"{self.file}: no training case has a fold, fold {fold} is asked for; prepare the data with --folds, "
                "or set fold to -1"
            )
        else:
            self.problems += [
                f"{self.name_of(case)}: fold must be an integer, got {case.get('fold')!r}; "
                "prepare the data with --folds"
                for case in bad
            ]
        kept = [case for case in training if case.get("fold") != fold]
        held = [case for case in training if case.get("fold") == fold]
        if training and not bad and not held:
            there = ", ".join(str(f) for f in sorted({case["fold"] for case in training}))
            self.problems.append(f"{self.file}: no case has fold {fold}; the datalist has folds {there}")
        if held and not kept:
            self.problems.append(f"{self.file}: all cases have fold {fold}, none is left to train on")
        return kept, held


def are_numbers(names: Sequence[Any]) -> bool:
    """Whether classes or modalities were never named.

    Example:
        >>> are_numbers(["0", "class 1"]), are_numbers(["image 1"]), are_numbers(["T1", "T2"])
        (True, True, False)
    """
    return all(str(name).removeprefix("class ").removeprefix("image ").isdigit() for name in names)


def _identical(grid: tuple, other: tuple) -> bool:
    return grid[0] == other[0] and bool((grid[1] == other[1]).all())


class DatalistCheck(SectionCheck):
    """Collects the problems of a datalist of volumes.

    Args:
        root: the prepared folder.
        file: the datalist, relative to ``root`` or absolute.
        num_classes: labels lie in ``range(num_classes)``.
        num_modalities: images that are taken of each case; None: all.
        covariates: names of covariates every case must have.
        use: names of the modalities that are taken of each case, in this order; None: all.
    """

    may_lack = False  # cases to predict, by a model that answers without some modalities

    def __init__(
        self,
        root: str | os.PathLike,
        file: str | os.PathLike,
        num_classes: int,
        num_modalities: int | None,
        covariates: Sequence[str],
        use: Sequence[str] | None = None,
    ):
        super().__init__(root, file, num_classes)
        self.covariates = tuple(covariates)
        self.resampled: list[str] = []
        self.order: list[int | None] | None = None
        names = self.content.get("modalities")
        self.modalities = [str(name) for name in names] if isinstance(names, list) else []
        self.wanted = num_modalities
        self.expected = len(self.modalities) or num_modalities  # images that each case lists
        self.wrong_number_told = False
        if use is not None:
            self._use(use)

    def _use(self, use: Sequence[str]) -> None:
        """Take of each case the images of these modalities alone."""
        here = [name.casefold() for name in self.modalities]
        asked = [name.casefold() for name in use if isinstance(name, str)] if isinstance(use, list | tuple) else []
        known = f"its modalities are {', '.join(self.modalities)}" if here else "it names no modalities"
        if not asked or len(asked) < len(use) or len(set(asked)) < len(asked):
            rule = f"use_modalities must list names of modalities, each once, got {use!r}"
        elif unknown := [name for name in use if here.count(name.casefold()) != 1]:
            rule = f"use_modalities names {', '.join(unknown)}"
        else:
            self._take([here.index(name) for name in asked])
            return
        self.wrong_number_told = True
        self.problems.append(f"{self.file}: {rule}; {known}: name some of them, or leave it out (null) to take all")

    def _take(self, rows: Sequence[int | None], names: Sequence[str] = ()) -> None:
        """Take these; None: nobody has the one of that name."""
        order = range(len(self.modalities)) if self.order is None else self.order
        self.order = [None if row is None else order[row] for row in rows]
        self.modalities = [names[k] if row is None else self.modalities[row] for k, row in enumerate(rows)]

    def match_modalities(self, trained: Sequence[str]) -> None:
        """Take of each case the images of a model's modalities, in the model's order; others are refused.

        Names are compared without regard to case; where either side has none, numbers alone are (by ``section``).
        """
        here, there = ([str(name).casefold() for name in names] for names in (self.modalities, trained))
        if not here or not there or are_numbers(here) or are_numbers(there) or here == there:
            return
        lacking = [name for name, low in zip(trained, there, strict=True) if low not in here]
        known = len(lacking) < len(there) if self.may_lack else not lacking
        if known and len(set(here)) == len(here) and len(set(there)) == len(there):
            logger.warning(
                "%s: its modalities are %s, the model's %s: %s",
                self.file,
                ", ".join(self.modalities),
                ", ".join(trained),
                f"patients lack {', '.join(lacking)}"
                if lacking
                else "the images are taken in the model's order"
                if len(here) == len(there)
                else "only these are taken",
            )
            self._take([here.index(name) if name in here else None for name in there], trained)
        elif not self.wrong_number_told:
            self.wrong_number_told = True
            self.problems.append(
                f"{self.file}: its modalities are {', '.join(self.modalities)}, the model was trained on "
                f"{', '.join(trained)}; prepare the data with these (--modalities), or use a model trained on yours"
            )

    def section(self, section: str) -> list[dict[str, Any]]:
        """Checked cases of a section with absolute paths (what is wrong goes to ``problems``)."""
        self._check_number()
        entries = self.entries(section)
        self.resampled = []
        cases = [case for row, entry in enumerate(entries) if (case := self._case(entry, f"{section}[{row}]"))]
        if not self.modalities and cases:
            count = len(cases[0]["image"]) + len(cases[0].get("lacking", ()))
            self.modalities = [f"image {row + 1}" for row in range(count)]
        if self.resampled:
            logger.warning(
                "%s: %d of %d %s cases have images on different grids; they are resampled to the first modality: %s",
                self.file,
                len(self.resampled),
                len(cases),
                section,
                ", ".join(self.resampled),
            )
        return cases

    def _check_number(self) -> None:
        """As many modalities are taken as the configuration says."""
        if self.wrong_number_told or self.wanted is None or len(self.modalities) in (0, self.wanted):
            return
        self.wrong_number_told = True
        taken = "the datalist has" if self.order is None else "of the datalist are taken"
        self.problems.append(
            f"{self.file}: {taken} {len(self.modalities)} modalities ({', '.join(self.modalities)}), "
            f"the configuration expects {self.wanted}; set their number (--in_channels, or num_modalities) or "
            "prepare the data again"
        )

    def _case(self, entry: Any, where: str) -> dict[str, Any] | None:
        if not isinstance(entry, dict) or not isinstance(entry.get("patient"), str) or not entry["patient"].strip():
            self.problems.append(f"{where}: a case is an object with the patient's name, got {str(entry)[:80]}")
            return None
        patient = nfc(entry["patient"])  # two spellings of one name are one patient
        if set(patient) & set("/\\") or not patient.strip("."):
            self.problems.append(
                f"{patient}: a patient's name begins the names of files: it holds no / or \\, and more than dots; "
                "rename the patient"
            )
        case = {**entry, "patient": patient}
        case.pop("lacking", None)  # said by null images alone
        images = [entry["image"]] if isinstance(entry.get("image"), str) else entry.get("image")
        if not isinstance(images, list) or not images or not all(i is None or isinstance(i, str) for i in images):
            self.problems.append(f"{patient}: 'image' must be a path or a list of paths, got {images!r}")
            images = []
        elif self.expected is None:
            self.expected = len(images)
        elif len(images) != self.expected and not self.wrong_number_told:
            self.problems.append(
                f"{patient}: has {len(images)} images, {self.expected} are expected, one per modality"
                + (f" ({', '.join(self.modalities)})" if self.modalities else " as in the first case")
                + "; add the missing ones or leave the patient out"
            )
        if self.order is not None and len(images) == self.expected:
            images = [None if row is None else images[row] for row in self.order]
        names = (
            self.modalities if len(self.modalities) == len(images) else [f"image {k + 1}" for k in range(len(images))]
        )
        lacking = {name: row for row, (name, path) in enumerate(zip(names, images, strict=True)) if not path}
        images = [path for path in images if path]
        if lacking and self.may_lack and images:
            case["lacking"] = lacking
        elif lacking:
            rule = (
                "one modality at least is needed"
                if self.may_lack
                else "every modality is needed (but in an inference of glioma_idh, by a model trained with "
                "contrast#sequence_dropout)"
            )
            self.problems.append(f"{patient}: has no {', '.join(lacking)}; {rule}: add it or leave the patient out")
        case["image"] = [str(self.root / image) for image in images]
        grids = [(image, self._grid(image, patient)) for image in case["image"]]
        for key in ("mask", "planted"):
            if entry.get(key) is None:
                case.pop(key, None)
            elif not isinstance(entry[key], str):
                self.problems.append(f"{patient}: {key!r} must be one path, got {entry[key]!r}")
            else:
                case[key] = str(self.root / entry[key])
                grids.append((case[key], self._grid(case[key], patient)))
        self._places([(image, grid) for image, grid in grids if grid is not None], patient, entry)
        labels = entry.get("tumour_labels")
        if labels is not None and not (
            isinstance(labels, list) and labels and all(type(label) is int and label > 0 for label in labels)
        ):
            self.problems.append(
                f"{patient}: 'tumour_labels' must list the mask's values that are tumour, as [2], got {labels!r}"
            )
        self.check_label(case)
        self._group(case)
        values = entry.get("covariates") or {}
        for name in self.covariates:
            value = values.get(name) if isinstance(values, dict) else None
            if value is None:
                self.problems.append(
                    f"{patient}: covariate {name!r} is missing; add it, or leave the patient or the covariate out"
                )
            elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                self.problems.append(f"{patient}: covariate {name!r} must be a finite number, got {value!r}")
        return case

    def _group(self, case: dict) -> None:
        """A group that is there is a name; ``null`` is none."""
        group = case.get("group")
        if group is None:
            case.pop("group", None)
        elif not isinstance(group, str) or not group.strip():
            self.problems.append(
                f"{case['patient']}: 'group' must be a name, got {group!r}; correct it or leave it out"
            )
            case.pop("group")
        else:
            case["group"] = nfc(group)

    def _places(self, grids: list[tuple[str, tuple]], patient: str, entry: dict) -> None:
        """Images and masks of one shape lie on one grid; those of other shapes are noted, they are resampled."""
        trusted = entry.get("trust_affines") is True
        first = grids[0][1] if grids else None
        # most are the very same: comparing them corner by corner took half of the check
        for path, grid in (other for other in grids[1:] if not _identical(first, other[1])):
            problem = None if trusted else place_problem(grids[0][0], grids[0][1], path, grid)
            if problem:
                self.problems.append(f"{patient}: {problem}")
            elif not same_grid(canonical(*grids[0][1]), canonical(*grid)) and patient not in self.resampled:
                self.resampled.append(patient)

    def _grid(self, path: str, patient: str) -> tuple | None:
        problem, grid = image_header_problem(path)
        if problem:
            self.problems.append(f"{patient}: {path}: {problem}")
        return grid

    def across(self, training: list[dict], testing: list[dict]) -> None:
        """No patient twice, no patient or group in two folds or in both sections; no image file of two patients."""
        for section, cases in (("training", training), ("testing", testing)):
            folds: dict[str, list] = {}
            for case in cases:
                folds.setdefault(case["patient"], []).append(case.get("fold"))
            for patient, found in folds.items():
                named = sorted({str(fold) for fold in found})
                if len(named) > 1:
                    self.problems.append(
                        f"{patient}: is in folds {' and '.join(named)}; a patient has one case, one fold"
                    )
                elif len(found) > 1:
                    self.problems.append(
                        f"{patient}: appears {len(found)} times in the {section} section; a patient has one case"
                    )
        both = {case["patient"] for case in training} & {case["patient"] for case in testing}
        self.problems += [
            f"{patient}: is in the training and in the testing section; keep one" for patient in sorted(both)
        ]
        self._groups(training, testing)
        owner: dict[str, str] = {}
        for case in training + testing:
            resolved = [os.path.realpath(path) for path in case["image"]]
            twice = sorted(path for path, count in Counter(resolved).items() if count > 1)
            self.problems += [
                f"{case['patient']}: {path}: is listed twice; list one file per modality" for path in twice
            ]
            for path in sorted(set(resolved)):
                other = owner.setdefault(path, case["patient"])
                if other != case["patient"]:
                    self.problems.append(
                        f"{case['patient']}: {path}: is the image of patient {other}, too; correct one"
                    )

    def _groups(self, training: list[dict], testing: list[dict]) -> None:
        """The patients of a group are in one fold or in one other section; all have one where any has."""
        parts: dict[str, dict[str, list[str]]] = {}
        for section, cases in (("training", training), ("testing", testing)):
            for case in cases:
                fold = case.get("fold") if section == "training" else None
                place = f"the {section} section" if fold is None else f"fold {fold}"
                if "group" in case:
                    parts.setdefault(case["group"], {}).setdefault(place, []).append(case["patient"])
        for group, places in parts.items():
            if len(places) > 1:
                shown = " and ".join(f"{place} ({some(names)})" for place, names in places.items())
                self.problems.append(
                    f"group {group}: is in {shown}; a group belongs to one fold or section, prepare the data again "
                    "with --group-column"
                )
        without = [case["patient"] for case in training + testing if "group" not in case]
        if parts and without:
            self.problems.append(
                f"{len(without)} cases have no group, others have one: {some(without)}; give each its group (its own "
                "name where it stands alone)"
            )
