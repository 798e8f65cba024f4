"""Reads ``configs/study.json``: a paper's tables by their own names, their rows, and the paper's numbers beside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.apps.baselines import features, patches
from shared.apps.preparation.shape import SHAPE
from shared.errors import DataError
from shared.io import read_json_object

BASELINES = {"features": features.CONTROLS, "patches": tuple(c for c in patches.CONTROLS if c != "pretrained")}
"""Modules of ``shared.apps.baselines`` and which of their controls can be rows: a pretraining has seen all folds."""

ANALYSES = ("explain", "compare_explanations", "label_efficiency")
"""What a table may make of a row's trained models."""

_STUDY = {"_desc_", "citation", "paper_data", "rows", "tables", "limits"}
_ROW = {"title", "config", "set", "reuse", "shuffle_labels", "baseline", "control", "weights", "needs"}
_TABLE = {"title", "metrics", "reference", "paper_unit", "note", "rows", "why_not", "analysis"}
_ANALYSIS = {"script", "row", "set", "arguments"}
_LINE = {"title", "row", "column", "paper", "why_not"}
_NEEDS = {"covariates", "modalities"}


@dataclass(frozen=True)
class Row:
    """One experiment: a cross-validation of the bundle, or a control of one of the ``BASELINES``.

    ``weights`` of a control: a file, relative to the repository's (an unpacked bundle's) folder.
    """

    name: str
    title: str
    config: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    stages: tuple[str, ...] = ()
    shuffle_labels: bool = False
    baseline: str | None = None
    control: str | None = None
    weights: str | None = None
    needs: Mapping[str, Any] = field(default_factory=dict)

    def missing(self, datalist: Mapping, folder: Path) -> str:
        """Why the cohort, or the folder of the weights, does not allow the row; nothing where they do.

        Example:
            >>> Row("age", "age", needs={"covariates": ["age"]}).missing({"training": [{"patient": "P1"}]}, Path())
            'the cohort has no covariate age'
            >>> shape = {"shape_area": 1.0}
            >>> Row("age", "age", needs={"covariates": True}).missing({"training": [{"covariates": shape}]}, Path())
            'the cohort has no covariates'
            >>> Row("age", "age", needs={"modalities": ["T1"]}).missing({"modalities": ["T1"], "training": []}, Path())
            ''
        """
        if self.weights and not (folder / self.weights).is_file():
            return f"there is no file {self.weights}"
        covariates = {name for case in datalist["training"] for name in case.get("covariates") or {}}
        wanted = self.needs.get("covariates") or []
        if wanted is True:  # the shape is measured anew, as a control of its own
            return "" if covariates - set(SHAPE) else "the cohort has no covariates"
        lacking = [f"covariate {name}" for name in wanted if name not in covariates]
        modalities = datalist.get("modalities") or []
        lacking += [f"modality {name}" for name in self.needs.get("modalities", ()) if name not in modalities]
        return f"the cohort has no {', no '.join(lacking)}" if lacking else ""


@dataclass(frozen=True)
class Line:
    """A line of a table: a row's results, or the reason why there are none."""

    title: str
    row: str | None = None
    column: str = "probability"
    paper: Mapping[str, Any] = field(default_factory=dict)
    why_not: str = ""


@dataclass(frozen=True)
class Analysis:
    """One of ``ANALYSES`` of a row's trained models; label efficiency trains by itself, with the row's settings."""

    script: str
    row: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper, or one of controls."""

    name: str
    title: str
    metrics: tuple[str, ...] = ("AUC",)
    reference: str | None = None
    paper_unit: str = ""
    note: str = ""
    why_not: str = ""
    lines: tuple[Line, ...] = ()
    analysis: Analysis | None = None


@dataclass(frozen=True)
class Study:
    """What a bundle's ``study.json`` says."""

    path: Path
    citation: str
    paper_data: str
    rows: Mapping[str, Row]
    tables: Mapping[str, Table]
    limits: tuple[str, ...] = ()

    def needed(self, tables: Iterable[str]) -> list[Row]:
        """Rows of these tables and those whose stages they take, the latter first."""
        found: dict[str, Row] = {}

        def add(name: str) -> None:
            row = self.rows[name]
            if row.source:
                add(row.source)
            found.setdefault(name, row)

        for table in tables:
            for line in self.tables[table].lines:
                if line.row:
                    add(line.row)
            if (analysis := self.tables[table].analysis) and analysis.script != "label_efficiency":  # trains by itself
                add(analysis.row)
        return sorted(found.values(), key=self._depth)

    def _depth(self, row: Row) -> int:
        return 0 if row.source is None else 1 + self._depth(self.rows[row.source])


def read_study(path: Path, bundle: Path) -> Study:
    """Read a ``study.json`` and check it whole: no code is run, keys and names must be known.

    Args:
        path: the file.
        bundle: the folder whose overlays it names.

    Raises:
        DataError: all that is wrong, at once.
    """
    content = read_json_object(path, "study")
    problems: list[str] = []
    _unknown(content, _STUDY, "study", problems)
    rows = {name: _row(name, value, problems) for name, value in _objects(content, "rows", problems).items()}
    tables = {name: _table(name, value, problems) for name, value in _objects(content, "tables", problems).items()}
    for row in rows.values():
        problems += _row_problems(row, rows, bundle)
    for table in tables.values():
        titles = [line.title for line in table.lines]
        if table.reference is not None and table.reference not in titles:
            problems.append(f"table {table.name}: its reference {table.reference!r} is no title of its rows")
        if not table.lines and not table.why_not and not table.analysis:
            problems.append(f"table {table.name}: needs 'rows', 'analysis' or 'why_not'")
        if table.analysis:
            problems += _analysis_problems(table, rows)
        for line in table.lines:
            if (line.row is None) == (not line.why_not):
                problems.append(f"table {table.name}, {line.title!r}: needs either 'row' or 'why_not'")
            elif line.row is not None and line.row not in rows:
                problems.append(f"table {table.name}, {line.title!r}: there is no row {line.row!r}")
    if problems:
        raise DataError([f"{path}: {problem}" for problem in problems])
    texts = {key: str(content.get(key, "")) for key in ("citation", "paper_data")}
    return Study(path, rows=rows, tables=tables, limits=tuple(content.get("limits", ())), **texts)


def _row(name: str, value: Mapping, problems: list[str]) -> Row:
    _unknown(value, _ROW, f"row {name}", problems)
    _unknown(value.get("needs", {}), _NEEDS, f"row {name}, needs", problems)
    reuse = value.get("reuse", {})
    _unknown(reuse, {"row", "stages"}, f"row {name}, reuse", problems)
    given: dict[str, Any] = {"settings": value.get("set", {}), "needs": value.get("needs", {})}
    given |= {key: value[key] for key in ("shuffle_labels", "baseline", "control", "weights") if key in value}
    given |= {"source": reuse.get("row"), "stages": tuple(reuse.get("stages", ()))}
    return Row(name, str(value.get("title", name)), tuple(value.get("config", ())), **given)


def _table(name: str, value: Mapping, problems: list[str]) -> Table:
    _unknown(value, _TABLE, f"table {name}", problems)
    lines = []
    for number, line in enumerate(value.get("rows", ())):
        _unknown(line, _LINE, f"table {name}, row {number}", problems)
        own = {key: line[key] for key in ("row", "column", "paper", "why_not") if key in line}
        lines.append(Line(str(line.get("title", line.get("row", number))), **own))
    given = {key: value[key] for key in ("reference", "paper_unit", "note", "why_not") if key in value}
    if "analysis" in value:
        found = value["analysis"]
        _unknown(found, _ANALYSIS, f"table {name}, analysis", problems)
        names = {key: str(found.get(key)) for key in ("script", "row")}
        given["analysis"] = Analysis(
            **names, settings=found.get("set", {}), arguments=tuple(map(str, found.get("arguments", ())))
        )
    metrics = tuple(value.get("metrics", ("AUC",)))
    return Table(name, str(value.get("title", name)), metrics, lines=tuple(lines), **given)


def _analysis_problems(table: Table, rows: Mapping[str, Row]) -> list[str]:
    analysis, problems = table.analysis, []
    assert analysis is not None
    if analysis.script not in ANALYSES:
        problems.append(f"table {table.name}: 'script' of an analysis must be one of {', '.join(ANALYSES)}")
    if analysis.row not in rows or rows[analysis.row].baseline:
        problems.append(f"table {table.name}: its analysis needs a trained row, not {analysis.row!r}")
    return problems


def _row_problems(row: Row, rows: Mapping[str, Row], bundle: Path) -> list[str]:
    problems, what = [], f"row {row.name}"
    if row.weights and row.control != "imagenet":
        problems.append(f"{what}: 'weights' are of the control imagenet")
    if row.baseline is not None:
        if row.baseline not in BASELINES or not row.control:
            problems.append(f"{what}: 'baseline' must be one of {', '.join(BASELINES)}, with a 'control'")
        elif row.control not in BASELINES[row.baseline]:
            problems.append(f"{what}: 'control' must be one of {', '.join(BASELINES[row.baseline])}")
        if any(other.control == row.control and other.weights != row.weights for other in rows.values()):
            problems.append(f"{what}: another row has the same control with other weights")
        if row.config or row.settings or row.source or row.shuffle_labels:
            problems.append(f"{what}: a baseline has no config, set, reuse or shuffle_labels")
    folder = bundle / "configs"
    for name in row.config:
        if not (folder / f"{name}.json").is_file():
            problems.append(f"{what}: there is no overlay {name!r} in {folder}")
    for key, value in row.settings.items():
        if value is None or isinstance(value, Mapping):
            problems.append(f"{what}: set {key!r} must be a text, number, true, false or list")
    if row.source is not None:
        seen: Sequence[str] = [row.name]
        source: str | None = row.source
        while source is not None and source in rows and source not in seen:
            seen, source = [*seen, source], rows[source].source
        if source is not None and source not in rows:
            problems.append(f"{what}: it reuses the row {source!r}, which is not there")
        elif source is not None:
            problems.append(f"{what}: rows reuse each other in a circle ({' -> '.join([*seen, source])})")
        elif rows[row.source].baseline:
            problems.append(f"{what}: it reuses {row.source!r}, a baseline without stages")
    return problems


def _objects(content: Mapping, key: str, problems: list[str]) -> dict[str, Mapping]:
    """A section of objects by name; names become folders."""
    found = content.get(key)
    if not isinstance(found, Mapping) or not all(isinstance(value, Mapping) for value in found.values()):
        problems.append(f"{key!r} must be an object of objects")
        return {}
    odd = [name for name in found if not name.replace("_", "").isalnum() or not name.isascii()]
    problems += [f"{key}: the name {name!r} must be of letters, digits and _" for name in odd]
    return dict(found)


def _unknown(value: Any, known: set[str], what: str, problems: list[str]) -> None:
    if not isinstance(value, Mapping):
        problems.append(f"{what} must be an object")
    elif unknown := [key for key in value if key not in known]:
        problems.append(f"{what}: unknown keys {', '.join(unknown)} (known: {', '.join(sorted(known))})")
