"""Metrics of a method, one row per patient or per patch, with bootstrap intervals over patients; NumPy and SciPy only.

A plain threshold metric says nothing of probabilities: AUC, calibration and net benefit come first, sensitivity and
specificity at thresholds that were fixed before, F1 and accuracy last (Van Calster et al., Lancet Digit Health 2025).
"""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "calibration_report": "calibration",
        "class_report": "per_class",
        "classification_metrics": "classification",
        "class_p_values": "conformal",
        "class_scores": "conformal",
        "conformal_sets": "conformal",
        "decision_curve": "decision",
        "delong_interval": "delong",
        "delong_test": "delong",
        "external_validation": "external",
        "grouped_mean": "classification",
        "holm_adjusted": "multiplicity",
        "operating_points": "thresholds",
        "paired_difference": "classification",
        "supported_parameters": "sample_size",
        "training_thresholds": "thresholds",
        "validation_sample_size": "sample_size",
    },
)
