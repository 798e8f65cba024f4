"""Public names of a package, imported from their modules when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(package: str, homes: Mapping[str, str]) -> tuple[list[str], Callable[[str], Any]]:
    """What a package's ``__init__`` assigns to ``__all__, __getattr__``, so that importing it imports nothing heavy.

    Args:
        package: its ``__name__``.
        homes: public name to the module, within the package, that defines it.

    Example:
        >>> names, get = lazy_exports("shared", {"DataError": "errors"})
        >>> names, get("DataError").__name__
        (['DataError'], 'DataError')
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(homes)}")
        home = f"{package}.{homes[name]}"
        try:
            return getattr(import_module(home), name)
        except ModuleNotFoundError as error:
            if not error.name or not f"{home}.".startswith(f"{error.name}."):
                raise  # another package is not installed
            raise ModuleNotFoundError(
                f"{package}.{name} needs the module {error.name}, which is not in {package.partition('.')[0]}/ here: a "
                "bundle's package holds only the modules that the bundle uses; take this one from the repository",
                name=error.name,
            ) from error

    return sorted(homes), get
