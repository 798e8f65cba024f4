import numpy as np
import pytest
import torch

from shared.errors import DataError
from shared.explain import PatchCases, PatchExplainer
from shared.explain.patches.comparison import SCORES, PatchComparison
from tests.support.planted_patches import CLASSES, ColourNetwork, write_planted

NAMES = ["additive map", "Grad-CAM", "untrained network", "darkness", "edge density", "centred Gaussian", "random map"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    entries, images = write_planted(tmp_path_factory.mktemp("patches"), 8)
    # half of each patch's right border is of the other class: it speaks against
    for i, image in enumerate(images):
        image[:, 28:, 24:] = torch.tensor([60, 200, 128] if i % 2 else [200, 60, 128])[:, None, None].byte()
    del entries[2]["mask"]
    cases = list(PatchCases(entries, images))
    explainer = PatchExplainer(ColourNetwork(), class_names=CLASSES, average="logits", batch_size=3)
    compare = PatchComparison(explainer, NAMES, steps=10, cell=4, seed=1)
    explained = compare.predicted(cases)
    return cases, explained, *compare(cases, explained, keep=[1, 4])


def mean(rows, method, score):
    return np.mean([row[score] for row in rows if row["method"] == method and row[score] is not None])


def test_every_method_explains_the_class_called(compared):
    cases, explained, rows, kept = compared
    assert [k for k, _ in explained] == [case["label"] for case in cases]
    assert len(rows) == len(NAMES) * len(cases) and list(kept) == NAMES
    assert all(set(of) == {1, 4} and of[1].shape == (32, 32) for of in kept.values())
    for name in NAMES:
        own = [row for row in rows if row["method"] == name]
        assert sorted(row["image"] for row in own) == sorted(case["path"] for case in cases)
        for row in own:
            assert row["class"] == row["label"] and row["probability"] > 0.5 and set(SCORES) <= set(row)
            assert (row["pointing"] is None) == (row["image"] == cases[2]["path"])


def test_what_speaks_for_the_class_lies_in_the_disc_and_controls_miss_it(compared):
    _, _, rows, kept = compared
    for name in ("additive map", "Grad-CAM"):
        assert mean(rows, name, "pointing") == 1 and mean(rows, name, "energy_ratio") > 4
    assert mean(rows, "random map", "energy_ratio") == pytest.approx(1, abs=0.1)
    assert mean(rows, "darkness", "energy_ratio") < 1.6
    assert mean(rows, "untrained network", "energy_ratio") < mean(rows, "additive map", "energy_ratio")
    # signed maps have what speaks against the class below 0
    assert kept["additive map"][1][28:, 26:].max() < 0 < kept["additive map"][1].max()
    assert kept["Grad-CAM"][1].min() >= 0


def test_deleting_what_speaks_for_the_class_costs_it_most(compared):
    _, _, rows, _ = compared
    for fill in ("blur", "mean"):
        deletion = {name: mean(rows, name, f"deletion_{fill}") for name in NAMES}
        insertion = {name: mean(rows, name, f"insertion_{fill}") for name in NAMES}
        assert deletion["additive map"] < deletion["random map"] - 0.05
        assert insertion["additive map"] > insertion["random map"] + 0.05


def test_a_class_given_is_explained_whatever_is_called(tmp_path):
    entries, images = write_planted(tmp_path, 2)
    cases = list(PatchCases(entries, images))
    explainer = PatchExplainer(ColourNetwork(), class_names=CLASSES, class_idx=0)
    compare = PatchComparison(explainer, ["additive map"], steps=2)
    explained = compare.predicted(cases)
    assert [k for k, _ in explained] == [0, 0] and explained[1][1] < 0.5
    rows, _ = compare(cases, explained)
    assert [(row["class"], row["all_zero"]) for row in rows] == [("green", 0.0), ("green", 1.0)]


def test_an_unknown_method_is_refused():
    with pytest.raises(DataError, match="No explanation is called 'CAM'; there are 'additive map', 'Grad-CAM'"):
        PatchComparison(PatchExplainer(ColourNetwork()), ["CAM"])
