"""One section of a report as a file: sentences, tables and pictures, which the report shows as they are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.errors import DataError
from shared.io import write_json

STATUS = ("", "green", "amber", "red")


def write_section(
    folder: str | os.PathLike,
    name: str,
    *,
    title: str,
    status: str = "",
    text: Sequence[str] = (),
    tables: Sequence[Mapping[str, Any]] = (),
    pictures: Sequence[tuple[str | os.PathLike, str]] = (),
    patients: bool = False,
) -> Path:
    """Write ``FOLDER/sections/NAME.json``.

    Args:
        folder: of the report.
        name: two digits, by which sections are ordered, ``_`` and a word.
        title: over the section.
        status: ``green``, ``amber`` or ``red``; empty: nothing is judged.
        text: sentences.
        tables: each ``caption``, ``header`` and ``rows``, whose cells become text.
        pictures: file, inside ``folder``, and what a reader who cannot see it is told.
        patients: whether names of patients are shown.

    Raises:
        DataError: an unknown status, a row that does not fit its header, a picture that is not in the folder.

    Example:
        >>> import tempfile
        >>> write_section(tempfile.mkdtemp(), "10_audit", title="Audit", status="green").name
        '10_audit.json'
    """
    folder = Path(folder).resolve()
    if status not in STATUS:
        raise DataError(f"section {name}: status must be one of {', '.join(STATUS[1:])} or empty, got {status!r}")
    told = []
    for table in tables:
        rows = [["" if cell is None else str(cell) for cell in row] for row in table["rows"]]
        if odd := [row for row in rows if len(row) != len(table["header"])]:
            raise DataError(f"section {name}: a row of {table['caption']!r} does not fit its header: {odd[0]}")
        told.append({"caption": str(table["caption"]), "header": list(map(str, table["header"])), "rows": rows})
    shown = []
    for path, alt in pictures:
        full = (folder / path).resolve()
        if not full.is_file() or not full.is_relative_to(folder):
            raise DataError(f"section {name}: there is no picture {full} in {folder}")
        shown.append({"file": full.relative_to(folder).as_posix(), "alt": alt})
    content = {"title": title, "status": status, "text": list(text), "tables": told, "pictures": shown}
    path = folder / "sections" / f"{name}.json"
    write_json(path, {**content, "patients": patients})
    return path


def worst(statuses: Sequence[str]) -> str:
    """The worst of some statuses; empty where there is none.

    Example:
        >>> worst(["green", "red", "amber"]), worst([])
        ('red', '')
    """
    return max(statuses, key=STATUS.index, default="")
