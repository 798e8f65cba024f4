"""The files that every evaluation leaves: predictions.csv, and where labels are known their metrics and pictures."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.io import write_csv, write_json
from shared.reports.abstention import set_of

OF_LABELS = ("metrics.json", "roc.png", "calibration.png", "decision.png", "confusion.png")

logger = logging.getLogger(__name__)


def patch_name(path: str | os.PathLike, dataset_dir: str | os.PathLike | None) -> str:
    """A patch's name in tables: its path below ``dataset_dir`` where it lies there, else as it is.

    Example:
        >>> patch_name("/data/crc/SSA/a.png", "/data/crc"), patch_name("/other/a.png", "/data/crc")
        ('SSA/a.png', '/other/a.png')
    """
    path = Path(path)
    if dataset_dir is None:
        return str(path)
    root = Path(dataset_dir)
    for folder in (root, root.absolute(), root.resolve()):
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return str(path)


def write_predictions(
    folder: str | os.PathLike,
    rows: Sequence[Mapping[str, Any]],
    *,
    class_names: Sequence[str] = ("negative", "positive"),
    thresholds: Mapping[str, float] | None = None,
    coverage: float | None = None,
    shift: Mapping[str, Any] | None = None,
    weights: str = "",
    switched: Mapping[str, Any] | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Write predictions.csv, metrics.json, pictures (roc, calibration, decision); of patches classes and confusion.png.

    Args:
        folder: where they go.
        rows: ``patient, label, probability``, and ``image`` before them where a row is a patch; the label is ``""``
            where it is not known. The patches of a patient are drawn together, and the patients of a ``group``.
        class_names: of class 0 and 1.
        thresholds: name to threshold, fixed on training patients; sensitivity and specificity are told there, too.
        coverage: what was asked for of the column ``set``, whose coverage is then told.
        shift: by which the patients together differ from the training patients, if they do.
        weights: SHA-256 of the predicting model's, as in its model.json.
        switched: settings of the answer that are not the model's own, such as ``views``.
        bootstrap: draws of the 95 % intervals, over patients.
        seed: of the draws.

    Returns:
        what metrics.json holds; None where no label is known.
    """
    folder = Path(folder)
    patches = bool(rows) and "image" in rows[0]
    for name in OF_LABELS:  # of an earlier run into this folder: no figure may stand beside others' predictions
        (folder / name).unlink(missing_ok=True)
    write_csv(folder / "predictions.csv", rows)
    known = [row for row in rows if row["label"] != ""]
    if not known:
        logger.info("%d predicted: %s", len(rows), folder / "predictions.csv")
        return None
    from shared.metrics import class_report, classification_metrics
    from shared.reports.validation import log_lines, sample_size_text, validation_sections
    from shared.visualize import calibration_figure, confusion_figure, decision_figure, roc_curve_figure

    labels = [row["label"] for row in known]
    probability = [row["probability"] for row in known]
    unit = "patient" if patches else "group" if "group" in known[0] else None
    groups = [row[unit] for row in known] if unit else None
    draws: dict[str, Any] = {"bootstrap": bootstrap, "seed": seed, "groups": groups}
    metrics = classification_metrics(labels, probability, **draws)
    if groups is not None:
        metrics |= {f"{unit}s": len(set(groups))}
    if patches:
        metrics |= class_report(labels, probability, class_names=class_names, **draws)
        confusion_figure(metrics["confusion"]["matrix"], folder / "confusion.png", class_names=class_names)
    sections = validation_sections(labels, probability, thresholds=thresholds, **draws)
    metrics |= sections
    metrics |= {"weights": weights} if weights else {}
    metrics |= {"switched": dict(switched)} if switched else {}
    if any(row.get("set") for row in known):
        from shared.metrics.conformal import set_report

        sets = [set_of(row["set"], class_names) for row in known]
        metrics["sets"] = {"coverage": coverage, **set_report(labels, sets, class_names=class_names, **draws)}
        for name, found in metrics["sets"]["classes"].items():
            _log(f"coverage of {name}", found)
    if any(row.get("out_of_cohort") not in (None, "") for row in known):
        metrics["out_of_cohort"] = sum(row["out_of_cohort"] == 1 for row in known)
    metrics |= {"cohort_shift": shift} if shift else {}
    write_json(folder / "metrics.json", metrics)
    _log("AUC", metrics["AUC"])
    _log("AUC, DeLong's interval", metrics["delong"])
    for line in [*log_lines(sections), sample_size_text(metrics["sample_size"], *_counts(metrics, patches))]:
        logger.info("%s", line)
    for name in ("BRIER", "F1", "PRE", "REC", "wF1", "wPRE", "wREC", *(("BACC",) if patches else ()), "ACC"):
        _log(name, metrics[name])
    if len(set(labels)) > 1:
        names = {"class_names": class_names} if patches else {"unit": "patients"}
        roc_curve_figure({"": (labels, probability)}, folder / "roc.png", **draws)
        report = metrics["calibration"]
        calibration_figure(labels, probability, folder / "calibration.png", groups=groups, report=report, **names)
        decision_figure(metrics["decision"], folder / "decision.png")
    return metrics


def _log(name: str, value: Mapping[str, Any]) -> None:
    logger.info("%s %s [%s, %s]", name, *(_text(value[key]) for key in ("value", "low", "high")))


def _counts(metrics: Mapping[str, Any], patches: bool) -> tuple[int, int, int | None]:
    return metrics["n"], metrics["positives"], metrics["patients"] if patches else None


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
