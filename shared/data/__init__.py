"""Datalists, patient-level splits and what the preparation scripts share; imports neither torch nor MONAI by itself."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "CaseDataset": "cases",
        "collate_cases": "cases",
        "Datalist": "datalist",
        "InferenceDatalist": "datalist",
        "cases_for_inference": "datalist",
        "FeatureRows": "features",
        "ContrastiveRows": "mixup",
        "MixupTable": "mixup",
        "assign_folds": "splits",
        "stratified_folds": "splits",
    },
)
