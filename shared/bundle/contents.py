"""What belongs to a bundle's package, and where bundles are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import shared
from shared.bundle.closure import ModuleGraph, shared_names
from shared.bundle.configs import all_bundles, find_bundle
from shared.bundle.record import SPLIT_FILE
from shared.digests import sha256
from shared.errors import DataError
from shared.io import read_json_object

LARGEST = 25 * 2**20
"""Bytes a file of a bundle may have; larger ones are listed in ``large_files.yml``, as MONAI's model zoo does."""

VERIFY = "shared.bundle.verify"
"""The module that every package holds, whatever its configs name."""

_OWN = ("LICENSE", "README.md", "requirements.txt", "large_files.yml")
_FOLDERS = ("configs", "docs")
_NETWORKS = (".pt", ".pth", ".ts", ".pt2", ".onnx")


def find_bundles(names: Sequence[str] = (), *, root: str | os.PathLike | None = None) -> list[Path]:
    """Folders of bundles.

    Args:
        names: names under ``root/bundles`` or paths; none: all there are.
        root: the repository, or an unpacked bundle; None: the folder that holds the imported ``shared``.

    Raises:
        DataError: no such bundle.

    Example:
        >>> len(find_bundles()) > 0
        True
    """
    root = Path(shared.__file__).resolve().parents[1] if root is None else Path(root)
    if not names and (root / "configs/metadata.json").is_file():
        return [root]
    if names:
        return [find_bundle(name, root, "metadata.json") for name in names]
    if there := all_bundles(root, "metadata.json"):
        return there
    raise DataError(f"no bundles in {root}")


def read_metadata(bundle: str | os.PathLike) -> dict[str, Any]:
    """Content of ``configs/metadata.json``; what cannot be read is a :class:`DataError`."""
    return read_json_object(Path(bundle) / "configs/metadata.json", "config")


def bundle_files(bundle: str | os.PathLike) -> dict[str, Path]:
    """Files of a bundle's package by their name in it, the code in ``shared/`` left out.

    Of ``models`` go along ``model.pt`` and what is no network (settings, tables). Checkpoints of other stages, exports
    (they may be older than the model), subfolders, ``eval`` and ``data`` stay, and so does ``split.json``: it names the
    patients of the training.

    Example:
        >>> files = bundle_files(find_bundles()[0])
        >>> "LICENSE" in files, "configs/train.json" in files
        (True, True)
    """
    bundle = Path(bundle)
    paths = [bundle / name for name in _OWN]
    paths += [path for folder in _FOLDERS for path in (bundle / folder).rglob("*")]
    if (bundle / "models").is_dir():
        models = [path for path in (bundle / "models").iterdir() if not path.name.startswith(".")]
        kept = [path for path in models if path.name == "model.pt" or path.suffix not in _NETWORKS]
        paths += [path for path in kept if path.name != SPLIT_FILE]
    names = {path.relative_to(bundle).as_posix(): path for path in paths if path.is_file()}
    return {name: names[name] for name in sorted(names) if "__pycache__" not in name}


def packaged_files(bundle: str | os.PathLike) -> dict[str, Path]:
    """All files of a bundle's package by their name in it, with the code that it needs.

    The code is what the bundle's JSON names (metadata.json's ``preparation`` too), what ``python -m
    shared.bundle.verify`` needs, and all that these import. It comes from the bundle's own ``shared``, else from the
    imported one.

    Raises:
        DataError: a config names something that ``shared`` does not define.

    Example:
        >>> "shared/io.py" in packaged_files(find_bundles()[0])
        True
    """
    bundle = Path(bundle)
    own = bundle / "shared"
    folder = own if (own / "__init__.py").is_file() else _imported()
    graph = ModuleGraph(folder)
    texts = [path.read_text(encoding="utf-8") for path in sorted((bundle / "configs").glob("*.json"))]
    modules = graph.closure([VERIFY, *(name for text in texts for name in shared_names(text))])
    code = {f"shared/{graph.paths[name].relative_to(folder).as_posix()}": graph.paths[name] for name in modules}
    return bundle_files(bundle) | dict(sorted(code.items()))


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
        digest.update(f"{path.relative_to(folder).as_posix()} {sha256(path)}\n".encode())
    return digest.hexdigest()


def check_vendored(bundle_root: str | os.PathLike) -> str:
    """Refuse to run a packaged bundle on another ``shared`` than the one it brings.

    Python keeps one module of a name: of two bundles in a process, the second gets the first one's. That is right where
    both copies are the same, and wrong results or obscure errors where they are not. A package holds only the modules
    that its bundle needs, so modules that both have are compared, and those that only this bundle brings are added to
    the packages in use.

    Args:
        bundle_root: the bundle's folder; without a ``shared`` of its own, as in the repository, it takes what there is.

    Returns:
        the folder of the ``shared`` in use.

    Raises:
        DataError: a module of the bundle's ``shared`` differs from the one in use.

    Example:
        >>> check_vendored("no/packaged/bundle").endswith("shared")
        True
    """
    own, used = Path(bundle_root).resolve() / "shared", _imported()
    places = [Path(place).resolve() for place in shared.__path__]
    if not (own / "__init__.py").is_file() or own in places:
        return str(used)
    files = shared_files(own)
    for path in files:
        there = [place / path.relative_to(own) for place in places]
        same = next((file for file in there if file.is_file()), None)
        if same is not None and same.read_bytes() != path.read_bytes():
            raise DataError(
                f"The bundle {own.parent.name} brings its own code ({own}), but this process has imported another "
                f"version of it from {used}; {path.relative_to(own).as_posix()} differs. Run each bundle in a process "
                "of its own, or package both bundles from one version of the repository."
            )
    for path in sorted(files, key=lambda file: len(file.parts)):
        if path.name == "__init__.py":
            package = import_module(".".join(("shared", *path.parent.relative_to(own).parts)))
            if str(path.parent) not in package.__path__:
                package.__path__.append(str(path.parent))
    return str(used)


def _imported() -> Path:
    return Path(shared.__file__).resolve().parent
