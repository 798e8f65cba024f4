"""A cohort of the population graph as tables: features and metadata (CSV), joined by patient; imports no torch.

The defaults read UCSF-PDGM's own two files: the radiomic features and the metadata of 501 patients (Calabrese et al.,
The University of California San Francisco Preoperative Diffuse Glioma MRI Dataset, Radiology: AI, 2022).
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shared.apps.preparation.cell_numbers import looks_numeric, read_numbers
from shared.apps.preparation.label_words import IDH_WORDS, UNKNOWN
from shared.apps.preparation.label_words import idh_label as idh_label
from shared.apps.preparation.labels import read_labels
from shared.data.names import differing_in_case, look_alikes
from shared.data.tables import Table, read_table, some
from shared.errors import DataError

logger = logging.getLogger(__name__)

COVARIATES = {"age": "Age at MRI", "sex": "Sex"}
_SEX = {"f": 0.0, "female": 0.0, "m": 1.0, "male": 1.0}


@dataclass(frozen=True)
class PopulationTable:
    """Patients with their features, sorted as in the feature table.

    Shape:
        - patients, feature_names, covariate_names: names; features: ``[N, D]`` float64, finite; labels: ``[N]``, 1 =
          IDH mutant, -1 = unknown; covariates: ``[N, C]``, NaN where unknown; grade: ``[N]``, NaN where unknown
    """

    patients: tuple[str, ...]
    features: np.ndarray
    feature_names: tuple[str, ...]
    labels: np.ndarray
    covariates: np.ndarray
    covariate_names: tuple[str, ...]
    grade: np.ndarray

    def covariate(self, *names: str) -> np.ndarray:
        """Columns ``[N, len(names)]`` by name; ``grade`` is one of them."""
        every = {"grade": self.grade, **dict(zip(self.covariate_names, self.covariates.T, strict=True))}
        return np.stack([every[name] for name in names], axis=1)

    def named(self, prefix: str) -> np.ndarray:
        """Features ``[N, d]`` whose names begin with ``prefix``.

        Raises:
            DataError: there is none.
        """
        columns = [i for i, name in enumerate(self.feature_names) if name.startswith(prefix)]
        if not columns:
            raise DataError(f"no feature begins with {prefix!r}; the first is {self.feature_names[0]!r}")
        return self.features[:, columns]

    def digest(self) -> str:
        """Of all that is in it, 16 letters."""
        content = b"".join(x.tobytes() for x in (self.features, self.labels, self.covariates, self.grade))
        names = "\n".join([*self.patients, *self.feature_names, *self.covariate_names])
        return hashlib.sha256(content + names.encode()).hexdigest()[:16]


def of_grades(table: PopulationTable, grades: Sequence[int]) -> PopulationTable:
    """The patients of these grades.

    Raises:
        DataError: fewer than two of a class.
    """
    kept = np.isin(table.grade, grades)
    if np.bincount(table.labels[kept], minlength=2).min() < 2:
        raise DataError(
            f"{int(kept.sum())} patients are of grade {', '.join(map(str, grades))}, fewer than two of a class"
        )
    parts = {name: getattr(table, name)[kept] for name in ("features", "labels", "covariates", "grade")}
    return replace(table, patients=tuple(n for n, k in zip(table.patients, kept, strict=True) if k), **parts)


def joined(table: PopulationTable, other: PopulationTable, covariates: Sequence[str]) -> PopulationTable:
    """The patients of both, first those of ``table``, with these covariates.

    Raises:
        DataError: other features, or a patient of both.
    """
    if table.feature_names != other.feature_names:
        raise DataError(f"features differ: {some(sorted({*table.feature_names} ^ {*other.feature_names}))}")
    if twice := sorted({*table.patients} & {*other.patients}):
        raise DataError(f"patients to be tested are in the table, too: {some(twice)}")
    parts = {
        name: np.concatenate([getattr(t, name) for t in (table, other)]) for name in ("features", "labels", "grade")
    }
    known = np.concatenate([t.covariate(*covariates) if covariates else t.covariates[:, :0] for t in (table, other)])
    return replace(
        table, patients=table.patients + other.patients, covariates=known, covariate_names=tuple(covariates), **parts
    )


def read_population(
    features: str | os.PathLike,
    metadata: str | os.PathLike,
    *,
    id_column: str = "ID",
    label_column: str | None = "IDH",
    covariates: Mapping[str, str] = COVARIATES,
    grade_column: str | None = "WHO CNS Grade",
    exclude: Sequence[str] = ("diagnostics_",),
) -> PopulationTable:
    """Read a feature table and its metadata, and join them by patient.

    Columns of the feature table without any number (paths, versions) are left out, and so are constant features, both
    with a line in the log; so are patients whose label is not known. Patients of the metadata without features are
    counted in the log.

    Args:
        features: CSV, one row per patient, one column per feature.
        metadata: CSV, one row per patient.
        id_column: patient names, in both.
        label_column: IDH status, see :func:`idh_label`; None: there are no labels (inference).
        covariates: name to column of the metadata; numbers, or F and M.
        grade_column: WHO grade; None: not known.
        exclude: features whose names begin so are left out (PyRadiomics' diagnostics).

    Raises:
        DataError: all problems at once: a column that is missing, a patient twice or without metadata, features or
            covariates that are no numbers, a label that is not understood, no feature left.
    """
    wanted = [id_column, *covariates.values(), *([grade_column] if grade_column else [])]
    wanted += [label_column] if label_column else []
    rows, known = read_table(features, [id_column]), read_table(metadata, wanted)
    problems = _repeated(rows, id_column, str(features)) + _repeated(known, id_column, str(metadata))
    about = {row[id_column]: row for row in known}
    lost = [row[id_column] for row in rows if row[id_column] not in about]
    if lost:
        without = {row[id_column] for row in rows}
        hints = look_alikes(lost, [name for name in about if name not in without])
        problems.append(
            f"{metadata}: no row of {some(lost)}, who {'has' if len(lost) == 1 else 'have'} features in {features}"
            + next(filter(None, hints.values()), "")
        )
    names, table, wrong = _numbers(rows, id_column, exclude, str(features))
    joined = [(row[id_column], about[row[id_column]]) for row in rows if row[id_column] in about]
    labels = _labels(joined, label_column, str(metadata), problems)
    columns = {**covariates, **({"grade": grade_column} if grade_column else {})}
    values = {
        name: _covariate(joined, column, str(metadata), problems, known.delimiter) for name, column in columns.items()
    }
    if problems or wrong:
        raise DataError(problems + wrong)
    extra = len(known) - len(rows)
    if extra > 0:
        logger.info("%s: %d patients have no features, they are left out", metadata, extra)
    keep = labels >= 0 if label_column else np.ones(len(rows), bool)
    if not keep.all():
        logger.info("%d patients have no label in %r, they are left out", int((~keep).sum()), label_column)
    table, names = _varying(table[keep], names)
    patients = tuple(row[id_column] for row, kept in zip(rows, keep, strict=True) if kept)
    grade = values.pop("grade", np.full(len(rows), np.nan))[keep]
    stacked = np.stack([*values.values()], axis=1)[keep] if values else np.empty((len(patients), 0))
    return PopulationTable(patients, table, names, labels[keep], stacked, tuple(values), grade)


def _numbers(
    rows: Table, id_column: str, exclude: Sequence[str], source: str
) -> tuple[tuple[str, ...], np.ndarray, list[str]]:
    """Names and values ``[N, D]`` of the features, and what is wrong with them."""
    names, columns, text, problems = [], [], [], []
    for name in rows[0]:
        if name == id_column or name.startswith(tuple(exclude)):
            continue
        cells = {number: row[name] for number, row in enumerate(rows)}
        values, odd = read_numbers(cells, delimiter=rows.delimiter)
        empty = all(cell.lower() in UNKNOWN for cell in cells.values())
        written = any(looks_numeric(cell) for cell in cells.values())
        if not values and not empty and not written:
            text.append(name)
            continue
        missing = []
        for number, row in enumerate(rows):
            if number in odd and looks_numeric(row[name]):
                problems.append(f"{source}: {row[id_column]}: feature {name!r} {odd[number]}")
            elif number not in values:
                missing.append(row[id_column])
        if missing:
            which = "all patients" if len(missing) == len(rows) else some(missing)
            problems.append(
                f"{source}: feature {name!r} is no finite number for {which}: fill it, or remove the column or patient"
            )
        names.append(name)
        columns.append([values.get(number, np.nan) for number in cells])
    if text:
        logger.info("%s: %s without numbers left out: %s", source, _count(text, "column"), some(text))
    if not names:
        problems.append(f"{source}: no column holds a feature (a number for every patient)")
    return tuple(names), np.array(columns, dtype=float).T, problems


def _varying(table: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    varies = table.max(axis=0) > table.min(axis=0)
    if not varies.all():
        constant = [name for name, kept in zip(names, varies, strict=True) if not kept]
        logger.info("%s the same for all patients left out: %s", _count(constant, "feature"), some(constant))
    if not varies.any():
        raise DataError(f"all {len(names)} features are the same for all patients")
    return table[:, varies], tuple(name for name, kept in zip(names, varies, strict=True) if kept)


def _labels(joined: Sequence[tuple[str, Mapping]], column: str | None, source: str, problems: list[str]) -> np.ndarray:
    labels, odd = [], {}
    for patient, row in joined:
        try:
            label = idh_label(row[column]) if column else None
        except ValueError:
            odd.setdefault(row[column], patient)
            label = None
        labels.append(-1 if label is None else label)
    problems += [
        f"{source}: {column} of {patient} is {text!r}; write wildtype, mutated (or IDH1 p.R132H, ...) or leave it empty"
        for text, patient in odd.items()
    ]
    if column and not problems:
        found = read_labels({patient: row[column] for patient, row in joined}, column, words=IDH_WORDS)
        logger.info("%s: %s", source, found.told(column, ("wild type", "mutated")))
    if column and not odd and not any(label >= 0 for label in labels):
        problems.append(f"{source}: {column} is known of no patient")
    return np.array(labels, dtype=int)


def _covariate(
    joined: Sequence[tuple[str, Mapping]], column: str, source: str, problems: list[str], delimiter: str
) -> np.ndarray:
    cells = {number: row[column].lower() for number, (_, row) in enumerate(joined)}
    sexes = {number: _SEX[cell] for number, cell in cells.items() if cell in _SEX}
    rest = {number: cell for number, cell in cells.items() if cell not in _SEX and cell not in UNKNOWN}
    numbers, wrong = read_numbers(rest, delimiter=delimiter)
    odd = []
    for number, problem in wrong.items():
        patient, row = joined[number]
        if looks_numeric(row[column]):
            problems.append(f"{source}: {patient}: {column} {problem}")
        else:
            odd.append(f"{patient} ({row[column]!r})")
    if odd:
        problems.append(f"{source}: {column} must be a number, F or M, or empty; not so: {some(odd)}")
    values = {**sexes, **numbers}
    return np.array([values.get(number, np.nan) for number in cells], dtype=float)


def _repeated(rows: Table, column: str, source: str) -> list[str]:
    lines: dict[str, list[int]] = {}
    for number, row in zip(rows.numbers, rows, strict=True):
        lines.setdefault(row[column], []).append(number)
    problems = [f"{source}: row {number} has no {column!r}" for number in lines.pop("", [])]
    problems += [f"{source}: {a} and {b} differ in capitals only" for a, b in differing_in_case(lines)]
    for patient, numbers in lines.items():
        if len(numbers) > 1:
            problems.append(f"{source}: {patient} appears {len(numbers)} times (rows {numbers[0]}, {numbers[1]})")
    return problems


def _count(names: Sequence[str], noun: str) -> str:
    return f"{len(names)} {noun}{'s' * (len(names) != 1)}"
