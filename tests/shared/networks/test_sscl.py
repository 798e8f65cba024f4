import pytest
import torch
from monai.networks.nets import resnet50

from shared.checkpoint import save_checkpoint
from shared.errors import CheckpointError
from shared.networks import ContrastiveNetwork, PatchEncoder, SSCLClassifier, load_imagenet_weights
from shared.networks.sscl import spread

SMALL = {"block": "basic", "layers": (1, 1, 1, 1), "channels": (8, 8, 8, 16)}


def _imagenet_like(path, encoder):
    """A state dict under torchvision's names, BatchNorm statistics and last layer included."""
    torch.manual_seed(3)
    state = {
        key: torch.rand_like(value) + 0.1 if value.is_floating_point() else value
        for key, value in encoder.state_dict().items()
    }
    state |= {"fc.weight": torch.zeros(1000, encoder.widths[-1]), "fc.bias": torch.zeros(1000)}
    save_checkpoint(path, state)
    return state


def test_the_default_encoder_is_the_resnet50_of_the_paper():
    encoder = PatchEncoder()
    assert sum(p.numel() for p in encoder.parameters()) == 23_508_032
    reference = resnet50(
        spatial_dims=2,
        n_input_channels=3,
        conv1_t_stride=2,
        no_max_pool=False,
        bias_downsample=False,
        feed_forward=False,
        pretrained=False,
    )
    reference.load_state_dict(encoder.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder.eval()(x), reference.eval()(x))


def test_stages_are_pooled_and_joined_in_their_order():
    torch.manual_seed(0)
    both, third, last = (PatchEncoder(**SMALL, stages=stages).eval() for stages in ((4, 3), (3,), (4,)))
    for other in (third, last):
        other.load_state_dict(both.state_dict())
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(both(x), torch.cat([third(x), last(x)], dim=1))
    assert (both.width, third.width, last.width) == (24, 8, 16)


def test_a_linear_projection_is_the_papers_and_two_layers_are_simclrs():
    assert len(ContrastiveNetwork(SMALL, projection=(12,)).projection) == 1
    assert [type(layer).__name__ for layer in ContrastiveNetwork(SMALL, projection=(16, 12)).projection] == [
        "Linear",
        "ReLU",
        "Linear",
    ]


def test_the_pretraining_projects_the_last_stage_whatever_stages_the_classifier_uses():
    network = ContrastiveNetwork({**SMALL, "stages": (3, 4)}, projection=(12,))
    assert (network.encoder.stages, network.projection[0].in_features) == ((4,), 16)


def test_a_frozen_encoder_keeps_weights_and_statistics_in_training():
    torch.manual_seed(0)
    net = SSCLClassifier(SMALL, freeze_encoder=True).train()
    before = {key: value.clone() for key, value in net.encoder.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    net(torch.rand(4, 3, 64, 64)).square().sum().backward()
    optimiser.step()
    assert all(torch.equal(value, before[key]) for key, value in net.encoder.state_dict().items())
    assert net.head.weight.grad.abs().sum() > 0


def test_imagenet_weights_see_the_standardised_image(tmp_path):
    torch.manual_seed(0)
    encoder, plain = PatchEncoder(**SMALL), PatchEncoder(**SMALL)
    state = _imagenet_like(tmp_path / "imagenet.pth", plain)
    plain.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")})
    load_imagenet_weights(encoder, tmp_path / "imagenet.pth")
    image = torch.rand(2, 3, 65, 65)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    standardised = (image - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        found, expected = (
            net.eval().bn1(net.conv1(x))[..., 2:-2, 2:-2] for net, x in ((encoder, image), (plain, standardised))
        )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {"model": state}, "no state dict with torchvision's ResNet names"),
        (lambda state: state | {"conv1.weight": torch.zeros(4, 1, 7, 7)}, "takes 1 channels, RGB images have 3"),
        (lambda state: state | {"layer4.0.conv1.weight": torch.zeros(9, 8, 3, 3)}, r"layer4\.0\.conv1\.weight"),
    ],
)
def test_other_weights_are_refused_with_a_reason(tmp_path, change, message):
    encoder = PatchEncoder(**SMALL)
    save_checkpoint(tmp_path / "w.pth", change(_imagenet_like(tmp_path / "imagenet.pth", encoder)))
    with pytest.raises(CheckpointError, match=message):
        load_imagenet_weights(encoder, tmp_path / "w.pth")


@pytest.mark.parametrize(
    "settings",
    [
        {"block": "dense"},
        {"layers": (1, 1, 1)},
        {"channels": (8, 8)},
        {"stages": ()},
        {"stages": (4, 4)},
        {"stages": (5,)},
    ],
)
def test_an_encoder_that_is_no_resnet_is_refused(settings):
    with pytest.raises(ValueError, match="got"):
        PatchEncoder(**(SMALL | settings))


def test_a_prediction_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    net = SSCLClassifier(SMALL | {"stages": (3, 4)}).eval()
    x = torch.rand(5, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net(x)[2:3], net(x[2:3]), rtol=1e-4, atol=1e-5)


def test_an_encoder_that_takes_the_mean_away_itself_equals_one_of_centred_images(tmp_path):
    torch.manual_seed(0)
    mean = (0.5, 0.4, 0.3)
    plain, centring = PatchEncoder(**SMALL).eval(), PatchEncoder(**SMALL, input_mean=mean).eval()
    centring.load_state_dict(plain.state_dict())
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = plain(image - torch.tensor(mean)[:, None, None])
        torch.testing.assert_close(centring(image), expected)
        assert not torch.allclose(plain(image), expected, atol=1e-3)
        # weights of ImageNet see the same standardised image, whether the encoder takes a mean away or not
        _imagenet_like(tmp_path / "imagenet.pth", plain)
        for encoder in (plain, centring):
            load_imagenet_weights(encoder, tmp_path / "imagenet.pth")
        inner = (..., slice(2, -2), slice(2, -2))  # at the edge the padding is another one
        first = plain.bn1(plain.conv1(image))[inner]
        second = centring.bn1(centring.conv1(image - centring.input_mean))[inner]
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


def test_steps_grow_from_the_stem_to_the_head_and_every_parameter_is_trained_once():
    network = SSCLClassifier(SMALL)
    groups = network.parameter_groups(0.8, 0.5)
    assert [group["lr"] for group in groups] == [0.05, 0.1, 0.2, 0.4, 0.8, 0.8]
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in network.parameters())
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rate[id(network.encoder.conv1.weight)] == 0.05
    assert rate[id(network.encoder.layer3[0].conv1.weight)] == 0.4
    assert rate[id(network.head.weight)] == 0.8
    assert {group["lr"] for group in network.parameter_groups(0.8)} == {0.8}


def test_a_frozen_encoder_leaves_the_head_to_train():
    network = SSCLClassifier(SMALL, freeze_encoder=True)
    (group,) = network.parameter_groups(0.8, 0.5)
    assert group["lr"] == 0.8
    assert group["params"] == list(network.head.parameters())


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.5])
def test_steps_cannot_grow_towards_the_image(decay):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        SSCLClassifier(SMALL).parameter_groups(0.1, decay)


def naive_contributions(net, image):
    """Place by place, with loops: what each fine cell holds of each coarse one by the area they share."""
    maps = net.encoder.maps(image)
    height, width = maps[0].shape[2:]
    total = torch.zeros(len(image), net.head.out_features, height, width, dtype=image.dtype)
    start = 0
    for found in maps:
        weight = net.head.weight[:, start : start + found.shape[1]]
        start += found.shape[1]
        rows, columns = found.shape[2:]
        for y in range(height):
            for x in range(width):
                for i in range(rows):
                    for j in range(columns):
                        high = min((y + 1) / height, (i + 1) / rows) - max(y / height, i / rows)
                        wide = min((x + 1) / width, (j + 1) / columns) - max(x / width, j / columns)
                        if high > 0 and wide > 0:
                            share = high * wide * height * width
                            total[:, :, y, x] += share * found[:, :, i, j] @ weight.T
    return total


@pytest.mark.parametrize("stages", [(4,), (3, 4), (1, 2, 4)])
@pytest.mark.parametrize("size", [(64, 64), (72, 104), (33, 97)])
def test_contributions_are_the_naive_ones_and_their_mean_and_bias_the_logits(stages, size):
    torch.manual_seed(0)
    net = SSCLClassifier({**SMALL, "stages": stages}, num_classes=3, dropout=0.4).double().eval()
    with torch.no_grad():
        net.head.bias.copy_(torch.tensor([5.0, -3.0, 1.0]))
        image = torch.rand(2, 3, *size, dtype=torch.float64)
        found = net.contributions(image)
        torch.testing.assert_close(found, naive_contributions(net, image), rtol=0, atol=1e-10)
        torch.testing.assert_close(found.mean((2, 3)) + net.head.bias, net(image), rtol=0, atol=1e-10)
        assert found.shape[2:] == net.encoder.maps(image)[0].shape[2:]
        net, image = net.float(), image.float()
        single = net.contributions(image)
        torch.testing.assert_close(single.mean((2, 3)) + net.head.bias, net(image), rtol=0, atol=1e-5)
        # one image's map does not depend on the batch
        torch.testing.assert_close(net.contributions(image[1:]), single[1:], rtol=0, atol=1e-5)


def test_contributions_stay_in_float32_under_autocast():
    torch.manual_seed(0)
    net, image = SSCLClassifier({**SMALL, "stages": (3, 4)}).eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = net.contributions(image)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.mean((2, 3)) + net.head.bias, net(image), rtol=0, atol=0.02)


def test_spreading_keeps_means_whatever_the_sizes():
    torch.manual_seed(0)
    maps = torch.rand(2, 3, 3, 4, dtype=torch.float64)
    for size in ((3, 4), (6, 8), (5, 7), (2, 11)):
        torch.testing.assert_close(spread(maps, size).mean((2, 3)), maps.mean((2, 3)), rtol=0, atol=1e-14)
    # of whole multiples each cell is repeated
    assert torch.equal(spread(maps, (6, 8)), maps.repeat_interleave(2, 2).repeat_interleave(2, 3))
