"""Modules that a bundle needs: those its configs name, and all that these import."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from pathlib import Path

from shared.errors import DataError

_NAME = re.compile(r"(?<![\w.])shared(?:\.[A-Za-z_]\w*)+")


def shared_names(text: str) -> list[str]:
    """Dotted names within ``shared`` in a text, sorted.

    Example:
        >>> shared_names('{"_target_": "shared.losses.NTXentLoss", "a": "$shared.io.read_table(x)"}')
        ['shared.io.read_table', 'shared.losses.NTXentLoss']
    """
    return sorted(set(_NAME.findall(text)))


class ModuleGraph:
    """Which module of a ``shared`` folder imports which, read from the source; nothing is imported.

    Imports inside functions count. Imports under ``if TYPE_CHECKING`` do not. A name of a lazy ``__init__`` leads to
    the module that defines it, not to all modules of the package.

    Args:
        folder: a ``shared`` folder.

    Example:
        >>> import shared
        >>> graph = ModuleGraph(Path(shared.__file__).parent)
        >>> graph.find("shared.errors.DataError"), sorted(graph.closure(["shared.errors.DataError"]))
        ('shared.errors', ['shared', 'shared.errors', 'shared.progress'])
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        paths = sorted(self.folder.rglob("*.py"))
        self.paths = {self._module(path): path for path in paths}

    def _module(self, path: Path) -> str:
        parts = path.relative_to(self.folder).with_suffix("").parts
        return ".".join(("shared", *parts)).removesuffix(".__init__")

    @cached_property
    def homes(self) -> dict[str, dict[str, str]]:
        """Of every lazy package, its public names and the modules that define them."""
        found: dict[str, dict[str, str]] = {}
        for module, path in self.paths.items():
            if path.name == "__init__.py":
                for node in ast.walk(_parsed(path)):
                    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "lazy_exports":
                        names = ast.literal_eval(node.args[1])
                        found[module] = {name: f"{module}.{home}" for name, home in names.items()}
        return found

    def find(self, name: str) -> str | None:
        """The module of a dotted name, or of the class or function that it names; None: there is none."""
        parts = name.split(".")
        for n in range(len(parts), 0, -1):
            module = ".".join(parts[:n])
            if module in self.paths:
                rest = parts[n:]
                lazy = self.homes.get(module, {})
                if rest and rest[0] in lazy:
                    return lazy[rest[0]]
                # below a package only its own names are valid; a module's content is not looked at
                missing = rest and self.paths[module].name == "__init__.py" and not self._defines(module, rest[0])
                return None if missing else module
        return None

    def _defines(self, package: str, name: str) -> bool:
        return bool(re.search(rf"\b{re.escape(name)}\b", self.paths[package].read_text(encoding="utf-8")))

    def imports(self, module: str) -> set[str]:
        """Modules that one imports when it runs, or names in a string, as ``importlib`` and ``python -m`` take it."""
        return {found for name in _imported_names(self.paths[module]) if (found := self.find(name))}

    def closure(self, names: Iterable[str]) -> set[str]:
        """All modules that dotted names need, with the packages that hold them.

        Raises:
            DataError: a name leads to no module.
        """
        names = list(names)
        if unknown := [name for name in names if self.find(name) is None]:
            raise DataError(f"no module of {self.folder} defines {', '.join(unknown)}: correct the config's names")
        seen: set[str] = set()
        waiting = [found for name in names if (found := self.find(name))]
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += [*self.imports(module), *([module.rpartition(".")[0]] if "." in module else [])]
        return seen


def _imported_names(path: Path) -> Iterator[str]:
    tree = _parsed(path)
    for_types = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    left_out = {id(node) for block in for_types for statement in block.body for node in ast.walk(statement)}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "shared":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("shared."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _NAME.fullmatch(node.value):
            yield node.value


@cache
def _parsed_at(path: str, changed: int, size: int) -> ast.Module:
    return ast.parse(Path(path).read_text(encoding="utf-8"))


def _parsed(path: Path) -> ast.Module:
    """The file's syntax tree, parsed once while the file does not change."""
    stat = path.stat()
    return _parsed_at(str(path), stat.st_mtime_ns, stat.st_size)
