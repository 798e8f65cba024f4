"""Files and folders that operating systems, archives and notebooks leave behind: never patients, images or classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CLUTTER = ("__macosx", "@eadir", "lost+found", "$recycle.bin", "thumbs.db", "desktop.ini", "__pycache__")


def is_clutter(name: str) -> bool:
    """Whether a file's or folder's own name is one of those, or hidden (``._x``, ``.Trash-0``, ``.ipynb_checkpoints``).

    Example:
        >>> [is_clutter(name) for name in ("__MACOSX", "._P001.nii.gz", "@eaDir", ".Trash-1000", "P001")]
        [True, True, True, True, False]
    """
    return name.startswith(".") or name.casefold() in CLUTTER


def walk_files(folder: Path) -> Iterator[Path]:
    """Every file below ``folder``, sorted, linked folders followed (each once), clutter left out at any depth."""
    yield from _walk(Path(folder), frozenset())


def _walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    above = above | {folder.resolve()}
    for path in sorted(folder.iterdir()):
        if is_clutter(path.name):
            continue
        if path.is_dir():
            if path.resolve() not in above:  # a link to a folder above it would never end
                yield from _walk(path, above)
        else:
            yield path
