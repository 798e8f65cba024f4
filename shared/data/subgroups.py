"""By what patients can be told apart: covariates, further columns of tables beside the datalist, size of the tumour."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.data.names import nfc
from shared.data.tables import read_table, some
from shared.errors import DataError

TABLES = ("subgroups.csv", "acquisition.csv")
MODALITY = "modality"  # column of a table with a row per patient and modality
SCANNER = ("manufacturer", "model", "site", "scanner", "year", "field_strength_t")
"""Columns of the preparation's acquisition.csv that tell patients apart; echo times and the like weaken Holm."""
PREPARED = "slice_step_mm"  # a column of the preparation's own table
SIZE = "tumour size"
SIZE_UNITS = ("ml", "mm2", "share of the patch")


def read_subgroup_tables(
    dataset_dir: str | os.PathLike,
    tables: Sequence[str] = TABLES,
    *,
    by_modality: bool = False,
    known: Iterable[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Columns of ``subgroups.csv`` and ``acquisition.csv`` in a prepared folder, each by patient or image.

    A table has one row per patient (column ``patient``) or image (``image``); numbers are taken as such, empty cells
    are not known. Nothing where there is no table. With a column ``modality``, as the preparation from DICOM writes it,
    a patient has a row per modality: a column whose values agree within every patient is one of the patients.

    Args:
        dataset_dir: the prepared folder.
        tables: which of them.
        by_modality: also columns that differ between a patient's modalities, as ``<modality>: <column>``, and all of
            the preparation's own table; else of that the :data:`SCANNER` alone.
        known: patients (and images) of whom a table must name one.

    Raises:
        DataError: a table without such a column or without another, a row twice, a column in both tables, a table of
            other patients.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "subgroups.csv").write_text("patient,site\\nP1,A\\nP2,")
        >>> read_subgroup_tables(folder)
        {'site': {'P1': 'A', 'P2': None}}
    """
    columns: dict[str, dict[str, Any]] = {}
    problems, expected = [], None if known is None else sorted(set(known))
    for name in tables:
        path = Path(dataset_dir) / name
        if not path.is_file():
            continue
        rows = read_table(path)
        key = next((key for key in ("image", "patient") if key in rows[0]), None)
        who = [nfc(row[key]) for row in rows] if key else []
        # with one row a patient it is a column like others: MR or CT, say
        several = MODALITY in rows[0] and len(set(who)) < len(who)
        others = [column for column in rows[0] if column not in ("image", "patient", *[MODALITY] * several)]
        if PREPARED in others and MODALITY in rows[0] and not by_modality:
            others = [column for column in others if column in SCANNER]
        if key is None or not others:
            there = ", ".join(rows[0])
            problems.append(f"{path}: needs a column patient (or image) and another, its columns are {there}")
            continue
        names = [(name, row[MODALITY] if several else "") for name, row in zip(who, rows, strict=True)]
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if expected and not set(expected) & set(who):
            problems.append(
                f"{path}: none of its {len(set(who))} {key}s ({some(who, 1)}) is one of the {len(expected)} of the "
                f"datalist ({some(expected, 1)}); give the table of these, or take it away"
            )
        problems += [f"{path}: {' '.join(filter(None, name))} stands in it twice; keep one row" for name in twice]
        for column in others:
            if column in columns:
                problems.append(f"{path}: the column {column!r} is in {TABLES[0]}, too; keep one")
            values = {name: value_of(row[column]) for name, row in zip(names, rows, strict=True)}
            columns |= _of_patients(column, values, by_modality)
    if problems:
        raise DataError(list(dict.fromkeys(problems)))
    return columns


def _of_patients(column: str, values: Mapping[tuple[str, str], Any], by_modality: bool) -> dict[str, dict[str, Any]]:
    """A column by patient; one per modality where a patient's modalities differ in it."""
    of_patient = {who: value for (who, _), value in values.items()}
    if all(value == of_patient[who] for (who, _), value in values.items()):
        return {column: of_patient}
    found: dict[str, dict[str, Any]] = {}
    for (who, modality), value in values.items() if by_modality else ():
        found.setdefault(f"{modality}: {column}", {})[who] = value
    return found


def value_of(text: str) -> float | str | None:
    """A number where a text is one; None where it is empty.

    Example:
        >>> value_of("1.5"), value_of("GE"), value_of("")
        (1.5, 'GE', None)
    """
    try:
        value = float(text)
    except ValueError:
        return text or None
    return value if abs(value) < float("inf") else None


def subgroup_values(
    cases: Sequence[Mapping[str, Any]], names: Sequence[str], dataset_dir: str | os.PathLike, *, sizes: bool = True
) -> dict[str, dict[str, Any]]:
    """Every column by row: covariates, the case's own ``subgroups``, tables beside the datalist, size of the tumour.

    Args:
        cases: of a datalist, paths relative to ``dataset_dir`` or absolute.
        names: of each case, as in the predictions: the patient, or the patch's image.
        dataset_dir: the prepared folder.
        sizes: read the masks: the tumour's volume in ml, of a single slice its area in mm2, of a patch its share.

    Raises:
        DataError: see :func:`read_subgroup_tables`.
    """
    tables = read_subgroup_tables(dataset_dir)
    columns: dict[str, dict[str, Any]] = {}
    for name, case in zip(names, cases, strict=True):
        own: dict[str, Any] = {**(case.get("covariates") or {}), **(case.get("subgroups") or {})}
        for column, of in tables.items():
            value = of.get(name, of.get(str(case["patient"])))
            own[column] = own.get(column) if value is None else value
        for column, value in own.items():
            columns.setdefault(column, {})[name] = value
    if sizes and any(case.get("mask") for case in cases):
        columns |= _sizes(cases, names, Path(dataset_dir))
    return columns


def _sizes(cases: Sequence[Mapping[str, Any]], names: Sequence[str], root: Path) -> dict[str, dict[str, Any]]:
    """Size of the tumour by row; where a mask cannot be used it is not known. One unit: the most frequent."""
    found: dict[str, dict[str, float]] = {unit: {} for unit in SIZE_UNITS}
    for name, case in zip(names, cases, strict=True):
        if case.get("mask"):
            try:
                unit, size = tumour_size(root / case["mask"], case.get("tumour_labels") or ())
            except (DataError, OSError, ValueError):
                continue  # the bundle's own check says more of it
            found[unit][name] = size
    unit = max(SIZE_UNITS, key=lambda unit: len(found[unit]))
    return {f"{SIZE} ({unit})": {name: found[unit].get(name) for name in names}} if found[unit] else {}


def tumour_size(path: Path, labels: Sequence[int] = ()) -> tuple[str, float]:
    """Unit and size of a tumour in its mask: a volume in ml, a single slice in mm2, of a picture the share inside.

    Raises:
        DataError: no mask.
    """
    import numpy as np

    if not path.name.endswith((".nii", ".nii.gz")):
        from shared.data.patches.reading import read_patch_mask

        return SIZE_UNITS[2], float(read_patch_mask(path).mean())
    from shared.data.masks import millilitres, square_millimetres, tumour_of
    from shared.data.volumes import load_volume

    volume = load_volume(path)
    tumour = tumour_of(np.asarray(volume.array), volume.affine, labels, joined=True)
    if tumour.shape[2] == 1:
        return SIZE_UNITS[1], square_millimetres(tumour, volume.affine)
    return SIZE_UNITS[0], millilitres(tumour, volume.affine)
