"""Means and spreads of a network's layers, taken while it computes."""

import numpy as np
import pytest
import torch
from torch import nn

from shared.networks import IRCLClassifier, IRCLEncoder, LayerStatistics, SSCLClassifier
from shared.networks.layer_statistics import exchange_orders


def watched(network, image, patients, layers=None):
    with LayerStatistics(network.eval(), layers) as seen, torch.no_grad():
        network(image)
        return seen.features(patients), seen.layers


def test_features_are_means_and_deviations_of_the_first_layer_at_each_resolution():
    torch.manual_seed(0)
    network, image = IRCLEncoder((4, 6, 8)), torch.rand(6, 1, 16, 16) - 0.3  # standardised images have values below 0
    image[:, :, :7, :5] = 0.0  # outside the mask
    found, layers = watched(network, image, 2)
    assert layers == ["levels.0.conv_0.adn.N", "levels.1.convs.conv_0.adn.N"]
    with torch.no_grad():
        first = network.levels[0].conv_0.conv(image)
        pooled = nn.functional.max_pool2d(network.levels[0](image), 2)
        second = network.levels[1].convs.conv_0.conv(pooled)
    # the middle of the pooled grid lies beside a hole in the image
    inside = (image[:, 0] != 0).double().numpy()
    pixels = image.double().numpy()
    for part, maps in zip(found[1:], (first, second), strict=True):
        values = maps.double().numpy()
        weight = inside if values.shape[-1] == 16 else inside.reshape(6, 8, 2, 8, 2).mean(axis=(2, 4))
        np.testing.assert_allclose(part, by_patient(values, weight), rtol=1e-4, atol=1e-5)
    gradient = []
    for k in range(6):
        steps = []
        for axis in (0, 1):
            both = np.minimum(inside[k].take(range(15), axis), inside[k].take(range(1, 16), axis)) > 0
            steps.append(np.mean(np.diff(pixels[k, 0], axis=axis)[both] ** 2))
        gradient.append(np.log(np.sqrt(np.mean(steps)) + 1e-3))
    shape = [skewness(maps[0][places > 0]) for maps, places in zip(pixels, inside, strict=True)]
    expected = np.c_[by_patient(pixels, inside), np.reshape(np.c_[gradient, shape], (2, 3, 2)).mean(axis=1)]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)
    assert {part.dtype for part in found} == {np.dtype("float64")}


def skewness(x):
    return np.mean(((x - x.mean()) / (x.std() + 1e-3)) ** 3)


def test_of_several_channels_the_correlation_of_each_two_is_told():
    torch.manual_seed(0)
    image = torch.rand(2, 3, 12, 12)
    image[:, 2] = image[:, 0] - 0.5 * image[:, 1]
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    image_part, _ = watched(network, image, 2)[0]
    assert image_part.shape == (2, 4 * 3 + 3)
    for row, pixels in zip(image_part, image.flatten(2).double().numpy(), strict=True):
        shrink = [x.std() / (x.std() + 1e-3) for x in pixels]
        pairs = ((0, 1), (0, 2), (1, 2))
        correlation = [np.corrcoef(pixels[a], pixels[b])[0, 1] * shrink[a] * shrink[b] for a, b in pairs]
        np.testing.assert_allclose(row[12:], correlation, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(row[9:12], [skewness(x) for x in pixels], rtol=1e-4, atol=1e-5)


def by_patient(values, weight):
    """Mean and log SD of each channel over the places that count, mean over the three images of both patients."""
    rows = []
    for maps, places in zip(values, weight, strict=True):
        mean = [(channel * places).sum() / places.sum() for channel in maps]
        spread = [np.sqrt(((c - m) ** 2 * places).sum() / places.sum()) for c, m in zip(maps, mean, strict=True)]
        rows.append([*mean, *np.log(np.array(spread) + 1e-3)])
    return np.reshape(rows, (2, 3, -1)).mean(axis=1)


def tiny_ircl():
    return IRCLClassifier(
        6, 2, num_modalities=3, channels=(4, 6), embedding_dim=8, dim=8, num_layers=1, num_heads=2, mlp_dim=8
    )


def test_modalities_are_the_image_s_channels_and_their_layers_are_one():
    torch.manual_seed(0)
    image = torch.rand(5, 6, 16, 16)  # three modalities of two slices
    image[:, 2:4] = image[:, :2] ** 2
    network = tiny_ircl().eval()
    with LayerStatistics(network) as seen, torch.no_grad():
        network(image)
    found, (mean, *layers) = seen.by_channel(5), seen.features(5)
    stacks = image.unflatten(1, (3, 2)).transpose(1, 2).flatten(0, 1)
    channels = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    np.testing.assert_allclose(found, watched(channels, stacks, 5)[0][0], rtol=1e-5)
    assert found.shape == (5, 4 * 3 + 3) and [part.shape for part in layers] == [(5, 8), (5, 12)]
    np.testing.assert_allclose(mean, found[:, :12].reshape(5, 4, 3).mean(axis=2), rtol=1e-5)


@pytest.mark.parametrize("modalities", [False, True])
def test_an_exchange_of_two_channels_reorders_the_image_s_features(modalities):
    torch.manual_seed(0)
    image = torch.rand(4, 3, 2, 16, 16) * torch.tensor([1.0, 2.0, 3.0])[:, None, None, None]
    network = tiny_ircl() if modalities else nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))

    def of(x):
        with LayerStatistics(network.eval()) as seen, torch.no_grad():
            network(x.flatten(1, 2) if modalities else x)
        return seen.by_channel(4)

    orders = exchange_orders(3)
    assert list(orders) == [(0, 1), (0, 2), (1, 2)]
    for (a, b), order in orders.items():
        other = image.clone()
        other[:, [a, b]] = image[:, [b, a]]
        assert not np.allclose(of(image), of(other), rtol=1e-2)
        np.testing.assert_allclose(of(image)[:, order], of(other), rtol=1e-4, atol=1e-5)


def test_a_patient_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    settings = {"block": "basic", "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}
    network, image = SSCLClassifier(settings), torch.rand(5, 3, 64, 64)
    together, layers = watched(network, image, 5)
    alone = [watched(network, image[k : k + 1], 1, layers)[0] for k in range(5)]
    for number, part in enumerate(together):
        np.testing.assert_allclose(part, np.concatenate([one[number] for one in alone]), rtol=1e-4, atol=1e-5)


def test_the_first_call_counts_and_the_network_is_left_alone():
    network, image = IRCLEncoder((4, 6)).eval(), torch.rand(2, 1, 16, 16)
    with LayerStatistics(network) as seen, torch.no_grad():
        network(image)
        before = seen.features(2)
        network(image.flip(3) * 2)
        assert all(np.array_equal(x, y) for x, y in zip(seen.features(2), before, strict=True))
        seen.clear()
        assert seen.features(2) is None
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_without_convolutions_or_with_a_layer_that_is_not_called_there_are_no_features():
    flat = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert watched(flat, torch.rand(5, 3), 5) == (None, [])
    unused = nn.ModuleList([nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)])
    unused.forward = lambda x: unused[1](unused[0](x))
    assert watched(unused, torch.rand(1, 3, 4, 4), 1, ["1"])[0] is not None
    assert watched(unused, torch.rand(1, 3, 4, 4), 1, ["1", "2"])[0] is None
