"""Tables of a study: each row's results beside the paper's, as JSON, CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import DataError
from shared.io import write_csv, write_json, write_text
from shared.metrics import holm_adjusted
from shared.metrics.repeated import RepeatedPredictions, paired_seed_difference, summarise
from shared.reports.tables import difference_text, interval_text, markdown_table, number_text

if TYPE_CHECKING:
    from shared.apps.study.definition import Line, Table
    from shared.apps.study.study import StudyRun

POOLED = ("ACC", "AUC", "F1", "PRE", "REC", "wF1", "wPRE", "wREC", "BACC", "BRIER")
OF_CLASS_0 = {"PRE_0": "PRE", "REC_0": "REC", "F1_0": "F1"}
CELLS = {"TN": (0, 0), "FP": (0, 1), "FN": (1, 0), "TP": (1, 1)}
"""Label and called class, from a probability of 0.5 on."""
COMPARED = "AUC"


def write_tables(run: StudyRun) -> None:
    """Write OUTPUT/tables/NAME.json, .csv, .md and .tex of every table asked for; rows that are not done say so."""
    found: dict[tuple[str, str], RepeatedPredictions | str] = {}
    for name in run.tables:
        content = table_content(run.study.tables[name], run, found)
        stem = run.output / "tables" / name
        write_json(stem.with_suffix(".json"), content)
        write_csv(stem.with_suffix(".csv"), tidy_rows(content), columns=COLUMNS)
        header, rows = cells(content)
        parts = [f"# {content['title']}", *([markdown_table(header, rows)] if rows else []), *content["notes"]]
        write_text(stem.with_suffix(".md"), "\n\n".join(parts) + "\n")
        write_text(stem.with_suffix(".tex"), latex_table(header, rows, content["title"]))


def table_content(table: Table, run: StudyRun, found: dict[tuple[str, str], Any]) -> dict[str, Any]:
    """What a table says, with the file of each number.

    Args:
        table: of the study.
        run: where its rows are.
        found: predictions by row and column, filled as they are read.
    """
    bootstrap, rows = run.args.bootstrap, []
    for line in table.lines:
        if line.row and (line.row, line.column) not in found:
            found[line.row, line.column] = _read(line, run)
    titles = [line.title for line in table.lines]
    first = table.lines[titles.index(table.reference) if table.reference else 0] if table.lines else None
    reference = found.get((str(first.row), first.column)) if first else None
    for line in table.lines:
        row: dict[str, Any] = {"title": line.title, "row": line.row, "paper": dict(line.paper), "metrics": {}}
        predictions = found[line.row, line.column] if line.row else line.why_not
        row |= {"status": "done", "source": None, "difference": None, "patients": None, "seeds": None}
        if isinstance(predictions, str):
            rows.append({**row, "status": predictions})
            continue
        row |= {"patients": len(set(predictions.patients)), "seeds": list(predictions.seeds)}
        row["source"] = _source(line, run)
        row["metrics"] = _metrics(predictions, table.metrics, bootstrap)
        if line is not first and isinstance(reference, RepeatedPredictions):
            row["difference"] = paired_seed_difference(reference, predictions, COMPARED, bootstrap=bootstrap)
        rows.append(row)
    differences = [row["difference"] for row in rows]
    for difference, p in zip(differences, holm_adjusted([d and d["p"] for d in differences]), strict=True):
        if difference:
            difference["p_holm"] = p
    return {
        "name": table.name,
        "title": table.title,
        "metrics": list(table.metrics),
        "paper_unit": table.paper_unit,
        "reference": first.title if first else None,
        "why_not": table.why_not,
        "notes": _notes(table, run),
        "rows": rows,
    }


def _read(line: Line, run: StudyRun) -> RepeatedPredictions | str:
    """A line's predictions, or why there are none."""
    from shared.apps.experiments.comparison import read_column

    name = str(line.row)
    if name in run.missing:
        return run.missing[name]
    folder, experiment = run.folder(run.rows[name]), run.experiments.get(name)
    if experiment is not None and (waiting := len(experiment.waiting())):
        total = len(experiment.folds)
        return f"not done: {total - waiting} of {total} trainings"
    try:
        if line.column == "probability":
            return RepeatedPredictions.read(folder / "predictions.csv")
        return read_column(folder, line.column) or f"its predictions have no column {line.column}"
    except OSError:
        return "not done"
    except DataError as error:
        return str(error)


def _source(line: Line, run: StudyRun) -> str:
    folder = run.folder(run.rows[str(line.row)]).relative_to(run.output).as_posix()
    return f"{folder}/predictions.csv" if line.column == "probability" else f"{folder}/seed*/fold*/predictions.csv"


def _metrics(predictions: RepeatedPredictions, names: Sequence[str], bootstrap: int) -> dict[str, Any]:
    """The metrics that are known, with intervals; counts of the confusion matrix without."""
    pooled = [name for name in dict.fromkeys([*names, COMPARED]) if name in POOLED]
    found = dict(summarise(predictions, names=pooled, bootstrap=bootstrap)["metrics"])
    if other := [name for name in names if name in OF_CLASS_0]:
        # class 0 as the positive one; 0.5 stays class 1
        below = np.nextafter(1 - predictions.probability, -1)
        flipped = replace(predictions, labels=1 - predictions.labels, probability=below)
        metrics = summarise(flipped, names=[OF_CLASS_0[name] for name in other], bootstrap=bootstrap)["metrics"]
        found |= {name: metrics[OF_CLASS_0[name]] for name in other}
    called = predictions.probability >= 0.5
    for name in names:
        if name in CELLS:
            label, call = CELLS[name]
            count = float(((predictions.labels == label) & (called == call)).sum(axis=1).mean())
            found[name] = {"value": count, "low": None, "high": None, "sd": None}
    return {name: {key: metric[key] for key in ("value", "low", "high", "sd")} for name, metric in found.items()}


def _notes(table: Table, run: StudyRun) -> list[str]:
    notes = [table.note] if table.note else []
    notes += [table.why_not] if table.why_not else []
    notes += [run.analyses.note(table)] if table.analysis else []
    if any(line.paper for line in table.lines):
        notes.append(
            f"Columns 'paper': the paper's numbers, on its data ({run.study.citation}; {run.study.paper_data}). They "
            "are no reference for this cohort."
        )
    if table.lines:
        notes.append(
            "Other numbers: every patient is predicted by the model of the fold that left the patient out; mean over "
            f"the seeds; brackets: 95 % bootstrap interval over patients, {run.args.bootstrap} replicates; difference "
            "and p (two-sided) to the reference on the same drawn patients; p (Holm): corrected for the number of rows."
        )
    return notes


COLUMNS = (
    *("title", "row", "metric", "value", "low", "high", "sd", "paper", "paper_unit"),
    *("difference", "difference_low", "difference_high", "p", "p_holm", "patients", "seeds", "source", "status"),
)


def tidy_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One dictionary per row and metric."""
    rows = []
    for row in content["rows"]:
        for name in dict.fromkeys([*content["metrics"], *row["metrics"], *row["paper"]]):
            metric, difference = row["metrics"].get(name, {}), {}
            if name == COMPARED and row["difference"]:
                found = row["difference"]
                difference = {"difference": found["value"], "p": found["p"], "p_holm": found["p_holm"]}
                difference |= {f"difference_{key}": found[key] for key in ("low", "high")}
            given = {key: row[key] for key in ("title", "row", "patients", "source", "status")}
            given |= {"seeds": len(row["seeds"]) if row["seeds"] else None, "metric": name, **metric, **difference}
            given |= {"paper": row["paper"].get(name), "paper_unit": content["paper_unit"]}
            rows.append({key: given.get(key) for key in COLUMNS})
    return rows


def cells(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows as texts; the paper's own columns beside those of this cohort."""
    papers = list(dict.fromkeys(name for row in content["rows"] for name in row["paper"]))
    unit = f" ({content['paper_unit']})" if content["paper_unit"] else ""
    metrics = [name for name in content["metrics"] if name in {*POOLED, *OF_CLASS_0, *CELLS}]
    header = ["row", *metrics]
    compared = sum(row["status"] == "done" for row in content["rows"]) > 1
    header += [f"{COMPARED} - reference", "p", "p (Holm)"] if compared else []
    header += ["seeds", *(f"paper: {name}{unit}" for name in papers)]
    rows = []
    for row in content["rows"]:
        title = f"{row['title']} (reference)" if compared and row["title"] == content["reference"] else row["title"]
        if row["status"] == "done":
            line = [title, *(_cell(name, row["metrics"].get(name)) for name in metrics)]
            difference = row["difference"]
            if compared:
                line += [difference_text(difference)] if difference else [""]
                line += [number_text(difference.get(key)) if difference else "" for key in ("p", "p_holm")]
            line.append(str(len(row["seeds"])))
        else:
            line = [f"{title}: {row['status']}", *[""] * (len(metrics) + 3 * compared + 1)]
        rows.append([*line, *(str(row["paper"].get(name, "")) for name in papers)])
    return header, rows


def _cell(name: str, metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return ""
    return f"{metric['value']:g}" if name in CELLS else interval_text(metric)


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> str:
    r"""A LaTeX table that needs no package.

    Example:
        >>> print(latex_table(["a_b", "c"], [["1 %", "2"]], "T"))
        \begin{table}
        \caption{T}
        \begin{tabular}{ll}
        \hline
        a\_b & c \\
        \hline
        1 \% & 2 \\
        \hline
        \end{tabular}
        \end{table}
        <BLANKLINE>
    """
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}

    def text(value: str) -> str:
        return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in value)

    def line(values: Sequence[str]) -> str:
        return " & ".join(map(text, values)) + r" \\"

    begin = [r"\begin{table}", rf"\caption{{{text(title)}}}", rf"\begin{{tabular}}{{{'l' * len(header)}}}", r"\hline"]
    return "\n".join(
        [*begin, line(header), r"\hline", *map(line, rows), r"\hline", r"\end{tabular}", r"\end{table}", ""]
    )


def read_tables(folder: Path, names: Sequence[str] | None) -> list[dict[str, Any]]:
    """The tables that were written, in the order of ``names`` (None: sorted)."""
    import json

    paths = sorted(folder.glob("tables/*.json")) if names is None else [folder / f"tables/{n}.json" for n in names]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
