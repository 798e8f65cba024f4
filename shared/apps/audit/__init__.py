"""Checks of a cohort and of a trained model: leakage, subgroups, robustness, failures, learning curve."""
