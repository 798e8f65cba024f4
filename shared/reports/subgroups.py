"""Subgroups of an evaluation or a cross-validation: table, picture and the report's section."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.io import write_csv
from shared.metrics.subgroups import FEW, UNKNOWN, subgroup_levels, subgroup_metrics
from shared.reports.sections import write_section
from shared.reports.tables import difference_text, interval_text, number_text

COLUMNS = (
    *("column", "level", "n", "patients", "positives", "few", "reference"),
    *(f"{name}_{key}" for name in ("AUC", "sensitivity", "specificity") for key in ("value", "low", "high")),
    *("difference", "difference_low", "difference_high", "p", "p_holm"),
)
SHARES = ("AUC", "sensitivity", "specificity")


def write_subgroups(
    folder: str | os.PathLike,
    labels: Any,
    probability: Any,
    names: Sequence[str],
    values: Mapping[str, Mapping[str, Any]],
    *,
    patients: Sequence[str] | None = None,
    groups: Sequence[Any] | None = None,
    threshold: Any = 0.5,
    threshold_name: str = "0.5",
    bootstrap: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Write ``subgroup_metrics.csv``, ``subgroups.png``, the section ``20_subgroups``; nothing where no column divides.

    Args:
        folder: where they go.
        labels: 0 or 1.
        probability: of class 1; of several seeds all is the mean.
        names: of the rows.
        values: column to the value of each row, by name; a row without one is not known.
        patients: of each row, whose thirds are taken where they have several.
        groups: of each row, drawn together.
        threshold: from which on a row is called positive, one or one each.
        threshold_name: what is told of it.
        bootstrap: draws of the intervals.
        seed: of the draws.

    Shape:
        - labels, names, patients, groups: ``[n]``; probability, threshold: ``[n]`` or ``[seeds, n]``
    """
    columns = {}
    for column, of in values.items():
        levels = subgroup_levels([of.get(name) for name in names], patients)
        if len(set(levels) - {UNKNOWN}) > 1:
            columns[column] = levels
    folder = Path(folder)
    if not columns:
        _remove(folder)
        return []
    options: dict[str, Any] = {"threshold": threshold, "groups": groups, "bootstrap": bootstrap, "seed": seed}
    rows = subgroup_metrics(labels, probability, columns, **options)
    write_csv(folder / "subgroup_metrics.csv", [_plain(row) for row in rows], columns=COLUMNS)
    subgroup_figure(rows, folder / "subgroups.png")
    _section(folder, rows, threshold_name)
    return rows


def _remove(folder: Path) -> None:
    """Take away what an earlier evaluation left."""
    for name in ("subgroup_metrics.csv", "subgroups.png", "sections/20_subgroups.json"):
        (folder / name).unlink(missing_ok=True)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: row[key] for key in ("column", "level", "n", "patients", "positives")}
    given |= {key: int(row[key]) for key in ("few", "reference")}
    given |= {f"{name}_{key}": row[name][key] for name in SHARES for key in ("value", "low", "high")}
    found = row["difference"] or {}
    given |= {"difference": found.get("value"), "p": found.get("p"), "p_holm": found.get("p_holm")}
    return given | {f"difference_{key}": found.get(key) for key in ("low", "high")}


def _section(folder: Path, rows: Sequence[Mapping[str, Any]], threshold: str) -> None:
    apart = [r for r in rows if r["difference"] and (r["difference"]["p_holm"] or 1.0) < 0.05]
    few = [f"{row['column']} {row['level']} ({row['patients']})" for row in rows if row["few"]]
    text = [
        "Each AUC is compared with that of the column's largest subgroup; p (Holm) is corrected for all comparisons. "
        f"Sensitivity and specificity are at the threshold {threshold}. Brackets: 95 % intervals."
    ]
    named = ", ".join(f"{row['column']} {row['level']}" for row in apart)
    tested = any(row["difference"] and row["difference"]["p"] is not None for row in rows)
    none = "No difference is beyond chance after correction." if tested else "No difference could be tested."
    text.append(f"The AUC differs in: {named}." if apart else none)
    text += [f"Fewer than {FEW} patients, of which little can be said, not tested: {', '.join(few)}."] if few else []
    table = []
    for row in rows:
        found = row["difference"]
        compared = (
            [difference_text(found), number_text(found["p"]), number_text(found["p_holm"])] if found else [""] * 3
        )
        compared = ["reference", "", ""] if row["reference"] else compared
        level = f"{row['level']} (few)" if row["few"] else row["level"]
        counts = [row["patients"], row["n"], row["positives"]]
        table.append([row["column"], level, *counts, *(interval_text(row[name]) for name in SHARES), *compared])
    header = ["", "level", "patients", "rows", "positive", *SHARES, "AUC - reference", "p", "p (Holm)"]
    write_section(
        folder,
        "20_subgroups",
        title="Subgroups",
        status="amber" if apart else "",
        text=text,
        tables=[{"caption": "Subgroups", "header": header, "rows": table}],
        pictures=[("subgroups.png", "AUC of every subgroup with its 95 % interval")],
    )


def subgroup_figure(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Write the AUC of every level with its interval, as a forest plot."""
    from shared.visualize.style import NEGATIVE, new_figure, plain, save

    figure = new_figure(6.4, 0.9 + 0.27 * len(rows))
    axes = figure.subplots()
    places = -np.arange(len(rows))
    for place, row in zip(places, rows, strict=True):
        auc = row["AUC"]
        if auc["value"] is not None:
            low, high = (auc[key] if auc[key] is not None else auc["value"] for key in ("low", "high"))
            colour = "0.6" if row["few"] else NEGATIVE
            axes.plot([low, high], [place, place], color=colour, linewidth=1.6)
            axes.plot(auc["value"], place, "o", color=colour, markersize=5)
    names = [f"{row['column']}: {row['level']} ({row['patients']})" for row in rows]
    axes.set_yticks(places, names, fontsize=8)
    axes.set_ylim(0.6 - len(rows), 0.6)
    axes.axvline(0.5, color="0.7", linewidth=1, linestyle=":")
    axes.set(xlabel="AUC (grey: fewer than 20 patients)", xlim=(-0.02, 1.02))
    plain(axes)
    save(figure, path)


def evaluated_subgroups(
    folder: str | os.PathLike,
    cases: Sequence[Mapping[str, Any]],
    dataset_dir: str | os.PathLike,
    *,
    bootstrap: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Subgroups of the ``predictions.csv`` that an evaluation left in ``folder``, called from 0.5 on.

    Args:
        folder: of the evaluation.
        cases: of the datalist; those that are not in the table are passed by.
        dataset_dir: the prepared folder.
        bootstrap: draws of the intervals.
        seed: of the draws.
    """
    import csv

    from shared.data.subgroups import subgroup_values
    from shared.reports.predictions import patch_name

    with (Path(folder) / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("label")]
    if not rows:
        _remove(Path(folder))
        return []
    unit = "image" if "image" in rows[0] else "patient"
    names = [row[unit] for row in rows]

    def name_of(case: Mapping[str, Any]) -> str:
        return patch_name(Path(dataset_dir) / case["image"], dataset_dir) if unit == "image" else str(case["patient"])

    known = set(names)
    own = {name: case for case in cases if (name := name_of(case)) in known}
    values = subgroup_values(list(own.values()), list(own), dataset_dir)
    patients = [row["patient"] for row in rows] if unit == "image" else None
    groups = [row["group"] for row in rows] if "group" in rows[0] else patients
    labels, probability = [int(row["label"]) for row in rows], [float(row["probability"]) for row in rows]
    options: dict[str, Any] = {"patients": patients, "groups": groups, "bootstrap": bootstrap}
    return write_subgroups(folder, labels, probability, names, values, seed=seed, **options)
