import numpy as np
import pytest

from shared.errors import DataError
from shared.metrics import holm_adjusted, supported_parameters, validation_sample_size


def test_the_mechanical_heart_valves_of_riley_2021():
    """Prevalence 0.018, AUC 0.8, log odds N(-5, 2.5): 905, 4544, 4252 patients (the package pmvalsampsize's example).

    The package widens the standard error in steps of 0.0001 and draws a million log odds; here both are exact, to
    within the sample of log odds: quantiles.
    """
    from scipy.stats import norm

    odds = norm.ppf((np.arange(200_000) + 0.5) / 200_000, -5, 2.5)
    found = validation_sample_size(odds, 0.8, prevalence=0.018, ratio_width=1, slope_width=0.2)
    assert found["observed_expected"] == pytest.approx(905, abs=1)
    assert found["slope"] == pytest.approx(4544, rel=0.01)
    assert found["AUC"] == pytest.approx(4252, abs=1)


def test_the_slope_s_size_gives_the_interval_it_promises():
    random = np.random.default_rng(0)
    size = validation_sample_size(random.normal(0.3, 1.2, 50_000), 0.78, slope_width=0.8)["slope"]
    slopes = []
    for _ in range(300):
        x = random.normal(0.3, 1.2, size)
        y = random.random(size) < 1 / (1 + np.exp(-x))
        line = np.zeros(2)
        for _ in range(8):
            p = 1 / (1 + np.exp(-(line[0] + line[1] * x)))
            design = np.stack([np.ones(size), x])
            line += np.linalg.solve((design * (p * (1 - p))) @ design.T, design @ (y - p))
        slopes.append(line[1])
    assert 2 * 1.96 * np.std(slopes) == pytest.approx(0.8, rel=0.12)


def test_parameters_are_the_inverse_of_the_shrinkage_criterion():
    random = np.random.default_rng(0)
    odds = random.normal(0, 1.5, 623)
    labels = (random.random(623) < 1 / (1 + np.exp(-odds))).astype(int)
    found = supported_parameters(labels, 1 / (1 + np.exp(-odds)))

    def patients(parameters, r_squared):
        return np.ceil(parameters / ((0.9 - 1) * np.log(1 - r_squared / 0.9)))

    # test cases of the package pmsampsize: parameters, R2, patients
    for parameters, r_squared, wanted in ((24, 0.288, 623), (24, 0.55, 255), (36, 0.288, 934)):
        assert patients(parameters, r_squared) == wanted
    again, more = (patients(found["parameters"] + extra, found["r_squared"]) for extra in (0, 1))
    assert again <= 623 < more
    worse = supported_parameters([0, 1, 0, 1], [0.9, 0.1, 0.9, 0.1])
    assert worse["r_squared"] < 0 and worse["parameters"] is None
    assert supported_parameters([1, 1], [0.2, 0.3]) == {"r_squared": None, "parameters": None}


def test_what_has_no_size_and_what_is_refused():
    assert validation_sample_size([0.3, 0.3], 0.7)["slope"] is None
    assert validation_sample_size([0.1, 0.3], 1.0)["AUC"] is None
    with pytest.raises(DataError, match="0 log odds"):
        validation_sample_size([], 0.7)


def test_holm_against_statsmodels():
    # statsmodels 0.15.0: multipletests([0.01, 0.04, 0.03, 0.005], method="holm")[1]
    assert holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjusted([0.9, 0.8]) == [1.0, 1.0] and holm_adjusted([None, 0.02]) == [None, 0.02]
    assert holm_adjusted([]) == [] and holm_adjusted([0.0, 0.5]) == [0.0, 0.5]
