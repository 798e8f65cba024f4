"""SHA-256 of files: what decides whether something was done already; quick where a file did not change."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from shared.io import write_json

CACHE = ".sha256.json"


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, read in blocks.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "empty"
        >>> path.touch()
        >>> sha256(path)[:8]
        'e3b0c442'
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Digests:
    """SHA-256 of files, remembered by device and inode, size and both time stamps, so that nothing is read twice.

    Two folders that were exchanged have other inodes under their names, a file changed in place has another time of
    change (which no program can set back): either is read again. The cache holds no names.

    Args:
        folder: where the cache is kept, as ``.sha256.json``; None: in memory alone.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a").write_bytes(b"1")
        >>> digests = Digests(folder)
        >>> digests(folder / "a") == sha256(folder / "a")
        True
        >>> digests.save()
        >>> len(Digests(folder).known)
        1
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        self.path = None if folder is None else Path(folder) / CACHE
        self.known: dict[str, list] = {}
        if self.path is not None:
            try:
                content = json.loads(self.path.read_text(encoding="utf-8"))
                self.known = content if isinstance(content, dict) else {}
            except (OSError, ValueError):
                pass

    def __call__(self, path: str | os.PathLike) -> str:
        """SHA-256 of the file at ``path`` (where a link leads)."""
        stat = Path(path).stat()
        key, mark = f"{stat.st_dev}:{stat.st_ino}", [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        entry = self.known.get(key)
        if not isinstance(entry, list) or entry[:3] != mark:
            entry = self.known[key] = [*mark, sha256(path)]
        return entry[3]

    def save(self) -> None:
        """Write the cache, where there is room for it: without it files are only read again."""
        if self.path is not None:
            with suppress(OSError):
                write_json(self.path, self.known)
