"""Simple classifiers of scikit-learn that a network has to beat, each fitted to its training patients alone."""

from __future__ import annotations

from typing import Any

import numpy as np


def classifier(kind: str, seed: int = 0, *, trees: int = 500, fill: bool = True, folds: int = 5) -> Any:
    """An unfitted control, which standardises (and, with ``fill``, fills gaps) by the patients it is fitted to.

    ``logistic_tuned`` has what the graph has but the graph: features compressed as there, and a strength of its penalty
    that is chosen in folds of its training patients. ``logistic_many`` is for more features than patients: kind (L1 or
    L2) and strength of its penalty are chosen in ``folds`` folds of them. ``svm`` is calibrated in ``folds`` folds.

    Example:
        >>> classifier("svm").steps[-1][0]
        'calibratedclassifiercv'
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.model_selection import GridSearchCV
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, RobustScaler, StandardScaler
    from sklearn.svm import SVC

    last = {
        "logistic": lambda: LogisticRegression(max_iter=5000),
        "logistic_tuned": lambda: LogisticRegressionCV(
            Cs=(0.01, 0.03, 0.1, 0.3, 1, 3),
            l1_ratios=(0.0,),
            cv=5,
            scoring="neg_log_loss",
            max_iter=5000,
            use_legacy_attributes=False,
        ),
        "logistic_many": lambda: GridSearchCV(
            # liblinear penalises the intercept, too: the less, the larger its scale
            LogisticRegression(solver="liblinear", intercept_scaling=10, max_iter=5000, random_state=seed),
            {"C": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1), "l1_ratio": (0.0, 1.0)},
            scoring="neg_log_loss",
            cv=folds,
        ),
        # its distances become probabilities by Platt's sigmoid, fitted within the training patients
        "svm": lambda: CalibratedClassifierCV(SVC(), cv=folds, ensemble=False),
        "mlp": lambda: MLPClassifier((64, 64), alpha=0.01, max_iter=300, early_stopping=True, random_state=seed),
        "forest": lambda: RandomForestClassifier(trees, random_state=seed),
    }[kind]()
    gaps = [SimpleImputer(strategy="median", keep_empty_features=True)] if fill else []
    squash = [RobustScaler(), FunctionTransformer(np.arcsinh)] if kind == "logistic_tuned" else []
    return make_pipeline(*gaps, *squash, StandardScaler(), last)
