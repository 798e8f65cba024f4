"""Explanations: the mask of Eq. 10, Shapley values of biomarkers, localisation scores; loaded when first asked for."""

from importlib import import_module
from typing import Any

_HOMES = {
    "BiomarkerMask": "biomarker_mask",
    "MaskExplanation": "biomarker_mask",
    "gaussian_divergence": "biomarker_mask",
    "PatientExplainer": "patient",
    "BiomarkerShapley": "shapley",
    "biomarker_shapley": "shapley",
    "exact_shapley": "shapley",
    "centred_box_map": "localisation",
    "energy_inside": "localisation",
    "energy_ratio": "localisation",
    "intersection_over_union": "localisation",
    "localisation_scores": "localisation",
    "pointing_game": "localisation",
    "random_map": "localisation",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
