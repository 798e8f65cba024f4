"""Datalists, patient-level splits and what the preparation scripts share; imports neither torch nor MONAI by itself."""

from importlib import import_module

_EXPORTS = {
    "Datalist": "datalist",
    "InferenceDatalist": "datalist",
    "cases_for_inference": "datalist",
    "assign_folds": "splits",
    "CaseDataset": "cases",
    "ContrastiveRows": "mixup",
    "FeatureRows": "features",
    "MixupTable": "mixup",
    "collate_cases": "cases",
    "stratified_folds": "splits",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
