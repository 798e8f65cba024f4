"""Metrics of a method, one row per patient, with bootstrap intervals; needs NumPy only."""

from shared.metrics.classification import (
    classification_metrics,
    foldwise_metrics,
    paired_difference,
    pooled,
    read_predictions,
)

__all__ = ["classification_metrics", "foldwise_metrics", "paired_difference", "pooled", "read_predictions"]
