"""Pictures: overlays, galleries, curves, Shapley figures; matplotlib is loaded when one is asked for."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "cam_gallery": "cam",
        "cam_overlay": "cam",
        "cam_picture": "cam",
        "calibration_figure": "curves",
        "decision_figure": "curves",
        "loss_curve": "curves",
        "roc_curve_figure": "curves",
        "confusion_figure": "confusion",
        "explanation_grid": "explanations",
        "biomarker_gallery": "gallery",
        "place_gallery": "gallery",
        "cam_planes": "glioma",
        "surface_picture": "glioma",
        "vertex_colours": "glioma",
        "connectome_picture": "glioma_network",
        "disrupted_picture": "glioma_network",
        "glass_brain": "glioma_network",
        "region_bars": "glioma_network",
        "contribution_grid": "overlay",
        "overlay_grid": "overlay",
        "randomisation_figure": "randomisation",
        "shapley_distribution": "shapley",
        "shapley_patient_bars": "shapley",
        "slide_picture": "slides",
        "tile_gallery": "slides",
    },
)
