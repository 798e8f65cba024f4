"""Losses of the three methods, imported on first use: ``from shared.losses import MemoryBank``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "IRCLPretrainLoss": "ircl",
    "MemoryBank": "memory_bank",
    "MemoryBankContrastiveLoss": "memory_bank",
    "PerceptualReconstructionLoss": "reconstruction",
    "balanced_class_weights": "ircl",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
