"""The folder of an experiment: predictions of repeated cross-validation, their table and pictures.

``experiment.json`` says what was run, ``predictions.csv`` what came out; the rest of the folder is made from these two.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.apps.preparation.files import software_versions
from shared.errors import DataError
from shared.io import write_csv, write_json, write_text
from shared.metrics.repeated import RepeatedPredictions, summarise
from shared.metrics.thresholds import fold_thresholds
from shared.reports.tables import interval_text, markdown_table, number_text
from shared.reports.validation import (
    calibration_table,
    decision_table,
    development_text,
    operating_table,
    sample_size_text,
    validation_sections,
)

MEANT = (
    " ACC, F1, PRE and REC call a class from a probability of 0.5 on; F1, PRE and REC are those of the positive class, "
    "wF1, wPRE and wREC the means of both classes, weighted by their numbers (as in Table 2 of the IRCL paper, where "
    "REC is ACC)."
)
MEANT_PATCHES = MEANT + " BACC calls from the share of positives on, where a calibrated probability is balanced."
HOW = (
    "Every patient is predicted by the model of the fold that left the patient out. Metrics are computed over all "
    "patients of one seed and averaged over the seeds. Brackets: {level:.0%} bootstrap interval; each "
    "of {bootstrap} replicates draws {drawn} and takes each with the predictions of all seeds. sd: spread between "
    "seeds. Fold-wise AUC: mean over the single folds of all seeds." + MEANT
)
DRAWN = {False: "patients", True: "groups of patients"}
HOW_PATCHES = (
    "Every patch is predicted by the model of the fold that left its patient out. Metrics are computed over all "
    "patches of one seed and averaged over the seeds. Brackets: {level:.0%} bootstrap interval; each "
    "of {bootstrap} replicates draws patients and takes each with all of its patches and the predictions of all seeds. "
    "sd: spread between seeds. Fold-wise AUC: mean over the single folds of all seeds." + MEANT_PATCHES
)
# of patients, and of patches, which are many enough for a balanced accuracy
_CALLED = ("F1", "PRE", "REC", "wF1", "wPRE", "wREC", "ACC")
METRICS_OF = {False: ("AUC", "BRIER", *_CALLED), True: ("AUC", "BACC", "BRIER", *_CALLED)}
HOW_VALIDATED = (
    "Calibration, net benefit and operating points are means over the seeds. Intercept and slope are 0 and 1 where "
    "log odds are right, O:E the ratio of observed to expected positives, ICI the mean distance of the curve to the "
    "diagonal ({smoother}). Net benefit is in true positives per row; acting on nobody has 0. Thresholds of a fold are "
    "fixed on the predictions of the other folds: Youden's, and the highest with a sensitivity of 0.9 (in brackets the "
    "mean). DeLong's interval of the AUC, without draws: {delong}."
)
LEFT_BEHIND = ("predictions.csv", "*.pt", "*.pt.resume")  # by which a folder is seen to hold results
_LIMIT, _NAMED = 60, 5  # characters of a setting, and entries of a table, that a message shows
_PACKAGES = ("torch", "monai", "numpy", "scikit-learn")


def write_experiment(folder: str | os.PathLike, *, title: str, command: str, settings: Mapping[str, Any]) -> None:
    """Record what is run in ``folder``; one in which other settings have already left something is refused.

    Raises:
        DataError: naming each setting that differs (and each patient whose data does), so that results of two
            configurations, or of two states of the data, never mix; results without a record.
    """
    folder = Path(folder)
    settings = json.loads(json.dumps(settings))  # as it will be read back
    if any(any(folder.rglob(name)) for name in LEFT_BEHIND):
        before = read_experiment(folder)["settings"]
        lines = [line for key in {**before, **settings} if (line := _change(key, before.get(key), settings.get(key)))]
        if lines:
            raise DataError(
                f"{folder} holds results of other settings ({'; '.join(lines)}): "
                "choose another --name or --output, or remove the folder"
            )
    versions = software_versions(_PACKAGES)
    content = {"title": title, "command": command, "settings": settings, "versions": versions}
    write_json(folder / "experiment.json", content)


def read_experiment(folder: str | os.PathLike) -> dict:
    """Return the content of ``experiment.json``."""
    path = Path(folder) / "experiment.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} is no folder of an experiment: {path.name} cannot be read ({error}); choose another --output"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        raise DataError(f"{path} has no settings: it was not written by scripts/cross_validate.py")
    return content


def write_results(folder: str | os.PathLike, predictions: RepeatedPredictions, *, bootstrap: int = 2000) -> dict:
    """Write predictions.csv, results.csv, results.json, results.md and the pictures roc, calibration and decision.

    Returns:
        the summary, as in results.json
    """
    folder = Path(folder)
    experiment = read_experiment(folder)
    names = METRICS_OF[predictions.images is not None]
    summary = summarise(predictions, names=names, bootstrap=bootstrap)
    thresholds = fold_thresholds(predictions.labels, predictions.probability, predictions.folds)
    options: dict[str, Any] = {"thresholds": thresholds, "groups": predictions.groups, "bootstrap": bootstrap}
    summary |= validation_sections(predictions.labels, predictions.probability, **options)
    write_csv(folder / "predictions.csv", predictions.rows())
    write_csv(folder / "results.csv", _csv_rows(summary))
    write_json(folder / "results.json", {"title": experiment["title"], "command": experiment["command"], **summary})
    write_text(folder / "results.md", _markdown(experiment, summary))
    _pictures(folder, predictions, experiment["title"], bootstrap, summary)
    return summary


def _csv_rows(summary: Mapping) -> list[dict]:
    """Return one row a metric, seeds as columns."""
    rows = []
    for name, metric in summary["metrics"].items():
        row = {"metric": name, **{key: metric[key] for key in ("value", "low", "high", "sd")}}
        rows.append({**row, **{f"seed_{s}": v for s, v in zip(summary["seeds"], metric["seeds"], strict=True)}})
    rows.append({"metric": "fold-wise AUC", "value": summary["fold_auc"]["value"], "sd": summary["fold_auc"]["sd"]})
    return rows


def _markdown(experiment: Mapping, summary: Mapping) -> str:
    """Return the page of one experiment: table, how it was computed, the command."""
    names, metrics = list(summary["metrics"]), summary["metrics"]
    count = f"{summary['images']} patches of {summary['patients']}" if "images" in summary else summary["patients"]
    groups = f" in {summary['groups']} groups" if "groups" in summary else ""
    rows = [["**mean over seeds**", *(interval_text(metrics[name]) for name in names)]]
    rows += [["sd", *(number_text(metrics[name]["sd"]) for name in names)]]
    for position, seed in enumerate(summary["seeds"]):
        rows.append([f"seed {seed}", *(number_text(metrics[name]["seeds"][position]) for name in names)])
    lines = [f"# {experiment['title']}", "", f"{count} patients{groups}, {summary['positive']} positive.", ""]
    lines += [markdown_table(["", *names], rows)]
    fold_auc = summary["fold_auc"]
    mean, sd = number_text(fold_auc["value"]), number_text(fold_auc["sd"])
    lines += ["", f"Fold-wise AUC: {mean} (sd {sd}, {fold_auc['folds']} folds).", ""]
    how = (HOW_PATCHES if "images" in summary else HOW).format(**summary, drawn=DRAWN["groups" in summary])
    for table in (
        calibration_table(summary["calibration"]),
        decision_table(summary["decision"]),
        operating_table(summary["operating_points"]),
    ):
        lines += [table, ""]
    rows_of, patients = summary.get("images", summary["patients"]), summary["patients"] if "images" in summary else None
    delong, smoother = interval_text(summary["delong"]), summary["calibration"]["smoother"]
    size = sample_size_text(summary["sample_size"], rows_of, summary["positive"], patients)
    size = f"{size} {development_text(summary['sample_size'])}".strip()
    validated = HOW_VALIDATED.format(smoother=smoother, delong=delong)
    return "\n".join([*lines, how, "", validated, "", size, "", "```", experiment["command"], "```", ""])


def _pictures(
    folder: Path, predictions: RepeatedPredictions, title: str, bootstrap: int, summary: Mapping[str, Any]
) -> None:
    """Draw the ROC of every seed, and the calibration and decision curve, means over the seeds; as PNG and PDF."""
    from shared.visualize import calibration_figure, decision_figure, roc_curve_figure

    seeds = zip(predictions.seeds, predictions.probability, strict=True)
    curves = {f"seed {seed}": (predictions.labels, probability) for seed, probability in seeds}
    title, groups = textwrap.fill(title, 48), predictions.groups
    roc_curve_figure(curves, folder / "roc.png", title=title, bootstrap=bootstrap, groups=groups, pdf=True)
    unit = "patients" if predictions.images is None else "patches"
    given = predictions.labels, predictions.probability
    measured = {"report": summary["calibration"], "groups": groups, "unit": unit}
    calibration_figure(*given, folder / "calibration.png", **measured, pdf=True)
    decision_figure(summary["decision"], folder / "decision.png", pdf=True)


def _change(key: str, before: Any, now: Any) -> str:
    """What became of a setting; of a long table which of its entries changed; nothing where it is as it was."""
    if before == now:
        return ""
    if isinstance(now, dict) and (before is None or len(json.dumps(before)) > _LIMIT):
        if before is None:
            return f"{key} was not recorded"
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return f"{key} was different for {', '.join(names[:_NAMED])}{more}"
    return f"{key} was {_short(before)}, is now {_short(now)}"


def _short(value: Any, limit: int = _LIMIT) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
