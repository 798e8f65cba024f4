"""Biomarkers found by clustering embeddings, and the tables that describe them; loaded when first asked for."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "AdditiveFit": "additive",
        "fit_additive": "additive",
        "calibrate_members": "additive",
        "bootstrap_weights": "additive",
        "match_biomarkers": "additive",
        "rank_agreement": "additive",
        "Biomarkers": "kmeans",
        "fit_biomarkers": "kmeans",
        "biomarker_table": "table",
        "flat_rows": "table",
        "same_patient_neighbour_rate": "table",
    },
)
