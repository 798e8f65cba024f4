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


def walk_files(folder: Path, *, skipped: list[Path] | None = None) -> Iterator[Path]:
    """Every file below ``folder``, sorted, linked folders followed, clutter left out at any depth.

    Links that lead nowhere are among them; those to a folder above are not followed.

    Args:
        folder: where to look.
        skipped: a list to which the clutter is added.
    """
    folder = Path(folder)
    yield from _walk(folder, frozenset(folder.resolve().parents), [] if skipped is None else skipped)


def _walk(folder: Path, above: frozenset[Path], skipped: list[Path]) -> Iterator[Path]:
    above = above | {folder.resolve()}
    for path in sorted(folder.iterdir()):
        if is_clutter(path.name):
            skipped.append(path)
        elif path.is_dir():
            if path.resolve() not in above:  # a link to a folder above it would never end
                yield from _walk(path, above, skipped)
        else:
            yield path
