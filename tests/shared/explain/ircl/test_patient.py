"""What is explained of one patient: each image by its own biomarker, in the network's order of images."""

import json

import numpy as np
import pytest
import torch

from shared.errors import DataError
from shared.explain import MaskExplanation, PatientExplainer, biomarker_shapley
from shared.networks import AttentionMIL, IRCLClassifier
from tests.support.tiny import lively_images, tiny_classifier


class Watched:
    """Takes down what is asked of the mask and answers with the image's number."""

    def explain(self, network, image, target, rivals):
        self.network, self.image, self.target, self.rivals = network, image, target, rivals
        number = torch.arange(len(image), dtype=torch.float32)
        mask = number[:, None, None, None].expand_as(image) / 10
        return MaskExplanation(mask, number, number / 2, number, number, number[None])


@pytest.fixture(scope="module")
def network():
    return tiny_classifier(IRCLClassifier, num_modalities=2, per_modality=True, num_biomarkers=2, num_covariates=1)


@pytest.fixture
def case(network):
    geometry = {"axis": 2, "slices": [3, 5], "shape": (16, 16, 8), "num_modalities": 2}
    geometry["source"] = {"affine": np.diag([1.0, 1.0, -3.0, 1.0])}  # slices are stored from the top
    return {"patient": "P7", "image": lively_images(1)[0], "covariates": torch.tensor([0.4]), "geometry": geometry}


def test_each_image_is_explained_by_its_own_biomarker(network, case):
    mask = Watched()
    result = PatientExplainer(network, mask, modalities=["T1", "T2"])(case)
    with torch.no_grad():
        _, z = network.encode(case["image"][None])
    similarity = z[0].double() @ network.biomarkers.double().T
    similarity[:2, 2:], similarity[2:, :2] = -2, -2  # biomarkers of the other modality
    expected = similarity.argmax(dim=1)
    assert len(set(expected.tolist())) > 2
    assert [row["biomarker"] for row in result["images"]] == expected.tolist()
    assert torch.equal(mask.target, network.biomarkers[expected])
    assert torch.equal(mask.image, case["image"][:, None]) and mask.network is network.encoder
    assert torch.equal(mask.rivals, network.rivals())
    values = [row["similarity"] for row in result["images"]]
    assert values == pytest.approx(similarity.max(dim=1).values.tolist(), abs=1e-5)
    assert result["shown"].tolist() == [k in expected for k in range(4)] and result["places"] is None


def test_where_the_prediction_passes_the_biomarkers_by_there_are_no_shapley_values(case, caplog):
    network = tiny_classifier(IRCLClassifier, num_modalities=2, num_covariates=1, attention="self")
    explainer = PatientExplainer(network, Watched(), modalities=["T1", "T2"])
    results = [explainer(case), explainer(case)]
    with torch.no_grad():
        expected = network(case["image"][None], case["covariates"][None]).softmax(dim=1)[0, 1]
    assert results[0]["probability"] == pytest.approx(float(expected), abs=1e-6)
    assert results[0]["shapley"] is None and explainer.summary(results[0])["shapley"] is None
    assert len(results[0]["images"]) == 4 and results[0]["masks"] is not None
    assert caplog.text.count('There are no Shapley values of biomarkers: network_def#attention is "self"') == 1
    h, z = network.encode(case["image"][None])
    with pytest.raises(DataError, match='There are no Shapley values of biomarkers: network_def#attention is "self"'):
        biomarker_shapley(network, h, network.assign(z)[0])


def test_a_network_without_biomarkers_is_not_explained(case):
    with pytest.raises(DataError, match="the network AttentionMIL has no biomarkers: it can be evaluated and asked"):
        PatientExplainer(AttentionMIL(4, channels=(4, 8)))(case)


def test_images_are_told_modality_by_modality_with_the_slices_of_the_file(network, case):
    result = PatientExplainer(network, modalities=["T1", "T2"])(case)
    told = [(row["modality"], row["slice"]) for row in result["images"]]
    assert told == [("T1", 4), ("T1", 2), ("T2", 4), ("T2", 2)]
    assert result["masks"] is None


def test_probability_and_shapley_values_are_those_of_the_network(network, case):
    explainer = PatientExplainer(network, Watched(), modalities=["T1", "T2"], class_names=["no", "yes"])
    result = explainer(case)
    with torch.no_grad():
        expected = network(case["image"][None], case["covariates"][None]).softmax(dim=1)[0, 1]
    assert result["probability"] == pytest.approx(float(expected), abs=1e-6)
    told = json.loads(json.dumps(explainer.summary(result)))
    total = told["shapley"]["base"] + sum(told["shapley"]["values"].values())
    assert total == pytest.approx(float(expected), abs=1e-6) and told["positive_class"] == "yes"
    assert [row["mask_mean"] for row in told["images"]] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert [row["distance_before"] for row in told["images"]] == [0, 1, 2, 3]
    assert [row["distance_after"] for row in told["images"]] == [0, 0.5, 1, 1.5]
