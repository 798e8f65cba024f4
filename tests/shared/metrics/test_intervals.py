import numpy as np
import pytest

from shared.errors import DataError
from shared.metrics import grouped_mean


def test_against_a_loop_over_draws():
    random = np.random.default_rng(0)
    groups = random.integers(0, 12, 60).tolist()
    values = random.normal(size=60) + np.array(groups)
    patients = sorted(set(groups))
    means = []
    for _ in range(4000):
        rows = [
            v for p in random.choice(patients, len(patients)) for v, g in zip(values, groups, strict=True) if g == p
        ]
        means.append(np.mean(rows))
    found = grouped_mean(values, groups, bootstrap=4000)
    assert found["value"] == pytest.approx(values.mean())
    assert [found["low"], found["high"]] == pytest.approx(np.percentile(means, [2.5, 97.5]).tolist(), abs=0.15)


def test_rows_of_one_patient_are_no_independent_rows():
    values = np.repeat([0.0, 1, 0, 1, 1, 0], 50)
    rows, patients = np.arange(300), np.repeat(np.arange(6), 50)
    one, other = grouped_mean(values, patients), grouped_mean(values, rows)
    assert one["high"] - one["low"] > 3 * (other["high"] - other["low"])
    assert grouped_mean(values, rows, seed=1) == grouped_mean(values, rows, seed=1) != other


def test_without_draws_or_patients_there_is_no_interval():
    assert grouped_mean([1, 2, 6], ["A", "A", "A"]) == {"value": 3.0, "low": None, "high": None}
    assert grouped_mean([1, 2], ["A", "B"], bootstrap=0) == {"value": 1.5, "low": None, "high": None}
    assert grouped_mean([2, 2, 2], ["A", "B", "C"]) == {"value": 2.0, "low": 2.0, "high": 2.0}


def test_errors_say_what_arrived():
    with pytest.raises(DataError, match=r"got \(0,\) and 0, 0 not finite"):
        grouped_mean([], [])
    with pytest.raises(DataError, match=r"got \(2,\) and 3, 0 not finite"):
        grouped_mean([1, 2], ["A", "B", "C"])
    with pytest.raises(DataError, match="1 not finite"):
        grouped_mean([1, float("nan")], ["A", "B"])
