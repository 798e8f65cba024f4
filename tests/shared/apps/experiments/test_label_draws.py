from collections import Counter
from itertools import pairwise

import pytest

from shared.apps.experiments.label_draws import draw_patients, labelled_counts, with_labels_of
from shared.errors import DataError

FRACTIONS = (0.02, 0.05, 0.1, 0.25, 0.5, 0.9, 1.0)


def make(first=20, second=30, both=6, each=4):
    """Patients of one class, of the other, of both; names as in a datalist."""
    labels, patients = {}, {}
    for kind, count in (("a", first), ("b", second), ("m", both)):
        for number in range(count):
            for k in range(each):
                name = f"{kind}{number}/{k}.png"
                labels[name], patients[name] = {"a": 0, "b": 1, "m": k % 2}[kind], f"{kind}{number}"
    return labels, patients


@pytest.mark.parametrize("seed", range(5))
def test_draws_are_stratified_nested_and_seeded(seed):
    labels, patients = make()
    drawn = [draw_patients(labels, patients, fraction, seed=seed) for fraction in FRACTIONS]
    assert all(small <= large for small, large in pairwise(drawn))
    assert drawn == [draw_patients(labels, patients, fraction, seed=seed) for fraction in FRACTIONS]
    for fraction, chosen in zip(FRACTIONS[2:], drawn[2:], strict=True):
        kinds = Counter(name[0] for name in chosen)
        for kind, count in (("a", 20), ("b", 30), ("m", 6)):
            assert abs(kinds[kind] - fraction * count) <= 0.5
    assert len(drawn[-1]) == 56 and draw_patients(labels, patients, 0.25, seed=seed + 1) != drawn[3]


def test_each_class_has_its_patches_however_small_the_fraction():
    labels, patients = make(each=1)
    for seed in range(10):
        chosen = draw_patients(labels, patients, 0.001, seed=seed)
        found = Counter(label for name, label in labels.items() if patients[name] in chosen)
        assert found == {0: 2, 1: 2} and len(chosen) == 4
    # with more patches a patient, one patient of each class is enough
    labels, patients = make()
    assert Counter(name[0] for name in draw_patients(labels, patients, 0.001)) == {"a": 1, "b": 1}
    # a class that only mixed patients have
    labels, patients = make(second=0)
    assert Counter(name[0] for name in draw_patients(labels, patients, 0.001))["m"] == 1


def test_the_order_of_the_datalist_does_not_matter():
    labels, patients = make()
    other = dict(reversed(labels.items()))
    assert draw_patients(labels, patients, 0.3, seed=1) == draw_patients(other, patients, 0.3, seed=1)


def test_unlabelled_patches_keep_their_pixels_and_nothing_that_tells_their_class():
    cases = [
        {"image": f"{i}.png", "patient": f"P{i // 2}", "label": i % 2, "soft_label": 0.3, "fold": 1, "mask": "m.png"}
        for i in range(6)
    ]
    datalist = {"name": "x", "training": cases, "testing": [{"image": "t.png"}], "unlabelled": [{"image": "u.png"}]}
    drawn = with_labels_of(datalist, {"P1"})
    assert [case["image"] for case in drawn["training"]] == ["2.png", "3.png"]
    assert all("fold" not in case and case["soft_label"] == 0.3 for case in drawn["training"])
    assert [case["image"] for case in drawn["unlabelled"]] == ["0.png", "1.png", "4.png", "5.png", "u.png"]
    assert all(set(case) <= {"image", "patient", "mask"} for case in drawn["unlabelled"])
    assert drawn["testing"] == datalist["testing"] and labelled_counts(drawn) == {"patients": 1, "patches": 2}
    assert "label" in datalist["training"][0]  # the datalist itself is as it was


def test_errors_say_what_arrived():
    labels, patients = make()
    for fraction in (0, -0.1, 1.5):
        with pytest.raises(DataError, match=f"at most 1, got {fraction}"):
            draw_patients(labels, patients, fraction)
    with pytest.raises(DataError, match="Class 1 has fewer than 2 training patches"):
        draw_patients({"a": 0, "b": 0, "c": 1}, {"a": "A", "b": "B", "c": "C"}, 0.5)
