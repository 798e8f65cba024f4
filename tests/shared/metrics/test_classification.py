import json
import time

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from shared.errors import DataError
from shared.metrics import classification_metrics, paired_difference
from shared.metrics.classification import drawn_weights, weighted_metrics
from tests.references.ircl_explain import auc_by_pairs

NAMES = ("ACC", "AUC", "F1", "PRE", "REC", "wF1", "wPRE", "wREC", "BACC", "BRIER")


def _case(count=64, seed=0, ties=False):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    probability = np.clip(0.5 + 0.2 * (labels - 0.5) + 0.25 * random.standard_normal(count), 0, 1)
    return labels, probability.round(1) if ties else probability


def _scikit_learn(labels, probability, threshold=0.5, prevalence=None):
    called = probability >= threshold
    prevalence = labels.mean() if prevalence is None else prevalence
    weighted = {"average": "weighted", "zero_division": 0}
    return {
        "ACC": sk.accuracy_score(labels, called),
        "AUC": sk.roc_auc_score(labels, probability),
        "F1": sk.f1_score(labels, called),
        "PRE": sk.precision_score(labels, called),
        "REC": sk.recall_score(labels, called),
        "wF1": sk.f1_score(labels, called, **weighted),
        "wPRE": sk.precision_score(labels, called, **weighted),
        "wREC": sk.recall_score(labels, called, **weighted),
        "BACC": sk.balanced_accuracy_score(labels, probability >= prevalence),
        "BRIER": sk.brier_score_loss(labels, probability),
    }


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_values_against_scikit_learn(ties, threshold):
    labels, probability = _case(ties=ties)
    found = classification_metrics(labels, torch.from_numpy(probability), threshold=threshold, bootstrap=10)
    for name, value in _scikit_learn(labels, probability, threshold).items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-12), name
    assert found["AUC"]["value"] == pytest.approx(auc_by_pairs(labels.tolist(), probability.tolist()), abs=1e-12)
    assert found["n"] == 64 and found["positives"] == labels.sum()


def test_intervals_against_a_loop_over_the_same_draws():
    labels, probability = _case(24, ties=True)
    found = classification_metrics(labels, probability, bootstrap=80, seed=5)
    picks = np.random.default_rng(5).integers(0, 24, (80, 24))
    assert all(0 < labels[pick].sum() < 24 for pick in picks)  # no draw had to be repeated
    drawn = [_scikit_learn(labels[pick], probability[pick], prevalence=labels.mean()) for pick in picks]
    for name in NAMES:
        low, high = np.percentile([draw[name] for draw in drawn], [2.5, 97.5])
        assert (found[name]["low"], found[name]["high"]) == pytest.approx((low, high), abs=1e-12), name


def test_draws_with_one_class_are_drawn_again():
    labels, probability = [1, 0, 0, 0], [0.9, 0.1, 0.2, 0.95]
    found = classification_metrics(labels, probability, bootstrap=500)
    # every kept draw holds the positive, so recall is 1 in all of them rather than undefined in a third
    assert found["REC"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["AUC"]["low"] == 0.0 and found["AUC"]["high"] == 1.0
    # with one patient of each class every kept draw is the cohort itself
    assert classification_metrics([0, 1], [0.9, 0.9])["ACC"] == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        labels = random.integers(0, 2, 80)
        called = np.where(random.random(80) < 0.7, labels, 1 - labels) * 1.0
        accuracy = classification_metrics(labels, called, bootstrap=300, seed=trial)["ACC"]
        hits += accuracy["low"] <= 0.7 <= accuracy["high"]
    assert 0.89 <= hits / 200 <= 0.99


def test_seed_and_permutation():
    labels, probability = _case()
    assert classification_metrics(labels, probability, seed=1) == classification_metrics(labels, probability, seed=1)
    assert classification_metrics(labels, probability, seed=1) != classification_metrics(labels, probability, seed=2)
    order = np.random.default_rng(0).permutation(64)
    one, other = (classification_metrics(labels[i], probability[i], bootstrap=0) for i in (order, np.arange(64)))
    for name in NAMES:
        assert one[name]["value"] == pytest.approx(other[name]["value"], abs=1e-12)


def test_grouped_rows_are_drawn_together():
    labels, probability = _case(30)
    single = classification_metrics(labels, probability)["AUC"]
    order = np.random.default_rng(0).permutation(150)
    five = [np.tile(x, 5)[order] for x in (labels, probability, [f"P{i:02d}" for i in range(30)])]
    grouped = classification_metrics(five[0], five[1], groups=five[2])["AUC"]
    # five copies of every patient carry no more information than one
    assert (grouped["low"], grouped["high"]) == pytest.approx((single["low"], single["high"]), abs=1e-12)
    naive = classification_metrics(five[0], five[1])["AUC"]
    assert naive["high"] - naive["low"] < 0.6 * (single["high"] - single["low"])


def test_what_is_not_defined_is_none_and_json_holds_it():
    one_class = classification_metrics([1, 1, 1], [0.2, 0.7, 0.9], bootstrap=20)
    assert one_class["AUC"] == {"value": None, "low": None, "high": None}
    assert one_class["REC"]["value"] == pytest.approx(2 / 3)
    nothing_called = classification_metrics([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], bootstrap=20)
    assert nothing_called["PRE"] == {"value": None, "low": None, "high": None}
    assert nothing_called["F1"]["value"] == 0.0 and nothing_called["AUC"]["value"] == 0.75
    single = classification_metrics([0], [0.1], bootstrap=5)
    assert single["ACC"]["value"] == 1.0 and single["AUC"]["value"] is None
    json.dumps([one_class, nothing_called, single], allow_nan=False)


@pytest.mark.parametrize("called", [[0, 1, 0, 1, 1, 0, 0, 0], [0] * 8, [1] * 8])
def test_weighted_metrics_are_those_of_both_classes(called):
    labels, called = np.array([1, 1, 0, 0, 0, 0, 0, 0]), np.array(called)
    found = classification_metrics(labels, called * 1.0, bootstrap=0)
    for name, score in (("wF1", sk.f1_score), ("wPRE", sk.precision_score), ("wREC", sk.recall_score)):
        expected = score(labels, called, average="weighted", zero_division=0)
        assert found[name]["value"] == pytest.approx(expected, abs=1e-12), name
    # what the IRCL paper's tables show
    assert found["wREC"] == found["ACC"] != found["REC"]


def test_a_calibrated_probability_is_balanced_at_the_share_of_positives():
    labels = np.array([0] * 8 + [1] * 2)
    probability = np.array([0.05] * 6 + [0.3] * 2 + [0.25, 0.45])  # nobody is likelier positive than not
    found = classification_metrics(labels, probability, bootstrap=0)
    assert found["BACC"]["value"] == pytest.approx((6 / 8 + 1) / 2)
    assert found["REC"]["value"] == 0 and found["ACC"]["value"] == pytest.approx(0.8)


def test_another_positive_label():
    labels, probability = _case()
    names = np.where(labels == 1, 7, 3)
    assert classification_metrics(names, probability, positive=7) == classification_metrics(labels, probability)


def test_paired_difference():
    labels, good = _case(200)
    poor = np.random.default_rng(1).random(200)
    same = {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "undefined": 0}
    assert paired_difference(labels, good, good) == same
    found = paired_difference(labels, good, poor)
    expected = sk.roc_auc_score(labels, good) - sk.roc_auc_score(labels, poor)
    assert found["value"] == pytest.approx(expected, abs=1e-12)
    assert found["low"] < expected < found["high"] and found["p"] < 0.05
    swapped = paired_difference(labels, poor, good)
    assert (swapped["value"], swapped["low"], swapped["high"]) == pytest.approx(
        (-found["value"], -found["high"], -found["low"]), abs=1e-12
    )
    # nearly the same prediction: paired, the interval is far narrower than either method's own
    near = np.clip(good + 0.01 * np.random.default_rng(2).standard_normal(200), 0, 1)
    paired, own = paired_difference(labels, good, near), classification_metrics(labels, good)["AUC"]
    assert paired["high"] - paired["low"] < 0.3 * (own["high"] - own["low"])
    assert paired_difference(labels, good, poor, "ACC")["value"] == pytest.approx(
        np.mean((good >= 0.5) == labels) - np.mean((poor >= 0.5) == labels), abs=1e-12
    )


def test_a_paired_difference_is_of_the_draws_in_which_both_exist():
    labels = np.array([1, 0, 1, 0, 1, 0])
    one, other = np.array([0.9, 0.1, 0.1, 0.1, 0.1, 0.1]), np.array([0.9, 0.9, 0.1, 0.1, 0.1, 0.1])
    found = paired_difference(labels, one, other, "PRE", bootstrap=400, seed=3)
    random, differences, undefined = np.random.default_rng(3), [], 0
    todo = random.integers(0, 6, (400, 6))
    while len(todo):  # draws with one class are drawn again
        both = np.array([0 < labels[pick].sum() < 6 for pick in todo])
        for pick in todo[both]:
            called = [(x[pick] >= 0.5) for x in (one, other)]
            if all(c.any() for c in called):
                differences.append(np.subtract(*(labels[pick][c].mean() for c in called)))
            else:
                undefined += 1
        todo = random.integers(0, 6, (int((~both).sum()), 6))
    assert found["undefined"] == undefined > 100 and len(differences) + undefined == 400
    differences = np.array(differences)
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])), abs=1e-12)
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    assert found["p"] == pytest.approx(min(1, 2 * (1 + rarer) / (len(differences) + 1)), abs=1e-12)
    nothing = paired_difference(labels, np.zeros(6), other, "PRE", bootstrap=20)
    assert nothing == {"value": None, "low": None, "high": None, "p": None, "undefined": 20}


def test_two_thousand_draws_of_64_patients_take_a_moment():
    labels, probability = _case()
    classification_metrics(labels, probability, bootstrap=10)
    start = time.process_time()
    classification_metrics(labels, probability, bootstrap=2000)
    assert time.process_time() - start < 0.3


def test_errors_say_what_arrived():
    with pytest.raises(DataError, match=r"got shapes \(3,\) and \(2,\)"):
        classification_metrics([0, 1, 1], [0.1, 0.2])
    with pytest.raises(DataError, match=r"at least one patient; got shapes \(0,\)"):
        classification_metrics([], [])
    with pytest.raises(DataError, match=r"two classes, one of them 1; got \[0, 1, 2\]"):
        classification_metrics([0, 1, 2], [0.1, 0.2, 0.3])
    with pytest.raises(DataError, match=r"1 of 2 do not, the first at row 1 \(nan\)"):
        classification_metrics([0, 1], [0.1, float("nan")])
    with pytest.raises(DataError, match=r"one of ACC, AUC.*got 'R2'"):
        paired_difference([0, 1], [0.1, 0.2], [0.1, 0.2], "R2")
    with pytest.raises(DataError, match="One group per row is needed, got 1 for 2"):
        classification_metrics([0, 1], [0.1, 0.2], groups=["a"])


def test_p_is_two_sided_and_counts_the_measured_difference():
    """Always right against always wrong: no drawn difference lies on the other side, p = 2 (1 + 0) / (B + 1)."""
    labels = np.array([0, 1] * 6)
    right = np.where(labels, 0.9, 0.1)
    for first, other in ((right, 1 - right), (1 - right, right)):
        for bootstrap in (99, 399):
            found = paired_difference(labels, first, other, bootstrap=bootstrap)
            assert found["p"] == pytest.approx(2 / (bootstrap + 1))
    assert paired_difference(labels, right, right, bootstrap=99)["p"] == 1
    # of as many drawn differences on the other side as there are
    noise = np.random.default_rng(3).uniform(0, 0.6, 12)
    better = np.clip(right * 0.4 + noise, 0, 1)
    found = paired_difference(labels, right, better, "ACC", bootstrap=499)
    drawn = [
        (np.average((right >= 0.5) == labels, weights=w) - np.average((better >= 0.5) == labels, weights=w))
        for block in drawn_weights(labels == 1, None, 499, 0)
        for w in block
    ]
    sides = min(sum(d <= 1e-12 for d in drawn), sum(d >= -1e-12 for d in drawn))
    assert found["p"] == pytest.approx(min(1, 2 * (1 + sides) / 500)) and 0 < sides < 499


# --- calibration --------------------------------------------------------------------------------------------------


def _naive_error(labels, probability, weights):
    found = 0.0
    for tenth in range(10):
        upper = 1.01 if tenth == 9 else (tenth + 1) / 10
        rows = (probability >= tenth / 10) & (probability < upper)
        count = weights[rows].sum()
        if count:
            share = (weights * labels)[rows].sum() / count
            found += count / weights.sum() * abs(share - (weights * probability)[rows].sum() / count)
    return found


def _naive_slope(labels, probability, weights):
    odds = np.log(probability / (1 - probability))[:, None]
    fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(odds, labels, sample_weight=weights)
    return fit.coef_[0, 0]


def test_calibration_of_weighted_rows_is_that_of_a_loop_and_of_scikit_learn():
    random = np.random.default_rng(3)
    labels, probability = _case(120, seed=3)
    both = np.stack([probability, probability**2]).clip(0.02, 0.98)
    weights = random.integers(0, 4, (5, 120)).astype(float)
    found = weighted_metrics(labels == 1, both, weights, 0.5, ("ECE", "SLOPE"))
    for row, one in enumerate(both):
        for draw, weight in enumerate(weights):
            assert found["ECE"][row, draw] == pytest.approx(_naive_error(labels, one, weight), abs=1e-12)
            assert found["SLOPE"][row, draw] == pytest.approx(_naive_slope(labels, one, weight), rel=1e-4)


def test_the_slope_says_which_way_probabilities_err():
    random = np.random.default_rng(0)
    odds = random.normal(0, 2, 20000)
    truth = random.random(20000) < 1 / (1 + np.exp(-odds))
    bolder = np.stack([1 / (1 + np.exp(-scale * odds)) for scale in (1.0, 2.0, 0.5)])
    found = weighted_metrics(truth, bolder, np.ones((1, 20000)), 0.5, ("ECE", "SLOPE"))
    np.testing.assert_allclose(found["SLOPE"][:, 0], [1.0, 0.5, 2.0], rtol=0.05)
    assert found["ECE"][0, 0] < 0.01 and (found["ECE"][1:, 0] > 0.04).all()


def test_classes_that_are_apart_have_no_slope_and_ends_are_counted():
    truth, probability = np.array([False, False, True, True]), np.array([[0.0, 0.1, 0.9, 1.0]])
    found = weighted_metrics(truth, probability, np.ones((1, 4)), 0.5, ("ECE", "SLOPE"))
    assert np.isnan(found["SLOPE"]).all() and found["ECE"].item() == pytest.approx(0.05)
    difference = paired_difference(truth.astype(int), probability[0], probability[0], "SLOPE", bootstrap=20)
    assert difference["value"] is None and difference["undefined"] == 20
