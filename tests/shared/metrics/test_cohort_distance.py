"""Distance to a cohort: the formula, who is flagged, and what the limit promises."""

import numpy as np
import pytest
from scipy import stats

from shared.errors import DataError
from shared.metrics.cohort_distance import FALSE_ALARM, Cohort, distance_limit, fit_cohort
from tests.references.abstention import mahalanobis

RANDOM = np.random.default_rng(0)
MIXING = RANDOM.normal(size=(5, 60))


def cohort(count, random=RANDOM, shift=0.0):
    """Few causes seen by many features; the shift is along none of the causes."""
    noise = random.normal(size=(count, 60))
    return 3 + random.normal(size=(count, 5)) @ MIXING + 0.3 * noise + shift * np.sin(np.arange(60.0))


@pytest.mark.parametrize("count", [20, 200, 300])  # fewer rows than features, more, and many more
def test_it_is_the_distance_by_the_inverse_covariance(count):
    distance, _ = fit_cohort(cohort(count), range(count))
    part = distance.parts
    assert part["axes"].shape == ({20: 19, 200: 30, 300: 59}[count], 60) and part["axes"].dtype == np.float32
    np.testing.assert_allclose(part["axes"] @ part["axes"].T, np.eye(len(part["axes"])), atol=1e-5)
    new = cohort(7, shift=1.0)
    np.testing.assert_allclose(distance(new), mahalanobis(new, **part), rtol=1e-5)


def test_new_patients_are_as_far_as_those_left_out_and_the_shifted_are_flagged():
    flagged, shifted, far, own = [], [], [], []
    for seed in range(10):
        random = np.random.default_rng(seed)
        distance, left_out = fit_cohort(cohort(40, random), range(40))
        limit = distance_limit(left_out, range(40))["limit"]
        new, other = distance(cohort(100, random)), distance(cohort(100, random, shift=1.0))
        far, own = [*far, new.mean()], [*own, left_out.mean()]
        flagged, shifted = [*flagged, (new > limit).mean()], [*shifted, (other > limit).mean()]
    assert np.mean(far) == pytest.approx(np.mean(own), rel=0.1)
    assert np.mean(flagged) <= 0.05 and np.mean(shifted) >= 0.95


def test_patients_are_left_out_together():
    rows = np.repeat(cohort(12), 5, axis=0)  # five copies: with one of them left in, the distance would be small
    together, apart = (fit_cohort(rows, groups)[1] for groups in (np.arange(60) // 5, range(60)))
    assert together.mean() > 0 and distance_limit(together, np.arange(60) // 5)["patients"] == 12
    alone = fit_cohort(rows[::5], range(12))[0].parts
    assert fit_cohort(rows, np.arange(60) // 5)[0].parts["rest"] > 2 * fit_cohort(rows, range(60))[0].parts["rest"]
    np.testing.assert_allclose(alone["mean"], rows.mean(axis=0))
    assert len(apart) == 60


def test_a_dead_channel_is_no_division_by_zero():
    x = cohort(20)
    x[:, 3] = 2.0
    distance, left_out = fit_cohort(x, range(20))
    assert np.isfinite(left_out).all() and np.isfinite(distance(cohort(3))).all()


def test_of_a_covariate_that_is_the_same_for_all_nothing_is_told():
    known = np.full(60, 62.3)
    covariates = np.array([[known.mean()], [known.std()]])
    assert covariates[1] > 0  # by rounding
    assert Cohort([], [], 60, covariates=covariates).far_covariates(np.array([[63.0]])) == [{}]


@pytest.mark.parametrize(
    ("patients", "value", "told"),
    [(60, 151, 10.1), (60, 149, None), (60, -51, -10.1), (60, np.nan, None), (400, 249, None), (400, -151, -20.1)],
)
def test_a_covariate_is_far_from_10_sd_on_and_of_many_patients_from_what_one_of_them_may_have(patients, value, told):
    known = Cohort([], [], patients, covariates=np.array([[0.0, 50.0], [1.0, 10.0]]))
    (found,) = known.far_covariates(np.array([[0.0, value]]))
    assert found == ({} if told is None else {1: pytest.approx(told)})


def test_the_limit_is_the_prediction_limit_of_a_normal_sample():
    log = np.random.default_rng(3).normal(size=15)
    found = distance_limit(np.exp(log), range(15))
    expected = log.mean() + stats.t.ppf(1 - FALSE_ALARM, 14) * log.std(ddof=1) * np.sqrt(1 + 1 / 15)
    assert np.log(found["limit"]) == pytest.approx(expected) and found["patients"] == 15
    # two rows of each patient, the same: nothing changes
    again = distance_limit(np.exp(np.repeat(log, 2)), np.repeat(np.arange(15), 2))
    assert again == pytest.approx(found)
    # each patient counts once, however many rows it has; unlike rows of a patient widen the limit
    rows = np.repeat(np.arange(15), np.arange(15) % 4 + 1)
    x = log[rows] + np.random.default_rng(8).normal(size=len(rows))
    of_patient = [x[rows == k] for k in range(15)]
    mean = np.mean([part.mean() for part in of_patient])
    spread = np.sqrt(np.sum([np.mean((part - mean) ** 2) for part in of_patient]) / 14)
    found = distance_limit(np.exp(x), rows)
    assert (found["log_mean"], found["log_sd"]) == pytest.approx((mean, spread))


def test_the_limit_is_kept_by_new_patients():
    random, beyond = np.random.default_rng(4), []
    for _ in range(4000):
        log = random.normal(size=9)
        beyond.append(np.exp(log[8]) > distance_limit(np.exp(log[:8]), range(8))["limit"])
    low, high = stats.binom.ppf([0.001, 0.999], 4000, FALSE_ALARM)
    assert low <= sum(beyond) <= high


def test_too_few_patients_are_refused():
    with pytest.raises(DataError, match="at least 5 patients"):
        fit_cohort(cohort(4), range(4))
    with pytest.raises(DataError, match="at least 5 patients"):
        distance_limit([1.0] * 8, [0, 1] * 4)


@pytest.mark.parametrize("groups", [np.arange(60), np.arange(60) // 2])  # a row of each patient, and two
def test_of_several_parts_the_largest_in_units_of_its_limit_counts(groups):
    random = np.random.default_rng(5)
    many, few = cohort(60, random), random.normal(size=(60, 3))
    both = Cohort.fit([many, few], groups)
    for part, distance, limit in zip((many, few), both.distances, both.limits, strict=True):
        alone, own = fit_cohort(part, groups)
        assert limit == distance_limit(own, groups, false_alarm=FALSE_ALARM / 2)["limit"]
        np.testing.assert_allclose(distance(part), alone(part))
    new = [cohort(5, random), 8 + random.normal(size=(5, 3))]
    np.testing.assert_allclose(both(new), both.distances[1](new[1]) / both.limits[1])
    assert (both(new) > 1).all() and not (both([new[0], new[1] - 8]) > 1).any()


def test_patients_together_tell_a_shift_that_each_alone_does_not():
    random = np.random.default_rng(6)
    known = Cohort.fit([random.normal(size=(60, 8))], range(60))
    new = random.normal(size=(24, 8))
    new[:, 3] += 1.4
    assert (known([new]) > 1).mean() < 0.2
    found = known.shift(new)
    mean, spread = known.distances[0].parts["mean"], known.distances[0].parts["scale"]
    shift = abs(new.mean(axis=0) - mean)[3] / spread[3]
    assert found["patients"] == 24 and found["sd"] == pytest.approx(shift)
    assert found["p"] == pytest.approx(8 * 2 * stats.t.sf(shift / np.sqrt(1 / 24 + 1 / 60), 59))
    assert known.shift(new[:4]) is None  # too few
    new[0, 5] = np.nan  # one damaged patient hides nothing
    assert known.shift(new)["patients"] == 23
    small = Cohort.fit([random.normal(size=(4000, 2))], range(4000))
    assert small.shift(0.2 + random.normal(size=(4000, 2))) is None  # certain, and nothing


def test_one_patient_far_from_all_does_not_shift_the_others():
    random, shifted = np.random.default_rng(8), 0
    for _ in range(50):
        known, new = Cohort.fit([random.normal(size=(60, 8))], range(60)), random.normal(size=(12, 8))
        new[0] += 15
        shifted += known.shift(new) is not None
        assert known.shift(new + 15)["sd"] == pytest.approx(4.0)  # as much as a patient counts
    assert shifted <= 1  # of plain means: all


def test_a_shift_is_seldom_told_of_patients_of_the_cohort():
    random, told = np.random.default_rng(7), 0
    for _ in range(1000):
        told += Cohort.fit([random.normal(size=(40, 6))], range(40)).shift(random.normal(size=(12, 6))) is not None
    assert told <= stats.binom.ppf(0.999, 1000, 0.001)
