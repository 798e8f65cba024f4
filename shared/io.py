"""Files written whole or not at all: to a temporary name in the same folder, then renamed."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.errors import DataError, describe

DATALIST = "datalist.json"
MANIFEST = "manifest.json"


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it onto ``path`` on success, remove it on any failure.

    The temporary name keeps ``path``'s ending, since writers such as nibabel go by it.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "table.txt"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text(), len(list(target.parent.iterdir()))
        ('whole', 1)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        # a full disk names no file or the one that was copied, and nobody knows the temporary one
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or str(error.filename) == str(temporary):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(path: str | os.PathLike) -> None:
    """See that files can be written to a folder, which need not be there yet, before what they will hold is computed.

    Raises:
        DataError: it cannot be made or written to, is full, or is a file.
    """
    folder = Path(path).absolute()
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(2**16))
    except OSError as error:
        raise DataError(f"{path} cannot be written to: {describe(OSError(error.errno, error.strerror))}") from error


def disguise(path: str | os.PathLike) -> str | None:
    """What a file is that stands in another's place, and what to do; None where nothing shows.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.pt"
        >>> _ = path.write_text("version https://git-lfs.github.com/spec/v1\\noid sha256:4d7a\\nsize 12\\n")
        >>> disguise(path)
        'is a pointer of Git LFS, not the file itself; fetch that with git lfs pull'
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(1024)
    except OSError:
        return None
    if head.startswith(b"version https://git-lfs.github.com/"):
        return "is a pointer of Git LFS, not the file itself; fetch that with git lfs pull"
    if b"/annex/objects/" in head and b"\0" not in head:
        return "is a pointer of git-annex, not the file itself; fetch that with git annex get"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page (HTML), such as a login or an error, not the file itself; download that again"
    return None


def read_json_object(path: str | os.PathLike, what: str) -> dict[str, Any]:
    """The object that a JSON file holds; ``what`` is the file's kind in messages.

    Raises:
        DataError: the file cannot be read as JSON, or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{what} {path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{what} {path} must be a JSON object, found a {type(content).__name__}")
    return content


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically.

    Raises:
        DataError: naming where NaN or infinity is, for which JSON has no number.
    """
    try:
        text = json.dumps(content, indent=2, allow_nan=False)
    except ValueError as error:
        places = _not_finite(content)
        if not places:
            raise
        shown = ", ".join([*places[:5], *(["..."] if places[5:] else [])])
        raise DataError(
            f"{path} cannot hold NaN or infinity (not JSON compliant), which {shown} are; leave such values out of the "
            "tables or the datalist"
        ) from error
    write_text(path, text + "\n")


def _not_finite(content: Any, place: str = "") -> list[str]:
    """Where numbers are not finite: keys joined by dots."""
    if isinstance(content, float):
        return [] if math.isfinite(content) else [place or "the value"]
    listed = isinstance(content, list | tuple)
    items = content.items() if isinstance(content, Mapping) else enumerate(content) if listed else ()
    return [found for key, value in items for found in _not_finite(value, f"{place}.{key}" if place else str(key))]


def write_csv(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write dictionaries as CSV rows, atomically; ``columns`` defaults to the first row's keys."""
    columns = list(columns if columns is not None else (rows[0] if rows else ()))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)
