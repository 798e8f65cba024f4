"""Biomarkers found by clustering embeddings, and the tables that describe them; loaded when first asked for."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Biomarkers": "kmeans",
    "fit_biomarkers": "kmeans",
    "biomarker_table": "table",
    "flat_rows": "table",
    "same_patient_neighbour_rate": "table",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
