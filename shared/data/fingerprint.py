"""A text that differs whenever what objects would compute may differ: of transforms and their settings."""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import os
import threading
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from shared.digests import sha256

# classes whose code is told by the version of their library or of shared
_VERSIONED = ("builtins", "shared", "monai", "torch", "numpy", "scipy", "nibabel", "PIL")
_STATE = {"monai.data.image_reader": {"filenames"}}  # of the image that was read last


def fingerprint(value: Any) -> str:
    """Describe nested settings and objects; of arrays and files, the digest of their content.

    An object counts by its class and all its attributes. A class names those that are no settings, such as a memo, in
    ``not_settings``; what :class:`functools.cached_property` keeps is none. The code of a class of neither this
    repository nor a common library counts by its file.

    Raises:
        TypeError: something whose behaviour cannot be told from its attributes (a lambda, a generator).

    Example:
        >>> fingerprint({"b": (1, 2.0), "a": np.zeros(2)}) == fingerprint({"a": np.zeros(2), "b": (1, 2.0)})
        True
        >>> fingerprint(np.zeros(2)) == fingerprint(np.zeros(2, np.float32))
        False
    """
    return _told(value, ())


def _told(value: Any, above: tuple[int, ...]) -> str:
    if value is None or isinstance(value, bool | int | float | complex | bytes):
        return f"{type(value).__name__}:{value!r}"
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        return f"file:{sha256(text)}" if names_file(text) else f"str:{text!r}"
    if isinstance(value, Enum | logging.Logger):
        return f"{type(value).__name__}:{value}"
    if isinstance(value, type):
        return f"class:{_name(value)}"
    kind = type(value)
    if isinstance(value, np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        if array.dtype.hasobject:
            raise TypeError("an array of objects")
        return f"array:{array.dtype.str}:{np.shape(value)}:{hashlib.sha256(array.tobytes()).hexdigest()}"
    if kind.__module__ == "torch" or kind.__module__.startswith("torch."):
        if kind.__name__ in ("dtype", "device", "Size"):
            return f"{kind.__name__}:{value}"
        if kind.__name__ in ("Tensor", "Parameter"):
            return f"tensor:{_told(value.detach().cpu().numpy(), above)}"
    if isinstance(value, np.dtype):
        return f"dtype:{value.str}"
    if id(value) in above:
        return f"above:{above.index(id(value))}"
    above = (*above, id(value))
    if isinstance(value, Mapping):
        items = sorted(f"{_told(key, above)}={_told(item, above)}" for key, item in value.items())
        return "{" + ",".join(items) + "}"
    if isinstance(value, list | tuple):
        return f"{_name(kind)}[" + ",".join(_told(item, above) for item in value) + "]"
    if isinstance(value, set | frozenset):
        return "set[" + ",".join(sorted(_told(item, above) for item in value)) + "]"
    if isinstance(value, functools.partial):
        return f"partial({_told([value.func, value.args, value.keywords], above)})"
    if inspect.ismethod(value):
        return f"method:{value.__name__}:{_told(value.__self__, above)}"
    if inspect.isroutine(value) or isinstance(value, np.ufunc):
        name = f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', value.__name__)}"
        if "<" in name:
            raise TypeError(f"the function {name}")
        return f"function:{name}:{_code_of(value)}"
    if not hasattr(value, "__dict__") or inspect.isgenerator(value) or inspect.ismodule(value):
        raise TypeError(f"a {_name(kind)}")
    left_out = {name for base in kind.__mro__ for name in vars(base).get("not_settings", ())}
    left_out |= {n for base in kind.__mro__ for n, v in vars(base).items() if isinstance(v, functools.cached_property)}
    left_out |= _STATE.get(kind.__module__, set())
    # MONAI keeps whether it traces in a thread's own place
    left_out |= {name for name, item in vars(value).items() if isinstance(item, threading.local)}
    kept = {name: item for name, item in vars(value).items() if name not in left_out}
    return f"{_name(kind)}:{_code_of(kind)}{_told(kept, above)}"


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _code_of(thing: Any) -> str:
    """The digest of the file that defines a class or function, but of libraries."""
    if (getattr(thing, "__module__", None) or "builtins").partition(".")[0] in _VERSIONED:
        return ""
    try:
        return sha256(inspect.getsourcefile(thing) or "")
    except (OSError, TypeError) as error:
        raise TypeError(f"{thing!r}, whose code is not at hand") from error


def names_file(text: str) -> bool:
    """Whether a text is the path of a file."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # far too long for one, or with a character that none can have
        return False
