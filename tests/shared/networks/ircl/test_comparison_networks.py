"""The networks that IRCL is compared with, against loops in float64, and what they must not depend on."""

import math

import pytest
import torch

from shared.networks import AttentionMIL, DetailedTraining, HierarchicalAttentionNetwork
from shared.networks.blocks import GatedAttention
from shared.networks.ircl.comparison import HierarchicalAttention, SliceEncoder
from tests.references.ircl_losses import softmax
from tests.references.ircl_networks import linear


def images(count=3, number=6, size=8, *, seed=0):
    return torch.rand(count, number, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ready(network):
    """In eval mode in float64, no BatchNorm and no bias at its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in network.double().state_dict().items():
            if name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif value.ndim == 1 and value.is_floating_point():
                value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return network.eval()


def gated_weights(h, attention):
    """Ilse et al. 2018, Eq. 9."""
    pairs = [(part.weight.tolist(), part.bias.tolist()) for part in (attention.value, attention.gate)]
    values, gates = (linear(h, *pair) for pair in pairs)
    scores = []
    for v, u in zip(values, gates, strict=True):
        terms = zip(v, u, attention.score.weight[0].tolist(), strict=True)
        scores.append(sum(w * math.tanh(x) / (1 + math.exp(-y)) for x, y, w in terms))
    return softmax(scores)


def mixed(weights, rows):
    return [sum(w * row[d] for w, row in zip(weights, rows, strict=True)) for d in range(len(rows[0]))]


@pytest.mark.parametrize("kind", ["loss", "gated"])
def test_a_bag_is_its_images_weighed_by_attention(kind):
    net, x = ready(AttentionMIL(6, channels=(4, 6), attention=kind, num_classes=3)), images()
    found = net.details(x)
    head = net.head.weight.tolist(), net.head.bias.tolist()
    for patient in range(3):
        # every image by itself
        h = [net.encoder(x[patient, k][None, None])[0].tolist() for k in range(6)]
        instances = linear(h, *head)
        sums = [sum(math.exp(value) for value in row) for row in instances]
        weights = [value / sum(sums) for value in sums] if kind == "loss" else gated_weights(h, net.gated)
        assert found.instances[patient].tolist() == [pytest.approx(row, abs=1e-12) for row in instances]
        assert found.attention[patient].tolist() == pytest.approx(weights, abs=1e-12)
        (logits,) = linear([mixed(weights, h)], *head)
        assert found.logits[patient].tolist() == pytest.approx(logits, abs=1e-12)
    assert torch.equal(net(x), found.logits)
    assert found.attention.std(dim=1).min() > 1e-4  # the images of a patient do not weigh the same


def test_the_order_of_a_bags_images_does_not_matter():
    net, x = ready(AttentionMIL(6, channels=(4, 6))), images()
    turned = net.details(x[:, [3, 1, 5, 0, 2, 4]])
    torch.testing.assert_close(turned.logits, net(x))
    torch.testing.assert_close(turned.attention, net.details(x).attention[:, [3, 1, 5, 0, 2, 4]])


def test_attention_goes_to_slices_then_to_modalities():
    attention = ready(HierarchicalAttention(5))
    h = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    feature, weights = attention(h)
    for patient in range(2):
        of_slices = [gated_weights(h[patient, m].tolist(), attention.slices) for m in range(3)]
        modalities = [mixed(w, h[patient, m].tolist()) for m, w in enumerate(of_slices)]
        of_modalities = gated_weights(modalities, attention.modalities)
        assert feature[patient].tolist() == pytest.approx(mixed(of_modalities, modalities), abs=1e-12)
        expected = [of_modalities[m] * of_slices[m][k] for m in range(3) for k in range(4)]
        assert weights[patient].tolist() == pytest.approx(expected, abs=1e-12)


def test_one_branch_sees_slices_and_the_other_stacks():
    net, x = ready(HierarchicalAttentionNetwork(3, 2, channels=(4, 6))), images()
    found = net.details(x)
    one = torch.stack([torch.stack([net.planar(x[p, k][None, None])[0] for k in range(6)]) for p in range(3)])
    other = torch.stack([net.spatial(x[p].unflatten(0, (2, 1, 3))).transpose(1, 2).flatten(0, 1) for p in range(3)])
    features = []
    for attention, h, weights in (
        (net.planar_attention, one, found.planar),
        (net.spatial_attention, other, found.spatial),
    ):
        feature, expected = attention(h.unflatten(1, (2, 3)))
        torch.testing.assert_close(weights, expected)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(3, dtype=torch.float64))
        features.append(feature)
    torch.testing.assert_close(found.logits, net.head(sum(features) / 2))
    assert torch.equal(net(x), found.logits)
    changed = x.clone()
    changed[:, 1] += 0.5  # the slice between two others of the first modality
    again = [net.spatial(y[0].unflatten(0, (2, 1, 3))) for y in (x, changed)]
    moved = (again[0] - again[1]).abs().amax(dim=1)
    assert (moved[0] > 1e-6).all() and (moved[1] == 0).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_an_encoder_halves_the_sides_of_the_image_and_no_stack(dims):
    net = SliceEncoder((4, 6, 8), spatial_dims=dims).eval()
    x = torch.rand(2, 1, *([5] if dims == 3 else []), 16, 16)
    assert net.levels(x).shape[2:] == ((4, 4) if dims == 2 else (5, 4, 4))
    assert net(x).shape == ((2, 8) if dims == 2 else (2, 8, 5))


@pytest.mark.parametrize(
    "network", [AttentionMIL(4, channels=(4, 6)), HierarchicalAttentionNetwork(2, 2, channels=(4, 6))]
)
def test_a_patient_alone_gets_the_same_answer_and_every_weight_is_trained(network):
    net, x = ready(network), images(number=4)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]))
    logits, *more = DetailedTraining(net.train())(x)
    (logits.square().sum() + sum(value.square().sum() for value in more)).backward()
    assert all((p.grad != 0).any() for p in net.parameters())
    assert torch.jit.script(net.eval())(x).equal(net(x))
    again = type(net)(**{key: value for key, value in net.settings.items() if key != "class"})
    assert net.settings["class"] == f"shared.networks.{type(net).__name__}"
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}


def test_an_unknown_attention_is_refused():
    with pytest.raises(ValueError, match='attention must be "loss" or "gated", got \'self\''):
        AttentionMIL(3, attention="self")


def test_gated_attention_adds_up_to_one_over_the_last_but_one_axis():
    torch.testing.assert_close(GatedAttention(4)(torch.randn(2, 3, 5, 4)).sum(dim=-1), torch.ones(2, 3))
