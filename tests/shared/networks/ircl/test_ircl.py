import copy
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from shared.networks import IRCLAutoencoder, IRCLClassifier, IRCLEncoder
from tests.references import ircl_networks as reference
from tests.support.tiny import lively_images, tiny_classifier

classifier = partial(tiny_classifier, IRCLClassifier)
images = lively_images


# --- stage I ------------------------------------------------------------------------------------------------------


def test_the_default_autoencoder_has_the_papers_size():
    with torch.device("meta"):
        net = IRCLAutoencoder()
    projection = sum(parameter.numel() for parameter in net.encoder.projection.parameters())
    total = sum(parameter.numel() for parameter in net.parameters())
    assert total - projection == 7_701_825 and total == 8_030_145
    assert [tuple(layer.weight.shape) for layer in net.encoder.projection[::2]] == [(512, 512), (128, 512)]


def test_levels_pool_by_two_and_h_is_the_mean_of_the_last():
    net = IRCLEncoder((4, 6, 8, 10), embedding_dim=5).eval()
    x = images(1, 3).movedim(0, 1).repeat(1, 1, 2, 1)  # 32 x 16
    maps = net.features(x)
    assert [tuple(m.shape) for m in maps] == [(3, 4, 32, 16), (3, 6, 16, 8), (3, 8, 8, 4), (3, 10, 4, 2)]
    h, z = net(x)
    torch.testing.assert_close(h, maps[-1].flatten(2).mean(dim=2))
    torch.testing.assert_close(z, normalize(net.projection(h), dim=1))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(3))


def test_shapes_of_the_autoencoder_and_its_skips():
    net = IRCLAutoencoder((4, 6, 8), embedding_dim=5, in_channels=2).eval()
    x = torch.rand(3, 2, 16, 24)
    reconstruction, h, z = net(x)
    assert reconstruction.shape == x.shape and h.shape == (3, 8) and z.shape == (3, 5)


def test_every_level_reaches_the_reconstruction():
    torch.manual_seed(0)
    net = IRCLAutoencoder((4, 6, 8), embedding_dim=5).eval()
    maps = [m.detach().requires_grad_() for m in net.encoder.features(torch.rand(1, 1, 16, 16))]
    net.encoder.features = lambda x: maps
    net(torch.rand(1, 1, 16, 16))[0].square().sum().backward()
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for m in maps)


def test_embeddings_are_float32_of_unit_length_under_autocast():
    net = IRCLAutoencoder((4, 8), embedding_dim=6).eval()
    with torch.autocast("cpu", torch.bfloat16):
        reconstruction, _, z = net(images(1, 4).movedim(0, 1))
    assert reconstruction.dtype == torch.bfloat16 and z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(20, 16), (16, 18)])
def test_sides_that_cannot_be_halved_are_refused(shape):
    net = IRCLAutoencoder((4, 4, 4, 4))
    with pytest.raises(ValueError, match=f"divisible by 8, got {shape[0]} x {shape[1]}"):
        net(torch.rand(1, 1, *shape))


def test_scripted_and_exported_autoencoder_equals_eager():
    net = IRCLAutoencoder((4, 8), embedding_dim=6).eval()
    x = images(1, 3).movedim(0, 1)
    for other in (torch.jit.script(net), torch.export.export(net, (x,)).module()):
        for found, expected in zip(other(x), net(x), strict=True):
            torch.testing.assert_close(found, expected)


# --- stage II: one patient does not know of another ---------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"num_modalities": 2, "per_modality": True, "pooling": "modality"}])
def test_a_patient_in_a_batch_is_predicted_as_alone(settings):
    net, x = classifier(**settings), images()
    together = net(x).softmax(dim=1)
    alone = torch.cat([net(one[None]) for one in x]).softmax(dim=1)
    assert (together - alone).abs().max() < 1e-5
    assert together[:, 1].std() > 1e-5  # and the patients do differ


def test_permuting_the_batch_permutes_the_predictions():
    net, x = classifier(), images()
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(net(x[order]), net(x)[order], atol=1e-6, rtol=0)


def test_changing_one_patient_changes_that_patient_only():
    net, x = classifier(), images()
    changed = x.clone()
    changed[2] = x[2].flip(-1) * 0.5
    difference = (net(x) - net(changed)).abs().amax(dim=1)
    assert difference[2] > 1e-4 and difference[[0, 1, 3, 4]].max() < 1e-6


# --- Eq. 6 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_modality", [False, True])
def test_assignment_is_the_nearest_allowed_biomarker(per_modality):
    net = classifier(num_modalities=2, per_modality=per_modality)
    z = normalize(torch.randn(6, 4, 6, generator=torch.Generator().manual_seed(2)), dim=2)
    index, similarity = net.assign(z)
    owner = [0, 0, 1, 1]
    allowed = [[not per_modality or k // 3 == owner[j] for k in range(len(net.biomarkers))] for j in range(4)]
    outside = 0
    for patient in range(6):
        rows = z[patient].tolist(), net.biomarkers.tolist()
        chosen, value = reference.nearest_biomarker(*rows, allowed)
        assert index[patient].tolist() == chosen
        assert similarity[patient].tolist() == pytest.approx(value, abs=1e-6)
        outside += reference.nearest_biomarker(*rows)[0] != chosen
    assert bool(outside) == per_modality  # the restriction does something


def test_rivals_are_the_biomarkers_an_image_may_be_assigned_to():
    net = classifier(num_modalities=2, per_modality=True)
    rivals = net.rivals()
    assert rivals.shape == (4, 3, 6)
    assert torch.equal(rivals[1], net.biomarkers[:3]) and torch.equal(rivals[2], net.biomarkers[3:])
    assert torch.equal(classifier().rivals()[2], classifier().biomarkers)


def test_the_prediction_uses_that_assignment():
    net, x = classifier(), images()
    h, z = net.encode(x)
    assignment = net.assign(z)[0]
    torch.testing.assert_close(net(x), net.predictor(h, assignment))
    assert not torch.allclose(net(x), net.predictor(h, torch.zeros_like(assignment)), atol=1e-4)
    # only who shares a biomarker with whom matters, not the biomarkers' numbers
    torch.testing.assert_close(net(x), net.predictor(h, (assignment + 1) % 3))


# --- views --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_eight_views_make_features_blind_to_flips_and_quarter_turns(turns, flip):
    net, plain, x = classifier(views=8), classifier(views=1), images(2)
    turned = torch.rot90(x, turns, [2, 3])
    turned = turned.flip(3) if flip else turned
    for found, expected in zip(net.encode(turned), net.encode(x), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    if turns or flip:
        assert not torch.allclose(plain.encode(turned)[0], plain.encode(x)[0], atol=1e-4)


def test_two_views_are_the_mean_of_both():
    x = images(2)
    h, z = classifier(views=2).encode(x)
    plain = classifier(views=1)
    (h1, z1), (h2, z2) = plain.encode(x), plain.encode(torch.rot90(x, 1, [2, 3]))
    torch.testing.assert_close(h, (h1 + h2) / 2)
    torch.testing.assert_close(z, normalize(z1 + z2, dim=2))


# --- the frozen encoder -------------------------------------------------------------------------------------------


def test_the_frozen_encoder_is_bitwise_unchanged_by_training():
    net = classifier()
    encoder = copy.deepcopy(net.encoder.state_dict())
    biomarkers, predictor = net.biomarkers.clone(), copy.deepcopy(net.predictor.state_dict())
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    for step in range(3):
        net.train()
        loss = cross_entropy(net(images(seed=step)), torch.tensor([0, 1, 0, 1, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert net.predictor.training and not any(module.training for module in net.encoder.modules())
    assert any(key.endswith("running_mean") for key in encoder)
    assert all(torch.equal(value, encoder[key]) for key, value in net.encoder.state_dict().items())
    assert torch.equal(net.biomarkers, biomarkers)
    assert not all(torch.equal(value, predictor[key]) for key, value in net.predictor.state_dict().items())


# --- what is saved ------------------------------------------------------------------------------------------------


def test_settings_rebuild_the_network_for_its_weights():
    net = classifier(num_modalities=2, per_modality=True, pooling="modality", num_covariates=1, views=3)
    again = IRCLClassifier(**net.settings).eval()
    again.load_state_dict(net.state_dict())
    covariates = torch.rand(5, 1)
    torch.testing.assert_close(again(images(), covariates), net(images(), covariates), atol=0, rtol=0)
    assert "self" not in net.settings and net.settings["views"] == 3


@pytest.mark.parametrize("settings", [{}, {"num_modalities": 2, "per_modality": True, "num_covariates": 2, "views": 8}])
def test_scripted_classifier_equals_eager(settings):
    net, x = classifier(**settings), images()
    covariates = torch.rand(5, 2) if settings else None
    torch.testing.assert_close(torch.jit.script(net)(x, covariates), net(x, covariates))


def test_exported_classifier_equals_eager_for_any_batch_size():
    net = classifier(num_modalities=2, per_modality=True, num_covariates=2, pooling="modality", views=2)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    shapes = {"image": batch, "covariates": batch}
    exported = torch.export.export(net, (images(2), torch.rand(2, 2)), dynamic_shapes=shapes).module()
    covariates = torch.rand(5, 2)
    torch.testing.assert_close(exported(images(), covariates), net(images(), covariates))


# --- refusals -----------------------------------------------------------------------------------------------------


def test_another_number_of_images_is_refused():
    with pytest.raises(ValueError, match="takes 4 images per patient, got 3"):
        classifier()(images(2, 3))


@pytest.mark.parametrize("views", [0, 9])
def test_more_views_than_a_square_has_are_refused(views):
    with pytest.raises(ValueError, match=f"views must be 1 to 8, got {views}"):
        classifier(views=views)
