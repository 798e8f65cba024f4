"""Experiments side by side: cross-validated ones, or runs with several seeds that were tested on one common part."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from shared.apps.experiments.folder import DRAWN, HOW, HOW_PATCHES, MEANT, MEANT_PATCHES, METRICS_OF, read_experiment
from shared.data.tables import some
from shared.errors import DataError, describe
from shared.io import write_text
from shared.metrics import decision_curve, delong_test, holm_adjusted
from shared.metrics.repeated import RepeatedPredictions, paired_seed_difference, summarise
from shared.reports.tables import difference_text, interval_text, markdown_table, number_text

NO_FOLD = -1
CALLED = ("ACC", "F1", "PRE", "REC", "wF1", "wPRE", "wREC")
CALIBRATED = {
    "ECE": "ECE: how far shares of positives are from the probabilities, mean over tenths of [0, 1].",
    "SLOPE": "SLOPE: of a logistic regression on the log odds; 1 is right, below 1 they are too extreme.",
}
TESTED = (
    "Metrics are computed over all {rows} of the part tested on, per seed, and averaged over the "
    "seeds. Brackets: {level:.0%} bootstrap interval; each of {bootstrap} replicates draws {drawn} and takes each "
    "with {all}the predictions of all seeds. sd: spread between seeds."
)


def read_runs(folder: str | os.PathLike, *, unseen: bool = False) -> RepeatedPredictions:
    """Predictions of an experiment: its own predictions.csv with seeds, or one of each of its ``seed<k>`` folders.

    A folder whose predictions.csv has no column ``seed`` is one run, of seed 0.

    Args:
        folder: of the experiment.
        unseen: refuse patients whom the model was trained on.

    Raises:
        DataError: nothing there, or predictions that are incomplete.
    """
    folder = Path(folder)
    runs = {}
    for path in sorted(folder.glob("seed*/predictions.csv")):
        if found := re.fullmatch(r"seed(\d+)", path.parent.name):
            runs[int(found[1])] = path
    own = folder / "predictions.csv"
    if own.is_file():
        with own.open(newline="", encoding="utf-8") as file:
            if "seed" in next(csv.reader(file), []):
                return RepeatedPredictions.read(own)
        runs = runs or {0: own}
    if not runs:
        raise DataError(f"{folder}: no finished experiment (no predictions.csv in it or in its folders seed<k>)")
    rows = []
    for seed, path in runs.items():
        with path.open(newline="", encoding="utf-8") as file:
            part = [{"seed": seed, "fold": NO_FOLD, **row} for row in csv.DictReader(file)]
        if not part:
            raise DataError(f"{folder}: no finished experiment ({path} is empty)")
        seen = [row["patient"] for row in part if row.get("trained_on") == "1"]
        if unseen and seen:
            raise DataError(
                f"{path}: the model was trained on {len(seen)} of its {len(part)} rows ({some(seen)}); predict others"
            )
        rows += part
    try:
        return RepeatedPredictions.from_rows(rows, source=str(folder))
    except DataError as error:
        more = f"; and {len(error.problems) - 3} more" if len(error.problems) > 3 else ""
        raise DataError(f"{folder}: no finished experiment ({'; '.join(error.problems[:3])}{more})") from error
    except (KeyError, ValueError) as error:
        columns = "columns patient, label, probability are needed"
        raise DataError(f"{folder}: no finished experiment ({columns}: {error!r})") from error


def read_column(folder: str | os.PathLike, column: str) -> RepeatedPredictions | None:
    """Another answer of a cross-validated experiment: a column of the predictions that each fold left, of the seeds in
    the experiment's own predictions.csv (where it is not there: of all).

    Returns:
        None where no fold has the column.

    Raises:
        DataError: no fold has left predictions, or some of them have no such column.
    """
    folder, rows, without = Path(folder), [], []
    whole = folder / "predictions.csv"
    seeds = RepeatedPredictions.read(whole).seeds if whole.is_file() else None
    for path in sorted(folder.glob("seed*/fold*/predictions.csv")):
        seed, fold = (int(re.sub(r"\D", "", part)) for part in path.parts[-3:-1])
        if seeds is not None and seed not in seeds:
            continue
        with path.open(newline="", encoding="utf-8") as file:
            found = list(csv.DictReader(file))
        without += [path] if found and column not in found[0] else []
        rows += [{"seed": seed, "fold": fold, **row, "probability": row[column]} for row in found if column in row]
    if not rows and without:
        return None
    if not rows or without:
        what = f"{without[0]} has no column {column!r}" if without else "no predictions.csv in its folders of folds"
        raise DataError(f"{folder}: no finished experiment ({what})")
    return RepeatedPredictions.from_rows(rows, source=str(folder))


def compare(
    runs: Sequence[str], output: str | None, *, bootstrap: int = 2000, metrics: Sequence[str] | None = None
) -> str:
    """The table of ``[TITLE=]FOLDER`` runs, also written to ``output``, beside a picture of the decision curves.

    ``metrics`` as :func:`comparison_table` has it.

    Raises:
        DataError: a folder has no predictions.
    """
    titles, folders = [], []
    for run in runs:
        title, equals, folder = ("", "", run) if Path(run).is_dir() else run.partition("=")
        titles.append(title or None)
        folders.append(folder if equals else run)
    table = comparison_table(folders, titles=titles, bootstrap=bootstrap, metrics=metrics)
    if output:
        write_text(output, table)
        picture = Path(output).with_name(f"{Path(output).stem}_decision.png")
        comparison_figure(folders, picture, titles=titles, bootstrap=bootstrap)
    return table


def comparison_table(
    folders: Sequence[str | os.PathLike],
    *,
    titles: Sequence[str | None] | None = None,
    metrics: Sequence[str] | None = None,
    bootstrap: int = 2000,
) -> str:
    """Return a Markdown table, one experiment a row, each with its paired difference to the first.

    Args:
        folders: of the experiments, see :func:`read_runs`.
        titles: of the rows; where None the experiment's own or the folder's name.
        metrics: those with an interval and a difference; None: AUC, and of patches BACC.
        bootstrap: replicates of the intervals.

    Raises:
        DataError: for folders without results, all of them at once.
    """
    experiments, problems = [], []
    for folder, title in zip(folders, titles or [None] * len(folders), strict=True):
        try:
            table = read_runs(folder)
            names = dict.fromkeys((*METRICS_OF[table.images is not None], *(metrics or ())))
            experiments.append(
                (title or _title(folder), table, summarise(table, names=list(names), bootstrap=bootstrap))
            )
        except (DataError, OSError) as error:
            text = describe(error)
            problems.append(text if "no finished experiment" in text else f"{folder}: no finished experiment ({text})")
    if problems:
        raise DataError(problems)
    first = experiments[0][1]
    patches, folds = first.images is not None, bool((first.folds != NO_FOLD).any())
    compared = tuple(metrics or (("AUC", "BACC") if patches else ("AUC",)))
    called = [name for name in CALLED if name not in compared]
    header = ["experiment", *compared, *(["fold-wise AUC"] * folds), "sd", *called]
    others = [table for _, table, _ in experiments[1:]]
    differences = [_differences(first, others, name, bootstrap) for name in compared]
    header += [cell for name in compared for cell in (f"{name} - first", "p", "p (Holm)", *_delong(name))]
    rows = [
        _row(title, summary, compared, folds, len(table.seeds), [found[k] for found in differences])
        for k, (title, table, summary) in enumerate(experiments)
    ]
    summary = experiments[0][2]
    unit = "patches" if patches else "patients"
    count = f"{summary['images']} patches of {summary['patients']}" if patches else f"{summary['patients']}"
    how = (HOW_PATCHES if patches else HOW) if folds else TESTED + (MEANT_PATCHES if patches else MEANT)
    drawn, groups = DRAWN["groups" in summary], f" in {summary['groups']} groups" if "groups" in summary else ""
    note = f"{count} patients{groups}, {summary['positive']} positive. "
    note += how.format(**summary, rows=unit, drawn=drawn, all="all of its patches and " if patches else "")
    note += (
        f" {' and '.join(f'{name} - first' for name in compared)}: difference to the first row on the same drawn "
        f"{drawn}; p: two-sided, from the same replicates; p (Holm): corrected for the number of comparisons in its "
        "column; p (DeLong): of the AUCs without draws, not corrected. Calibration and net benefit: of each row, in "
        "its own results.md or metrics.json."
    )
    note += "".join(f" {CALIBRATED[name]}" for name in compared if name in CALIBRATED)
    return f"{markdown_table([*header, 'seeds'], rows)}\n\n{note}\n"


def comparison_figure(
    folders: Sequence[str | os.PathLike],
    path: str | os.PathLike,
    *,
    titles: Sequence[str | None] | None = None,
    bootstrap: int = 2000,
) -> None:
    """Write the decision curve of the first experiment, and of the others that predict the same patients.

    Args:
        folders: of the experiments, see :func:`read_runs`.
        path: the picture.
        titles: of the experiments; where None its own or the folder's name.
        bootstrap: replicates of the first one's band.

    Raises:
        DataError: a folder without results.
    """
    from shared.visualize import decision_figure

    tables = [
        (title or _title(at), read_runs(at)) for at, title in zip(folders, titles or [None] * len(folders), strict=True)
    ]
    name, first = tables[0]
    same = {
        title: other.probability
        for title, other in tables[1:]
        if other.names == first.names and (other.labels == first.labels).all()
    }
    given = first.labels, first.probability
    curve = decision_curve(*given, controls=same, groups=first.groups, bootstrap=bootstrap)
    decision_figure(curve, path, name=name)


def _row(
    title: str, summary: Mapping, compared: Sequence[str], folds: bool, seeds: int, differences: Sequence[list[str]]
) -> list[str]:
    metrics = summary["metrics"]
    cells = [title, *(interval_text(metrics[name]) if name in metrics else "" for name in compared)]
    cells += [number_text(summary["fold_auc"]["value"])] if folds else []
    others = (metrics[name]["value"] for name in CALLED if name not in compared)
    cells += map(number_text, (metrics["AUC"]["sd"], *others))
    return [*cells, *(cell for found in differences for cell in found), str(seeds)]


def _delong(name: str) -> list[str]:
    """The AUC alone has DeLong's test."""
    return ["p (DeLong)"] if name == "AUC" else []


def _differences(
    first: RepeatedPredictions, others: Sequence[RepeatedPredictions], name: str, bootstrap: int
) -> list[list[str]]:
    """Cells of every row: the difference to the first, p, p corrected for the number of rows, DeLong's p."""
    found = [paired_seed_difference(first, table, name, bootstrap=bootstrap) for table in others]
    corrected = holm_adjusted([None if each is None else each["p"] for each in found])
    width = 3 + len(_delong(name))
    unit = "patches" if first.images is not None else "patients"
    cells = [[""] * width]
    for table, each, holm in zip(others, found, corrected, strict=True):
        if each is None:
            cells.append([f"other {unit}", *[""] * (width - 1)])
            continue
        row = [difference_text(each), number_text(each["p"]), number_text(holm)]
        if _delong(name):
            both = (table.probability, first.probability)
            row.append(number_text(delong_test(first.labels, *both, groups=first.groups)["p"]))
        cells.append(row)
    return cells


def _title(folder: str | os.PathLike) -> str:
    if (Path(folder) / "experiment.json").is_file():
        return read_experiment(folder)["title"]
    return Path(folder).resolve().name
