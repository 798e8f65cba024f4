"""The report of a study or of one evaluation: one HTML file, made of the files in its folder and of nothing else."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.io import write_csv, write_text
from shared.reports.tables import interval_text, markdown_table, number_text

LARGEST = 14 * 10**6
"""Characters of the page that pictures may fill; what does not fit is named."""

_PICTURES = {
    "roc.png": "ROC curve: sensitivity against 1 - specificity",
    "calibration.png": "Calibration: observed share of positives against predicted probability",
    "decision.png": "Decision curve: net benefit against the threshold probability",
    "confusion.png": "Confusion matrix",
}
_EXPLAINED = ("localisation*.json", "randomisation*.json", "controls.json", "explanation_comparison.json")
_TITLES = {
    "calibration": "Calibration",
    "decision": "Decision curves",
    "operating_points": "Operating points",
    "delong": "DeLong's test",
    "classes": "Classes",
    "fold_auc": "AUC fold by fold",
    "confusion": "Confusion matrix (rows: label, columns: called)",
}


def write_report(folder: str | os.PathLike, *, pseudonyms: bool = False) -> Path:
    """Write ``report.html`` from what lies in a folder; what is not there is left out, and the page says so.

    Args:
        folder: of a study (``study.json``, tables, rows, baselines), or of an evaluation (``metrics.json``).
        pseudonyms: leave explanations out, whose pictures and names hold patients' ids.

    Returns:
        the page.
    """
    import jinja2

    folder = Path(folder)
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = jinja2.StrictUndefined
    text = environment.get_template("report.html.j2").render(**report_content(folder, pseudonyms=pseudonyms))
    write_text(folder / "report.html", text)
    return folder / "report.html"


def report_content(folder: Path, *, pseudonyms: bool = False) -> dict[str, Any]:
    """What the template shows: texts, tables, pictures, each with its file."""
    from shared.apps.study.tables import cells, read_tables

    study = _read(folder / "study.json") or {}
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
        experiment["pictures"] = list(_pictures(folder, names, experiment["title"], budget))
    explanations, left_out = _explanations(folder, budget, pseudonyms)
    patients = _patients(folder)
    return {
        "title": f"{study['bundle']}: study of {study['cohort']}" if study else f"Evaluation: {folder.resolve().name}",
        "answer": _answer(study, experiments),
        "patients": patients,
        "tables": tables,
        "experiments": experiments,
        "explanations": explanations,
        "left_out": left_out,
        "limits": _limits(study, tables, experiments, patients),
        "methods": _methods(study, experiments),
    }


def blocks(content: Mapping[str, Any], title: str = "") -> list[dict[str, Any]]:
    """Tables of any JSON of metrics: values with intervals, other values, matrices, lists; each number is in one.

    Example:
        >>> found = blocks({"AUC": {"value": 0.8, "low": 0.7, "high": 0.9}, "n": 12, "delong": {"p": 0.04}})
        >>> [(block["title"], block["header"], block["rows"]) for block in found]
        [('', ['', 'value', 'low', 'high'], [['AUC', '0.800', '0.700', '0.900']]),
         ('', ['', 'value'], [['n', '12']]), ("DeLong's test", ['', 'value'], [['p', '0.040']])]
    """
    intervals = {key: value for key, value in content.items() if isinstance(value, Mapping) and "value" in value}
    found, plain = [], []
    if intervals:
        columns = list(dict.fromkeys(name for value in intervals.values() for name in value))
        rows = [[key, *(_text(value.get(name)) for name in columns)] for key, value in intervals.items()]
        found.append({"title": title, "header": ["", *columns], "rows": rows})
    nested = []
    for key, value in content.items():
        name = f"{title}, {key}" if title else _TITLES.get(key, key)
        if key in intervals:
            continue
        if isinstance(value, Mapping) and "matrix" in value:
            classes = list(map(str, value.get("classes") or range(len(value["matrix"]))))
            rows = [[label, *map(_text, row)] for label, row in zip(classes, value["matrix"], strict=True)]
            nested.append({"title": name, "header": ["", *classes], "rows": rows})
        elif isinstance(value, Mapping):
            nested += blocks(value, name)
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            columns = list(dict.fromkeys(column for item in value for column in item))
            rows = [[str(i), *(_text(item.get(column)) for column in columns)] for i, item in enumerate(value, 1)]
            nested.append({"title": name, "header": ["", *columns], "rows": rows})
        else:
            plain.append([key, _text(value)])
    if plain:
        found.append({"title": title, "header": ["", "value"], "rows": plain})
    return found + nested


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return "-" if value is None else str(value)
    if isinstance(value, Mapping):
        return interval_text(value) if {"value", "low", "high"} <= set(value) else json.dumps(value)
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value) if isinstance(value, int) else number_text(value)


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _experiment_folders(folder: Path, study: Mapping) -> list[Path]:
    if not study:
        return [folder, *sorted(path.parent for path in folder.glob("*/metrics.json"))]
    return [folder / row["folder"] for row in study["rows"].values()]


def _experiment(root: Path, folder: Path) -> dict[str, Any] | None:
    """Results of a row, or of an evaluation, with their files; None where there are none."""
    files = [name for name in ("results.json", "metrics.json") if (folder / name).is_file()]
    contents = {name: content for name in files if (content := _read(folder / name))}
    if not contents:
        return None
    about, results = _read(folder / "experiment.json") or {}, contents.get("results.json", {})
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
        if content := _read(path):
            lines.append([path.parent.relative_to(folder).as_posix(), *(_text(content.get(name)) for name in names)])
            lines[-1].append(_relative(root, path))
    return {"header": ["fold", *names, "file"], "rows": lines} if lines else None


def _pictures(root: Path, paths: Sequence[tuple[Path, str]], title: str, budget: list[int]) -> Iterator[dict[str, str]]:
    """Pictures as data, as long as they fit; of one that does not fit the name alone."""
    for path, text in paths:
        if not path.is_file():
            continue
        data = base64.b64encode(path.read_bytes()).decode()
        fits = len(data) <= budget[0]
        budget[0] -= len(data) if fits else 0
        yield {"data": data if fits else "", "alt": f"{text}. {title}.", "file": _relative(root, path)}


def _explanations(root: Path, budget: list[int], pseudonyms: bool) -> tuple[list[dict[str, Any]], str]:
    """Pictures of explanations, with the scores of their controls; and why some are left out."""
    found = []
    folders = [root, root / "explained", *sorted(root.glob("rows/*/seed*/fold*/explained"))]
    left = 0
    for folder in folders:
        pictures = sorted([*folder.glob("*.png"), *folder.glob("patients/*.png")])
        pictures = [path for path in pictures if path.name not in _PICTURES and not path.name.endswith("_loss.png")]
        if pseudonyms:
            left += len(pictures)
            continue
        named = [(path, f"Explanation, {path.stem.replace('_', ' ')}") for path in pictures]
        shown = list(_pictures(root, named, _relative(root, folder) or "this folder", budget))
        files = sorted({path for name in _EXPLAINED for path in folder.glob(name)})
        sections = [
            {"file": _relative(root, p), "blocks": blocks(content)} for p in files if (content := _read(p)) is not None
        ]
        if shown or sections:
            found.append({"folder": _relative(root, folder) or ".", "pictures": shown, "sections": sections})
    text = f"{left} pictures are left out: they may show patients' ids (--pseudonyms)." if left else ""
    return found, text


def _patients(root: Path) -> dict[str, Any] | None:
    """Table 1, of the datalist that the folds were made of; also as CSV, Markdown and LaTeX."""
    from shared.apps.study.patients import patients_table
    from shared.apps.study.tables import latex_table

    for path in [*sorted(root.glob("rows/*/seed*/datalist.json")), root / "datalist.json"]:
        content = _read(path)
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
    first = whole[0]
    if not study:
        return [f"This page shows one evaluation; its AUC is {interval_text(first['auc'])}."]
    counts = first["counts"]
    unit = f"{counts['images']} patches of {counts['patients']}" if counts.get("images") else counts["patients"]
    asked = (
        f"{study['bundle']} was cross-validated on {unit} patients of {study['cohort']} in {study['folds']} folds by "
        f"patient, {len(study['seeds'])} seed{'s' * (len(study['seeds']) > 1)}, to see what it and its parts are worth."
    )
    answer = f"The AUC of {first['title']} is {interval_text(first['auc'])}."
    others = [e for e in whole if e["folder"].startswith("baselines/")]
    if not others:
        return [asked, answer, "No control without a network was run, so the figure says little alone."]
    best = max(others, key=lambda e: e["auc"]["value"])
    which = f"best of {len(others)} controls" if len(others) > 1 else "only control"
    return [
        asked,
        answer,
        f"The {which} without a network ({best['title']}) has {interval_text(best['auc'])}.",
    ]


def _limits(study: Mapping, tables: Sequence, experiments: Sequence[Mapping], patients: Any) -> list[str]:
    found = ["Research software, not a medical device: no figure here says how a patient should be treated."]
    if study:
        found.append("Cross-validation within one cohort: other hospitals, scanners and prevalences were not seen.")
        found += [f"Not run: {row['title']}, {study['missing'][name]}." for name, row in _missing(study).items()]
        open_rows = [row for row in study["rows"].values() if row["folds"] and row["done"] != row["folds"]]
        found += [f"Not done: {row['title']}, {row['done']} of {row['folds']} trainings." for row in open_rows]
    if not tables and study:
        found.append("No tables have been written yet.")
    if patients is None:
        found.append("There is no datalist in the folder, so the patients are not described.")
    if not experiments:
        found.append("There are no results in the folder.")
    return found + [str(limit) for limit in study.get("limits", ())]


def _missing(study: Mapping) -> dict[str, dict[str, str]]:
    return {name: {"title": name} for name in study.get("missing", {})}


def _methods(study: Mapping, experiments: Sequence[Mapping]) -> dict[str, Any]:
    """Settings that differ from the default, versions, hashes, commands."""
    rows = [
        [row["title"], key, _text(before), _text(now)]
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
