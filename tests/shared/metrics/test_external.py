import json

import numpy as np
import pytest

from shared.errors import DataError
from shared.metrics import calibration_report, classification_metrics, delong_interval, external_validation
from shared.metrics.calibration import recalibrated
from shared.metrics.external import halves


def _cohort(count, seed, shift=0.0, factor=1.0):
    random = np.random.default_rng(seed)
    odds = random.normal(0, 1.3, count)
    labels = (random.random(count) < 1 / (1 + np.exp(-odds))).astype(int)
    return labels, 1 / (1 + np.exp(-(factor * odds + shift)))


def test_values_are_those_of_each_cohort_and_the_difference_is_external_minus_development():
    near, far = _cohort(80, 0), _cohort(60, 1, 1.0, 2.0)
    found = external_validation((*near, None), (*far, None), bootstrap=60, seed=3)
    for number, (name, (labels, probability)) in enumerate((("development", near), ("external", far))):
        metrics = classification_metrics(labels, probability, bootstrap=60, seed=3 + number)
        report = calibration_report(labels, probability, bootstrap=60, seed=3 + number)
        assert found[name]["AUC"] == pytest.approx(metrics["AUC"]) and found[name]["n"] == len(labels)
        assert found[name]["slope"] == pytest.approx(report["slope"])
        assert found[name]["BRIER"] == pytest.approx(metrics["BRIER"])
    for key in ("AUC", "slope", "intercept", "ICI", "BRIER"):
        change = found["external"][key]["value"] - found["development"][key]["value"]
        assert found["difference"][key]["value"] == pytest.approx(change)
    errors = [delong_interval(*cohort)["se"] for cohort in (near, far)]
    z = abs(found["difference"]["AUC"]["value"]) / np.hypot(*errors)
    from scipy.stats import norm

    assert found["difference"]["AUC"]["p"] == pytest.approx(2 * norm.sf(z))
    json.dumps(found, allow_nan=False)


def test_recalibration_is_fitted_to_one_half_and_judged_on_the_other():
    near, far = _cohort(100, 0), _cohort(400, 1, 1.5, 2.5)
    found = external_validation((*near, None), (*far, None), bootstrap=100)["recalibration"]
    first = halves(far[0], None, 0)
    assert found["fitted"] == {"n": int(first.sum()), "positives": int(far[0][first].sum())}
    new = recalibrated(far[0][first], far[1][first], far[1][~first])
    both, shift, none = (found["methods"][name] for name in ("intercept and slope", "intercept", "none"))
    assert both["BRIER"]["value"] == pytest.approx(np.mean((new - far[0][~first]) ** 2))
    assert both["BRIER"]["value"] < shift["BRIER"]["value"] < none["BRIER"]["value"]
    assert both["BRIER_difference"]["high"] < 0 and both["BRIER_difference"]["p"] < 0.05
    assert abs(both["slope"]["value"] - 1) < abs(none["slope"]["value"] - 1) and "BRIER_difference" not in none
    assert shift["slope"]["value"] == pytest.approx(none["slope"]["value"], rel=1e-6)


def test_a_row_twice_of_its_patient_changes_no_interval():
    once, twice = ([], [])
    for labels, probability in (_cohort(40, 0), _cohort(48, 1, 1.0, 2.0)):  # no more than the smoother has places
        names = [f"P{k:02d}" for k in range(len(labels))]
        once.append((labels, probability, names))
        twice.append(tuple(np.repeat(x, 2) for x in (labels, probability, names)))
    one, two = (external_validation(*cohorts, bootstrap=30) for cohorts in (once, twice))
    keys = ("AUC", "BRIER", "slope", "intercept", "ICI")
    for part in ("development", "external", "difference"):
        for key in keys:
            assert two[part][key] == pytest.approx(one[part][key], abs=1e-6), (part, key)
    for method, found in one["recalibration"]["methods"].items():
        for key, values in found.items():
            assert two["recalibration"]["methods"][method][key] == pytest.approx(values, abs=1e-6), (method, key)


def test_halves_keep_patients_whole_and_share_out_positives():
    labels = np.repeat([0, 1, 0, 1, 0, 1, 0, 0], 3)
    groups = np.repeat(list("abcdefgh"), 3)
    first = halves(labels, groups, 5)
    assert all(len(set(first[groups == g])) == 1 for g in "abcdefgh") and first.sum() == 12
    assert labels[first].sum() in (3, 6) and not np.array_equal(first, halves(labels, groups, 6))


def test_one_class_is_refused_and_a_half_of_one_class_has_no_recalibration():
    near = _cohort(40, 0)
    with pytest.raises(DataError, match="external has 3 rows of one"):
        external_validation((*near, None), ([1, 1, 1], [0.2, 0.3, 0.4], None), bootstrap=5)
    assert external_validation((*near, None), ([0, 0, 1], [0.2, 0.3, 0.4], None), bootstrap=5)["recalibration"] is None
