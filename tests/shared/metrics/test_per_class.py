import json

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from shared.errors import DataError
from shared.metrics import class_report, classification_metrics

SCORES = ("precision", "recall", "F1")


def _case(cases=12, patches=5, seed=0):
    random = np.random.default_rng(seed)
    groups = np.repeat([f"C{i:02d}" for i in range(cases)], patches)
    labels = np.repeat(np.arange(cases) % 2, patches)
    labels[:3] = 1 - labels[0]  # a case with patches of both classes
    shift = np.repeat(0.25 * random.standard_normal(cases), patches)
    probability = 0.5 + 0.3 * (labels - 0.5) + shift + 0.15 * random.standard_normal(len(labels))
    return labels, np.clip(probability, 0, 1), groups


@pytest.mark.parametrize("threshold", [0.35, 0.5])
def test_values_against_scikit_learn(threshold):
    labels, probability, _ = _case()
    report = class_report(labels, torch.from_numpy(probability), threshold=threshold, bootstrap=5)
    called = (probability >= threshold).astype(int)
    expected = precision_recall_fscore_support(labels, called)
    for k, name in enumerate(("negative", "positive")):
        found = report["classes"][name]
        assert [found[score]["value"] for score in SCORES] == pytest.approx([x[k] for x in expected[:3]], abs=1e-12)
        assert found["support"] == expected[3][k]
    assert report["confusion"] == {
        "classes": ["negative", "positive"],
        "matrix": confusion_matrix(labels, called).tolist(),
    }


def test_intervals_against_a_loop_over_the_same_drawn_cases():
    labels, probability, groups = _case()
    report = class_report(labels, probability, groups=groups, bootstrap=60, seed=3)
    names = np.unique(groups)
    rows = [np.flatnonzero(groups == name) for name in names]
    drawn = []
    for pick in np.random.default_rng(3).integers(0, len(names), (60, len(names))):
        inside = np.concatenate([rows[i] for i in pick])
        assert 0 < labels[inside].sum() < len(inside)  # no draw had to be repeated
        drawn.append(precision_recall_fscore_support(labels[inside], probability[inside] >= 0.5)[:3])
    for k, name in enumerate(("negative", "positive")):
        for position, score in enumerate(SCORES):
            low, high = np.percentile([draw[position][k] for draw in drawn], [2.5, 97.5])
            found = report["classes"][name][score]
            assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-12)


def test_agrees_with_the_metrics_of_the_same_seed():
    labels, probability, groups = _case(seed=4)
    metrics = classification_metrics(labels, probability, groups=groups, bootstrap=200, seed=1)
    positive = class_report(labels, probability, groups=groups, bootstrap=200, seed=1)["classes"]["positive"]
    for score, name in (("precision", "PRE"), ("recall", "REC"), ("F1", "F1")):
        assert list(positive[score].values()) == pytest.approx(list(metrics[name].values()), abs=1e-12)


def test_the_paper_s_matrix_has_two_recalls_where_it_prints_one_accuracy_twice():
    labels = np.repeat([0, 0, 1, 1], [84, 15, 13, 86])
    report = class_report(labels, np.repeat([0.0, 1.0, 0.0, 1.0], [84, 15, 13, 86]), bootstrap=0)
    assert report["confusion"]["matrix"] == [[84, 15], [13, 86]]
    recall = [found["recall"]["value"] for found in report["classes"].values()]
    assert recall == pytest.approx([84 / 99, 86 / 99]) and recall[0] != recall[1]


def test_classes_swap_with_their_labels():
    labels, probability, groups = _case(seed=2)
    one = class_report(labels, probability, bootstrap=0, class_names=["a", "b"])
    other = class_report(1 - labels, 1 - probability, bootstrap=0, class_names=["b", "a"], groups=groups)
    assert one["classes"] == other["classes"]
    assert np.array_equal(one["confusion"]["matrix"], np.array(other["confusion"]["matrix"])[::-1, ::-1])


def test_what_is_not_defined_is_none_and_json_holds_it():
    report = class_report([1, 1, 0], [0.1, 0.2, 0.3], bootstrap=20)
    assert report["classes"]["positive"]["precision"] == {"value": None, "low": None, "high": None}
    assert report["classes"]["positive"]["F1"]["value"] == 0.0
    alone = class_report([1, 1], [0.9, 0.2], bootstrap=20)
    assert alone["classes"]["negative"]["support"] == 0 and alone["classes"]["negative"]["recall"]["value"] is None
    json.dumps([report, alone], allow_nan=False)


def test_errors_say_what_arrived():
    with pytest.raises(DataError, match=r"two different names of classes, got \['a'\]"):
        class_report([0, 1], [0.1, 0.9], class_names=["a"])
    with pytest.raises(DataError, match="One group per row is needed, got 1 for 2"):
        class_report([0, 1], [0.1, 0.9], groups=["a"])
    with pytest.raises(DataError, match=r"two classes, one of them 1; got \[0, 2\]"):
        class_report([0, 2], [0.1, 0.9])
