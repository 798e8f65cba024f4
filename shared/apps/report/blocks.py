"""Tables of any JSON of numbers, and the reading of files that may be missing or broken."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.reports.tables import interval_text, number_text

_TITLES = {
    "calibration": "Calibration",
    "decision": "Decision curves",
    "operating_points": "Operating points",
    "delong": "DeLong's test",
    "classes": "Classes",
    "fold_auc": "AUC fold by fold",
    "confusion": "Confusion matrix (rows: label, columns: called)",
}
LONG = 8
"""Numbers up to which a list is read as a cell."""
_KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}


def blocks(content: Mapping[str, Any], title: str = "") -> list[dict[str, Any]]:
    """Tables of any JSON of metrics: values with intervals, other values, matrices, lists; each number is in one.

    Objects of the same kind (operating points) are rows of one table, and lists of one length (a curve) its columns;
    ``long`` marks those that are shown on demand.

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
        rows = [[key, *(text_of(value.get(name)) for name in columns)] for key, value in intervals.items()]
        found.append({"title": title, "header": ["", *columns], "rows": rows})
    nested = []
    curves = {key: value for key, value in content.items() if isinstance(value, list) and len(value) > LONG}
    if len({len(value) for value in curves.values()}) == 1 and len(curves) > 1:
        points = [list(map(text_of, point)) for point in zip(*curves.values(), strict=True)]
        nested.append({"title": title, "header": list(curves), "rows": points, "long": True})
        content = {key: value for key, value in content.items() if key not in curves}
    for key, value in content.items():
        name = f"{title}, {key}" if title else _TITLES.get(key, key)
        if key in intervals:
            continue
        if isinstance(value, Mapping) and "matrix" in value:
            classes = list(map(str, value.get("classes") or range(len(value["matrix"]))))
            rows = [[label, *map(text_of, row)] for label, row in zip(classes, value["matrix"], strict=True)]
            nested.append({"title": name, "header": ["", *classes], "rows": rows})
        elif _alike(value):
            columns = list(next(iter(value.values())))
            rows = [[of, *(text_of(item[column]) for column in columns)] for of, item in value.items()]
            nested.append({"title": name, "header": ["", *columns], "rows": rows})
        elif isinstance(value, Mapping):
            nested += blocks(value, name)
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            columns = list(dict.fromkeys(column for item in value for column in item))
            rows = [[str(i), *(text_of(item.get(column)) for column in columns)] for i, item in enumerate(value, 1)]
            nested.append({"title": name, "header": ["", *columns], "rows": rows})
        else:
            plain.append([key, text_of(value)])
    if plain:
        found.append({"title": title, "header": ["", "value"], "rows": plain})
    return found + nested


def _alike(value: Any) -> bool:
    """Whether these are several objects with the same keys, of numbers, texts and values with intervals."""
    items = list(value.values()) if isinstance(value, Mapping) else []
    if len(items) < 2 or not all(isinstance(item, Mapping) and list(item) == list(items[0]) for item in items):
        return False
    cells = [cell for item in items for cell in item.values()]
    return any(isinstance(cell, Mapping) for cell in cells) and all(
        {"value", "low", "high"} <= set(cell) if isinstance(cell, Mapping) else not isinstance(cell, list)
        for cell in cells
    )


def text_of(value: Any) -> str:
    """A value of a JSON as a table's cell shows it.

    Example:
        >>> text_of(None), text_of([1, 0.25]), text_of({"value": 0.5, "low": None, "high": None})
        ('-', '1, 0.250', '0.500')
    """
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return "-" if value is None else str(value)
    if isinstance(value, Mapping):
        return interval_text(value) if {"value", "low", "high"} <= set(value) else json.dumps(value)
    if isinstance(value, list):
        return ", ".join(map(text_of, value))
    return str(value) if isinstance(value, int) else number_text(value)


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def picture(path: Path, text: str, name: str, budget: list[int]) -> dict[str, str]:
    """A picture as data, as long as it fits in the page; of one that does not fit the name alone.

    Args:
        path: PNG or JPEG; another kind is converted to PNG.
        text: what it shows, for those who cannot see it.
        name: the file's name in the page.
        budget: the characters that are left, changed in place.
    """
    kind = _KINDS.get(path.suffix.lower())
    data = base64.b64encode(path.read_bytes() if kind else _as_png(path)).decode()
    fits = len(data) <= budget[0]
    budget[0] -= len(data) if fits else 0
    return {"data": data if fits else "", "kind": kind or "png", "alt": text, "file": name}


def _as_png(path: Path) -> bytes:
    from io import BytesIO

    from PIL import Image

    out = BytesIO()
    with Image.open(path) as opened:
        opened.convert("RGB").save(out, format="PNG")
    return out.getvalue()


def pictures(root: Path, paths: Sequence[tuple[Path, str]], title: str, budget: list[int]) -> Iterator[dict[str, str]]:
    """Those of the pictures that are there, see :func:`picture`."""
    for path, text in paths:
        if path.is_file():
            yield picture(path, f"{text}. {title}.", path.relative_to(root).as_posix(), budget)
