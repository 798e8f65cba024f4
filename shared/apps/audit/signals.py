"""What says something of the label without being tissue: names, order, dates, files, acquisition.

A field is asked by itself, by a small random forest that never saw the patient (nor the patient's group): its AUC says
how well the label can be told from it. Fields of one kind are also asked together.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from shared.apps.audit.rows import AuditCohort, AuditRow, Finding
from shared.errors import DataError

RED, AMBER = 0.6, 0.5
"""Red from this AUC on at the low end of its 95 % interval, amber above the other."""
FOLDS, TREES, FEW = 5, 50, 10
TABLE = "acquisition.csv"
_CATEGORIES = 20  # values of a text field that are told apart; the rarer ones are one
_NAMED = re.compile(r"site|scanner|cent(re|er)|vendor|manufacturer|field.?strength|hospital|station|protocol", re.I)
_DATED = re.compile(r"date", re.I)
_NO_SIDECAR = re.compile(r"patient|name|uid|birth|age|sex|weight|size$|comment|diagnos", re.I)

Values = Sequence[Any]


def ask(labels: np.ndarray, units: Sequence[str], columns: Mapping[str, Values], seed: int = 0) -> np.ndarray | None:
    """Probability of label 1 of each row, from these columns alone, by a forest that never saw the row's unit.

    Args:
        labels: 0 or 1.
        units: what is left out together.
        columns: numbers, or texts, which are taken as categories; None is unknown.
        seed: of folds and forest.

    Shape:
        - labels, units, each column: ``[n]``; returns: ``[n]``; None where a class has fewer than two units

    Example:
        >>> labels = np.arange(40) % 2
        >>> found = ask(labels, [f"P{i}" for i in range(40)], {"size": labels * 3.0})
        >>> bool((found[labels == 1] > found[labels == 0].max()).all())
        True
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedGroupKFold

    codes = np.unique(list(units), return_inverse=True)[1]
    fewest = min(len(np.unique(codes[labels == label])) for label in (0, 1))
    if fewest < 2:
        return None
    x = np.concatenate([_encoded(values) for values in columns.values()], axis=1)
    probability = np.empty(len(labels))
    splitter = StratifiedGroupKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    for training, left_out in splitter.split(x, labels, codes):
        if len(np.unique(labels[training])) < 2:
            probability[left_out] = labels[training].mean()
            continue
        leaf = max(2, len(training) // 50)
        forest = RandomForestClassifier(
            TREES, min_samples_leaf=leaf, class_weight="balanced", random_state=seed, n_jobs=1
        )
        probability[left_out] = forest.fit(x[training], labels[training]).predict_proba(x[left_out])[:, 1]
    return probability


def _encoded(values: Values) -> np.ndarray:
    """Ranks of numbers, NaN where unknown; a column of 0 and 1 of each text.

    A tree asks for the order alone; in its 32 bits, times of files or long numbers in names would be one number.
    """
    known = [value for value in values if value is not None]
    if all(isinstance(value, int | float) for value in known):
        x = np.array([np.nan if value is None else float(value) for value in values])
        ranks = np.full(len(x), np.nan)
        inside = ~np.isnan(x)
        ranks[inside] = np.unique(x[inside], return_inverse=True)[1]
        return ranks[:, None]
    texts = np.array(["" if value is None else str(value) for value in values])
    names, counts = np.unique(texts, return_counts=True)
    told = names[np.argsort(-counts, kind="stable")][:_CATEGORIES]
    return (texts[:, None] == told).astype(float)


def signals(
    kind: str, rows: Sequence[AuditRow], columns: Mapping[str, Values], caps: Mapping[str, str]
) -> list[Finding]:
    """How well each field by itself, then all together, tell the label; fields that do not vary are left out.

    ``found`` says why it is not red, or not sure.

    Args:
        kind: of the fields.
        rows: with labels.
        columns: by field one value a row.
        caps: of a field why it is at most amber.
    """
    from shared.metrics.delong import delong_interval

    labels = np.array([int(row.label or 0) for row in rows])
    units = [row.unit for row in rows]
    counts = {"rows": len(rows), "positives": int(labels.sum())}
    varying = {name: values for name, values in columns.items() if len({str(value) for value in values}) > 1}
    asked: dict[str, Mapping[str, Values]] = {name: {name: values} for name, values in varying.items()}
    if len(varying) > 1:
        asked["all together"] = varying
    found = []
    for name, own in asked.items():
        probability = ask(labels, units, own)
        if probability is None:
            found.append(Finding(kind, name, "", "a class has one patient", **counts))
            continue
        auc = delong_interval(labels, np.clip(probability, 0, 1), groups=units)
        few = min(len({unit for unit, label in zip(units, labels, strict=True) if label == k}) for k in (0, 1)) < FEW
        # where all rank alike there is no variance, which says something of many patients only
        low = auc["low"] if auc["low"] is not None else None if few else auc["value"]
        status = "green" if low is None or low <= AMBER else "red" if low > RED else "amber"
        excused = all(key in caps for key in own)
        notes = [*dict.fromkeys(caps[key] for key in own)] if excused and status != "green" else []
        status = "amber" if excused and status == "red" else status
        notes += [f"fewer than {FEW} patients of a class"] if few else []
        given = {"auc": auc["value"], "low": auc["low"], "high": auc["high"], **counts}
        found.append(Finding(kind, name, status, "; ".join(notes), **given))
    return found


def name_fields(names: Sequence[str]) -> dict[str, list[Any]]:
    """Parts of names: runs of letters as texts, runs of digits as numbers, the length; dates are left to others.

    Example:
        >>> name_fields(["A7", "B12"])
        {'text 1': ['A', 'B'], 'number 1': [7, 12], 'length': [2, 3]}
    """
    texts: dict[str, list[Any]] = defaultdict(lambda: [None] * len(names))
    numbers: dict[str, list[Any]] = defaultdict(lambda: [None] * len(names))
    for row, name in enumerate(names):
        rest = re.sub(_DATE, " ", name)
        for column, part in enumerate(re.findall(r"[^\W\d_]+", rest), 1):
            texts[f"text {column}"][row] = part
        for column, part in enumerate(re.findall(r"\d+", rest), 1):
            numbers[f"number {column}"][row] = int(part[:15])
    return {**dict(texts), **dict(numbers), "length": [len(name) for name in names]}


_DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)[-_.]?(0[1-9]|1[0-2])[-_.]?(0[1-9]|[12]\d|3[01])(?!\d)")


def day_of(text: Any) -> int | None:
    """The day in a text such as ``19970222`` or ``2014-03-01``, counted; None where there is none.

    Example:
        >>> day_of("TCGA_19970222") - day_of("1997-02-21"), day_of("P12")
        (1, None)
    """
    match = _DATE.search(str(text))
    try:
        return date(*map(int, match.groups())).toordinal() if match else None
    except ValueError:  # 30 February
        return None


def file_fields(rows: Sequence[AuditRow], root: Path) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Place in the datalist, size and time of the files; and of which of them red would say too much."""
    by_class: dict[Path, set] = defaultdict(set)
    for row in rows:
        by_class[row.images[0].parent].add(row.label)
    sorted_in = all(len(found) == 1 for found in by_class.values()) and len(by_class) < len(rows) / 2
    columns: dict[str, list[Any]] = {"place in the datalist": [row.place for row in rows]}
    columns["time of the file"] = [round(row.images[0].stat().st_mtime) for row in rows]
    columns["size of the file"] = [sum(path.stat().st_size for path in row.images) for row in rows]
    caps = {}
    if sorted_in:
        why = "each folder holds one class, so that order and time of its files tell it"
        caps |= {"place in the datalist": why, "time of the file": why}
    if any(path.suffix.lower() not in (".nii", ".bmp") for row in rows for path in row.images):
        caps["size of the file"] = "the size of a compressed file also tells of what it shows"
    return columns, caps


def header_fields(cohort: AuditCohort, rows: Sequence[AuditRow]) -> dict[str, list[Any]]:
    """Header fields of the images, of their JSON sidecars, and of ``acquisition.csv``; covariates that name a site.

    Raises:
        DataError: an ``acquisition.csv`` that cannot be used.
    """
    columns: dict[str, list[Any]] = defaultdict(lambda: [None] * len(rows))
    table = acquisition_columns(cohort)
    for number, row in enumerate(rows):
        fields: dict[str, Any] = {}
        for k, path in enumerate(row.images):
            name = "" if len(row.images) == 1 else f"{(*cohort.modalities, *map(str, range(99)))[k]}: "
            own = picture_header(path) if cohort.patches else nifti_header(path)
            own |= sidecar(path)
            fields |= {f"{name}{key}": value for key, value in own.items()}
        fields |= {key: value for key, value in row.covariates.items() if _NAMED.search(key)}
        fields |= {key: of.get(row.name, of.get(row.patient)) for key, of in table.items()}
        for key, value in fields.items():
            columns[key][number] = value
    return dict(columns)


def nifti_header(path: Path) -> dict[str, Any]:
    """What a NIfTI header says of the acquisition, or of who converted it."""
    import nibabel as nib

    try:
        image = nib.load(path)
    except Exception as error:  # nibabel raises many kinds
        raise DataError(f"{path} cannot be read as NIfTI ({error}); export it again") from error
    header = image.header
    sizes = zip("xyz", header.get_zooms(), strict=False)
    found: dict[str, Any] = {f"voxel {axis}": round(float(size), 4) for axis, size in sizes}
    found |= {f"voxels {axis}": int(size) for axis, size in zip("xyz", image.shape, strict=False)}
    found |= {"data type": str(image.get_data_dtype()), "orientation": "".join(map(str, nib.aff2axcodes(image.affine)))}
    found["oblique"] = round(float(np.degrees(nib.affines.obliquity(image.affine)).max()), 1)
    if isinstance(header, nib.Nifti1Header):
        found |= {key: int(header[f"{key}_code"]) for key in ("sform", "qform")}
        found |= {key: _text(header[key]) for key in ("descrip", "aux_file", "intent_name")}
        found |= {key: _number(header[key]) for key in ("scl_slope", "scl_inter", "cal_max", "cal_min")}
        found["units"] = "/".join(header.get_xyzt_units())
    return found


def _text(value: Any) -> str:
    return bytes(value.tobytes()).split(b"\0")[0].decode("latin-1").strip()


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def picture_header(path: Path) -> dict[str, Any]:
    """Size and format of a picture, and what its header says of the software."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            found: dict[str, Any] = {"width": image.width, "height": image.height, "mode": image.mode}
            found |= {"format": image.format, "dpi": str(image.info.get("dpi", ""))}
            found |= {
                key: str(image.info.get(key, "")) for key in ("software", "Software", "progressive", "icc_profile")
            }
            found["icc_profile"] = str(len(image.info.get("icc_profile") or b""))
            tables = getattr(image, "quantization", None) or {}
            found["quantization"] = sum(sum(table) for table in tables.values()) if tables else None
            exif = image.getexif()
            found |= {f"EXIF {tag}": str(exif.get(tag, "")) for tag in (271, 272, 305)}
            return found
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read as a picture ({error}); copy it again") from error


def sidecar(path: Path) -> dict[str, Any]:
    """Numbers and texts of the JSON beside an image (BIDS); nothing of the person."""
    stem = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    beside = path.with_name(f"{stem}.json")
    if not beside.is_file():
        return {}
    try:
        content = json.loads(beside.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{beside} cannot be read as JSON ({error}); correct or remove it") from error
    plain = content.items() if isinstance(content, dict) else ()
    return {k: v for k, v in plain if isinstance(v, str | int | float) and not _NO_SIDECAR.search(k)}


def acquisition_columns(cohort: AuditCohort) -> dict[str, dict[str, Any]]:
    """Columns of ``acquisition.csv`` in the prepared folder, by patient or image; one for each modality.

    Raises:
        DataError: see :func:`shared.data.subgroups.read_subgroup_tables`.
    """
    from shared.data.subgroups import read_subgroup_tables

    known = {name for row in cohort.rows for name in (row.name, row.patient)}
    return read_subgroup_tables(cohort.root, (TABLE,), by_modality=True, known=known)


def split_dates(columns: Mapping[str, Values]) -> tuple[dict[str, Values], dict[str, Values]]:
    """Columns without those of dates, and these, counted in days."""
    dated = {name: [day_of(value) for value in values] for name, values in columns.items() if _DATED.search(name)}
    dated = {name: values for name, values in dated.items() if any(value is not None for value in values)}
    return {name: values for name, values in columns.items() if name not in dated}, dated
