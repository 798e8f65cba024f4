"""Conformal p-values and the distance to a cohort, written as the formulas stand, in float64."""

import numpy as np


def p_value(labels, probability, patients, new, label):
    """(1 + sum over patients of the class of the share of their rows that fit it as badly) / (1 + patients)."""
    total, counted = 1.0, 0
    for patient in sorted(set(patients)):
        rows = [k for k in range(len(labels)) if patients[k] == patient and labels[k] == label]
        if rows:
            counted += 1
            scores = [1 - probability[k] if label == 1 else probability[k] for k in rows]
            mine = 1 - new if label == 1 else new
            total += sum(score >= mine for score in scores) / len(rows)
    return total / (1 + counted)


def mahalanobis(x, mean, scale, axes, variances, rest):
    """By the whole covariance matrix and its inverse."""
    axes = np.asarray(axes, dtype=np.float64)
    covariance = axes.T @ np.diag(variances) @ axes + rest * np.eye(len(mean))
    inverse, found = np.linalg.inv(covariance), []
    for row in np.asarray(x, dtype=np.float64):
        z = (row - mean) / scale
        found.append(np.sqrt(z @ inverse @ z / len(mean)))
    return np.array(found)
