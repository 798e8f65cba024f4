"""The additive predictor against loops over places, and what a sum over places promises."""

import itertools

import numpy as np
import pytest
import torch

from shared.networks import BiomarkerClassifier, IRCLClassifier, IRCLEncoder
from shared.networks.blocks import turned, turned_back
from shared.networks.ircl.additive import biomarker_names, receptive_field
from tests.references import ircl_additive as reference
from tests.support.additive import tiny_additive, tumours

KNOWN = torch.tensor([[0.4, -1.0], [1.5, 0.2], [-0.3, 2.0]])


def looped(net, images, covariates):
    """Logits, contributions of each class and owners of the reference, patient by patient."""
    found, predictor = [], net.additive
    for image, known in zip(images, covariates, strict=True):
        x = image[:, None]
        features = []
        for encoder in predictor.encoders:
            views = [encoder.features(turned(x, view))[predictor.level].numpy() for view in range(predictor.views)]
            features.append([reference.place_features([maps[i] for maps in views]) for i in range(len(x))])
        covered = reference.coverage(image.numpy(), predictor.num_modalities, features[0][0].shape[0])
        found.append(
            (
                *reference.additive(
                    features,
                    covered,
                    predictor.biomarkers.numpy(),
                    predictor.weight.numpy(),
                    predictor.bias.numpy(),
                    measure=predictor.measure,
                    covariates=known.tolist(),
                    covariate_weight=predictor.covariate_weight.numpy(),
                ),
                covered,
            )
        )
    return [np.stack(values) for values in zip(*found, strict=True)]


@pytest.mark.parametrize(
    ("measure", "views", "members", "given"),
    [
        ("share", 1, 1, True),
        ("area", 8, 2, False),
        ("sqrt", 8, 1, True),
        ("sqrt", 1, 2, True),
        ("share", 8, 2, False),
        ("area", 3, 1, True),
    ],
)
@torch.no_grad()
def test_logits_contributions_and_maps_are_those_of_a_loop(measure, views, members, given):
    net = tiny_additive(measure=measure, views=views, members=members, num_covariates=2)
    images, predictor = tumours(3), net.additive
    known = KNOWN if given else predictor.covariate_mean.expand(3, -1)
    logits, places, owners, covered = looped(net, images, known)
    found = net(images, KNOWN if given else None)
    torch.testing.assert_close(found.double(), torch.from_numpy(logits), atol=1e-5, rtol=1e-5)
    contributions = predictor.contributions(images)
    expected = torch.from_numpy(places[:, 1] - places[:, 0])
    torch.testing.assert_close(contributions.double(), expected, atol=1e-6, rtol=1e-5)
    # the map, the bias and the covariates are all of the logit
    total = contributions.double().sum(dim=(1, 2, 3)) + predictor.log_odds(predictor.bias)
    total += known.double() @ predictor.log_odds(predictor.covariate_weight)
    torch.testing.assert_close(total, (found[:, 1] - found[:, 0]).double(), atol=1e-6, rtol=1e-6)
    modality = np.array([0, 0, 1, 1])[:, None, None]
    for member in range(members):
        expected = np.where(covered > 0, owners[:, member] + 5 * modality, -1)
        biomarkers = predictor.biomarker_map(images, member)
        assert biomarkers.dtype == torch.long and np.array_equal(biomarkers.numpy(), expected)
    assert torch.equal(predictor.explain(images)[1], predictor.biomarker_map(images))  # the first member's
    assert {-1, 0, 5} <= set(np.unique(expected)) or len(np.unique(expected)) > 5
    assert ((covered > 0) & (covered < 1)).any() and (covered == 0).any() and (covered == 1).any()
    np.testing.assert_allclose(predictor.coverage(images, 8).numpy(), covered, atol=1e-12)


@torch.no_grad()
def test_measures_are_shares_areas_and_roots():
    images = tumours(3)
    share, area, root = (tiny_additive(measure=m).additive.measured(images) for m in ("share", "area", "sqrt"))
    assert share.shape == (3, 1, 2, 5) and share.dtype == torch.float64
    torch.testing.assert_close(share.sum(dim=-1), torch.ones(3, 1, 2, dtype=torch.float64))
    torch.testing.assert_close(area.sqrt(), root)
    torch.testing.assert_close(area / area.sum(dim=-1, keepdim=True), share)
    inside = (images.unflatten(1, (2, 2)) != 0).any(dim=1).double().mean(dim=(1, 2, 3))
    torch.testing.assert_close(area.sum(dim=-1), inside[:, None, None].expand(3, 1, 2))


@torch.no_grad()
def test_a_turned_patient_has_the_turned_map_and_the_same_logit():
    net, images = tiny_additive(views=8, measure="sqrt"), tumours(3)
    before, biomarkers = net.additive.contributions(images), net.additive.biomarker_map(images)
    for view in range(1, 8):
        after = turned(images, view)
        torch.testing.assert_close(net(after), net(images), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(net.additive.contributions(after), turned(before, view), atol=1e-5, rtol=1e-5)
        assert torch.equal(net.additive.biomarker_map(after), turned(biomarkers, view))
    # one view is not enough
    net = tiny_additive(views=1)
    assert not torch.allclose(net(turned(images, 1)), net(images), atol=1e-4)


@torch.no_grad()
def test_a_batch_is_each_patient_alone():
    net, images = tiny_additive(members=2, num_covariates=2, views=2), tumours(3)
    whole = net(images, KNOWN)
    for i in range(3):
        torch.testing.assert_close(net(images[i : i + 1], KNOWN[i : i + 1])[0], whole[i], atol=1e-6, rtol=1e-6)
    order = [2, 0, 1]
    torch.testing.assert_close(net(images[order], KNOWN[order]), whole[order], atol=1e-6, rtol=1e-6)
    other = images.clone()
    other[1] = tumours(3, seed=9)[1]
    after = net(other, KNOWN)
    torch.testing.assert_close(after[[0, 2]], whole[[0, 2]], atol=1e-6, rtol=1e-6)
    assert (after[1] - whole[1]).abs().max() > 1e-4


@torch.no_grad()
def test_it_stays_in_eval_mode_and_has_nothing_to_train():
    net, images = tiny_additive(members=2), tumours(3)
    before, state = net(images), {key: value.clone() for key, value in net.state_dict().items()}
    net.train()
    assert not any(module.training for module in net.additive.modules())
    assert torch.equal(net(images), before)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert not any(parameter.requires_grad for parameter in net.additive.parameters())


@pytest.mark.parametrize("level", [0, -1])
def test_biomarkers_are_as_wide_as_the_features_of_their_level(level):
    predictor = tiny_additive(level=level).additive
    assert predictor.biomarkers.shape[-1] == predictor.features(tumours(1)).shape[2]


@torch.no_grad()
def test_both_predictors_of_a_network_can_be_asked():
    net, images = tiny_additive(num_covariates=2), tumours(3)
    answers = net.answers(images, KNOWN)
    assert list(answers) == ["prototype", "additive"]
    assert torch.equal(net(images, KNOWN), answers["additive"])
    net.answer = "prototype"
    assert torch.equal(net(images, KNOWN), answers["prototype"]) and torch.equal(
        net.prototype_logits(images, KNOWN), answers["prototype"]
    )
    assert not torch.allclose(answers["prototype"], answers["additive"], atol=1e-3)
    # the first member's encoder is the network's own
    assert net.additive.encoders[0] is net.encoder
    alone = IRCLClassifier(4, 2, channels=(4, 8), dim=8, num_layers=1, num_heads=2, mlp_dim=8).eval()
    assert alone.additive is None and list(alone.answers(images)) == ["prototype"]


def test_of_more_classes_the_log_odds_are_the_last_against_the_mean_of_the_others():
    net = BiomarkerClassifier([IRCLEncoder((4, 8))], 2, 3, width=8, num_classes=3)
    assert net.log_odds(torch.tensor([1.0, 2.0, 5.0])) == 3.5


@pytest.mark.parametrize("view", range(8))
def test_turning_back_undoes_turning(view):
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(turned_back(turned(x, view), view), x) and torch.equal(turned(turned_back(x, view), view), x)
    assert view == 0 or not torch.equal(turned_back(x, view), x)


@pytest.mark.parametrize("level", range(3))
def test_the_receptive_field_is_what_moves_a_place(level):
    encoder = IRCLEncoder((2, 2, 2)).eval()
    for parameter in encoder.parameters():  # no pixel is without influence
        torch.nn.init.constant_(parameter, 0.1)
    x = torch.rand(1, 1, 64, 64, requires_grad=True)
    found = encoder.features(x)[level]
    centre, half = found.shape[-1] // 2, receptive_field(level, 3)
    found[0, :, centre, centre].sum().backward()
    rows = x.grad[0, 0].abs().sum(dim=1).nonzero()
    # pooling hands the gradient to one of its pixels: the rim may be missed by one of each level
    assert half - 2 * (2**level - 1) <= int(rows.max() - rows.min()) + 1 <= half


def test_names_say_modality_number_and_member():
    assert biomarker_names(tiny_additive(num_biomarkers=2).additive, ["T1", "T2"]) == ["T1 0", "T1 1", "T2 0", "T2 1"]
    names = biomarker_names(tiny_additive(num_biomarkers=1, members=2).additive)
    assert names == [f"modality {m} {i}.0" for i, m in itertools.product(range(2), range(2))]


def test_settings_and_images_that_do_not_fit_are_refused():
    encoders = [IRCLEncoder((4, 8))]
    for settings, message in (
        ({"measure": "volume"}, "measure must be one of"),
        ({"views": 9}, "views must be 1 to 8, got 9"),
        ({"num_modalities": 2}, "3 images are no multiple of 2 modalities"),
    ):
        with pytest.raises(ValueError, match=message):
            BiomarkerClassifier(encoders, 3, 2, width=8, **settings)
    with pytest.raises(ValueError, match="takes 4 images per patient, got 3"):
        tiny_additive()(torch.rand(1, 3, 16, 16))
    for settings in ({"answer": "additive"}, {"answer": "both", "additive": {}}):
        with pytest.raises(ValueError, match="answer must be"):
            IRCLClassifier(4, 2, channels=(4, 8), dim=8, num_layers=1, num_heads=2, mlp_dim=8, **settings)


def test_scripted_it_answers_alike():
    net, images = tiny_additive(members=2, views=2, num_covariates=2), tumours(3)
    with torch.no_grad():
        scripted = torch.jit.script(net)
        torch.testing.assert_close(scripted(images, KNOWN), net(images, KNOWN))
        torch.testing.assert_close(scripted(images), net(images))
