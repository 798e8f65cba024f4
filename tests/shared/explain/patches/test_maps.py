import numpy as np
import pytest
import torch

from shared.engines import DihedralInferer
from shared.errors import DataError
from shared.explain import AdditiveMap, GradCAM, PatchExplainer, class_margin, patch_maps
from shared.networks import SSCLClassifier
from shared.networks.blocks import turned

NAMES = ["a", "b", "c"]


def network(num_classes=3, stages=(3, 4)):
    torch.manual_seed(1)
    settings = {"block": "basic", "layers": (1, 1, 1, 1), "channels": (8, 8, 8, 16), "stages": stages}
    net = SSCLClassifier(settings, num_classes=num_classes)
    with torch.no_grad():  # what is trained is no tiny number
        net.head.weight.mul_(20)
        net.head.bias.copy_(torch.linspace(-1, 2, num_classes))
    return net.eval()


def test_the_margin_is_the_class_less_the_mean_of_the_others():
    values = torch.rand(4, 3, 2, 2, dtype=torch.float64)
    target = torch.tensor([0, 2, 1, 2])
    found = class_margin(values, target)
    for i, k in enumerate(target.tolist()):
        others = [values[i, j] for j in range(3) if j != k]
        torch.testing.assert_close(found[i, 0], values[i, k] - sum(others) / 2)
    assert torch.equal(class_margin(values[:, :1], torch.zeros(4, dtype=torch.long)), values[:, :1])
    two = values[:, :2]
    assert torch.allclose(class_margin(two, torch.ones(4, dtype=torch.long))[:, 0], two[:, 1] - two[:, 0])


@pytest.mark.parametrize("size", [64, 72])
def test_the_additive_map_and_the_bias_are_the_answer_of_eight_views(size):
    net, images = network(), torch.rand(5, 3, size, size)
    cases = [{"image": image} for image in images]
    explainer = PatchExplainer(net, class_names=NAMES, views=8, average="logits", batch_size=3)
    found = [result for _, result in explainer(cases)]
    with torch.no_grad():
        logits = DihedralInferer(views=8, average="logits")(images, net).double()
    np.testing.assert_allclose([r.probabilities for r in found], logits.softmax(1), atol=1e-5)
    for row, result in zip(logits, found, strict=True):
        k = result.class_idx
        assert k == int(row.argmax()) and result.signed
        margin = float(row[k] - row[[j for j in range(3) if j != k]].mean())
        bias = float(class_margin(net.head.bias[None], torch.tensor([k])))
        assert result.margin == pytest.approx(margin, abs=1e-4)
        assert float(result.raw.mean()) + bias == pytest.approx(margin, abs=1e-4)
        balance = result.balance()
        assert balance["bias"] == pytest.approx(bias, abs=1e-4) and balance["for"] >= 0 >= balance["against"]
        scaled = result.map((50, 40))
        assert scaled.shape == (50, 40) and np.abs(scaled).max() == pytest.approx(1)
        np.testing.assert_array_equal(result.evidence((50, 40)), scaled.clip(min=0))
    # whichever way the patch lies, it is explained alike
    lying = [result for _, result in explainer([{"image": turned(image[None], 5)[0]} for image in images])]
    for one, other in zip(found, lying, strict=True):
        np.testing.assert_allclose(turned(one.raw, 5), other.raw, atol=1e-4)


def test_probabilities_are_averaged_where_an_older_model_does():
    net, images = network(), torch.rand(4, 3, 64, 64)
    cases = [{"image": image} for image in images]
    found = [r.probabilities for _, r in PatchExplainer(net, class_names=NAMES, views=8)(cases)]
    with torch.no_grad():
        np.testing.assert_allclose(found, DihedralInferer(views=8)(images, net).exp(), atol=1e-5)


def test_of_one_view_a_place_speaks_as_the_network_without_pooling():
    net, image = network(2, stages=(4,)), torch.rand(1, 3, 96, 96)
    found = AdditiveMap(net).explain(image, 1)
    features = net.encoder.maps(image)[0]
    expected = features.movedim(1, -1) @ (net.head.weight[1] - net.head.weight[0])
    torch.testing.assert_close(found.raw[:, 0], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.logits, net(image), rtol=0, atol=1e-4)
    # the other class says the same with the other sign
    torch.testing.assert_close(AdditiveMap(net).explain(image, 0).raw, -found.raw)


def test_layer_cam_weighs_each_place_and_grad_cam_all_alike():
    net, images = network(), torch.rand(2, 3, 64, 64)
    local = patch_maps(net, "layer_cam", "encoder.layer3").explain(images, 1).raw
    expected = GradCAM(net, "encoder.layer3", local=True).explain(images, 1).raw
    assert torch.equal(local, expected) and local.shape == (2, 1, 4, 4)
    assert not torch.allclose(local, patch_maps(net, "grad_cam", "encoder.layer3").explain(images, 1).raw)


def test_integrated_gradients_sum_to_what_the_image_adds_to_its_mean_colour():
    pytest.importorskip("captum")
    net, images = network(), torch.rand(2, 3, 64, 64)
    target = torch.tensor([0, 2])
    found = patch_maps(net, "integrated_gradients", "").explain(images, target)
    mean = images.mean((2, 3), keepdim=True).expand_as(images)
    with torch.no_grad():
        gained = class_margin(net(images) - net(mean), target)[:, 0]
    torch.testing.assert_close(found.raw.sum((1, 2, 3)), gained, rtol=0.1, atol=0.05)
    assert found.map.shape == (2, 1, 64, 64) and float(found.map.abs().amax()) == pytest.approx(1)


def test_what_cannot_be_explained_is_told():
    net = network()
    with pytest.raises(DataError, match=r"class_idx must lie in 0 \.\.\. 2, got \[3\]"):
        AdditiveMap(net)(torch.rand(1, 3, 64, 64), 3)
    with pytest.raises(DataError, match="holds NaN or Inf"):
        AdditiveMap(net)(torch.full((1, 3, 64, 64), float("nan")))
    assert net.head.weight.requires_grad
