"""New names for patients, in a key file that only its owner can read."""

from __future__ import annotations

import csv
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from shared.errors import DataError

COLUMNS = ("pseudonym", "patient_id")


class Pseudonyms:
    """Random names, drawn once: a key file that is there is read, and gets new patients' names.

    Args:
        path: of the key file.

    Raises:
        DataError: it is no such file, or others can read it.
    """

    def __init__(self, path: str | os.PathLike):
        self.path, self.names = Path(path), dict[str, str]()
        if not self.path.exists():
            return
        if os.name == "posix" and self.path.stat().st_mode & 0o077:
            raise DataError(f"{self.path}: others can read the key; take their rights away (chmod 600)")
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise DataError(f"{self.path}: is no key file, its columns must be {', '.join(COLUMNS)}; name another")
            self.names = {row["patient_id"]: row["pseudonym"] for row in reader}
        if len(set(self.names.values())) != len(self.names):
            raise DataError(f"{self.path}: gives two patients one pseudonym; correct it")

    def __call__(self, patient: str) -> str:
        """Name of a patient: ``P`` and eight digits without meaning."""
        if patient not in self.names:
            taken = {*self.names.values()}
            while (name := f"P{secrets.randbelow(10**8):08d}") in taken:
                pass
            self.names[patient] = name
        return self.names[patient]

    def save(self) -> None:
        """Write the key, readable by its owner alone."""
        rows = [dict(zip(COLUMNS, (name, patient), strict=True)) for patient, name in sorted(self.names.items())]
        with owner_only(self.path) as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


@contextmanager
def owner_only(path: Path) -> Iterator[TextIO]:
    """A text file that replaces ``path`` when the block ends without an error, and that its owner alone can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", newline="", encoding="utf-8") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
