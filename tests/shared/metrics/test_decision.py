import numpy as np
import pytest

from shared.errors import DataError
from shared.metrics import classification_metrics, decision_curve
from tests.references.validation import CONTROL, LABELS, MODEL

THRESHOLDS = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
# dcurves 1.1.7: dca(data=DataFrame of y, model, control, outcome="y", modelnames=[...], thresholds=THRESHOLDS)
DCURVES = {
    "model": [0.373684210526, 0.3, 0.275, 0.214285714286, 0.15, 0.1, 0.125, 0.033333333333, 0.1, 0.05],
    "control": [0.368421052632, 0.333333333333, 0.275, 0.128571428571, 0.033333333333, 0.05, 0.1, 0.0, 0.0, 0.0],
    "all": [0.368421052632, 0.333333333333, 0.25, 0.142857142857, 0.0, -0.2, -0.5, -1.0, -2.0, -5.0],
}


def test_net_benefits_are_those_of_dcurves():
    found = decision_curve(LABELS, MODEL, controls={"age": CONTROL}, thresholds=THRESHOLDS, bootstrap=0)
    assert found["model"] == pytest.approx(DCURVES["model"], abs=1e-11)
    assert found["controls"]["age"] == pytest.approx(DCURVES["control"], abs=1e-11)
    assert found["all"] == pytest.approx(DCURVES["all"], abs=1e-11)
    assert found["low"] == [None] * 10 and found["threshold"] == THRESHOLDS


def test_a_probability_at_the_threshold_is_acted_on_as_in_dcurves():
    at = np.where(np.arange(20) == 0, 0.3, MODEL)
    # dcurves 1.1.7, the same call: 0.192857 where the first negative has a probability of 0.3
    found = decision_curve(LABELS, at, thresholds=[0.3], bootstrap=0)["model"]
    assert found == pytest.approx([0.192857142857], abs=1e-9)


def test_intervals_against_a_loop_over_the_same_drawn_patients():
    groups = np.repeat(np.arange(10), 2)
    found = decision_curve(LABELS, MODEL, thresholds=[0.25], groups=groups, bootstrap=60, seed=4)
    drawn = []
    for pick in np.random.default_rng(4).integers(0, 10, (60, 10)):
        inside = np.concatenate([np.flatnonzero(groups == name) for name in pick])
        y, called = LABELS[inside], MODEL[inside] >= 0.25
        assert 0 < y.sum() < len(y)  # no draw had to be repeated
        drawn.append(np.mean(called & (y == 1)) - np.mean(called & (y == 0)) * 0.25 / 0.75)
    assert (found["low"][0], found["high"][0]) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), abs=1e-12)


def test_who_calls_all_positives_has_the_net_benefit_1_however_many_rows_are_drawn():
    found = decision_curve(np.ones(9), np.ones(9), thresholds=[0.2, 0.7], groups=list("abbcccddd"), bootstrap=20)
    assert [found[key] for key in ("model", "low", "high", "all")] == [pytest.approx([1.0, 1.0])] * 4


def test_at_one_half_it_is_what_the_counts_say_and_seeds_are_averaged():
    found = decision_curve(LABELS, MODEL, thresholds=[0.5], bootstrap=0)["model"][0]
    metrics = classification_metrics(LABELS, MODEL, bootstrap=0)
    hits = metrics["REC"]["value"] * 8
    assert found == pytest.approx((hits - (hits / metrics["PRE"]["value"] - hits)) / 20)
    both = decision_curve(LABELS, [MODEL, CONTROL], thresholds=THRESHOLDS, bootstrap=0)["model"]
    assert both == pytest.approx((np.array(DCURVES["model"]) + DCURVES["control"]) / 2, abs=1e-11)


def test_thresholds_outside_the_open_interval_are_refused():
    with pytest.raises(DataError, match=r"between 0 and 1, got \[0.5, 1.0\]"):
        decision_curve([0, 1], [0.1, 0.9], thresholds=[0.5, 1.0])
    with pytest.raises(DataError, match=r"got shapes \(2,\) and \(3,\)"):
        decision_curve([0, 1], [0.1, 0.9], controls={"age": [0.1, 0.2, 0.3]})
