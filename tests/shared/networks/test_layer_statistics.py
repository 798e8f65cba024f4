"""Means and spreads of a network's layers, taken while it computes."""

import numpy as np
import torch
from torch import nn

from shared.networks import IRCLEncoder, LayerStatistics, SSCLClassifier


def watched(network, image, patients, layers=None):
    with LayerStatistics(network.eval(), layers) as seen, torch.no_grad():
        network(image)
        return seen.features(patients), seen.layers


def test_features_are_means_and_deviations_of_the_first_layer_at_each_resolution():
    torch.manual_seed(0)
    network, image = IRCLEncoder((4, 6)), torch.rand(6, 1, 16, 16)
    found, layers = watched(network, image, 2)
    assert layers == ["levels.0.conv_0.adn.N", "levels.1.convs.conv_0.adn.N"]
    with torch.no_grad():
        first = network.levels[0].conv_0.conv(image)
        pooled = nn.functional.max_pool2d(network.levels[0](image), 2)
        second = network.levels[1].convs.conv_0.conv(pooled)
    expected = []
    for images in (range(3), range(3, 6)):
        row = []
        for maps in (first, second):
            values = maps.double().numpy().reshape(6, maps.shape[1], -1)[list(images)]
            row += [*values.mean(axis=2).mean(axis=0), *values.std(axis=2).mean(axis=0)]
        expected.append(row)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert found.dtype == np.float64


def test_a_patient_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    settings = dict(block="basic", layers=(1, 1, 1, 1), channels=(8, 8, 16, 16))
    network, image = SSCLClassifier(settings), torch.rand(5, 3, 64, 64)
    together, layers = watched(network, image, 5)
    alone = np.concatenate([watched(network, image[k : k + 1], 1, layers)[0] for k in range(5)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)


def test_the_first_call_counts_and_the_network_is_left_alone():
    network, image = IRCLEncoder((4, 6)).eval(), torch.rand(2, 1, 16, 16)
    with LayerStatistics(network) as seen, torch.no_grad():
        network(image)
        before = seen.features(2)
        network(image.flip(3) * 2)
        assert np.array_equal(seen.features(2), before)
        seen.clear()
        assert seen.features(2) is None
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_without_convolutions_or_with_a_layer_that_is_not_called_there_are_no_features():
    flat = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert watched(flat, torch.rand(5, 3), 5) == (None, [])
    unused = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])
    unused.forward = lambda x: unused[0](x)
    assert watched(unused, torch.rand(1, 3, 4, 4), 1, ["0", "1"])[0] is None
