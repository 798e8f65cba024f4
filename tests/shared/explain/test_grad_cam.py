import copy

import pytest
import torch
from monai.visualize import GradCAM as MonaiGradCAM
from torch import nn

from shared.errors import DataError
from shared.explain import GradCAM, resize_cam
from tests.references.grad_cam import explained, grad_cam


class Network(nn.Module):
    """What can go wrong: BatchNorm, dropout, an in-place ReLU behind the target layer, a head that is not used."""

    def __init__(self, dims=2):
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        channels = 3 if dims == 2 else 1
        self.encoder = nn.Sequential(
            conv(channels, 6, 3, 2, 1), norm(6), nn.ReLU(inplace=True), conv(6, 8, 3, 2, 1), norm(8)
        )
        self.after = nn.Sequential(nn.ReLU(inplace=True), conv(8, 5, 3, 1, 1), nn.Tanh())
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(5, 3)
        self.unused = nn.Linear(5, 3)

    def top(self, a):
        return self.head(self.dropout(self.after(a).flatten(2).mean(2)))

    def forward(self, x):
        return self.top(self.encoder(x))


class Redness(nn.Module):
    """Class 1 is how red an image is, class 0 how green: the map is known in closed form."""

    def __init__(self):
        super().__init__()
        self.features = nn.Identity()

    def forward(self, x):
        a = self.features(x).mean(dim=(2, 3))
        return torch.stack([a[:, 1], a[:, 0]], dim=1)


def lively(dims=2, kind=torch.float64):
    """The network with running statistics of data, so that eval mode differs from training mode."""
    torch.manual_seed(0)
    network = Network(dims)
    shape = (16, 3, 24, 20) if dims == 2 else (8, 1, 12, 10, 8)
    for _ in range(10):
        network(2 * torch.rand(shape) - 0.5)
    with torch.no_grad():
        # no class wins everywhere
        network.head.weight.mul_(20)
        network.head.bias.sub_(network.eval()(torch.rand(shape)).mean(0))
    return network.to(kind).eval()


def images(count=5, dims=2, kind=torch.float64):
    shape = (3, 24, 20) if dims == 2 else (1, 12, 10, 8)
    return torch.rand(count, *shape, dtype=kind, generator=torch.Generator().manual_seed(1))


def test_against_the_naive_reference():
    network, x = lively(), images()
    for given, targets in ((None, network(x).argmax(1).tolist()), (1, [1] * 5), (torch.tensor([2, 0, 1, 1, 0]), None)):
        expected = explained(network.encoder, network.top, x, targets or given.tolist())
        found = GradCAM(network, "encoder")(x, given)
        assert found.shape == (5, 1, 24, 20)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert 0 < expected.mean() < 1


def test_raw_maps_logits_and_classes_come_with_it():
    network, x = lively(), images()
    found = GradCAM(network, "encoder", normalise=False).explain(x, 2)
    cells, shape = grad_cam(network.encoder, network.top, x[3], 2)
    torch.testing.assert_close(
        found.raw[3, 0], torch.tensor(cells, dtype=torch.float64).reshape(shape), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(found.logits, network(x).detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.map, resize_cam(found.raw, (24, 20), normalise=False))
    assert found.target.tolist() == [2] * 5 and not any(part.requires_grad for part in found)


def test_closed_form_hot_is_what_the_class_is_made_of():
    x = torch.zeros(2, 3, 6, 8)
    x[:, 0, 1:3, 2:4] = 0.8  # red
    x[:, 1, 4:6, 5:8] = 0.9  # green
    red, green = GradCAM(Redness(), "features")(x, torch.tensor([1, 0]))[:, 0]
    # alpha is 1 / 48 for the class's colour and 0 for the others, so that the map is the colour's own channel
    torch.testing.assert_close(red, (x[0, 0] > 0).float())
    torch.testing.assert_close(green, (x[1, 1] > 0).float())


def test_polarity_and_values_are_monais_turned_round():
    network, x = lively(kind=torch.float32), images(kind=torch.float32)
    other = copy.deepcopy(network)
    other.after[0].inplace = False  # MONAI would read the map after the ReLU has worked on it
    expected = MonaiGradCAM(other, "encoder")(x, class_idx=1)
    found = GradCAM(network, "encoder")(x, 1)
    assert found.flatten(1).amax(1).tolist() == [1] * 5 and found.flatten(1).amin(1).tolist() == [0] * 5
    torch.testing.assert_close(found, 1 - expected, rtol=0, atol=2e-6)


def test_an_image_is_explained_the_same_alone_and_in_any_batch():
    network, x = lively(), images(6)
    cam = GradCAM(network, "encoder")
    whole = cam.explain(x)
    assert len(set(whole.target.tolist())) > 1
    alone = torch.cat([cam(x[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(whole.map, alone, rtol=0, atol=1e-10)
    torch.testing.assert_close(cam(x.flip(0)).flip(0), whole.map, rtol=0, atol=1e-10)


def test_a_network_is_left_as_it_was_found():
    network, x = lively(kind=torch.float32).train(), images(kind=torch.float32)
    network.after.eval()
    network.head.weight.requires_grad_(False)
    network.encoder[0].weight.grad = torch.full_like(network.encoder[0].weight, 7.0)
    before = copy.deepcopy(network.state_dict())
    modes = {name: module.training for name, module in network.named_modules()}
    wanted = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    generator = torch.get_rng_state()
    first = GradCAM(network, "encoder")(x, 0)
    torch.testing.assert_close(GradCAM(network, "encoder")(x, 0), first, rtol=0, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in network.named_parameters()} == wanted
    assert all(
        (p.grad == 7).all() if n == "encoder.0.weight" else p.grad is None for n, p in network.named_parameters()
    )
    assert torch.equal(torch.get_rng_state(), generator) and not network.encoder._forward_hooks
    assert not x.requires_grad and torch.is_grad_enabled()
    # also when it fails on the way
    with pytest.raises(DataError):
        GradCAM(network, "encoder")(x, 9)
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert not network.encoder._forward_hooks


def test_nothing_is_recorded_before_the_target_layer():
    network, x, recorded = lively(kind=torch.float32), images(kind=torch.float32), []
    for part in (*network.encoder, network.after[0], network.head):
        part.register_forward_hook(lambda module, given, output: recorded.append(output.requires_grad))
    GradCAM(network, "encoder")(x)
    assert recorded == [False] * 5 + [True] * 2


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_the_caller_records_nothing(context):
    network, x = lively(), images()
    expected = GradCAM(network, "encoder")(x)
    with context():
        found = GradCAM(network, "encoder")(x.clone())
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_works_on_an_encoder_that_the_network_itself_runs_without_gradients():
    class Probe(Network):
        def forward(self, x):
            with torch.no_grad():
                a = self.encoder(x)
            return self.top(a)

    network, probe, x = lively(), Probe().double(), images()
    probe.load_state_dict(network.state_dict())
    torch.testing.assert_close(GradCAM(probe, "encoder.4")(x), GradCAM(network, "encoder.4")(x), rtol=0, atol=0)


def test_bf16_autocast_gives_nearly_the_same_map_in_float32():
    network, x = lively(kind=torch.float32), images(kind=torch.float32)
    expected = GradCAM(network, "encoder")(x, 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = GradCAM(network, "encoder").explain(x, 1)
        loss = network(x).sum()
    assert found.map.dtype == torch.float32 and found.logits.dtype == torch.bfloat16
    assert (found.map - expected).abs().max() < 0.1 and (found.map - expected).abs().mean() < 0.01
    # weights cast meanwhile are not kept without their gradient
    loss.backward()
    assert network.encoder[0].weight.grad is not None


def test_three_dimensions():
    network, x = lively(3), images(2, 3)
    found = GradCAM(network, "encoder").explain(x, torch.tensor([1, 0]))
    assert found.map.shape == (2, 1, 12, 10, 8) and found.raw.shape == (2, 1, 3, 3, 2)
    for i, target in enumerate((1, 0)):
        cells, shape = grad_cam(network.encoder, network.top, x[i], target)
        expected = torch.tensor(cells, dtype=torch.float64).reshape(shape)
        torch.testing.assert_close(found.raw[i, 0], expected, rtol=0, atol=1e-12)
    assert found.map.amax() == 1 and found.map.amin() == 0


def test_zero_and_constant_maps_are_never_nan():
    x = torch.zeros(3, 3, 6, 8)
    x[1, 0] = 0.4
    x[2, 0, 3, 3] = 1e-30
    zero, constant, tiny = GradCAM(Redness(), "features")(x, 1)
    assert (zero == 0).all() and (constant == 1).all() and tiny.max() == 1 and tiny.sum() == 1
    # interpolating a constant does not make a pattern of rounding errors
    levels = torch.rand(50, 1, 1, 1, generator=torch.Generator().manual_seed(0)).expand(50, 1, 7, 5).contiguous()
    assert (resize_cam(levels, (50, 37), normalise=False).std(dim=(2, 3)) > 0).any()
    assert (resize_cam(levels, (50, 37)) == 1).all()
    # what only speaks against a class leaves nothing
    assert (GradCAM(Redness(), "features")(-torch.rand(2, 3, 6, 8), 0) == 0).all()


def test_further_inputs_come_through_a_callable():
    class Scaled(Network):
        def forward(self, x, factor):
            return {"logits": super().forward(x) * factor}

    network, scaled, x = lively(), Scaled().double(), images()
    scaled.load_state_dict(network.state_dict())
    factor = torch.tensor([[2.0]])
    cam = GradCAM(scaled, "encoder", forward=lambda net, x: net(x, factor)["logits"])
    torch.testing.assert_close(cam(x), GradCAM(network, "encoder")(x), rtol=0, atol=1e-12)
    with pytest.raises(
        DataError, match=r"needs logits \[B, K\] of a batch of 5, the network gives dict: pass `forward`"
    ):
        GradCAM(scaled, "encoder", forward=lambda net, x: net(x, factor))(x)


def test_a_wrong_layer_is_named_with_those_near_it():
    network = lively(kind=torch.float32)
    with pytest.raises(DataError, match=r"Network has no layer 'encodr' for Grad-CAM; near it: encoder"):
        GradCAM(network, "encodr")
    with pytest.raises(DataError, match=r"no layer 'layer9.zzz' for Grad-CAM; at the top: encoder, after, dropout"):
        GradCAM(network, "layer9.zzz")
    # the last part of a name is enough to be found
    with pytest.raises(DataError, match=r"near it: .*after\.2"):
        GradCAM(network, "layer.2")
    x = images(kind=torch.float32)
    with pytest.raises(DataError, match=r"must run once in a forward pass, 'unused' runs 0 times"):
        GradCAM(network, "unused")(x)
    with pytest.raises(
        DataError, match=r"feature map with the 4 axes of the images \(5, 3, 24, 20\), 'head' gives \(5, 3\)"
    ):
        GradCAM(network, "head")(x)


def test_a_layer_that_does_not_reach_the_logits_is_refused():
    class Cut(Network):
        def forward(self, x):
            return self.top(self.encoder(x).detach())

    class Aside(Network):
        def forward(self, x):
            self.unused_too(x)
            return super().forward(x)

    with pytest.raises(DataError, match="logits do not depend on the target layer 'encoder'"):
        GradCAM(Cut(), "encoder")(torch.rand(1, 3, 24, 20))
    aside = Aside()
    aside.unused_too = nn.Conv2d(3, 1, 3)
    with pytest.raises(DataError, match="logits do not depend on the target layer 'unused_too'"):
        GradCAM(aside, "unused_too")(torch.rand(1, 3, 24, 20))
    shared = nn.Sequential(*[nn.Conv2d(3, 3, 1)] * 2, nn.Flatten())
    with pytest.raises(DataError, match="'0' runs 2 times"):
        GradCAM(shared, "0")(torch.rand(1, 3, 2, 2))


def test_errors_say_what_arrived():
    network, x = lively(kind=torch.float32), images(kind=torch.float32)
    cam = GradCAM(network, "encoder")
    with pytest.raises(DataError, match=r"class_idx must lie in 0 ... 2, got \[3\]"):
        cam(x, 3)
    with pytest.raises(DataError, match=r"class_idx must lie in 0 ... 2, got \[-1, 0\]"):
        cam(x, torch.tensor([0, 0, -1, 0, 0]))
    with pytest.raises(DataError, match=r"one for each of 5 images, as integers; got torch.int64 of shape \(2,\)"):
        cam(x, torch.tensor([0, 1]))
    with pytest.raises(DataError, match=r"got torch\.float32"):
        cam(x, 1.0)
    with pytest.raises(DataError, match=r"images \[B, C, H, W\] or \[B, C, D, H, W\], got \(3, 24, 20\)"):
        cam(x[0])
    x[[1, 3], 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match=r"NaN or Inf for the images at position \[1, 3\]"):
        cam(x)


@pytest.mark.parametrize("dims", [2, 3])
def test_local_weights_are_each_places_own_gradient(dims):
    """LayerCAM written out."""
    network = lively(dims)
    x = torch.rand((2, 3, 24, 20) if dims == 2 else (2, 1, 12, 10, 8), dtype=torch.float64)
    activation = network.encoder(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network.top(activation.clone())[:, 1].sum(), activation)
    expected = (gradient.clamp(min=0) * activation.detach()).sum(dim=1, keepdim=True).clamp(min=0)
    found = GradCAM(network, "encoder", local=True).explain(x, 1)
    torch.testing.assert_close(found.raw, expected)
    assert found.raw.any() and not torch.allclose(found.raw, GradCAM(network, "encoder").explain(x, 1).raw)
