"""Slides of which only a label each is known, split by patient; headers and table are checked before anything runs."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.data.slides.folder import find_slides, read_slide_labels
from shared.data.splits import grouped_folds
from shared.data.tables import read_table, some
from shared.errors import DataError

SECTIONS = ("training", "validation", "testing")


class SlideDatalist:
    """Slides of a folder with one label each, split into training, validation and testing by patient.

    The table has the columns ``slide`` (path below the folder, file name, or that without ending), ``label`` (class
    name or number), ``patient`` and, if slides are kept apart, ``section`` (``training``, ``validation`` or
    ``testing``; empty: ``training``). Every slide of the folder has a row, and every row a slide.

    Args:
        dataset_dir: folder of slides or large images, searched whole.
        file: the table, relative to ``dataset_dir`` or absolute.
        fold: where no slide is in ``validation``: training slides of this fold validate; -1: none does.
        folds: how many, drawn by patient.
        num_classes: classes.
        classes: their names, in order; empty: the table's, sorted, or ``class 0`` and ``class 1`` for numbers.
        slide_mpp: micrometres per pixel of all slides, whatever they say; None: as each says.
        mpp: micrometres per pixel of the tiles: slides of coarser pixels are told.
        smallest_um: side of a tile in micrometres, which each slide must hold.
        seed: of the draw.

    Attributes:
        training: slides to train on: ``image`` (path), ``slide`` (path below the folder), ``patient``, ``label``,
            ``mpp`` (micrometres per pixel).
        validation: slides to validate with, may be empty.
        testing: slides kept apart.
        classes: names of the classes.
        name: of the data set.
        patch_size: None, since tiles are cut in the model's own size.

    Raises:
        DataError: with every problem found: slides that cannot be used, slides without a row or label, rows without a
            slide, patients in two sections, labels of one class only, too few patients for the folds.
    """

    patch_size: None = None

    def __init__(
        self,
        dataset_dir: str | os.PathLike,
        file: str | os.PathLike = "labels.csv",
        *,
        fold: int = 0,
        folds: int = 5,
        num_classes: int = 2,
        classes: Sequence[str] = (),
        slide_mpp: float | None = None,
        mpp: float | None = None,
        smallest_um: float | None = None,
        seed: int = 0,
    ):
        folder, self.file = Path(dataset_dir), Path(dataset_dir) / file
        if num_classes != 2 or (classes and len(classes) != 2):
            raise DataError(f"slides are told apart in two classes, got {list(classes) or num_classes}")
        if folds < 2 or not -1 <= fold < folds:
            raise DataError(f"folds must be at least 2 and fold -1 to {folds - 1}, got {folds} and {fold}")
        rows = read_table(self.file, ["slide", "label", "patient"])
        self.classes = list(classes) or _class_names(row["label"] for row in rows)
        self.name = folder.resolve().name
        slides = find_slides(folder, slide_mpp=slide_mpp, mpp=mpp, smallest_um=smallest_um)
        labels = read_slide_labels(self.file, slides, self.classes, complete=True)
        problems: list[str] = []
        parts: dict[str, list[dict[str, Any]]] = {name: [] for name in SECTIONS}
        sections: dict[str | None, set[str]] = defaultdict(set)
        for slide in slides:
            found = labels[slide.inner]
            section = found.section or "training"
            if section not in SECTIONS:
                problems.append(f"{slide.inner}: section {section!r} is none of {', '.join(SECTIONS)}")
                continue
            sections[found.patient].add(section)
            entry = {"image": str(slide.path), "slide": slide.inner, "patient": found.patient, "label": found.label}
            parts[section].append({**entry, "mpp": slide.mpp})
        problems += [
            f"patient {patient}: has slides in {' and '.join(sorted(found))}; all slides of a patient belong to one"
            for patient, found in sorted(sections.items())
            if len(found) > 1
        ]
        known = {entry["label"] for entry in parts["training"]}
        if len(known) < 2 and not problems:
            shown = ", ".join(self.classes[label] for label in known) or "no class"
            problems.append(f"{self.file}: the training slides are all of {shown}; slides of both classes are needed")
        if problems:
            raise DataError(problems)
        self.training, self.validation, self.testing = (parts[name] for name in SECTIONS)
        if not self.validation and fold >= 0:
            told = [entry["patient"] for entry in self.training], [entry["label"] for entry in self.training]
            fold_of = grouped_folds(*told, folds, seed)
            self.validation = [entry for entry in self.training if fold_of[entry["patient"]] == fold]
            self.training = [entry for entry in self.training if fold_of[entry["patient"]] != fold]

    def part(self, name: str) -> list[dict[str, Any]]:
        """The slides of a section, to evaluate.

        Raises:
            DataError: another name, or a section without slides.
        """
        if name not in SECTIONS or not getattr(self, name):
            there = ", ".join(other for other in SECTIONS if getattr(self, other))
            raise DataError(f"{self.file}: no slides in {name!r}, there are in {there}; name one with --split")
        return getattr(self, name)


def _class_names(labels: Any) -> list[str]:
    """Names of two classes as a table's labels tell them."""
    found = sorted(set(labels) - {""})
    if set(found) <= {"0", "1"}:
        return ["class 0", "class 1"]
    if len(found) == 2:
        return found
    raise DataError(
        f"two classes are needed, the labels are {some(found)}; correct them, or name the classes with "
        "--datalist#classes \"['A','B']\""
    )
