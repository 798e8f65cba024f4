"""The report of a study or of one evaluation: one HTML file, made of the files in its folder and of nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.apps.report.blocks import blocks, pictures, read_object, text_of
from shared.apps.report.checklists import write_checklists
from shared.apps.report.flow import flow_diagram
from shared.apps.report.pages import LARGEST, write_page
from shared.apps.report.sections import read_sections
from shared.io import write_csv, write_text
from shared.reports.tables import interval_text, markdown_table

_PICTURES = {
    "roc.png": "ROC curve: sensitivity against 1 - specificity",
    "calibration.png": "Calibration: observed share of positives against predicted probability",
    "decision.png": "Decision curve: net benefit against the threshold probability",
    "confusion.png": "Confusion matrix",
}
_EXPLAINED = ("localisation*.json", "randomisation*.json", "controls.json", "explanation_comparison.json")


def write_report(folder: str | os.PathLike, *, pseudonyms: bool = False) -> Path:
    """Write ``report.html`` from what lies in a folder; what is not there is left out, and the page says so.

    Args:
        folder: of a study (``study.json``, tables, rows, baselines), or of an evaluation (``metrics.json``).
        pseudonyms: leave explanations out, whose pictures and names hold patients' ids.

    Returns:
        the page.
    """
    folder = Path(folder)
    content = report_content(folder, pseudonyms=pseudonyms)
    content["checklists"] = write_checklists(folder, content)
    return write_page(folder / "report.html", "report.html.j2", content)


def report_content(folder: Path, *, pseudonyms: bool = False) -> dict[str, Any]:
    """What the template shows: texts, tables, pictures, each with its file."""
    from shared.apps.study.tables import cells, read_tables

    study = read_object(folder / "study.json") or {}
    tables = []
    for table in read_tables(folder, study.get("tables")):
        header, rows = cells(table)
        sources = [row["source"] or "" for row in table["rows"]]
        rows = [[*row, source] for row, source in zip(rows, sources, strict=True)]
        given = {key: table[key] for key in ("name", "title", "notes")}
        tables.append({**given, "header": [*header, "file"], "rows": rows})
    experiments = [found for path in _experiment_folders(folder, study) if (found := _experiment(folder, path))]
    budget = [LARGEST]
    for experiment in experiments:
        names = [(folder / experiment["folder"] / name, text) for name, text in _PICTURES.items()]
        experiment["pictures"] = list(pictures(folder, names, experiment["title"], budget))
    explanations, left_out = _explanations(folder, budget, pseudonyms)
    patients = _patients(folder)
    sections, broken = read_sections(folder, budget, pseudonyms=pseudonyms)
    counts = study.get("flow")
    return {
        "title": f"{study['bundle']}: study of {study['cohort']}" if study else f"Evaluation: {folder.resolve().name}",
        "answer": _answer(study, experiments),
        "patients": patients,
        "tables": tables,
        "experiments": experiments,
        "explanations": explanations,
        "left_out": left_out,
        "sections": sections,
        "broken": broken,
        "flow": flow_diagram(counts, "study.json", reasons=not pseudonyms) if counts else None,
        "checklists": [],
        "limits": _limits(study, tables, experiments, patients),
        "methods": _methods(study, experiments),
    }


def _experiment_folders(folder: Path, study: Mapping) -> list[Path]:
    if not study:
        return [folder, *sorted(path.parent for path in folder.glob("*/metrics.json"))]
    return [folder / row["folder"] for row in study["rows"].values()]


def _experiment(root: Path, folder: Path) -> dict[str, Any] | None:
    """Results of a row, or of an evaluation, with their files; None where there are none."""
    files = [name for name in ("results.json", "metrics.json") if (folder / name).is_file()]
    contents = {name: content for name in files if (content := read_object(folder / name))}
    if not contents:
        return None
    about, results = read_object(folder / "experiment.json") or {}, contents.get("results.json", {})
    sections = []
    for name, content in contents.items():
        shown = {key: value for key, value in content.items() if key not in ("title", "command", "metrics")}
        shown = {**content.get("metrics", {}), **shown}
        sections.append({"file": _relative(root, folder / name), "blocks": blocks(shown)})
    metrics = results.get("metrics") or contents.get("metrics.json", {})
    return {
        "title": about.get("title") or results.get("title") or folder.resolve().name,
        "folder": folder.relative_to(root).as_posix(),
        "sections": sections,
        "folds": _folds(root, folder),
        "auc": metrics.get("AUC"),
        "counts": {key: results.get(key) for key in ("patients", "images", "positive", "seeds")},
        "experiment": about,
    }


def _folds(root: Path, folder: Path) -> dict[str, Any] | None:
    """The metrics.json of each fold, a line each."""
    lines, names = [], ("n", "positives", "AUC", "ACC", "BACC", "F1", "BRIER")
    for path in sorted(folder.glob("seed*/fold*/metrics.json")):
        if content := read_object(path):
            lines.append([path.parent.relative_to(folder).as_posix(), *(text_of(content.get(name)) for name in names)])
            lines[-1].append(_relative(root, path))
    return {"header": ["fold", *names, "file"], "rows": lines} if lines else None


def _explanations(root: Path, budget: list[int], pseudonyms: bool) -> tuple[list[dict[str, Any]], str]:
    """Pictures of explanations, with the scores of their controls; and why some are left out."""
    found = []
    folders = [root, root / "explained", *sorted(root.glob("rows/*/seed*/fold*/explained"))]
    left = 0
    for folder in folders:
        there = sorted([*folder.glob("*.png"), *folder.glob("patients/*.png")])
        there = [path for path in there if path.name not in _PICTURES and not path.name.endswith("_loss.png")]
        if pseudonyms:
            left += len(there)
            continue
        named = [(path, f"Explanation, {path.stem.replace('_', ' ')}") for path in there]
        shown = list(pictures(root, named, _relative(root, folder) or "this folder", budget))
        files = sorted({path for name in _EXPLAINED for path in folder.glob(name)})
        read = [(path, content) for path in files if (content := read_object(path)) is not None]
        sections = [{"file": _relative(root, path), "blocks": blocks(content)} for path, content in read]
        if shown or sections:
            found.append({"folder": _relative(root, folder) or ".", "pictures": shown, "sections": sections})
    text = f"{left} pictures are left out: they may show patients' ids (--pseudonyms)." if left else ""
    return found, text


def _patients(root: Path) -> dict[str, Any] | None:
    """Table 1, of the datalist that the folds were made of; also as CSV, Markdown and LaTeX."""
    from shared.apps.study.patients import patients_table
    from shared.apps.study.tables import latex_table

    for path in [*sorted(root.glob("rows/*/seed*/datalist.json")), root / "datalist.json"]:
        content = read_object(path)
        if not content or not content.get("training"):
            continue
        header, rows = patients_table(content)
        title = "Table 1. Patients"
        stem = root / "tables" / "patients"
        write_csv(stem.with_suffix(".csv"), [dict(zip(["what", *header[1:]], row, strict=True)) for row in rows])
        write_text(stem.with_suffix(".md"), markdown_table(header, rows) + "\n")
        write_text(stem.with_suffix(".tex"), latex_table(header, rows, title))
        return {"header": header, "rows": rows, "file": _relative(root, path), "cohort": content.get("name", "")}
    return None


def _answer(study: Mapping, experiments: Sequence[Mapping]) -> list[str]:
    """What was asked and what came out, in three sentences."""
    whole = [e for e in experiments if e["auc"] and e["auc"].get("value") is not None]
    if not whole:
        return ["Nothing has been evaluated in this folder yet."]
    others = [e for e in whole if e["folder"].startswith("baselines/")]
    own = [e for e in whole if e not in others]
    if not study:
        return [f"This page shows one evaluation; its AUC is {interval_text(whole[0]['auc'])}."]
    first = (own or others)[0]
    counts = first["counts"]
    unit = f"{counts['images']} patches of {counts['patients']}" if counts.get("images") else counts["patients"]
    done = "was" if own else "is to be"
    seeds = f"{len(study['seeds'])} seed{'s' * (len(study['seeds']) > 1)}"
    asked = (
        f"{study['bundle']} {done} cross-validated on {unit} patients of {study['cohort']} in {study['folds']} folds "
        f"by patient, {seeds}, to see what it and its parts are worth."
    )
    answer = f"The AUC of {first['title']} is {interval_text(first['auc'])}."
    if not own:
        answer = "The method itself has not been evaluated yet."
    if not others:
        return [asked, answer, "No control without a network was run, so the figure says little alone."]
    best = max(others, key=lambda e: e["auc"]["value"])
    which = f"best of {len(others)} controls" if len(others) > 1 else "only control"
    return [asked, answer, f"The {which} without a network ({best['title']}) has {interval_text(best['auc'])}."]


def _limits(study: Mapping, tables: Sequence, experiments: Sequence[Mapping], patients: Any) -> list[str]:
    found = ["Research software, not a medical device: no figure here says how a patient should be treated."]
    if study:
        found.append("Cross-validation within one cohort: other hospitals, scanners and prevalences were not seen.")
        found += [f"Not run: {name}, {why}." for name, why in study.get("missing", {}).items()]
        open_rows = [row for row in study["rows"].values() if row["folds"] and row["done"] != row["folds"]]
        found += [f"Not done: {row['title']}, {row['done']} of {row['folds']} trainings." for row in open_rows]
    if not tables and study:
        found.append("No tables have been written yet.")
    if patients is None:
        found.append("There is no datalist in the folder, so the patients are not described.")
    if not experiments:
        found.append("There are no results in the folder.")
    return found + [str(limit) for limit in study.get("limits", ())]


def _methods(study: Mapping, experiments: Sequence[Mapping]) -> dict[str, Any]:
    """Settings that differ from the default, versions, hashes, commands."""
    rows = [
        [row["title"], key, text_of(before), text_of(now)]
        for row in study.get("rows", {}).values()
        for key, (before, now) in row["changed"].items()
    ]
    versions: dict[str, str] = {}
    hashes, commands = [], [["study", study["command"]]] if study else []
    for found in experiments:
        about = found["experiment"]
        versions |= about.get("versions", {})
        settings = about.get("settings", {})
        configs = settings.get("configs", {})
        hashes += [[found["title"], name, digest] for name, digest in configs.items()]
        if "training" in settings:
            hashes.append([found["title"], "patients, labels, covariates", str(settings["training"])])
        commands += [[found["title"], about["command"]]] if about.get("command") else []
    if study.get("data"):
        hashes.append(["study", "cohort: datalist and files", study["data"]])
    sentence = ""
    if study:
        sentence = (
            f"{study['bundle']} was trained and evaluated in {study['folds']} folds of patients, stratified by label "
            f"(seeds: {', '.join(map(str, study['seeds']))}). All stages, normalisation and covariates "
            "were fitted within the training patients of each fold. Metrics are computed over all patients of a seed "
            "and averaged over the seeds; intervals are of a bootstrap of patients."
        )
        sentence += f" The method follows {study['citation']}." if study.get("citation") else ""
    return {"text": sentence, "settings": rows, "versions": versions, "hashes": hashes, "commands": commands}


def _relative(root: Path, path: Path) -> str:
    text = path.relative_to(root).as_posix()
    return "" if text == "." else text
