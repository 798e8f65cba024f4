"""Nested values as arrays and JSON, and back: what an entry of the disk cache holds. No pickle, no code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

KEPT: dict[str, tuple[type, tuple[str, ...]]] = {}  # classes of this repository that entries may hold
T = TypeVar("T", bound=type)


def kept(*fields: str) -> Callable[[T], T]:
    """Entries may hold objects of this class, by these attributes, which its constructor takes in this order."""

    def register(kind: T) -> T:
        KEPT[kind.__name__] = (kind, fields)
        return kind

    return register


class Encoder:
    """JSON for nested values; arrays are collected in ``arrays``, each once.

    Args:
        paths: texts that become numbers, since folders are renamed.
        constants: tensors that are only referred to.

    Raises:
        TypeError: of the call: a value of another kind.
    """

    def __init__(self, paths: Sequence[str], constants: Sequence[Any]):
        self.paths = {text: number for number, text in enumerate(paths)}
        self.constants = {id(constant): number for number, constant in enumerate(constants)}
        self.arrays: dict[str, np.ndarray] = {}
        self._names: dict[int, list] = {}

    def __call__(self, value: Any) -> Any:
        """What JSON can hold of it."""
        kind = type(value)
        if value is None or kind in (bool, int, float):
            return value
        if kind is str:
            return ["path", self.paths[value]] if value in self.paths else value
        if id(value) in self.constants:
            return ["constant", self.constants[id(value)]]
        if kind is dict:
            return ["dict", [[self(key), self(item)] for key, item in value.items()]]
        if kind in (list, tuple):
            return [kind.__name__, [self(item) for item in value]]
        if KEPT.get(kind.__name__, (None,))[0] is kind:
            return ["kept", kind.__name__, [self(getattr(value, field)) for field in KEPT[kind.__name__][1]]]
        if id(value) not in self._names:
            self._names[id(value)] = self._array(value)
        return self._names[id(value)]

    def _array(self, value: Any) -> list:
        kind = type(value)
        if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            told, array = "array" if isinstance(value, np.ndarray) else "scalar", np.asarray(value)
        elif kind.__module__ == "torch" and kind.__name__ == "Tensor":
            told, array = "tensor", value.detach().cpu().numpy()
        else:
            raise TypeError(f"a {kind.__name__} cannot be kept")
        self.arrays[name := f"a{len(self.arrays)}"] = array
        return [told, name]


class Decoder:
    """What an :class:`Encoder` made JSON of. Tensors that were one are one again."""

    def __init__(self, arrays: Mapping[str, np.ndarray], paths: Sequence[str], constants: Sequence[Any]):
        self.arrays, self.paths, self.constants = arrays, paths, constants
        self._tensors: dict[str, Any] = {}

    def __call__(self, value: Any) -> Any:
        """The value again."""
        if not isinstance(value, list):
            return value
        kind, content = value[0], value[1]
        if kind == "path":
            return self.paths[content]
        if kind == "constant":
            return self.constants[content]
        if kind == "dict":
            return {self(key): self(item) for key, item in content}
        if kind in ("list", "tuple"):
            return (list if kind == "list" else tuple)(self(item) for item in content)
        if kind == "kept":
            return KEPT[content][0](*(self(item) for item in value[2]))
        if kind == "tensor":
            import torch

            if content not in self._tensors:
                self._tensors[content] = torch.from_numpy(self.arrays[content])
            return self._tensors[content]
        return self.arrays[content] if kind == "array" else self.arrays[content][()]
