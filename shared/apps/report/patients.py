"""One page per patient of an inference or explanation: the answer, what speaks for and against, pictures, a viewer."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.apps.report.blocks import blocks, picture, read_object, text_of
from shared.apps.report.pages import LARGEST, write_page
from shared.apps.report.viewer import (
    HOW,
    MAPS,
    find_inputs,
    modality_names,
    niivue_source,
    packed_volumes,
    viewer_script,
)
from shared.errors import DataError
from shared.io import write_csv

PREDICTIONS = ("predictions.csv", "explanations.csv")
ANSWER = ("label", "probability", "set", "out_of_cohort", "reason", "trained_on", "class", "predicted", "answer")
"""Columns that are the answer, in this order; a page shows the others below them."""

IDS = ("patient", "image", "group", "cam", "overlay", "path", "nearest_patients")
"""Columns and keys that name patients or their files; pages with pseudonyms leave them out."""

NOT_SHOWN = ("pseudonyms.csv", "embeddings.csv", "failures.csv")
"""Tables that are for others: names, hundreds of features, and what of all patients went wrong."""

MOST = 25  # rows of a table, and contributions, that a page shows
_SET = {"set": "prediction set", "out_of_cohort": "out of cohort", "trained_on": "trained on"}
_ALONE = {
    "unimodal_image": "image",
    "unimodal_points": "surface of the tumour",
    "unimodal_brain": "brain network",
    "multitask": "joint classifier",
    "no_edges": "own features, without neighbours",
    "probability_prototype": "prototype transformer",
    "probability_additive": "additive predictor",
}
_COLUMNS = ("probability", "set", "out of cohort", "reason")  # of the index
_YES = {"0": "no", "1": "yes"}


def write_patient_pages(
    folder: str | Path,
    *,
    patients: Sequence[str] | None = None,
    pseudonyms: bool = False,
    dataset_dir: str | Path | None = None,
    niivue: str | Path | None = None,
) -> list[Path]:
    """Write ``report/<patient>.html`` and ``report/index.html``; pages that were there before are removed.

    Args:
        folder: output folder of an inference or an explanation.
        patients: whose pages are written; None: all patients'.
        pseudonyms: call patients by numbers, and leave out pictures, files' names and texts that hold an id; who is who
            is written to ``pseudonyms.csv`` beside ``report``, for you alone.
        dataset_dir: where the images are, for the viewer; None: where ``trace.json`` says.
        niivue: niivue's browser file; None: that of the installed nilearn.

    Returns:
        the pages, the index last.

    Raises:
        DataError: no predictions in the folder, or a patient that is not among them.
    """
    folder = Path(folder)
    tables = _tables(folder)
    summaries = {path.stem: path for path in sorted((folder / "patients").glob("*.json"))}
    everybody = list(dict.fromkeys([*(r["patient"] for rows in tables.values() for r in rows), *summaries]))
    if not everybody:
        raise DataError(
            f"{folder} holds no predictions: no table with a column 'patient', no patients/*.json; give the output_dir "
            "of an inference or explanation"
        )
    if unknown := [name for name in patients or () if name not in everybody]:
        raise DataError(f"{folder} holds nothing of {', '.join(unknown)} (there: {', '.join(everybody[:5])} ...)")
    chosen = everybody if not patients else [name for name in everybody if name in set(patients)]
    # numbers in an order that does not follow the names
    order = sorted(everybody, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    names = {name: f"patient-{order.index(name) + 1:03}" if pseudonyms else name for name in everybody}
    files = _files_of(folder / "patients", everybody)
    context = _Context(folder, tables, names, files, pseudonyms, Path(dataset_dir) if dataset_dir else None, niivue)
    pages, lines, pages_of = [], [], page_names(names.values())
    for old in (folder / "report").glob("*.html"):
        old.unlink()  # a page of an earlier command may show an id
    for name in chosen:
        content = context.content(name)
        page = folder / "report" / pages_of[names[name]]
        pages.append(write_page(page, "patient.html.j2", content))
        lines.append({"page": page.name, "name": names[name], "cells": content["cells"]})
    if pseudonyms:
        write_csv(folder / "pseudonyms.csv", [{"pseudonym": names[name], "patient": name} for name in everybody])
    title = "Patients" if pseudonyms else f"Patients of {folder.resolve().name}"
    kept = [k for k in range(len(_COLUMNS)) if k == 0 or any(line["cells"][k] != "-" for line in lines)]
    lines = [{**line, "cells": [line["cells"][k] for k in kept]} for line in lines]
    header = ["patient", *(_COLUMNS[k] for k in kept)]
    index = {"title": title, "rows": lines, "header": header, "file": context.file_of("predictions")}
    return [*pages, write_page(folder / "report" / "index.html", "index.html.j2", index)]


def page_names(patients: Iterable[str]) -> dict[str, str]:
    """By patient the file of its page: letters, digits, ``_`` and ``-``; an id of other signs gets digits of its hash.

    So do ids that a file system without capitals takes for one.

    Example:
        >>> page_names(["sub-01", "../x", "<b>"])
        {'sub-01': 'sub-01.html', '../x': 'x-d6b96a97.html', '<b>': 'b-507ca5a2.html'}
        >>> [name == "index.html" for name in page_names(["index", "p1", "P1"]).values()]
        [False, False, False]
    """
    safe = {name: re.sub(r"[^\w-]+", "_", name, flags=re.ASCII).strip("_")[:80] or "patient" for name in patients}
    count = Counter(name.casefold() for name in [*safe.values(), "index"])
    return {
        name: f"{safe[name]}.html"
        if safe[name] == name and count[name.casefold()] == 1
        else f"{safe[name]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.html"
        for name in safe
    }


def _tables(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Rows of every CSV in the folder that has a column ``patient``."""
    found = {}
    for path in sorted(folder.glob("*.csv")):
        if path.name in NOT_SHOWN:
            continue
        rows = _rows(path)
        if rows and "patient" in rows[0]:
            found[path.name] = rows
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV; none of one that cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{k: v or "" for k, v in row.items() if k is not None} for row in csv.DictReader(file)]
    except (OSError, UnicodeError, csv.Error):
        return []


def _files_of(folder: Path, patients: Iterable[str]) -> dict[str, list[Path]]:
    """By patient the files ``<patient>.*`` and ``<patient>_*``; of two ids that fit, the longer one's."""
    found: dict[str, list[Path]] = {}
    ordered = sorted(patients, key=len, reverse=True)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        owner = next((name for name in ordered if path.name.startswith((f"{name}_", f"{name}."))), None)
        if owner is not None:
            found.setdefault(owner, []).append(path)
    return found


class _Context:
    """What the pages of one folder share."""

    def __init__(
        self,
        folder: Path,
        tables: Mapping[str, list[dict[str, str]]],
        names: Mapping[str, str],
        files: Mapping[str, list[Path]],
        pseudonyms: bool,
        dataset_dir: Path | None,
        niivue: str | Path | None,
    ):
        self.folder, self.tables, self.names, self.files = folder, tables, names, files
        self.pseudonyms, self.dataset_dir = pseudonyms, dataset_dir
        self.library = niivue_source(niivue)
        self.inputs = find_inputs(folder, dataset_dir)
        self.boxes = read_object(folder / "boxes.json") or {}
        # ids of digits alone would be found in numbers
        known = [re.escape(name) for name in names if re.search(r"[^\d.\s]", name) or len(name) > 4]
        longest = "|".join(sorted(known, key=len, reverse=True))
        # a file's name goes on with _
        self._ids = re.compile(rf"(?<![^\W_])({longest})(?![^\W_])") if known else None
        self._owners = {path: name for name, paths in files.items() for path in paths}

    def file_of(self, stem: str) -> str:
        """The name of a table in the folder."""
        return next((name for name in PREDICTIONS if name in self.tables), f"{stem}.csv")

    def hidden(self, text: str) -> str:
        """A text without patients' ids where pseudonyms are asked for."""
        if not self.pseudonyms or self._ids is None:
            return text
        return self._ids.sub(lambda found: self.names.get(found[1], "a patient"), text)

    def relative(self, path: Path) -> str:
        """A file's name in the page."""
        text = path.relative_to(self.folder).as_posix()
        if self.pseudonyms and (owner := self._owners.get(path)) is not None:
            return f"{path.parent.name}/{self.names[owner]}{path.name.removeprefix(owner)}"
        return self.hidden(text)

    def content(self, patient: str) -> dict[str, Any]:
        """What the template of a page shows."""
        name, budget = self.names[patient], [LARGEST]
        rows = {file: [row for row in found if row["patient"] == patient] for file, found in self.tables.items()}
        rows = {file: found for file, found in rows.items() if found}
        main = next((file for file in PREDICTIONS if file in rows), None)
        own = self.files.get(patient, [])
        summary_file = next((path for path in own if path.name == f"{patient}.json"), None)
        summary = (read_object(summary_file) if summary_file else None) or {}
        answered = rows[main] if main else []
        patches = [item for item in self.boxes.get("patches", []) if item.get("patient") == patient]
        viewer, notes = self._viewer(patient, own, summary, budget)
        shown = self._pictures(patient, own, patches, budget)
        positive = str(summary.get("positive_class") or "the positive class")
        first = answered[0] if answered else {}
        probability = first.get("probability") or summary.get("probability")
        cells = [_number(probability) if len(answered) < 2 else _several(answered)]
        cells += [_answer_text(key, first.get(key, "")) for key in ("set", "out_of_cohort", "reason")]
        return {
            "title": name,
            "sentences": self._sentences(name, answered, summary, main, summary_file),
            "answers": self._answers(answered, main),
            "speaks": [*self._speaks(summary, summary_file, patches), *_terms(rows), *_parts(answered, str(main))],
            "pictures": shown,
            "no_pictures": self._no_pictures(),
            "viewer": viewer,
            "viewer_notes": notes,
            "positive": positive,
            "tables": self._further(rows, main, own, summary, summary_file),
            "cells": [self.hidden(cell) for cell in cells],
        }

    def _sentences(
        self, name: str, rows: Sequence[Mapping], summary: Mapping, main: str | None, file: Path | None
    ) -> list[str]:
        positive = summary.get("positive_class")
        source = main or (self.relative(file) if file else "")
        if len(rows) > 1:
            values = [float(row["probability"]) for row in rows if row.get("probability")]
            mean = f", {_number(sum(values) / len(values))} on average" if values else ""
            return [f"{name}: {_several(rows)}{mean} (from {source})."]
        row = rows[0] if rows else {}
        value = row.get("probability") or summary.get("probability")
        if value is None or value == "":
            return [f"There is no probability of {name} in the folder."]
        of = row.get("class") or positive or "class 1"
        found = [f"The probability of {of} is {_number(value)} (from {source})."]
        if row.get("set"):
            found.append(f"The prediction set is {row['set']}.")
        flagged = str(row.get("out_of_cohort", summary.get("out_of_cohort", ""))).lower() in ("1", "true")
        if flagged:
            found.append("This patient is unlike the training patients: the answer is not to be relied on.")
        if row.get("reason"):
            found.append(f"Reason: {row['reason']}")
        if row.get("trained_on") == "1":
            found.append("The model was trained on this patient: the answer says nothing about new ones.")
        return [self.hidden(str(sentence)) for sentence in found]

    def _columns(self, rows: Sequence[Mapping[str, str]]) -> list[str]:
        left_out = IDS if self.pseudonyms else ("patient",)
        there = [key for key in rows[0] if key not in left_out]
        return [*(key for key in ANSWER if key in there), *(key for key in there if key not in ANSWER)]

    def _answers(self, rows: Sequence[Mapping[str, str]], file: str | None) -> list[dict[str, Any]]:
        if not rows:
            return []
        if len(rows) == 1:
            lines = [[_SET.get(k, k), self.hidden(_answer_text(k, rows[0][k]))] for k in self._columns(rows)]
            return [{"title": "Answer", "header": ["", "value"], "rows": lines, "file": file}]
        return [self._table(rows, f"Answers, {_several(rows)}", str(file))]

    def _table(self, rows: Sequence[Mapping[str, str]], title: str, file: str) -> dict[str, Any]:
        """Rows of a CSV; beyond ``MOST`` they are counted."""
        columns = self._columns(rows)
        lines = [[self.hidden(_cell(row.get(key, ""))) for key in columns] for row in rows[:MOST]]
        title += f" (the first {MOST} of {len(rows)})" if len(rows) > MOST else ""
        return {"title": title, "header": columns, "rows": lines, "file": file}

    def _speaks(self, summary: Mapping, file: Path | None, patches: Sequence[Mapping]) -> list[dict[str, Any]]:
        source, found = self.relative(file) if file else "", []
        sides = [item for key in ("for", "against") for item in summary.get(key) or () if isinstance(item, Mapping)]
        if sides and all("name" in item and "log_odds" in item for item in sides):
            more = list(dict.fromkeys(k for item in sides for k in item if k not in ("name", "log_odds")))
            rows = [(str(i["name"]), float(i["log_odds"]), [text_of(i.get(key)) for key in more]) for i in sides]
            found.append(_bars(f"Strongest contributions to the probability of {_of(summary)}", "log odds", rows, more))
        elif isinstance(shapley := summary.get("shapley"), Mapping) and isinstance(shapley.get("values"), Mapping):
            rows = [
                (f"biomarker {k}" if str(k).isdigit() else str(k), float(v), []) for k, v in shapley["values"].items()
            ]
            found.append(_bars("Contributions", str(shapley.get("unit", "")), rows, []))
        rows = []
        for number, patch in enumerate(patches, 1):
            if "for" in patch:
                name = f"image {number}" if self.pseudonyms else Path(str(patch["image"])).name
                parts = [text_of(patch.get(key)) for key in ("class", "for", "against", "bias")]
                rows.append((name, float(patch["margin"]), parts))
        if rows:
            title = "Margin of the class explained: what places add for it and against it, and the bias"
            found.append(_bars(title, "logit", rows, ["class", "for", "against", "bias"], order=False))
            source = "boxes.json"
        return [{**part, "file": source} for part in found]

    def _pictures(
        self, patient: str, own: Sequence[Path], patches: Sequence[Mapping], budget: list[int]
    ) -> list[dict[str, str]]:
        shown = []
        if not self.pseudonyms:  # their titles hold the id
            for path in own:
                if path.suffix == ".png":
                    text = path.stem.removeprefix(patient).strip("_").replace("_", " ") or "picture"
                    shown.append(picture(path, f"{text} of {patient}", self.relative(path), budget))
        sources = {path.name: path for path in self.inputs.get(patient, [])}
        for number, patch in enumerate(patches, 1):
            image = str(patch.get("image", ""))
            name = f"image {number}" if self.pseudonyms else Path(image).name
            given = Path(image) if Path(image).is_absolute() else (self.dataset_dir or Path()) / image
            original = sources.get(Path(image).name, given)
            where = f"{patch.get('class')} {_number(patch.get('probability'))}"
            overlay = self.folder / str(patch["overlay"]) if patch.get("overlay") else None
            if overlay is not None and overlay.is_file():
                text, file = f"{name}: the image, and with map and box of {where}", str(patch["overlay"])
                shown.append(picture(overlay, text, "" if self.pseudonyms else file, budget))
            elif original.is_file():
                shown.append(picture(original, f"{name} as it was read", "", budget))
        return shown

    def _no_pictures(self) -> str:
        if self.pseudonyms:
            return "Pictures are left out: they show patients' ids (--pseudonyms)."
        return "No pictures of this patient are in the folder."

    def _viewer(
        self, patient: str, own: Sequence[Path], summary: Mapping, budget: list[int]
    ) -> tuple[dict[str, Any] | None, list[str]]:
        ends = {path.name.removeprefix(f"{patient}_").removesuffix(".nii.gz"): path for path in own}
        maps = [(key, path) for key, path in ends.items() if path.name.endswith(".nii.gz") and key in MAPS]
        paths = [path for path in self.inputs.get(patient, []) if path.name.endswith((".nii", ".nii.gz"))]
        if not maps and not paths:
            return None, ["There are no volumes of this patient, so there is no viewer."]
        if self.library is None:
            return None, [HOW]
        maps.sort(key=lambda item: list(MAPS).index(item[0]))
        room = [budget[0] - len(self.library)]
        names = modality_names(self.folder, self.dataset_dir, summary, len(paths))
        images = [(name, path) for name, path in zip(names, paths, strict=True) if path.is_file()]
        half = [room[0] - 4 * 10**6]  # pictures need some of it
        volumes, notes = packed_volumes(images, maps, half)
        budget[0] = half[0] + 4 * 10**6
        if not paths:
            notes.append("Give --dataset_dir to see the maps on the patient's images.")
        elif len(images) < len(paths):
            notes.append("Some images are not where they were predicted: give --dataset_dir.")
        if not volumes:
            return None, [*notes, "There is nothing in the volumes, so there is no viewer."]
        shown = [volume for volume in volumes if volume["kind"] != "image"]
        alike = [volume["top"] for volume in shown if volume["kind"] == shown[0]["kind"]]
        first = alike.index(max(alike)) if alike else 0
        found = {
            "images": [volume["name"] for volume in volumes if volume["kind"] == "image"],
            "maps": [volume["name"] for volume in shown],
            "first": {"map": first, "image": shown[first]["image"] if shown else 0},
            "volumes": volumes,
            "signed": any(volume.get("signed") for volume in volumes),
            "library": self.library,
            "script": viewer_script(),
        }
        return found, notes

    def _further(
        self,
        rows: Mapping[str, list[dict[str, str]]],
        main: str | None,
        own: Sequence[Path],
        summary: Mapping,
        file: Path | None,
    ) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for name, lines in rows.items():
            if name != main:
                found.append(self._table(_strongest(lines), Path(name).stem.replace("_", " "), name))
        for path in own:
            if path.suffix == ".csv" and (lines := _rows(path)):
                title = self.relative(path).rpartition("/")[2].removesuffix(".csv").replace("_", " ")
                found.append(self._table(lines, title, self.relative(path)))
        above = {"patient", "for", "against", "shapley", *(rows[main][0] if main else ())}
        shown = {key: value for key, value in summary.items() if key not in above}
        for part in blocks(shown) if file else ():
            cells = [[self.hidden(str(cell)) for cell in row] for row in part["rows"][:MOST]]
            title = part["title"] or "Further values"
            found.append({**part, "title": title, "rows": cells, "file": self.relative(file)})
        return found


def _strongest(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows with contributions by their size, without those of 0; others as they are."""
    if "log_odds" not in rows[0]:
        return rows
    held = [row for row in rows if float(row["log_odds"] or 0)]
    return sorted(held, key=lambda row: -abs(float(row["log_odds"]))) or rows


def _terms(tables: Mapping[str, list[dict[str, str]]]) -> list[dict[str, Any]]:
    """Terms of an additive answer: columns ``term_<name>`` of ``additive.csv``."""
    for row in tables.get("additive.csv", ())[:1]:
        terms = {k.removeprefix("term_"): float(v) for k, v in row.items() if k.startswith("term_") and v}
        if terms:
            title = f"Terms of the additive answer; with the bias ({_number(row.get('bias'))}) they are its log odds"
            lines = [(name, value, []) for name, value in terms.items()]
            return [{**_bars(title, "log odds", lines, []), "file": "additive.csv"}]
    return []


def _parts(rows: Sequence[Mapping[str, str]], file: str) -> list[dict[str, Any]]:
    """What each part of a model answers by itself, where a prediction has the columns for it."""
    if len(rows) != 1:
        return []
    found = []
    for key, value in rows[0].items():
        if key in _ALONE and re.fullmatch(r"[\d.e-]+", value) and 0 < float(value) < 1:
            found.append((_ALONE[key], math.log(float(value) / (1 - float(value))), [_number(value)]))
    title = "What each part answers alone; these are no summands of the answer"
    return [{**_bars(title, "log odds", found, ["probability"]), "file": file}] if found else []


def _bars(
    title: str, unit: str, rows: Sequence[tuple[str, float, list[str]]], more: Sequence[str], *, order: bool = True
) -> dict[str, Any]:
    """Contributions as rows with a bar each, the largest first."""
    if order:
        rows = sorted(rows, key=lambda row: -abs(row[1]))[:MOST]
    top = max((abs(value) for _, value, _ in rows), default=0.0) or 1.0
    lines = [
        {
            "name": name,
            "way": "for" if value > 0 else "against" if value < 0 else "neither",
            "value": f"{value:+.3f}",
            "width": round(8 * abs(value) / top, 2),
            "more": cells,
        }
        for name, value, cells in rows
    ]
    return {"title": title, "unit": unit, "rows": lines, "more": list(more)}


def _of(summary: Mapping) -> str:
    return str(summary.get("positive_class") or "the positive class")


def _several(rows: Sequence[Mapping[str, str]]) -> str:
    """What a patient has several rows of: images, or the seeds of a cross-validation."""
    return f"{len(rows)} {'images' if 'image' in rows[0] else 'predictions'}"


def _number(value: Any) -> str:
    try:
        return f"{float(value):.3f}"
    except (TypeError, ValueError):
        return "-"


def _cell(value: str) -> str:
    """A cell of a CSV: a long fraction with three digits."""
    return _number(value) if re.fullmatch(r"-?\d*\.\d{4,}(e[+-]?\d+)?|-?\d(\.\d+)?e[+-]?\d+", value) else value or "-"


def _answer_text(key: str, value: str) -> str:
    return _YES.get(value, value or "-") if key in ("out_of_cohort", "trained_on") else _cell(value)
