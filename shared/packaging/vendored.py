"""The copy of ``shared`` that a packaged bundle brings: its files, and that a process holds one version only."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import shared
from shared.errors import DataError


def shared_files(folder: str | os.PathLike | None = None) -> list[Path]:
    """Modules of a ``shared`` folder (None: of the one that is imported), sorted; compiled ones are left out.

    Example:
        >>> [path.name for path in shared_files()][:2]
        ['__init__.py', '__init__.py']
    """
    return sorted((_imported() if folder is None else Path(folder)).rglob("*.py"))


def shared_digest(folder: str | os.PathLike | None = None) -> str:
    """sha256 over names and contents of the modules of a ``shared`` folder (None: of the one that is imported).

    Example:
        >>> len(shared_digest())
        64
    """
    folder = _imported() if folder is None else Path(folder)
    digest = hashlib.sha256()
    for path in shared_files(folder):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def check_vendored(bundle_root: str | os.PathLike) -> str:
    """Refuse to run a packaged bundle on another ``shared`` than the one it brings.

    Python keeps one module of a name: of two bundles in a process, the second gets the first one's. That is right where
    both copies are the same, and wrong results or obscure errors where they are not.

    Args:
        bundle_root: the bundle's folder; without a ``shared`` of its own, as in the repository, it takes what there is.

    Returns:
        the folder of the ``shared`` in use.

    Raises:
        DataError: the bundle's ``shared`` is not the one in use, and differs from it.

    Example:
        >>> check_vendored("no/packaged/bundle").endswith("shared")
        True
    """
    own, used = Path(bundle_root).resolve() / "shared", _imported()
    if (own / "__init__.py").is_file() and own != used and shared_digest(own) != shared_digest(used):
        raise DataError(
            f"The bundle {own.parent.name} brings its own code ({own}), but this process has imported another version "
            f"of it from {used}. Run each bundle in a process of its own, or package both bundles from one version of "
            "the repository."
        )
    return str(used)


def _imported() -> Path:
    return Path(shared.__file__).resolve().parent
