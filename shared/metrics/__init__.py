"""Metrics of a method, one row per patient or per patch, with bootstrap intervals over patients; needs NumPy only."""

from shared.metrics.class_report import class_report
from shared.metrics.classification import classification_metrics, grouped_mean, paired_difference

__all__ = [
    "class_report",
    "classification_metrics",
    "grouped_mean",
    "paired_difference",
]
