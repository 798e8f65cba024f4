"""Exchanged channels: the discriminant, who is told of, how seldom wrongly."""

import numpy as np
import pytest
from scipy import stats

from shared.metrics.cohort_distance import Cohort, distance_limit, fit_cohort
from shared.metrics.exchanged_channels import ExchangedChannels

ORDERS = {
    (0, 1): np.array([1, 0, 2, 4, 3, 5]),
    (0, 2): np.array([2, 1, 0, 5, 4, 3]),
    (1, 2): np.array([0, 2, 1, 3, 5, 4]),
}
MEANS = np.array([0.0, 3.0, 0.0, 0.0, 3.0, 0.0])  # the second of three channels is unlike the others


def cohort(count, random, *, means=MEANS, own=0.3):
    """Two features of three channels; what the patient adds to all channels is no difference between them."""
    patient = np.repeat(random.normal(size=(count, 2)), 3, axis=1)
    return means + 5 * patient + random.normal(size=(count, 6)) + own * random.normal(size=(count, 6))


def test_the_direction_is_the_discriminant_s():
    x = cohort(4000, np.random.default_rng(0))
    exchanged = ExchangedChannels.fit(x, range(4000), ORDERS)
    order = ORDERS[0, 1]
    turned = (x - x[:, order])[:, [0, 3]]  # the other differences are these, negated, or 0
    direction = np.linalg.solve(np.cov(turned.T), turned.mean(axis=0))
    score = (x - x[:, order]) @ exchanged.parts["weights"][0]
    assert np.corrcoef(score, turned @ direction)[0, 1] > 0.999
    assert exchanged.parts["mean"][0] == pytest.approx(score.mean(), rel=0.01)
    assert exchanged.parts["sd"][0] == pytest.approx(score.std(ddof=1), rel=0.01)


def test_each_patient_is_scored_by_the_direction_of_the_others_and_counts_once():
    who = np.repeat(range(10), [1, 2, 3, 1, 2, 3, 1, 2, 3, 4])  # as many patients as folds: each is left out alone
    x = cohort(len(who), np.random.default_rng(5))
    found = ExchangedChannels.fit(x, who, ORDERS).parts
    left_out = [ExchangedChannels.fit(x[who != k], who[who != k], ORDERS).parts["weights"] for k in range(10)]
    for number, order in enumerate(ORDERS.values()):
        score = [(x[who == k] - x[who == k][:, order]) @ weights[number] for k, weights in enumerate(left_out)]
        mean = np.mean([part.mean() for part in score])
        assert found["mean"][number] == pytest.approx(mean)
        variance = np.sum([np.mean((part - mean) ** 2) for part in score]) / 9
        assert found["sd"][number] == pytest.approx(np.sqrt(variance))


@pytest.mark.parametrize(
    ("features", "told"),
    [
        ([-30.0, 0.0, -10.0], (0, 2)),  # scores -30 and -20: 7.75 and 42 SD below their means
        ([-9.0, 0.0, 0.0], (0, 2)),  # -9 is within 2.8 SD of the first
        ([-30.0, 0.0, -30.0], (0, 1)),
        ([2.0, 4.0, 1.5], None),  # 0.5 is far below the second's mean 5, and yet on the side of the given order
    ],
)
def test_the_pair_farthest_below_its_mean_is_told(features, told):
    pairs, orders = [(0, 1), (0, 2)], [[1, 0, 2], [2, 1, 0]]
    parts = {"pairs": pairs, "orders": np.array(orders), "weights": [[1.0, 0, 0]] * 2, "patients": 10**6}
    exchanged = ExchangedChannels(lambda x: np.abs(x[:, 0] - 1.0), parts | {"mean": [1.0, 5.0], "sd": [4.0, 0.5]})
    assert exchanged(np.array([features])) == [told]


def test_an_exchange_is_told_and_of_channels_that_look_alike_nothing_is():
    random = np.random.default_rng(1)
    exchanged = ExchangedChannels.fit(cohort(60, random), range(60), ORDERS)
    new = cohort(500, random)
    assert sum(pair is not None for pair in exchanged(new, false_alarm=0.01)) <= stats.binom.ppf(0.999, 500, 0.01)
    for pair in ((0, 1), (1, 2)):
        found = exchanged(new[:, ORDERS[pair]], false_alarm=0.01)
        assert sum(one == pair for one in found) >= 450
    assert sum(pair is not None for pair in exchanged(new[:, ORDERS[0, 2]], false_alarm=0.01)) <= 10
    assert exchanged(np.full((1, 6), np.nan)) == [None]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("patients", [5, 40])
def test_of_two_channels_that_are_the_same_in_all_patients_nothing_is_told(patients):
    random = np.random.default_rng(4)
    x = cohort(patients, random)
    x[:, [2, 5]] = x[:, [0, 3]]
    exchanged = ExchangedChannels.fit(x, range(patients), {(0, 2): ORDERS[0, 2]})
    assert exchanged(cohort(20, random)) == [None] * 20


def test_the_mean_of_several_patients_tells_what_one_does_not():
    random, means = np.random.default_rng(2), MEANS / 4
    exchanged = ExchangedChannels.fit(cohort(60, random, means=means), range(60), ORDERS)
    new = cohort(30, random, means=means)[:, ORDERS[0, 1]]
    assert sum(pair is not None for pair in exchanged(new, false_alarm=0.01)) <= 15
    assert exchanged(new.mean(axis=0)[None], false_alarm=0.001, count=30) == [(0, 1)]
    assert exchanged(new[:, ORDERS[0, 1]].mean(axis=0)[None], false_alarm=0.001, count=30) == [None]
    known = Cohort.fit([new[:, :2]], range(30), channels=exchanged)
    assert known.shift(new[:, :2], new)["exchanged"] == (0, 1)


def test_rows_of_a_patient_count_as_one():
    x = cohort(20, np.random.default_rng(3))
    once = ExchangedChannels.fit(x, range(20), ORDERS).parts
    twice = ExchangedChannels.fit(np.repeat(x, 2, axis=0), np.repeat(range(20), 2), ORDERS).parts
    assert twice["patients"] == 20
    np.testing.assert_allclose(twice["mean"] / twice["sd"], once["mean"] / once["sd"], rtol=0.1)
    # of unlike rows each tells how far a row may be
    apart = np.repeat(x, 2, axis=0) + 3 * np.random.default_rng(4).normal(size=(40, 6))
    sd = ExchangedChannels.fit(apart, np.repeat(range(20), 2), ORDERS).parts
    score = (apart - apart[:, ORDERS[0, 1]]) @ sd["weights"][0]
    assert sd["sd"][0] == pytest.approx(score.std(), rel=0.25)


def test_what_is_no_nearer_when_turned_is_not_told():
    random = np.random.default_rng(4)
    x = cohort(60, random)
    channels = ExchangedChannels.fit(x, range(60), ORDERS)
    known = Cohort.fit([x[:, :2]], range(60), channels=channels)
    turned = cohort(50, random)[:, ORDERS[0, 1]]
    assert sum(pair == (0, 1) for pair in channels(turned)) >= 45
    assert known.shift(turned[:, :2], turned)["exchanged"] == (0, 1)
    assert known.shift(cohort(50, random)[:, :2]) is None
    channels.distance = fit_cohort(turned, range(50))[0]
    assert sum(pair is not None for pair in channels(turned)) <= 2


def test_an_exchange_explains_what_is_odd_only_where_the_channels_exchanged_back_are_those_of_a_patient():
    random = np.random.default_rng(5)
    x = cohort(60, random)
    channels = ExchangedChannels.fit(x, range(60), ORDERS)
    own = fit_cohort(x, range(60))[1]
    assert channels.parts["limit"] == distance_limit(own, range(60))["limit"]
    turned = cohort(100, random)[:, ORDERS[0, 1]]
    assert sum(channels.sure(one, (0, 1)) for one in turned) >= 95
    other = turned + np.array([0, 0, 0, 0, 0, 20.0])  # and the third channel has a contrast of its own
    told = channels(other)
    assert sum(pair is not None for pair in told) >= 90
    assert not any(channels.sure(one, pair) for one, pair in zip(other, told, strict=True) if pair)
    assert "exchanged" in Cohort.fit([x[:, :2]], range(60), channels=channels).shift(turned[:, :2], turned)
    found = Cohort.fit([x[:, :2]], range(60), channels=channels).shift(other[:, :2], other)
    assert found is None or "exchanged" not in found
    del channels.parts["limit"]  # of an older version
    assert ExchangedChannels(channels.distance, channels.parts).sure(other[0], (0, 1))
