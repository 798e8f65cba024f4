"""The folder of an experiment: predictions of repeated cross-validation, their table and pictures, comparisons.

``experiment.json`` says what was run, ``predictions.csv`` what came out; the rest of the folder is made from these two.
"""

from __future__ import annotations

import json
import os
import platform
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from shared.errors import DataError
from shared.io import atomic_path, write_csv, write_json
from shared.metrics.report import METRICS, RepeatedPredictions, paired_auc_difference, summarise

HOW = (
    "Every patient is predicted by the model of the fold that left the patient out. Metrics are computed over all "
    "patients of one seed (threshold 0.5) and averaged over the seeds. Brackets: {level:.0%} bootstrap interval; each "
    "of {bootstrap} replicates draws patients and takes each with the predictions of all seeds. sd: spread between "
    "seeds. Fold-wise AUC: mean over the single folds of all seeds."
)
_PACKAGES = ("torch", "monai", "numpy", "scikit-learn")


def write_experiment(folder: str | os.PathLike, *, title: str, command: str, settings: Mapping[str, Any]) -> None:
    """Record what is run in ``folder``; one in which other settings have already left something is refused.

    Raises:
        DataError: naming each setting that differs, so that results of two configurations never mix.
    """
    folder = Path(folder)
    settings = json.loads(json.dumps(settings))  # as it will be read back
    if (folder / "experiment.json").exists() and any(any(folder.rglob(name)) for name in ("predictions.csv", "*.pt")):
        before = read_experiment(folder)["settings"]
        changed = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
        if changed:
            lines = [f"{key} was {_short(before.get(key))}, is now {_short(settings.get(key))}" for key in changed]
            raise DataError(
                f"{folder} holds results of other settings ({'; '.join(lines)}): "
                "choose another --name or --output, or remove the folder"
            )
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    content = {"title": title, "command": command, "settings": settings, "versions": versions}
    write_json(folder / "experiment.json", content)


def read_experiment(folder: str | os.PathLike) -> dict:
    """Return the content of ``experiment.json``."""
    path = Path(folder) / "experiment.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is no folder of an experiment: {path.name} cannot be read ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        raise DataError(f"{path} has no settings: it was not written by scripts/cross_validate.py")
    return content


def write_results(folder: str | os.PathLike, predictions: RepeatedPredictions, *, bootstrap: int = 2000) -> dict:
    """Write predictions.csv, results.csv, results.json, results.md, roc.png and calibration.png; return the summary."""
    folder = Path(folder)
    experiment = read_experiment(folder)
    summary = summarise(predictions, bootstrap=bootstrap)
    write_csv(folder / "predictions.csv", predictions.rows())
    write_csv(folder / "results.csv", _csv_rows(summary))
    write_json(folder / "results.json", {"title": experiment["title"], "command": experiment["command"], **summary})
    with atomic_path(folder / "results.md") as temporary:
        temporary.write_text(_markdown(experiment, summary), encoding="utf-8")
    _pictures(folder, predictions, experiment["title"], bootstrap)
    return summary


def comparison_table(folders: Sequence[str | os.PathLike], *, bootstrap: int = 2000) -> str:
    """Return a Markdown table, one experiment a row, each with its paired AUC difference to the first.

    Raises:
        DataError: for folders without results, all of them at once.
    """
    experiments, problems = [], []
    for folder in folders:
        try:
            table = RepeatedPredictions.read(Path(folder) / "predictions.csv")
            experiments.append((read_experiment(folder)["title"], table, summarise(table, bootstrap=bootstrap)))
        except (DataError, OSError) as error:
            problems.append(f"{folder}: no finished experiment ({error})")
    if problems:
        raise DataError(problems)
    first = experiments[0][1]
    lines = [
        "| experiment | AUC | fold-wise AUC | sd | ACC | F1 | PRE | REC | AUC - first | p | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row, (title, table, summary) in enumerate(experiments):
        difference = paired_auc_difference(first, table, bootstrap=bootstrap) if row else None
        compared = ("", "") if not row else ("other patients", "") if difference is None else _difference(difference)
        metrics = summary["metrics"]
        cells = [title, _interval(metrics["AUC"]), _number(summary["fold_auc"]["value"]), _number(metrics["AUC"]["sd"])]
        cells += [_number(metrics[name]["value"]) for name in ("ACC", "F1", "PRE", "REC")]
        lines.append("| " + " | ".join([*cells, *compared, str(len(table.seeds))]) + " |")
    summary = experiments[0][2]
    note = f"{summary['patients']} patients, {summary['positive']} positive. {HOW.format(**summary)}"
    note += (
        " AUC - first: difference to the first row on the same drawn patients; p: two-sided, from the same replicates."
    )
    return "\n".join(lines) + f"\n\n{note}\n"


def _csv_rows(summary: Mapping) -> list[dict]:
    """Return one row a metric, seeds as columns."""
    rows = []
    for name in METRICS:
        metric = summary["metrics"][name]
        row = {"metric": name, **{key: metric[key] for key in ("value", "low", "high", "sd")}}
        rows.append({**row, **{f"seed_{s}": v for s, v in zip(summary["seeds"], metric["seeds"], strict=True)}})
    rows.append({"metric": "fold-wise AUC", "value": summary["fold_auc"]["value"], "sd": summary["fold_auc"]["sd"]})
    return rows


def _markdown(experiment: Mapping, summary: Mapping) -> str:
    """Return the page of one experiment: table, how it was computed, the command."""
    lines = [f"# {experiment['title']}", "", f"{summary['patients']} patients, {summary['positive']} positive.", ""]
    lines += ["| | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    metrics = summary["metrics"]
    lines.append("| **mean over seeds** | " + " | ".join(_interval(metrics[name]) for name in METRICS) + " |")
    lines.append("| sd | " + " | ".join(_number(metrics[name]["sd"]) for name in METRICS) + " |")
    for position, seed in enumerate(summary["seeds"]):
        lines.append(f"| seed {seed} | " + " | ".join(_number(metrics[n]["seeds"][position]) for n in METRICS) + " |")
    fold_auc = summary["fold_auc"]
    lines += [
        "",
        f"Fold-wise AUC: {_number(fold_auc['value'])} (sd {_number(fold_auc['sd'])}, {fold_auc['folds']} folds).",
        "",
    ]
    return "\n".join([*lines, HOW.format(**summary), "", "```", experiment["command"], "```", ""])


def _pictures(folder: Path, predictions: RepeatedPredictions, title: str, bootstrap: int) -> None:
    """Draw the ROC of every seed and the calibration of the seeds' mean probability."""
    from shared.visualize import calibration_figure, roc_curve_figure

    seeds = zip(predictions.seeds, predictions.probability, strict=True)
    curves = {f"seed {seed}": (predictions.labels, probability) for seed, probability in seeds}
    roc_curve_figure(curves, folder / "roc.png", title=textwrap.fill(title, 48), bootstrap=bootstrap)
    calibration_figure(predictions.labels, predictions.probability.mean(axis=0), folder / "calibration.png")


def _interval(metric: Mapping) -> str:
    if metric["value"] is None:
        return "-"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def _difference(difference: Mapping) -> tuple[str, str]:
    return f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]", f"{difference['p']:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _short(value: Any, limit: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
