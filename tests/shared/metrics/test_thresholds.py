import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_curve

from shared.errors import DataError
from shared.metrics import operating_points, training_thresholds
from shared.metrics.thresholds import fold_thresholds


def _case(count=50, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    return labels, np.clip(0.5 + 0.3 * (labels - 0.5) + 0.2 * random.standard_normal(count), 0, 1).round(2)


@pytest.mark.parametrize("seed", range(4))
def test_training_thresholds_against_the_roc_curve(seed):
    labels, probability = _case(seed=seed)
    fpr, tpr, cut = roc_curve(labels, probability, drop_intermediate=False)
    found = training_thresholds(labels, probability)
    at = cut == found["Youden"]
    assert (tpr - fpr)[at] == pytest.approx((tpr - fpr).max())
    assert found["sensitivity 0.9"] == cut[tpr >= 0.9].max()
    assert training_thresholds(labels, probability, sensitivity=1)["sensitivity 1"] == probability[labels == 1].min()


def test_counts_and_wilsons_intervals_of_independent_patients():
    labels = np.repeat([1, 1, 0, 0], [8, 2, 3, 7])
    probability = np.repeat([0.9, 0.2, 0.6, 0.1], [8, 2, 3, 7])
    found = operating_points(labels, probability)["0.5"]
    z = norm.ppf(0.975)
    for share, (hits, count) in {"sensitivity": (8, 10), "specificity": (7, 10), "PPV": (8, 11), "NPV": (7, 9)}.items():
        p = hits / count
        centre = (p + z**2 / (2 * count)) / (1 + z**2 / count)
        half = z / (1 + z**2 / count) * np.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
        assert list(found[share].values()) == pytest.approx([p, centre - half, centre + half], abs=1e-9), share


def test_of_patches_the_interval_is_over_patients():
    labels, probability = _case(30)
    five = [np.tile(x, 5) for x in (labels, probability, [f"P{i:02d}" for i in range(30)])]
    found = operating_points(five[0], five[1], groups=five[2], bootstrap=400)["0.5"]["sensitivity"]
    single = operating_points(labels, probability, bootstrap=400)["0.5"]["sensitivity"]
    naive = operating_points(five[0], five[1])["0.5"]["sensitivity"]
    assert found["value"] == single["value"] == naive["value"]
    width, alone, wrong = (each["high"] - each["low"] for each in (found, single, naive))
    assert width == pytest.approx(alone, rel=0.3) and wrong < 0.6 * width
    # no draw differs from a share of 1: as sure as ten patients make it, not as fifty patches
    certain = operating_points([1] * 50 + [0] * 50, [0.9] * 50 + [0.1] * 50, groups=np.repeat(np.arange(20), 5))
    assert certain["0.5"]["sensitivity"] == operating_points([1] * 10 + [0], [0.9] * 10 + [0.1])["0.5"]["sensitivity"]


def test_thresholds_of_a_fold_are_those_of_the_other_folds():
    labels, probability = _case(60)
    both = np.stack([probability, probability[::-1].copy()])
    folds = np.stack([np.arange(60) % 3, np.arange(60) // 20])
    found = fold_thresholds(labels, both, folds)
    for s in range(2):
        for number in range(3):
            expected = training_thresholds(labels[folds[s] != number], both[s][folds[s] != number])
            for name, value in expected.items():
                assert set(found[name][s][folds[s] == number]) == {value}
    points = operating_points(labels, both, found, bootstrap=50)
    called = both >= found["Youden"]
    sensitivity = np.mean([row[labels == 1].mean() for row in called])
    assert points["Youden"]["sensitivity"]["value"] == pytest.approx(sensitivity)
    assert points["Youden"]["threshold"] == pytest.approx(found["Youden"].mean())
    assert fold_thresholds(labels, both, np.full((2, 60), -1)) == {}
    assert fold_thresholds(np.array([0, 0, 1, 1]), np.array([[0.1, 0.2, 0.3, 0.4]]), np.array([[0, 0, 1, 1]])) == {}


def test_a_threshold_is_reached_from_it_on_and_nothing_called_is_none():
    points = operating_points([0, 1], [0.2, 0.4], {"at": 0.4, "never": 0.9})
    assert points["at"]["sensitivity"]["value"] == 1 and points["0.5"]["PPV"]["value"] is None
    assert points["never"]["PPV"] == {"value": None, "low": None, "high": None}
    assert operating_points([1, 1], [0.2, 0.9])["0.5"]["specificity"]["value"] is None


def test_one_class_has_no_training_threshold():
    with pytest.raises(DataError, match="both classes, got 2 of one"):
        training_thresholds([1, 1], [0.2, 0.3])
