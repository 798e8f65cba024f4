import json

import numpy as np
import pytest

from shared.errors import DataError
from shared.metrics import calibration_report, classification_metrics
from shared.metrics.calibration import calibration_draws, recalibrated
from tests.references.validation import LABELS, MODEL, calibration_intercept, calibration_slope, local_line

# statsmodels 0.15.0: GLM(binomial) with [1, logit(MODEL)]; with offset logit(MODEL); lowess(frac=0.75, it=0, delta=0)
SLOPE, INTERCEPT = 0.82272683, 0.16580681
LOWESS = [
    *(0.088882799402, 0.106802015203, 0.133841062556, 0.152118814659, 0.170710798923, 0.18951547596, 0.227166989436),
    *(0.272649337519, 0.306369430398, 0.322310092654, 0.389878731003, 0.406539973034, 0.448671967603, 0.473458124821),
    *(0.545732372571, 0.60158432086, 0.698453605687, 0.729923283235, 0.826119010877, 0.951256126129),
]


def _case(count=60, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    return labels, 1 / (1 + np.exp(-(1.2 * labels - 0.8 + 0.9 * random.standard_normal(count))))


def test_intercept_slope_and_curve_are_those_of_statsmodels():
    found = calibration_report(LABELS, MODEL, bootstrap=0)
    assert found["slope"]["value"] == pytest.approx(SLOPE, abs=1e-8)
    assert found["intercept"]["value"] == pytest.approx(INTERCEPT, abs=1e-8)
    assert found["curve"]["probability"] == sorted(MODEL)
    assert found["curve"]["observed"] == pytest.approx(LOWESS, abs=1e-6)
    assert found["ICI"]["value"] == pytest.approx(np.abs(np.array(LOWESS) - np.sort(MODEL)).mean(), abs=1e-6)
    assert found["observed_expected"]["value"] == pytest.approx(8 / MODEL.sum())
    assert found["undefined"] == {} and found["slope"]["low"] is None


def test_many_rows_are_smoothed_at_fifty_places():
    labels, probability = _case(90)
    curve = calibration_report(labels, probability, bootstrap=0)["curve"]
    assert len(curve["probability"]) == 50
    expected = [local_line(labels, probability, place) for place in curve["probability"]]
    assert curve["observed"] == pytest.approx(np.clip(expected, 0, 1), abs=1e-9)


def test_intervals_against_a_loop_over_the_same_draws():
    labels, probability = _case(40, seed=3)
    found = calibration_report(labels, probability, bootstrap=25, seed=2)
    picks = np.random.default_rng(2).integers(0, 40, (25, 40))
    assert all(0 < labels[pick].sum() < 40 for pick in picks)  # no draw had to be repeated
    drawn = {"intercept": calibration_intercept, "slope": calibration_slope}
    drawn |= {"observed_expected": lambda y, p: y.sum() / p.sum()}
    for name, function in drawn.items():
        samples = [function(labels[pick], probability[pick]) for pick in picks]
        ends = np.percentile(samples, [2.5, 97.5])
        assert (found[name]["low"], found[name]["high"]) == pytest.approx(tuple(ends), abs=2e-6), name
    at = found["curve"]
    assert all(low <= high for low, high in zip(at["low"], at["high"], strict=True))
    assert 0 < found["ICI"]["low"] < found["ICI"]["high"]


def test_drawn_curves_and_icis_are_those_of_weighted_rows():
    """A row drawn twice is a row of weight two at the bandwidth of all rows."""
    from shared.metrics.calibration import _Prediction

    labels, probability = _case(30, seed=1)
    each = _Prediction(labels == 1, probability)
    weights = np.random.default_rng(0).integers(0, 3, (1, 30)).astype(float)
    found = each.curve(weights)[0]
    for place, value in zip(each.grid, found, strict=True):
        reach = np.sort(np.abs(probability - place))[int(0.75 * 30) - 1]
        kernel = np.clip(1 - (np.abs(probability - place) / reach) ** 3, 0, None) ** 3 * weights[0]
        line = np.polynomial.polynomial.polyfit(probability - place, labels, 1, w=np.sqrt(kernel))
        assert value == pytest.approx(np.clip(line[0], 0, 1), abs=1e-8)


def test_a_known_miscalibration_is_found_and_mended():
    random = np.random.default_rng(0)
    odds = random.normal(0, 1.5, 20_000)
    labels = (random.random(20_000) < 1 / (1 + np.exp(-odds))).astype(int)
    good = calibration_report(labels, 1 / (1 + np.exp(-odds)), bootstrap=0)
    assert good["slope"]["value"] == pytest.approx(1, abs=0.05) and good["ICI"]["value"] < 0.02
    wrong = 1 / (1 + np.exp(-(2 * odds + 1)))
    found = calibration_report(labels, wrong, bootstrap=0)
    assert found["slope"]["value"] == pytest.approx(0.5, abs=0.03) and found["intercept"]["value"] < -0.5
    assert found["ICI"]["value"] > 0.1 and found["observed_expected"]["value"] < 0.9
    mended = calibration_report(labels, recalibrated(labels, wrong, wrong), bootstrap=0)
    assert mended["slope"]["value"] == pytest.approx(1, abs=1e-6)
    assert mended["observed_expected"]["value"] == pytest.approx(1, abs=1e-6)
    shifted = calibration_report(labels, recalibrated(labels, wrong, wrong, slope=False), bootstrap=0)
    assert shifted["intercept"]["value"] == pytest.approx(0, abs=1e-6) and shifted["slope"]["value"] < 0.6


def test_patches_of_a_patient_are_drawn_together():
    labels, probability = _case(30)
    order = np.random.default_rng(0).permutation(150)
    five = [np.tile(x, 5)[order] for x in (labels, probability, [f"P{i:02d}" for i in range(30)])]
    one = calibration_report(labels, probability, bootstrap=200)
    grouped = calibration_report(five[0], five[1], groups=five[2], bootstrap=200)
    for name in ("intercept", "slope", "observed_expected"):
        assert list(grouped[name].values()) == pytest.approx(list(one[name].values()), abs=1e-7), name
    naive = calibration_report(five[0], five[1], bootstrap=200)["slope"]
    assert naive["high"] - naive["low"] < 0.7 * (one["slope"]["high"] - one["slope"]["low"])


def test_the_ici_of_a_draw_is_a_mean_over_its_rows_however_many_they_are():
    labels, probability = np.tile([0, 1, 1], 5), np.full(15, 0.25)
    groups = np.repeat(list("abcd"), (1, 2, 4, 8))
    drawn = calibration_draws(labels == 1, probability[None], np.array([0.25]), groups=groups, bootstrap=30, seed=0)[1]
    # of one probability for all, the smoothed curve is the share of positives
    expected = 0.25 * np.abs(drawn["observed_expected"] - 1)
    assert drawn["ICI"] == pytest.approx(expected) and len(set(expected.round(6))) > 3


def test_of_several_seeds_all_is_the_mean():
    labels, first = _case(40)
    other = np.clip(first + 0.1, 0, 0.99)
    both = calibration_report(labels, [first, other], bootstrap=20)
    alone = [calibration_report(labels, one, bootstrap=20) for one in (first, other)]
    for name in ("intercept", "slope", "observed_expected", "ICI"):
        assert both[name]["value"] == pytest.approx(np.mean([one[name]["value"] for one in alone])), name
    twice = calibration_report(labels, [first, first], bootstrap=20)
    assert twice["curve"]["observed"] == pytest.approx(alone[0]["curve"]["observed"])


def test_what_is_not_defined_has_a_reason_and_is_never_nan():
    separated = calibration_report([0, 0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4, 0.9], bootstrap=50)
    assert separated["slope"] == {"value": None, "low": None, "high": None}
    assert "separates the classes" in separated["undefined"]["slope"] and separated["intercept"]["value"] is not None
    reverse = calibration_report([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4], bootstrap=50)
    assert reverse["slope"]["value"] is None
    constant = calibration_report([0, 1, 1, 1], [0.5] * 4, bootstrap=50)
    assert constant["undefined"] == {"slope": "the probabilities are constant"}
    assert constant["ICI"]["value"] == pytest.approx(0.25) and constant["intercept"]["value"] == pytest.approx(
        np.log(3)
    )
    one_class = calibration_report([1, 1, 1], [0.2, 0.7, 0.9], bootstrap=20)
    assert one_class["undefined"] == dict.fromkeys(("intercept", "slope"), "all rows are of one class")
    assert one_class["observed_expected"]["value"] == pytest.approx(3 / 1.8)
    nothing = calibration_report([0, 1], [0.0, 0.0], bootstrap=20)
    assert nothing["undefined"]["observed_expected"].startswith("no positive is expected")
    certain = calibration_report([0, 1, 0, 1, 1, 0], [0.0, 1.0, 1.0, 1.0, 0.0, 0.0], bootstrap=20)
    assert certain["slope"]["value"] == pytest.approx(np.log(2) / np.log(1e6 - 1), rel=1e-3)
    single = calibration_report([1], [0.3], bootstrap=5)
    json.dumps([separated, reverse, constant, one_class, nothing, certain, single], allow_nan=False)


def test_a_slope_whose_draws_are_separated_has_no_upper_end():
    labels, probability = [0, 0, 0, 0, 1, 1, 1, 1], [0.1, 0.15, 0.2, 0.6, 0.5, 0.7, 0.8, 0.9]
    slope = calibration_report(labels, probability, bootstrap=400)["slope"]
    assert slope["value"] > 0 and slope["low"] is not None and slope["high"] is None


def test_a_recalibration_that_does_not_exist_is_none():
    assert recalibrated([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], [0.5]) is None
    assert recalibrated([1, 1], [0.1, 0.2], [0.5], slope=False) is None
    assert recalibrated([0, 1], [0.3, 0.3], [0.5]) is None


def test_errors_are_those_of_the_other_metrics():
    for function in (calibration_report, classification_metrics):
        with pytest.raises(DataError, match=r"got shapes \(3,\) and \(2,\)"):
            function([0, 1, 1], [0.1, 0.2])
    with pytest.raises(DataError, match="One group per row"):
        calibration_report([0, 1], [0.1, 0.2], groups=["a"])
