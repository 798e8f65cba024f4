import logging

import pytest
import torch
from monai.bundle import ConfigParser

from shared.errors import CheckpointError
from shared.losses import PerceptualReconstructionLoss
from tests.references import ircl_losses as reference

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
NUMBERS = dict(zip(reference.VGG16_CONVOLUTIONS.values(), WIDTHS, strict=True))
SHALLOW = ("relu1_2", "relu2_1")


def random_vgg(last):
    """Random weights of VGG16's convolutions up to `features.<last>`, scaled so that features stay near 1."""
    generator, state, inputs = torch.Generator().manual_seed(0), {}, 3
    for number, width in NUMBERS.items():
        if number > last:
            break
        weight = torch.empty(width, inputs, 3, 3).normal_(0, (2 / (9 * inputs)) ** 0.5, generator=generator)
        state[f"features.{number}.weight"] = weight
        state[f"features.{number}.bias"] = torch.empty(width).normal_(0, 0.1, generator=generator)
        inputs = width
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with the first convolutions and, like torchvision's, a classifier that is not needed."""
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save({**random_vgg(5), "classifier.0.weight": torch.zeros(4, 4)}, path)
    return path


def make_images(batch=2, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 1, size, size, generator=generator), torch.rand(batch, 1, size, size, generator=generator)


def test_equals_equation_2_with_all_four_layers(tmp_path):
    state = random_vgg(21)
    torch.save(state, tmp_path / "vgg16.pth")
    image, reconstruction = make_images()
    layers = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
    found = PerceptualReconstructionLoss(tmp_path / "vgg16.pth")(image, reconstruction)
    expected = reference.reconstruction_loss(image[:, 0].numpy(), reconstruction[:, 0].numpy(), state, layers)
    assert expected > 0.4  # the features count beside an L1 of a third
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("layers", [("relu1_1",), ("relu2_1", "relu1_2")])
def test_equals_equation_2_with_selected_layers(weights, layers):
    image, reconstruction = make_images(batch=3, size=9)
    loss = PerceptualReconstructionLoss(str(weights), layers)
    state = torch.load(weights, weights_only=True)
    expected = reference.reconstruction_loss(image[:, 0].numpy(), reconstruction[:, 0].numpy(), state, layers)
    assert loss(image, reconstruction).item() == pytest.approx(expected, rel=1e-5)


def test_without_weights_it_is_the_mean_absolute_error_and_warns_once(caplog):
    with caplog.at_level(logging.WARNING):
        loss = PerceptualReconstructionLoss()
        image, reconstruction = make_images()
        values = [loss(image, reconstruction) for _ in range(3)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "vgg_weights is not set" in caplog.text
    expected = reference.reconstruction_loss(image[:, 0].numpy(), reconstruction[:, 0].numpy())
    assert values[0].item() == values[2].item() == pytest.approx(expected, rel=1e-6)


def test_equal_images_cost_nothing_and_a_repeated_batch_costs_the_same(weights):
    loss = PerceptualReconstructionLoss(weights, SHALLOW)
    image, reconstruction = make_images()
    assert loss(image, image).item() == 0.0
    twice = loss(image.repeat(4, 1, 1, 1), reconstruction.repeat(4, 1, 1, 1))
    torch.testing.assert_close(twice, loss(image, reconstruction))
    torch.testing.assert_close(loss(image.flip(0), reconstruction.flip(0)), loss(image, reconstruction))
    torch.testing.assert_close(
        loss(image.repeat(1, 3, 1, 1), reconstruction.repeat(1, 3, 1, 1)), loss(image, reconstruction)
    )


def test_gradient_reaches_the_reconstruction_only(weights):
    loss = PerceptualReconstructionLoss(weights, SHALLOW)
    image, reconstruction = (x.requires_grad_() for x in make_images())
    loss(image, reconstruction).backward()
    assert image.grad is None and reconstruction.grad.isfinite().all()
    l1_only = torch.full_like(reconstruction.grad, 1 / reconstruction.numel())
    assert not torch.allclose(reconstruction.grad.abs(), l1_only)


def test_vgg_is_frozen_in_eval_mode_and_outside_the_checkpoint(weights):
    loss = PerceptualReconstructionLoss(weights, SHALLOW).train()
    assert loss.training and not loss.features.training
    assert not any(module.training for module in loss.features.modules())
    assert [p for p in loss.parameters() if p.requires_grad] == [] and loss.state_dict() == {}
    loss.load_state_dict({})
    before = [value.clone() for value in loss.features.buffers()]
    assert len(before) == 6
    image, reconstruction = make_images()
    loss(image, reconstruction.requires_grad_()).backward()
    assert all(torch.equal(a, b) for a, b in zip(before, loss.features.buffers(), strict=True))
    assert len(loss.features) == 7  # nothing beyond relu2_1
    assert loss.double()(image.double(), reconstruction.double()).isfinite()


def test_autocast_gives_a_float32_loss_close_to_full_precision(weights):
    loss = PerceptualReconstructionLoss(weights, SHALLOW)
    image, reconstruction = make_images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(image, reconstruction.to(torch.bfloat16))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(image, reconstruction), rtol=0.03, atol=0)


def test_unknown_and_no_layers_are_refused():
    with pytest.raises(ValueError, match=r"some of relu1_1, relu1_2, .*relu5_3; got \['relu1_2', 'conv9'\]"):
        PerceptualReconstructionLoss(layers=("relu1_2", "conv9"))
    with pytest.raises(ValueError, match=r"got \[\]"):
        PerceptualReconstructionLoss(layers=())


def test_shapes_that_differ_are_refused():
    loss = PerceptualReconstructionLoss()
    with pytest.raises(ValueError, match=r"of one shape, got \[2, 1, 8, 8\] and \[2, 1, 8, 1\]"):
        loss(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 1))
    with pytest.raises(ValueError, match=r"got \[2, 2, 8, 8\]"):
        loss(torch.zeros(2, 2, 8, 8), torch.zeros(2, 2, 8, 8))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"features\.0\.weight.*nowhere\.pth is not there.*download\.pytorch\.org"
    ):
        PerceptualReconstructionLoss(tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"keys features\.0\.weight.*vgg\.pth cannot be read as one"),
        (b"PK\x03\x04 half a download", r"keys features\.0\.weight.*vgg\.pth cannot be read as one"),
        (b"<html>not found</html>", r"vgg\.pth is a web page \(HTML\)"),
    ],
)
def test_a_file_that_is_no_state_dict_is_named(tmp_path, content, message):
    (tmp_path / "vgg.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        PerceptualReconstructionLoss(tmp_path / "vgg.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), r"holds a Tensor"),
        ({}, r"holds nothing; missing or misshapen: features\.0\.weight"),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, r"holds conv1\.weight; missing or misshapen: features\.0\.weight"),
        (
            {**random_vgg(5), "features.2.weight": torch.zeros(64)},
            r"holds features\.0\.weight, .*; missing or misshapen: features\.2\.weight is 64 instead of 64x64x3x3\.",
        ),
    ],
)
def test_other_weights_are_named_with_what_was_expected(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"keys features\.0\.weight, .*other\.pth " + message):
        PerceptualReconstructionLoss(tmp_path / "other.pth", SHALLOW)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch.save({"features.0.weight": print}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        PerceptualReconstructionLoss(tmp_path / "code.pth", SHALLOW)


def test_configs_find_the_losses_by_their_public_names():
    parser = ConfigParser(
        {
            "bank": {"_target_": "shared.losses.MemoryBank", "size": 4, "dim": 2},
            "contrastive": {"_target_": "shared.losses.MemoryBankContrastiveLoss", "bank": "@bank"},
            "reconstruction": {"_target_": "shared.losses.PerceptualReconstructionLoss"},
        }
    )
    assert parser.get_parsed_content("contrastive").bank is parser.get_parsed_content("bank")
    assert parser.get_parsed_content("reconstruction").features is None
