"""Scores of explanations of a patient, on an additive answer whose true map is known, and their means."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from shared.explain import ExplanationComparison, ExplanationMethod, explanation_methods, mean_method_scores
from shared.explain.ircl.comparison import IMAGE_SCORES, PATIENT_SCORES, inapplicable_methods
from shared.explain.perturbation import filled
from shared.networks import IRCLClassifier
from tests.support.additive import AdditiveNetwork
from tests.support.tiny import lively_images, tiny_classifier

SIZE, SLICES = 16, (2, 5)


@pytest.fixture
def case(tmp_path):
    """Two modalities of two slices; a cell of each image is planted, code 1 in T1, 2 in T2, but for T2's second."""
    volume = np.zeros((SIZE, SIZE, 8), np.uint8)
    volume[4:8, 4:8, 2], volume[8:12, 4:8, 5], volume[0:4, 12:16, 2] = 1, 1, 2
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "planted.nii.gz")
    geometry = {"axis": 2, "slices": list(SLICES), "window": (0, SIZE, 0, SIZE), "shape": volume.shape}
    geometry |= {"num_modalities": 2, "source": {"affine": np.eye(4)}}
    image = 0.2 + 0.6 * lively_images(1)[0]
    image[:, :, :2] = 0  # not shown
    return {
        "patient": "P1",
        "label": 1,
        "image": image,
        "covariates": torch.zeros(0),
        "planted": tmp_path / "planted.nii.gz",
        "geometry": geometry,
    }


def planted_network(seed=0):
    """Additive; the weights of the planted cells are by far the largest."""
    network = AdditiveNetwork(4, SIZE, seed=seed)
    with torch.no_grad():
        weight = network.linear.weight.view(4, 4, 4)
        weight *= 0.3
        weight[0, 1, 1], weight[1, 2, 1], weight[2, 0, 3] = 6, 6, 6
    return network


def compared(case, networks, names, **settings):
    given = {"modalities": ["T1", "T2"], "planted_visible": {"T1": [1], "T2": [2]}, **settings}
    return ExplanationComparison(networks, explanation_methods(names=names), **given)(case)


def test_the_true_map_points_and_controls_are_as_they_must_be(case):
    rows, maps = compared(case, [planted_network()], ["contributions", "centred box"])
    images = [row for row in rows if row["modality"]]
    assert [(row["method"], row["modality"], row["slice"]) for row in images] == [
        (name, modality, index)
        for name in ("contributions", "centred box")
        for modality in ("T1", "T2")
        for index in SLICES
    ]
    true = [row for row in images if row["method"] == "contributions"]
    assert [row["pointing"] for row in true] == [1, 1, 1, None]
    assert all(row["energy_ratio"] > row["energy_ratio_in_region"] > 3 for row in true[:3])
    assert set(maps) == {"contributions", "centred box"} and (maps["contributions"][:, :, :2] == 0).all()
    # the box holds the first planted cell whole: its energy lies there as evenly as anywhere
    box = next(row for row in images if row["method"] == "centred box")
    assert box["energy_ratio"] == pytest.approx(256 / 64)
    assert box["energy_ratio_in_region"] == pytest.approx(14 * 16 / 64)


@pytest.mark.parametrize("odds", [1.0, -1.0])
def test_deletion_and_insertion_of_the_true_map_are_those_by_hand(case, odds):
    network = planted_network()
    with torch.no_grad():
        network.bias = bias = odds - float(network.contributions(case["image"][None]).sum())
    rows, _ = compared(case, [network], ["contributions"], steps=8)
    whole = next(row for row in rows if row["modality"] is None)
    image = case["image"][None]
    with torch.no_grad():
        contributions = network.contributions(image)
        sign = 1 if float(contributions.sum()) + bias > 0 else -1
        assert sign == odds
        for fill in ("mean", "blur"):
            # what a cell loses when it is replaced, in the order of its share of the resized map
            lost = (contributions - network.contributions(filled(image, fill))).flatten().double()
            resized = torch.nn.functional.interpolate(contributions, (SIZE, SIZE), mode="bilinear", align_corners=False)
            shown = (image != 0).double()
            order = torch.nn.functional.avg_pool2d(resized * shown, 4) / torch.nn.functional.avg_pool2d(shown, 4)
            order = (sign * order).flatten().argsort(descending=True)
            gone = torch.cat([torch.zeros(1).double(), lost[order].cumsum(0)])[torch.arange(9) * 8]
            full = float(contributions.sum()) + bias
            deletion = (sign * (full - gone)).sigmoid()
            insertion = (sign * (full - lost.sum() + gone)).sigmoid()
            for name, curve in (("deletion", deletion), ("insertion", insertion)):
                area = float((curve[:-1] + curve[1:]).sum() / 2 / 8)
                assert whole[f"{name}_{fill}"] == pytest.approx(area, abs=1e-5)
    assert whole["seconds"] > 0 and whole["probability"] == pytest.approx(1 / (1 + np.exp(-full)), abs=1e-6)


def test_agreement_and_repeatability_are_rank_correlations_of_what_is_shown(case):
    networks = [planted_network(seed) for seed in (0, 1, 2)]
    rows, maps = compared(case, networks, ["contributions", "brightness"])
    found = {name: [row for row in rows if row["method"] == name and row["modality"]] for name in maps}
    shown = (case["image"] != 0).numpy()
    for name, own in maps.items():
        for i, row in enumerate(found[name]):
            other = (i + 2) % 4  # the same slice of the other modality
            both = shown[i] & shown[other]
            assert row["agreement"] == pytest.approx(spearmanr(own[i][both], own[other][both]).statistic, abs=1e-4)
    each = [compared(case, [network], ["contributions"])[1]["contributions"] for network in networks]
    for i, row in enumerate(found["contributions"]):
        pairs = [spearmanr(a[i][shown[i]], b[i][shown[i]]).statistic for a, b in itertools.combinations(each, 2)]
        assert row["repeatability"] == pytest.approx(np.mean(pairs), abs=1e-4)
    assert all(row["repeatability"] is None for row in found["brightness"])


def test_a_map_that_is_the_same_everywhere_agrees_with_nothing(case):
    even = ExplanationMethod("even", lambda network, image, covariates: torch.ones_like(image[0]))
    networks = [planted_network(0), planted_network(1)]
    comparison = ExplanationComparison(networks, [even], modalities=["T1", "T2"], steps=2)
    rows, _ = comparison(case)
    assert all(row["agreement"] is None and row["repeatability"] is None for row in rows)
    assert all(row["pointing"] is None for row in rows)  # not said what is planted


def test_what_cannot_explain_a_network_is_named_with_the_reason(case):
    methods = explanation_methods(names=["contributions", "Grad-CAM", "brightness"])
    network = tiny_classifier(IRCLClassifier, num_modalities=2)
    assert list(inapplicable_methods(network, methods, case)) == ["contributions"]

    class Steps(AdditiveNetwork):
        def __init__(self):
            super().__init__(4, SIZE)
            self.encoder = network.encoder

        def forward(self, image, covariates=None):
            self.encoder(image.flatten(0, 1)[:, None])
            return super().forward((image > 0.5).float())

    reasons = inapplicable_methods(Steps(), methods, case)
    assert list(reasons) == ["Grad-CAM"] and "no gradient" in reasons["Grad-CAM"]


def rows_of(values):
    """One score a row: by method, patient and image."""
    blank = dict.fromkeys((*IMAGE_SCORES, *PATIENT_SCORES))
    return [
        {**blank, "patient": patient, "method": method, "modality": "T1", "slice": i, "pointing": value}
        for method, of in values.items()
        for patient, several in of.items()
        for i, value in enumerate(several)
    ]


def test_means_are_over_images_and_differences_over_those_of_both():
    values = {
        "contributions": {"A": [1, 1], "B": [0, None]},
        "other": {"A": [0, 1], "B": [None, 1]},
    }
    found = mean_method_scores(rows_of(values), bootstrap=50)
    assert found["contributions"]["scores"]["pointing"]["value"] == pytest.approx(2 / 3)
    assert found["contributions"]["minus reference"] == {}
    assert found["other"]["scores"]["pointing"] == {
        "value": pytest.approx(2 / 3),
        "low": pytest.approx(0.5),
        "high": pytest.approx(1),
        "rows": 3,
    }
    # of A's two images alone: one patient, no interval
    difference = found["other"]["minus reference"]["pointing"]
    assert difference == {"value": -0.5, "low": None, "high": None, "rows": 2}
    assert set(found["other"]["scores"]) == {"pointing"}
