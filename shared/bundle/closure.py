"""The modules of ``shared`` that a bundle needs: those its JSON names, and all that these import."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

NAME = re.compile(r"(?<![\w.])shared(?:\.\w+)+")


def modules_needed(names: Iterable[str], folder: Path) -> set[Path]:
    """Files of a ``shared`` folder that are imported where these dotted names are.

    Imports within functions count, those under ``TYPE_CHECKING`` do not. A name that a package exports lazily is
    looked up in its map (:func:`shared.lazy.lazy_exports`), and the package's other exports stay out.

    Args:
        names: modules, or what is in them, such as ``"shared.losses.NTXentLoss"``; others are left out.
        folder: the ``shared`` folder.

    Example:
        >>> folder = Path(__file__).resolve().parents[1]
        >>> sorted(path.name for path in modules_needed(["shared.errors.DataError"], folder))
        ['__init__.py', 'errors.py']
    """
    waiting, found = list(names), set()
    while waiting:
        for path in _files_of(waiting.pop(), folder):
            if path not in found:
                found.add(path)
                waiting += _imports(ast.parse(path.read_text(encoding="utf-8")))
    return found


def _files_of(name: str, folder: Path) -> Iterator[Path]:
    """The packages above a dotted name, and the module that it is or is defined in."""
    here = folder
    yield here / "__init__.py"
    parts = name.split(".")[1:]
    while parts:
        part, *parts = parts
        if (here / part / "__init__.py").is_file():
            here = here / part
            yield here / "__init__.py"
        elif (here / f"{part}.py").is_file():
            yield here / f"{part}.py"
            return
        else:
            parts = _exports(here / "__init__.py").pop(part, "").split(".")
            if not parts[0]:
                return


def _exports(init: Path) -> dict[str, str]:
    """The map of a package that exports lazily: public name to module."""
    for node in ast.walk(ast.parse(init.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "lazy_exports":
            return ast.literal_eval(node.args[1])
    return {}


def _imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names of ``shared`` that a module imports, or names in a string of its own."""
    checked = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    left_out = {id(node) for block in checked for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "shared":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("shared."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
            yield node.value
