"""Datalists, patient-level splits and what the preparation scripts share; imports neither torch nor MONAI by itself."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "BrainRows": "brain_rows",
        "CaseDataset": "cases",
        "collate_cases": "cases",
        "Datalist": "datalist",
        "InferenceDatalist": "datalist",
        "cases_for_inference": "datalist",
        "FeatureRows": "features",
        "ContrastiveRows": "mixup",
        "MixupTable": "mixup",
        "PatchCache": "patch_cache",
        "PatchRows": "patch_cache",
        "collate_patches": "patch_cache",
        "read_patch": "patch_io",
        "read_patch_mask": "patch_io",
        "PatchDatalist": "patches",
        "PatchInferenceDatalist": "patches",
        "assign_folds": "splits",
        "grouped_folds": "splits",
        "split_off_groups": "splits",
        "stratified_folds": "splits",
        "TractAtlas": "atlas",
        "tract_pairs": "atlas",
        "read_streamlines": "streamlines",
        "GliomaDatalist": "glioma_cohort",
        "GliomaInferenceDatalist": "glioma_cohort",
        "GliomaCases": "glioma_rows",
        "GliomaRows": "glioma_rows",
        "collate_glioma": "glioma_rows",
        "glioma_inputs": "glioma_rows",
    },
)
