import copy

import numpy as np
import pytest
import torch
from torch import nn

from shared.errors import DataError
from shared.explain import GradCAM, cascading_randomisation, randomisation_stages


class Tiny(nn.Module):
    """An encoder with stages, registered out of order, a head, a part that is not used, a bare parameter."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.projection = nn.Linear(8, 4)
        self.encoder = nn.Module()
        self.encoder.layer2 = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.encoder.conv1 = nn.Conv2d(3, 4, 3, 1, 1)
        self.encoder.layer1 = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.scale = Scale()

    def forward(self, x):
        x = self.encoder.layer2(self.encoder.layer1(self.encoder.conv1(x)))
        return self.head(self.scale(x.mean(dim=(2, 3))))


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(1, 2, 8))

    def forward(self, x):
        return self.weight * x


@pytest.fixture
def case():
    torch.manual_seed(0)
    network = Tiny()
    x = torch.rand(6, 3, 24, 20)
    for _ in range(10):
        network(x)
    return network.eval(), x


def test_the_parts_from_the_top_down_in_order_of_the_forward_pass(case):
    stages = ["head", "scale", "encoder.layer2", "encoder.layer1", "encoder.conv1"]
    assert randomisation_stages(*case, "encoder.layer2") == stages
    # what holds the target layer is taken apart
    inner = randomisation_stages(*case, "encoder.layer2.2")
    assert inner == ["head", "scale", "encoder.layer2.1", "encoder.layer2.0", "encoder.layer1", "encoder.conv1"]
    assert cascading_randomisation(*case, "encoder.layer2").stages == ["original", *stages]


def test_every_stage_randomises_one_part_more_and_nothing_else(case, monkeypatch):
    network, x = case
    seen = []

    class Watching(GradCAM):
        def explain(self, x, class_idx=None):
            seen.append((copy.deepcopy(self.network.state_dict()), class_idx))
            return super().explain(x, class_idx)

    monkeypatch.setattr("shared.explain.randomisation.GradCAM", Watching)
    cascading_randomisation(network, x, "encoder.layer2", stages=["head", "scale", "encoder.layer2"])
    original = network.state_dict()
    changed = [{key for key in original if not torch.equal(original[key], state[key])} for state, _ in seen]
    head, layer = {"head.weight", "head.bias"}, {key for key in original if key.startswith("encoder.layer2.")}
    # a weight of 1 and a bias of 0 are drawn as such, and the running mean of 10 batches is gone
    layer -= {"encoder.layer2.1.weight", "encoder.layer2.1.bias"}
    assert changed == [set(), head, head | {"scale.weight"}, head | {"scale.weight"} | layer]
    # at every stage the class is the untouched network's
    predicted = network(x).argmax(1).tolist()
    assert seen[0][1] is None and all(given.tolist() == predicted for _, given in seen[1:])


def test_a_seed_gives_the_same_and_the_network_is_untouched(case):
    network, x = case
    before, generator = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    first = cascading_randomisation(network, x, "encoder.layer2", seed=1)
    again = cascading_randomisation(network, x, "encoder.layer2", seed=1)
    other = cascading_randomisation(network, x, "encoder.layer2", seed=2)
    chunks = cascading_randomisation(network, x, "encoder.layer2", seed=1, batch_size=4)
    np.testing.assert_array_equal(first.maps, again.maps)
    np.testing.assert_allclose(first.maps, chunks.maps, atol=1e-4)
    np.testing.assert_array_equal(first.maps[0], other.maps[0])
    assert not np.array_equal(first.maps[1], other.maps[1])
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    np.testing.assert_array_equal(first.maps[0], GradCAM(network, "encoder.layer2")(x).numpy())


def test_similarity_in_closed_form(case, monkeypatch):
    ramp = np.linspace(0, 1, 24 * 20, dtype=np.float32).reshape(1, 24, 20)
    shown = [ramp, ramp**3, 1 - ramp, np.zeros_like(ramp)]
    turns = iter(shown)

    class Fixed(GradCAM):
        def explain(self, x, class_idx=None):
            return super().explain(x, class_idx)._replace(map=torch.from_numpy(next(turns))[None])

    monkeypatch.setattr("shared.explain.randomisation.GradCAM", Fixed)
    network, x = case
    check = cascading_randomisation(network, x[:1], "encoder.layer2", stages=["head", "scale", "encoder.layer2"])
    # the same order, the order turned round, no order at all
    assert check.spearman[:, 0] == pytest.approx([1, 1, -1, 0], abs=1e-6)
    assert check.ssim[0, 0] == pytest.approx(1) and 1 > check.ssim[1, 0] > check.ssim[2, 0]
    assert check.all_zero[:, 0].tolist() == [False, False, False, True]


def test_an_image_without_a_map_has_no_similarity(case):
    network, x = case
    with torch.no_grad():
        network.head.weight[0] = -network.head.weight[0].abs()  # class 0: everything speaks against it
    check = cascading_randomisation(network, x, "encoder.layer2", class_idx=0)
    assert check.all_zero[0].all() and np.isnan(check.spearman).all() and np.isnan(check.ssim).all()


def test_three_dimensions():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU()), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    check = cascading_randomisation(network, torch.rand(2, 1, 8, 9, 10), "0", class_idx=torch.tensor([0, 1]))
    assert check.maps.shape == (3, 2, 1, 8, 9, 10) and check.stages == ["original", "3", "0"]
    assert check.ssim[0].tolist() == pytest.approx([1, 1])


def test_errors_name_the_stage(case):
    with pytest.raises(DataError, match="modules with weights: 'layer9' is no module of Tiny"):
        cascading_randomisation(*case, "encoder.layer2", stages=["layer9"])
    with pytest.raises(DataError, match=r"'encoder\.layer2\.2' has no weights"):
        cascading_randomisation(*case, "encoder.layer2", stages=["encoder.layer2.2"])
    with pytest.raises(DataError, match="got none"):
        cascading_randomisation(*case, "encoder.layer2", stages=[])
