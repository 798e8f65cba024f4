"""Sets of classes: the formula, crepes, coverage of simulated patients."""

import numpy as np
import pytest
from scipy.stats import binom

from shared.errors import DataError
from shared.metrics.conformal import class_p_values, class_scores, conformal_sets, set_report
from tests.references.abstention import p_value


def drawn(random, patients, rows=1, spread=1.0):
    """Labels, probabilities and patients: rows of a patient are alike, probabilities of the classes overlap."""
    label = random.integers(0, 2, patients)
    own = random.normal(size=patients) + 1.2 * (2 * label - 1)
    logit = np.repeat(own, rows) + spread * random.normal(size=patients * rows)
    return np.repeat(label, rows), 1 / (1 + np.exp(-logit)), np.repeat(np.arange(patients), rows)


@pytest.mark.parametrize("rows", [1, 4])
def test_p_values_are_those_of_the_formula(rows):
    labels, probability, patients = drawn(np.random.default_rng(0), 12, rows)
    probability = probability.round(1)  # with ties
    scores = class_scores(labels, probability, patients)
    new = np.linspace(0, 1, 21)
    found = class_p_values(new, scores)
    expected = [[p_value(labels, probability, patients, x, label) for label in (0, 1)] for x in new]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_p_values_and_sets_are_those_of_crepes():
    crepes = pytest.importorskip("crepes")
    random = np.random.default_rng(1)
    labels, probability, _ = drawn(random, 57)
    _, new, _ = drawn(random, 200)
    fitted = crepes.ConformalClassifier()
    fitted.fit(alphas=np.abs(labels - probability), bins=labels)
    expected = np.stack(
        [fitted.predict_p(np.abs(k - new)[:, None], bins=np.full(200, k), smoothing=False)[:, 0] for k in (0, 1)],
        axis=1,
    )
    scores = class_scores(labels, probability)
    np.testing.assert_allclose(class_p_values(new, scores), expected, rtol=0, atol=1e-12)
    # crepes keeps a class whose p is 1 - coverage exactly; 0.93 is no p of so few patients
    np.testing.assert_array_equal(conformal_sets(new, scores, 0.93), expected >= 1 - 0.93)


@pytest.mark.parametrize("rows", [1, 3])
def test_each_class_is_covered_as_often_as_asked_for(rows):
    random, trials, inside, seen = np.random.default_rng(2), 3000, np.zeros(2), np.zeros(2)
    for _ in range(trials):
        labels, probability, patients = drawn(random, 61, rows)
        new = patients == 60  # the last patient is new; one of its rows is asked for
        scores = class_scores(labels[~new], probability[~new], patients[~new])
        label, row = labels[new][0], probability[new][:1]
        seen[label] += 1
        inside[label] += conformal_sets(row, scores, 0.8)[0, label]
    for label in (0, 1):
        # at least the share, and at most one patient's part more
        low, high = binom.ppf(0.001, seen[label], 0.8), binom.ppf(0.999, seen[label], 0.8 + 1 / 25)
        assert low <= inside[label] <= high


def test_a_class_without_patients_is_always_plausible():
    scores = class_scores([0] * 30, np.full(30, 0.1))
    assert conformal_sets([0.05, 0.99], scores).tolist() == [[True, True], [False, True]]


def test_the_report_tells_coverage_with_intervals():
    labels, sets = [0] * 10 + [1] * 5, [[True, False]] * 9 + [[False, True]] + [[True, True]] * 5
    found = set_report(labels, sets, class_names=["HP", "SSA"])
    assert found["classes"]["HP"] == pytest.approx({"n": 10, "value": 0.9, "low": 0.5958, "high": 0.9821}, abs=1e-4)
    assert found["classes"]["SSA"]["value"] == 1 and found["classes"]["SSA"]["low"] < 0.7
    assert found["one_class"]["value"] == pytest.approx(10 / 15)
    patients = set_report(labels, sets, groups=[k // 5 for k in range(15)])
    assert patients["classes"]["negative"]["low"] < 0.9 == patients["classes"]["negative"]["value"]


@pytest.mark.parametrize("coverage", [0, 1, 90])
def test_a_coverage_is_a_share(coverage):
    with pytest.raises(DataError, match="coverage is the share"):
        conformal_sets([0.5], class_scores([0, 1], [0.2, 0.9]), coverage)
