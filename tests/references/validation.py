"""Calibration, smoothing and the variance of an AUC from their definitions, in float64 loops."""

import math

import numpy as np
from scipy.optimize import brentq, minimize

# a fixed example, on which other packages were run
LABELS = np.array([0] * 12 + [1] * 8)
MODEL = np.array(
    [
        *(0.02, 0.04, 0.07, 0.11, 0.13, 0.17, 0.22, 0.28, 0.36, 0.44, 0.57, 0.71),
        *(0.09, 0.26, 0.38, 0.49, 0.62, 0.74, 0.83, 0.94),
    ]
)
CONTROL = np.array(
    [
        *(0.31, 0.12, 0.45, 0.23, 0.37, 0.18, 0.41, 0.52, 0.29, 0.33, 0.47, 0.58),
        *(0.27, 0.39, 0.21, 0.56, 0.63, 0.43, 0.34, 0.66),
    ]
)


def calibration_intercept(labels, probability):
    """Root of the score of a logistic regression whose slope on the log odds is 1."""
    odds = [math.log(p / (1 - p)) for p in probability]
    return brentq(lambda a: sum(y - 1 / (1 + math.exp(-a - x)) for y, x in zip(labels, odds, strict=True)), -50, 50)


def calibration_slope(labels, probability):
    """Slope of the likelihood's maximum."""
    x, y = np.log(probability / (1 - probability)), np.asarray(labels)

    def loss(line):
        eta = line[0] + line[1] * x
        return np.sum(np.logaddexp(0, eta) - y * eta)

    return minimize(loss, [0.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000}).x[
        1
    ]


def local_line(labels, probability, place, span=0.75):
    """Tricube-weighted straight line through the nearest rows, at one place."""
    distance = sorted(abs(p - place) for p in probability)
    reach = distance[int(span * len(labels)) - 1]
    weights = [max(0.0, 1 - (abs(p - place) / reach) ** 3) ** 3 for p in probability]
    design = np.stack([np.ones(len(labels)), np.asarray(probability) - place], axis=1)
    root = np.sqrt(weights)[:, None]
    return np.linalg.lstsq(design * root, np.asarray(labels) * root[:, 0], rcond=None)[0][0]


def auc_covariance(labels, predictions, patients):
    """Obuchowski's covariance matrix, every sum a loop; DeLong's where each patient has one row."""
    positive = [i for i, y in enumerate(labels) if y]
    negative = [i for i, y in enumerate(labels) if not y]

    def win(p, i, j):
        return 1.0 if p[i] > p[j] else 0.5 if p[i] == p[j] else 0.0

    names, of_positive, of_negative, aucs = sorted(set(patients)), [], [], []
    for p in predictions:
        v10 = {i: sum(win(p, i, j) for j in negative) / len(negative) for i in positive}
        v01 = {j: sum(win(p, i, j) for i in positive) / len(positive) for j in negative}
        auc = sum(v10.values()) / len(positive)
        aucs.append(auc)
        of_positive.append({c: sum(v10[i] - auc for i in positive if patients[i] == c) for c in names})
        of_negative.append({c: sum(v01[j] - auc for j in negative if patients[j] == c) for c in names})
    i10, i01 = len({patients[i] for i in positive}), len({patients[j] for j in negative})
    m, n, k = len(positive), len(negative), len(names)
    covariance = np.zeros((len(predictions), len(predictions)))
    for r in range(len(predictions)):
        for s in range(len(predictions)):
            s10 = i10 / ((i10 - 1) * m) * sum(of_positive[r][c] * of_positive[s][c] for c in names)
            s01 = i01 / ((i01 - 1) * n) * sum(of_negative[r][c] * of_negative[s][c] for c in names)
            s11 = k / (k - 1) * sum(of_positive[r][c] * of_negative[s][c] for c in names)
            s11_back = k / (k - 1) * sum(of_positive[s][c] * of_negative[r][c] for c in names)
            covariance[r, s] = s10 / m + s01 / n + (s11 + s11_back) / (m * n)
    return aucs, covariance
