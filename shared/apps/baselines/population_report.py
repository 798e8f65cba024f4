"""Tables and picture of the population graph beside its controls: over all patients and within grade, paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from shared.io import write_csv, write_text
from shared.metrics import holm_adjusted
from shared.metrics.repeated import RepeatedPredictions, paired_seed_difference, summarise
from shared.reports.tables import bounds_text, difference_text, interval_text, markdown_table, number_text

# a method and what it has to beat
_JOINED = ("{0}_no_edges", "{0}_random_edges", "logistic{1}", "logistic_tuned{1}", "svm{1}", "mlp{1}")
COMPARED = {
    f"gat{suffix}": (*(name.format(f"gat{suffix}", suffix) for name in _JOINED), *others)
    for suffix, others in {
        "": ("gat_paper", "covariates", "grade_covariates"),
        "_covariates": ("covariates", "grade_covariates"),
        "_grade_covariates": ("covariates", "grade_covariates"),
    }.items()
}
DRAWN = ("gat", "gat_no_edges", "gat_paper", "logistic", "gat_covariates", "logistic_covariates", "grade_covariates")
HOW = (
    "AUC over all out-of-fold predictions of a seed, averaged over {seeds} seeds, with 95 % bootstrap interval "
    "({bootstrap} draws of patients, each with the predictions of all seeds). Fold-wise: mean AUC of the single folds. "
    "Differences: on the same drawn patients; p two-sided, then Holm's over a table's column."
)


def strata(grade: Mapping[str, float], predictions: RepeatedPredictions) -> dict[str, np.ndarray]:
    """Rows of all patients and of those of grade 4 and 2-3, where grade is known and both labels are there.

    Shape:
        - returns: name to ``[n]`` bool
    """
    known = np.array([grade[patient] for patient in predictions.patients], dtype=float)
    parts = {"all": np.ones(len(known), bool), "grade 4": known == 4, "grade 2-3": (known == 2) | (known == 3)}
    return {name: rows for name, rows in parts.items() if len(set(predictions.labels[rows].tolist())) == 2}


def subset(predictions: RepeatedPredictions, rows: np.ndarray) -> RepeatedPredictions:
    """These rows ``[n]`` bool of all predictions."""
    return replace(
        predictions,
        patients=tuple(name for name, kept in zip(predictions.patients, rows, strict=True) if kept),
        labels=predictions.labels[rows],
        folds=predictions.folds[:, rows],
        probability=predictions.probability[:, rows],
    )


def write_population_report(
    folder: Path,
    predictions: Mapping[str, RepeatedPredictions],
    titles: Mapping[str, str],
    grade: Mapping[str, float],
    *,
    heading: Sequence[str] = (),
    command: str = "",
    bootstrap: int = 2000,
) -> str:
    """Write comparison.md, comparison.csv, differences.csv and roc.png; return the first.

    Args:
        folder: where they go.
        predictions: of every method by name.
        titles: of every method.
        grade: of every patient, NaN where unknown.
        heading: lines under the title.
        command: that made the predictions.
        bootstrap: draws.
    """
    parts = strata(grade, next(iter(predictions.values())))
    cut = {name: {part: subset(table, rows) for part, rows in parts.items()} for name, table in predictions.items()}
    scores = {
        name: {part: summarise(table, names=("AUC",), bootstrap=bootstrap) for part, table in tables.items()}
        for name, tables in cut.items()
    }
    differences = [
        {"method": first, "minus": other, "stratum": part}
        | dict(paired_seed_difference(cut[other][part], cut[first][part], bootstrap=bootstrap))
        for first, others in COMPARED.items()
        for other in others
        for part in parts
        if first in cut and other in cut
    ]
    for family in {(row["method"], row["stratum"]) for row in differences}:
        members = [row for row in differences if (row["method"], row["stratum"]) == family]
        for row, p in zip(members, holm_adjusted([row["p"] for row in members]), strict=True):
            row["p_holm"] = p
    rows = [
        {"method": name, "title": titles[name], "stratum": part, "patients": found["patients"]}
        | {"positive": found["positive"], **{f"AUC_{k}": found["metrics"]["AUC"][k] for k in ("value", "low", "high")}}
        | {"sd_between_seeds": found["metrics"]["AUC"]["sd"], "fold_wise_AUC": found["fold_auc"]["value"]}
        for name, tables in scores.items()
        for part, found in tables.items()
    ]
    write_csv(folder / "comparison.csv", rows)
    if differences:
        write_csv(folder / "differences.csv", differences)
    text = _page(scores, titles, differences, heading, command, bootstrap)
    write_text(folder / "comparison.md", text)
    _picture(folder / "roc.png", predictions, titles, bootstrap)
    return text


def _page(
    scores: Mapping[str, Mapping[str, dict]],
    titles: Mapping[str, str],
    differences: Sequence[Mapping],
    heading: Sequence[str],
    command: str,
    bootstrap: int,
) -> str:
    first = next(iter(scores.values()))
    counts = [f"{part}: {found['patients']} patients, {found['positive']} mutant" for part, found in first.items()]
    lines = ["# Population graph and its controls", "", *heading, "; ".join(counts) + ".", ""]
    header = ["method", *(f"AUC, {part}" for part in first), "fold-wise AUC", "sd of seeds"]
    rows = [
        [
            titles[name],
            *(interval_text(found["metrics"]["AUC"]) for found in parts.values()),
            number_text(parts["all"]["fold_auc"]["value"]),
            number_text(parts["all"]["metrics"]["AUC"]["sd"]),
        ]
        for name, parts in scores.items()
    ]
    lines += [markdown_table(header, rows), ""]
    for method in dict.fromkeys(row["method"] for row in differences):
        mine = [row for row in differences if row["method"] == method]
        others = dict.fromkeys(row["minus"] for row in mine)
        table = [[titles[other], *(_cell(mine, other, part) for part in first)] for other in others]
        lines += [f"**{titles[method]}**, AUC minus that of:", ""]
        lines += [markdown_table(["", *first], table), ""]
    lines += [*_verdicts(differences, titles), HOW.format(seeds=len(first["all"]["seeds"]), bootstrap=bootstrap), ""]
    return "\n".join([*lines, *(["```", command, "```", ""] if command else [])])


def _cell(rows: Sequence[Mapping], other: str, part: str) -> str:
    found = next(row for row in rows if row["minus"] == other and row["stratum"] == part)
    return f"{difference_text(found)}, p {number_text(found['p'])}, {number_text(found['p_holm'])}"


def external_lines(
    development: Mapping[str, RepeatedPredictions],
    external: Mapping[str, RepeatedPredictions],
    titles: Mapping[str, str],
    *,
    bootstrap: int = 2000,
) -> list[str]:
    """Each method on other patients beside its cross-validation: AUC, calibration, and what recalibration changes."""
    from shared.metrics.external import external_validation

    header = ["method", "AUC cross-validated", "AUC external", "difference", "p (DeLong)", "intercept", "slope", "O:E"]
    header += ["Brier", "Brier recalibrated - as it is, half of the patients"]
    rows = []
    for name, far in external.items():
        cohorts = [(table.labels, table.probability, table.groups) for table in (development[name], far)]
        found = external_validation(*cohorts, bootstrap=bootstrap)
        there = found["external"]
        changed = ((found["recalibration"] or {}).get("methods") or {}).get("intercept and slope")
        auc = [bounds_text(found[part]["AUC"]) for part in ("development", "external", "difference")]
        values = [bounds_text(there[key]) for key in ("intercept", "slope", "observed_expected", "BRIER")]
        mended = bounds_text(changed["BRIER_difference"]) if changed else "not to be fitted"
        rows.append([titles[name], *auc, number_text(found["difference"]["AUC"]["p"]), *values, mended])
    how = (
        "Intercept and slope: of a logistic regression on the log odds, right: 0 and 1. O:E: mutants to expected ones."
    )
    who = "Other patients, tested by models fitted to all patients of the table; cross-validated: within the table."
    return [who, "", markdown_table(header, rows), "", how, ""]


def _verdicts(differences: Sequence[Mapping], titles: Mapping[str, str]) -> list[str]:
    """What the edges add, in words that the intervals allow."""
    lines = []
    for row in differences:
        if row["stratum"] != "all" or not row["minus"].endswith(("_no_edges", "_random_edges")):
            continue
        shown = "a gain" if row["low"] > 0 else "a loss" if row["high"] < 0 else "no difference"
        kind = "no" if row["minus"].endswith("_no_edges") else "random"
        lines.append(
            f"What the edges add to the {titles[row['method']]}, against {kind} edges: {difference_text(row)}: "
            f"{shown} shown."
        )
    return [*lines, ""] if lines else []


def _picture(
    path: Path, predictions: Mapping[str, RepeatedPredictions], titles: Mapping[str, str], bootstrap: int
) -> None:
    """ROC curves over the predictions of all seeds."""
    from shared.visualize import roc_curve_figure

    names = [name for name in DRAWN if name in predictions] or list(predictions)[:6]
    one = predictions[names[0]]
    labels = np.tile(one.labels, len(one.seeds))
    curves = {titles[name]: (labels, predictions[name].probability.ravel()) for name in names}
    groups = one.patients * len(one.seeds)
    roc_curve_figure(curves, path, title="Out-of-fold predictions, all seeds", bootstrap=bootstrap, groups=groups)
