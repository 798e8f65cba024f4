"""Pictures: overlays, galleries, curves, Shapley figures; matplotlib is loaded when one is asked for."""

from importlib import import_module
from typing import Any

_HOMES = {
    "overlay_grid": "overlay",
    "biomarker_gallery": "gallery",
    "calibration_figure": "curves",
    "loss_curve": "curves",
    "roc_curve_figure": "curves",
    "shapley_distribution": "shapley",
    "shapley_patient_bars": "shapley",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
