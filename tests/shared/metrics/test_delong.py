import math

import numpy as np
import pytest
from scipy.stats import norm

from shared.errors import DataError
from shared.metrics import classification_metrics, delong_interval, delong_test, paired_difference
from tests.references.validation import auc_covariance


def _case(count=40, seed=0, ties=False):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    both = [np.clip(0.5 + s * (labels - 0.5) + 0.25 * random.standard_normal(count), 0, 1) for s in (0.3, 0.15)]
    return labels, *([p.round(1) for p in both] if ties else both)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("patches", [1, 4])
def test_against_the_definition_in_loops(ties, patches):
    labels, one, other = _case(ties=ties)
    patients = (np.arange(40) // patches).tolist()
    aucs, covariance = auc_covariance(labels, [one, other], patients)
    groups = None if patches == 1 else patients
    found = delong_interval(labels, one, groups=groups)
    assert found["value"] == pytest.approx(aucs[0]) and found["se"] == pytest.approx(math.sqrt(covariance[0, 0]))
    odds, half = math.log(aucs[0] / (1 - aucs[0])), norm.ppf(0.975) * found["se"] / (aucs[0] * (1 - aucs[0]))
    assert found["low"] == pytest.approx(1 / (1 + math.exp(half - odds)))
    assert found["high"] == pytest.approx(1 / (1 + math.exp(-half - odds)))
    test = delong_test(labels, one, other, groups=groups)
    se = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert test["value"] == pytest.approx(aucs[0] - aucs[1]) and test["se"] == pytest.approx(se)
    assert test["p"] == pytest.approx(2 * norm.sf(abs(aucs[0] - aucs[1]) / se))
    assert (test["low"], test["high"]) == pytest.approx(tuple(test["value"] + norm.ppf([0.025, 0.975]) * se))


def test_closed_form_of_six_patients():
    """Placements 2/3, 1, 1 and 1, 1, 2/3: both variances 1/27, so se = sqrt(2 / 81)."""
    found = delong_interval([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.5, 0.4, 0.8, 0.9])
    assert found["value"] == pytest.approx(8 / 9) and found["se"] == pytest.approx(math.sqrt(2 / 81))


def test_a_classifier_of_two_answers_has_the_variance_of_its_shares():
    """AUC = (sensitivity + specificity) / 2, so its variance is that of two shares, with n - 1 in the denominators."""
    labels, called = np.repeat([1, 1, 0, 0], [30, 10, 45, 15]), np.repeat([1.0, 0.0, 0.0, 1.0], [30, 10, 45, 15])
    expected = (0.75 * 0.25 / 39 + 0.75 * 0.25 / 59) / 4
    assert delong_interval(labels, called)["se"] == pytest.approx(math.sqrt(expected))


def test_it_agrees_with_the_bootstrap_where_there_are_many_patients():
    labels, one, other = _case(400)
    found, drawn = delong_interval(labels, one), classification_metrics(labels, one)["AUC"]
    assert (found["low"], found["high"]) == pytest.approx((drawn["low"], drawn["high"]), abs=0.01)
    test, paired = delong_test(labels, one, other), paired_difference(labels, one, other)
    assert (test["low"], test["high"]) == pytest.approx((paired["low"], paired["high"]), abs=0.01)
    groups = np.arange(400) // 8
    found = delong_interval(labels, one, groups=groups)
    drawn = classification_metrics(labels, one, groups=groups)["AUC"]
    assert (found["low"], found["high"]) == pytest.approx((drawn["low"], drawn["high"]), abs=0.015)


def test_copies_of_a_patient_are_no_patients():
    labels, one, _ = _case(30)
    copies = [np.tile(x, 5) for x in (labels, one, np.arange(30))]
    assert delong_interval(copies[0], copies[1], groups=copies[2])["se"] == pytest.approx(
        delong_interval(labels, one)["se"], rel=1e-9
    )
    assert delong_interval(copies[0], copies[1])["se"] < 0.5 * delong_interval(labels, one)["se"]


def test_of_several_seeds_the_auc_is_the_mean_over_them():
    labels, one, other = _case()
    found = delong_interval(labels, [one, other])
    aucs, covariance = auc_covariance(labels, [one, other], list(range(40)))
    assert found["value"] == pytest.approx(np.mean(aucs)) and found["se"] == pytest.approx(math.sqrt(covariance.mean()))


def test_what_is_not_defined():
    perfect = delong_interval([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    assert perfect["value"] == 1 and perfect["low"] is None and "variance is 0" in perfect["undefined"]
    assert delong_interval([1, 1], [0.1, 0.2])["undefined"] == "all rows are of one class"
    alone = delong_interval([0, 0, 1], [0.1, 0.4, 0.3])
    assert alone["value"] == 0.5 and alone["se"] is None and alone["undefined"] == "a class has one patient only"
    labels, one, _ = _case()
    assert delong_test(labels, one, one) == {"value": 0, "low": 0, "high": 0, "se": 0, "p": 1}
    assert delong_test([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], [0.9, 0.8, 0.2, 0.1])["p"] is None
    with pytest.raises(DataError, match="both classes, got 2 rows of one"):
        delong_test([1, 1], [0.1, 0.2], [0.1, 0.2])
    with pytest.raises(DataError, match="One group per row is needed, got 1 for 2"):
        delong_interval([0, 1], [0.1, 0.2], groups=["a"])
