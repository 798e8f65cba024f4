"""The label table of a preparation script: label, covariates and section of every patient, whole columns at a time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from shared.apps.preparation.cell_numbers import parse_number, read_numbers
from shared.apps.preparation.label_words import NUMBERS
from shared.apps.preparation.labels import read_labels
from shared.data.tables import read_table, rows_by_patient

YES = ("true", "yes", "y", "test", "testing")
NO = ("false", "no", "n", "train", "training", "")
FILE = "(name of the image's file)"


@dataclass
class LabelTable:
    """What a label table says.

    Attributes:
        patients: ``label``, ``covariates``, ``test`` (whether of the testing section), ``group``, ``picture`` (path
            of a 2D image) and ``pixel_mm`` by patient, where known.
        unlabelled: why a patient has no label, where the table gives none.
        wrong: what is wrong with a patient's other cells; problems: with the whole table.
        told: lines for the report: which values became which class.
        values: label of every value of the label's column.
    """

    patients: dict[str, dict[str, Any]] = field(default_factory=dict)
    unlabelled: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    values: dict[str, int] = field(default_factory=dict)


def read_label_table(options: argparse.Namespace) -> LabelTable:
    """Read the table that the command line names; with ``options.inference`` labels that cannot be read are told only.

    A table with an ``image_column`` lists 2D images; without a column of patients they are named by their files.

    Raises:
        DataError: it is no table, or a column is missing.
    """
    image, group, pixel = (getattr(options, f"{name}_column", None) for name in ("image", "group", "pixel_size"))
    wanted = [image or options.patient_column, *options.covariates]
    wanted += [] if options.inference else [options.label_column]
    wanted += [column for column in (options.test_column, group, pixel) if column]
    rows = read_table(options.labels, wanted)
    found, names = LabelTable(), options.patient_column
    if image and (names not in rows[0] or names == group):
        names = FILE
        for row, name in zip(rows, picture_names([row[image] for row in rows]), strict=True):
            row[names] = name
    table, found.problems = rows_by_patient(rows, names)
    found.patients = {patient: {} for patient in table}
    if rows.encoding == "cp1252":
        found.told.append(f"{options.labels}: read as Windows-1252, as it is no UTF-8")
    columns = {name: {patient: row[name] for patient, row in table.items()} for name in rows[0]}
    if options.label_column in columns:
        _labels(found, columns[options.label_column], options)
    for name in options.covariates:
        numbers, odd = read_numbers(columns[name], delimiter=rows.delimiter)
        for patient, number in numbers.items():
            found.patients[patient].setdefault("covariates", {})[name] = number
        for patient, problem in odd.items():
            found.wrong.setdefault(patient, []).append(f"{patient}: covariate {name!r} {problem}")
    for patient, text in columns[group].items() if group else ():
        if text or options.inference:
            found.patients[patient]["group"] = text or patient
        else:
            problem = f"{patient}: column {group!r} is empty; name its group (its own name where it stands alone)"
            found.wrong.setdefault(patient, []).append(problem)
    if image:
        for patient, text in columns[image].items():
            found.patients[patient]["picture"] = text.replace("\\", "/")
    if pixel:
        _pixel_sizes(found, columns[pixel], pixel, rows.delimiter)
    for patient, text in columns[options.test_column].items() if options.test_column else ():
        number = parse_number(text)
        found.patients[patient]["test"] = number == 1 or text.casefold() in YES
        if number not in (0.0, 1.0) and text.casefold() not in YES + NO:
            problem = f"{patient}: column {options.test_column!r} must be 1 or 0, got {text!r}"
            found.wrong.setdefault(patient, []).append(problem)
    return found


def picture_names(paths: Sequence[str]) -> list[str]:
    """Names of 2D images: their files', or where two files have one name, their paths'; without ending.

    Example:
        >>> picture_names(["a/1.png", "b/2.png"]), picture_names(["a/1.png", "b/1.png"])
        (['1', '2'], ['a_1', 'b_1'])
    """
    files = [PurePosixPath(path.replace("\\", "/")) for path in paths]
    names = [path.stem for path in files]
    if len({name.casefold() for name in names}) == len(names):
        return names
    return ["_".join(path.with_suffix("").parts) if path.name else "" for path in files]


def _pixel_sizes(found: LabelTable, cells: dict[str, str], column: str, delimiter: str) -> None:
    numbers, odd = read_numbers(cells, delimiter=delimiter)
    for patient, text in cells.items():
        if numbers.get(patient, 0.0) > 0:
            found.patients[patient]["pixel_mm"] = numbers[patient]
        else:
            problem = odd.get(patient) or f"must be above 0, got {text!r}"
            found.wrong.setdefault(patient, []).append(f"{patient}: pixel size {column!r} {problem}")


def _labels(found: LabelTable, cells: dict[str, str], options: argparse.Namespace) -> None:
    column = options.label_column
    labels = read_labels(
        cells,
        column,
        positive=options.positive,
        negative=options.negative,
        words=getattr(options, "label_words", NUMBERS),
    )
    if not options.inference:
        found.problems += labels.problems
    elif labels.problems:  # of patients to predict it need not be known
        found.told.append(f"column {column!r}: {len(labels.of)} labels read; {labels.problems[0]}")
    for patient, label in labels.of.items():
        found.patients[patient]["label"] = label
    for patient in labels.unknown:
        text = f" (it holds {cells[patient]!r}; name that value where it is a class)" if cells[patient] else ""
        found.unlabelled[patient] = f"column {column!r} is empty{text}"
    found.values = labels.values
    if labels.of:
        found.told.append(labels.told(column, options.classes))
