import pytest
import torch
from torch import nn

from shared.engines import AutocastInferer, DihedralInferer, PrototypeInferer, bf16_is_fast
from shared.networks import IRCLAutoencoder
from tests.support.additive import tiny_additive, tumours
from tests.support.tiny import lively_images


def test_bf16_is_what_the_layers_compute_in():
    network, x = nn.Linear(3, 2), torch.rand(4, 3)
    found = AutocastInferer(bf16=True)(x, network)
    assert found.dtype == torch.bfloat16
    expected = nn.functional.linear(x.bfloat16(), network.weight.bfloat16(), network.bias.bfloat16())
    torch.testing.assert_close(found, expected)
    found.float().sum().backward()
    assert network.weight.grad.dtype == torch.float32


def test_without_bf16_it_is_the_plain_network():
    network, x = nn.Linear(3, 2), torch.rand(4, 3)
    assert torch.equal(AutocastInferer(bf16=False)(x, network), network(x))
    with torch.autocast("cpu", torch.bfloat16):  # the key decides, not what is around it
        assert AutocastInferer(bf16=False)(x, network).dtype == torch.float32


def test_further_arguments_reach_the_network():
    def network(x, scale, shift=0.0):
        return x * scale + shift

    found = AutocastInferer()(torch.ones(2), network, 3.0, shift=1.0)
    assert found.tolist() == [4.0, 4.0]


def test_stage_one_in_bf16_stays_close_to_float32():
    torch.manual_seed(0)
    network, x = IRCLAutoencoder((4, 8), embedding_dim=6), lively_images(2).flatten(0, 1).unsqueeze(1)
    network(x)
    network.eval()
    (r16, _, z16), (r32, _, z32) = (AutocastInferer(bf16=on)(x, network) for on in (True, False))
    assert r16.dtype == torch.bfloat16 and z16.dtype == torch.float32
    assert (z16 * z32).sum(dim=1).min() > 0.99 and (r16 - r32).abs().max() < 0.05


def test_bf16_is_not_asked_of_devices_that_emulate_it(monkeypatch):
    for hardware in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda hardware=hardware: hardware)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, yes=hardware: yes)
        assert bf16_is_fast("cpu") is hardware and bf16_is_fast(torch.device("cuda", 0)) is hardware
    assert bf16_is_fast("mps") is False


def test_dihedral_mean_is_the_mean_of_the_eight_views_and_blind_to_orientation():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    x = torch.rand(2, 3, 4, 4)
    found = DihedralInferer(views=8)(x, network).exp()
    views = [torch.rot90(y, k, [2, 3]) for y in (x, x.flip(3)) for k in range(4)]
    expected = torch.stack([network(view).softmax(1) for view in views]).mean(0)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(DihedralInferer(views=8)(x.flip(2), network).exp(), expected)
    torch.testing.assert_close(found.log().softmax(1), expected)
    torch.testing.assert_close(DihedralInferer(views=1)(x, network), network(x))


def test_dihedral_mean_of_logits():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    x = torch.rand(2, 3, 4, 4)
    views = [torch.rot90(y, k, [2, 3]) for y in (x, x.flip(3)) for k in range(4)]
    expected = torch.stack([network(view) for view in views]).mean(0)
    found = DihedralInferer(views=8, average="logits")(x, network)
    torch.testing.assert_close(found, expected)
    # another answer than the mean of probabilities
    assert (found.softmax(1) - DihedralInferer(views=8)(x, network).softmax(1)).abs().max() > 1e-4


def test_dihedral_views_out_of_range_are_refused():
    with pytest.raises(ValueError, match="average must be one of probabilities, logits, got 'mean'"):
        DihedralInferer(average="mean")
    with pytest.raises(ValueError, match="views must be 1 to 8, got 9"):
        DihedralInferer(views=9)


def test_stage_two_is_watched_by_its_own_logits_whichever_predictor_answers():
    network, images = tiny_additive(num_covariates=1), tumours(2)
    known = torch.zeros(2, 1)
    expected = network.prototype_logits(images, known)
    assert torch.equal(PrototypeInferer()(images, network, known), expected)
    assert not torch.allclose(network(images, known), expected, atol=1e-3)
    control = nn.Linear(3, 2)  # a control has one answer
    x = torch.rand(4, 3)
    assert torch.equal(PrototypeInferer()(x, control), control(x))
