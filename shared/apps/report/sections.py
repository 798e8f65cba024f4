"""Sections of a report that others wrote as ``sections/*.json``; a broken file is named, not fatal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.apps.report.blocks import picture, read_object, text_of

WORDS = {"green": "green: no objection", "amber": "amber: look at it", "red": "red: objection"}
"""What a status says, for readers who see no colours."""


def read_sections(folder: Path, budget: list[int], *, pseudonyms: bool = False) -> tuple[list[dict[str, Any]], list]:
    """The sections in the order of their files' names, and a sentence on each file that is broken or left out.

    Args:
        folder: of the study or evaluation; pictures are named from there, and lie in it.
        budget: the characters that pictures may still take.
        pseudonyms: leave out sections that show patients' ids.
    """
    found, problems = [], []
    for path in sorted((folder / "sections").glob("*.json")):
        name = f"sections/{path.name}"
        content = read_object(path)
        try:
            if content is None:
                raise TypeError("it is no JSON object")
            if pseudonyms and content.get("patients", True):
                problems.append(f"{name} is left out: it may show patients' ids (--pseudonyms).")
                continue
            found.append(_section(folder, path, content, budget))
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            problems.append(f"{name} cannot be shown ({type(error).__name__}: {error}).")
    return found, problems


def _section(folder: Path, path: Path, content: Mapping[str, Any], budget: list[int]) -> dict[str, Any]:
    status = content.get("status", "")
    if status and status not in WORDS:
        raise ValueError(f"status {status!r}")
    tables = []
    for part in content.get("tables", ()):
        rows = [[text_of(cell) for cell in row] for row in part["rows"]]
        tables.append({"caption": str(part["caption"]), "header": [str(cell) for cell in part["header"]], "rows": rows})
    if any(not row for table in tables for row in table["rows"]):
        raise ValueError("a row without cells")
    shown = []
    for item in content.get("pictures", ()):
        file = folder / item["file"]
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"picture {item['file']} is not in the folder")
        shown.append(picture(file, str(item["alt"]), str(item["file"]), budget))
    text = content.get("text", [])
    return {
        "id": f"section-{path.stem}",
        "title": str(content["title"]),
        "status": status,
        "word": WORDS.get(status, ""),
        "text": [text] if isinstance(text, str) else [str(sentence) for sentence in text],
        "tables": tables,
        "pictures": shown,
        "file": f"sections/{path.name}",
    }
