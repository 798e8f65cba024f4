"""Explanations: the mask of Eq. 10, Shapley values of biomarkers, localisation scores; loaded when first asked for."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "BiomarkerMask": "biomarker_mask",
        "MaskExplanation": "biomarker_mask",
        "gaussian_divergence": "biomarker_mask",
        "centred_box_map": "localisation",
        "energy_inside": "localisation",
        "energy_ratio": "localisation",
        "intersection_over_union": "localisation",
        "localisation_scores": "localisation",
        "pointing_game": "localisation",
        "random_map": "localisation",
        "PatientExplainer": "patient",
        "BiomarkerShapley": "shapley",
        "biomarker_shapley": "shapley",
        "exact_shapley": "shapley",
    },
)
