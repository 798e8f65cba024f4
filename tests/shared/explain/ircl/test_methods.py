"""The maps that are compared: each against its definition, on networks whose answers are known."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from shared.errors import DataError
from shared.explain import BiomarkerMask, GradCAM, explanation_methods
from shared.explain.ircl.methods import (
    contribution_map,
    grad_cam_of_views,
    integrated_gradients,
    log_odds,
)
from shared.explain.perturbation import filled
from shared.networks import IRCLClassifier
from shared.networks.blocks import turned
from tests.support.additive import AdditiveNetwork
from tests.support.tiny import lively_images, tiny_classifier


def trained(**settings):
    return tiny_classifier(IRCLClassifier, num_modalities=2, per_modality=True, num_biomarkers=2, **settings)


@pytest.fixture(scope="module")
def image():
    return lively_images(1)


def method(name, **settings):
    (found,) = explanation_methods(names=[name], **settings)
    return found


def test_grad_cam_is_the_projects_own_for_either_class(image):
    network = trained(num_covariates=1)
    covariates = torch.tensor([[0.7]])

    class Odds(nn.Module):
        """The patient's images as a batch, the log odds of both classes as logits of each."""

        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            odds = log_odds(self.network, x[:, 0][None], covariates).expand(len(x)) / len(x)
            return torch.stack([-odds, odds], dim=1)

    cam = GradCAM(Odds(), "network.encoder.levels.1", normalise=False)
    planes = image[0, :, None]
    positive, negative = (cam.explain(planes, target).map[:, 0] for target in (1, 0))
    found = grad_cam_of_views(network, image, covariates)
    torch.testing.assert_close(found, positive - negative, atol=1e-6, rtol=1e-4)
    assert (found > 1e-4).any() and (found < -1e-4).any()


def test_grad_cam_of_a_network_that_averages_over_views_turns_with_the_image(image):
    network = trained(views=8)
    found = grad_cam_of_views(network, image)
    assert float(found.std()) > 1e-4
    for view in (1, 4, 6):
        moved = grad_cam_of_views(network, turned(image, view))
        torch.testing.assert_close(moved[None], turned(found[None], view), atol=1e-5, rtol=1e-3)


def test_integrated_gradients_of_a_quadratic_answer_are_exact(image):
    pytest.importorskip("captum")

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0)))

        def forward(self, x, covariates=None):
            score = (self.weight * x**2).sum((1, 2, 3))
            return torch.stack([torch.zeros_like(score), score], dim=1)

    network, start = Quadratic(), filled(image, "mean")
    # the integral of 2 w (b + t (x - b)) (x - b) over t is w (x^2 - b^2), and the middle's rule is exact for lines
    expected = network.weight.detach() * (image**2 - start**2)[0]
    torch.testing.assert_close(integrated_gradients(network, image, steps=3), expected, atol=1e-5, rtol=1e-4)


def test_contributions_are_the_networks_resized(image):
    network = AdditiveNetwork(4, 16, cell=4)
    found = contribution_map(network, image)
    coarse = network.contributions(image)
    assert coarse.shape == (1, 4, 4, 4)
    expected = functional.interpolate(coarse, (16, 16), mode="bilinear", align_corners=False)[0]
    assert torch.equal(found, expected.detach())
    with pytest.raises(DataError, match="IRCLClassifier is no sum over places"):
        contribution_map(trained(), image)


def test_masks_are_those_of_the_assigned_biomarkers(image):
    network, mask = trained(), BiomarkerMask(steps=3)
    found = method("biomarker masks", mask=mask).explain(network, image, None)
    with torch.no_grad():
        assignment, _ = network.assign(network.encode(image)[1])
    target = network.biomarkers[assignment[0]]
    expected = mask.explain(network.encoder, image[0, :, None], target, network.rivals()).mask[:, 0]
    assert torch.equal(found, expected)


def test_a_step_has_no_gradient(image):
    pytest.importorskip("captum")

    class Steps(IRCLClassifier):
        def forward(self, image, covariates=None):
            assignment, _ = self.assign(self.encode(image)[1])
            score = assignment.float().sum(dim=1)
            return torch.stack([0 * score, score], dim=1)

    network = tiny_classifier(Steps)
    for explain in (grad_cam_of_views, integrated_gradients):
        with pytest.raises(DataError, match="has no gradient"):
            explain(network, image)


def test_evidence_for_a_class_is_one_side_of_a_signed_map_and_all_of_another():
    maps = torch.tensor([[[-2.0, 0.0, 3.0]]])
    signed, box = method("contributions"), method("centred box")
    assert signed.evidence(maps).tolist() == [[[0, 0, 3]]] and signed.evidence(maps, False).tolist() == [[[2, 0, 0]]]
    assert signed.order(maps, False).tolist() == [[[2, 0, -3]]] and signed.order(maps).tolist() == maps.tolist()
    assert box.order(maps, False).tolist() == maps.tolist()
    assert torch.equal(box.evidence(maps.abs(), False), maps.abs())


def test_controls_know_the_image_or_nothing(image):
    network, other = trained(), lively_images(2)[1:]
    noise = method("random map", seed=3).explain
    assert torch.equal(noise(network, image, None), noise(None, image, None))
    assert not torch.equal(noise(network, image, None), noise(network, other, None))
    assert not torch.equal(noise(network, image, None), method("random map", seed=4).explain(network, image, None))
    assert torch.equal(method("brightness").explain(network, -image, None), image[0])
    box = method("centred box").explain(network, image, None)
    assert box.shape == (4, 16, 16) and box.sum() == 4 * 64 and (box[:, 4:12, 4:12] == 1).all()


def test_the_untrained_network_is_another_one_for_each_trained_one(image):
    network, other, untrained = trained(), trained(), method("untrained network")
    state = {key: value.clone() for key, value in network.state_dict().items()}
    one, two = (untrained.explain(each, image, None) for each in (network, other))
    assert not torch.allclose(one, two) and torch.equal(one, untrained.explain(network, image, None))
    assert not torch.allclose(one, grad_cam_of_views(network, image))
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    again = method("untrained network").explain(network, image, None)
    assert torch.equal(one, again)
    # of an additive answer its contributions
    additive = AdditiveNetwork(4, 16, cell=4)
    found = untrained.explain(additive, image, None)
    assert found.shape == (4, 16, 16) and not torch.allclose(found, contribution_map(additive, image))


def test_every_method_leaves_the_network_as_it_was(image):
    pytest.importorskip("captum")
    network = trained(num_covariates=1)
    network.train()
    covariates = torch.tensor([[0.1]])
    before = {key: value.clone() for key, value in network.state_dict().items()}
    flags = [(p.requires_grad, p.grad is None) for p in network.parameters()]
    for each in explanation_methods(BiomarkerMask(steps=2), samples=20, integration_steps=2, pieces=4):
        if each.name in ("contributions", "SHAP"):  # the one is not had here, the other asks as LIME does
            continue
        found = each.explain(network, image, covariates)
        assert found.shape == (4, 16, 16) and found.isfinite().all() and not found.requires_grad, each.name
        assert each.signed or bool((found >= 0).all()), each.name
    assert network.training and flags == [(p.requires_grad, p.grad is None) for p in network.parameters()]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_log_odds_take_a_patients_covariates_for_every_row(image):
    network = trained(num_covariates=1)
    covariates = torch.tensor([[0.4]])
    with torch.no_grad():
        logits = network(image.expand(3, -1, -1, -1), covariates.expand(3, -1)).double()
        found = log_odds(network, image.expand(3, -1, -1, -1), covariates)
    np.testing.assert_allclose(found, logits[:, 1] - logits[:, 0], atol=1e-6)


def test_an_unknown_name_is_told_with_those_there_are():
    with pytest.raises(DataError, match=r"No explanation is called 'CAM'; there are 'contributions', .*'random map'"):
        explanation_methods(names=["CAM"])
