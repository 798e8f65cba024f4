import pytest
import torch
from torch import nn

from shared.networks import EdgeContrast, EdgeEncoder, NodeAutoencoder, TractPretraining
from shared.networks.glioma.brain_features import FA_WIDTHS, WIDTHS, perceptron

SMALL = {"widths": (12, 6, 3)}


def linear_widths(module):
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    return [layers[0].in_features, *(layer.out_features for layer in layers)]


def test_the_defaults_are_the_papers_widths():
    with torch.device("meta"):  # shapes without the memory
        net, mri, fa = NodeAutoencoder(), EdgeEncoder(), EdgeEncoder(1000, widths=FA_WIDTHS)
    assert linear_widths(net.encoder) == [4000, 2048, 1024, 512, 128, 32, 16] == [4000, *WIDTHS]
    assert linear_widths(net.decoder) == [16, 32, 128, 512, 1024, 2048, 4000]
    assert linear_widths(mri.encoder) == [4000, 2048, 1024, 512, 128, 32, 16]
    assert linear_widths(fa.encoder) == [1000, 1024, 512, 128, 32, 16]
    assert linear_widths(mri.head) == linear_widths(fa.head) == [16, 32, 64, 128]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_rows_are_independent_in_evaluation_and_take_any_leading_shape(batch_norm):
    torch.manual_seed(0)
    net, edge = (
        NodeAutoencoder(8, **SMALL, batch_norm=batch_norm).eval(),
        EdgeEncoder(8, **SMALL, head=(4, 5), batch_norm=batch_norm).eval(),
    )
    rows = torch.randn(2, 7, 8)
    with torch.no_grad():
        for encoder in (net, edge):
            together = encoder.encode(rows)
            assert together.shape == (2, 7, 3)
            torch.testing.assert_close(together[1, 4], encoder.encode(rows[1, 4:5])[0])
        torch.testing.assert_close(net(rows[0]), net.decoder(net.encode(rows[0])))
        torch.testing.assert_close(edge(rows[0]), edge.head(edge.encode(rows[0])))


def test_a_bottleneck_and_a_projection_are_not_cut_off_at_zero():
    assert not isinstance(perceptron([4, 3, 2])[-1], nn.ReLU)
    torch.manual_seed(0)
    z = EdgeEncoder(8, **SMALL, head=(4, 5))(torch.randn(50, 8))
    assert (z < 0).any() and (z > 0).any()


def test_the_signal_passes_the_papers_depth_at_the_start():
    """With torch's own initialisation, regions no longer differ after 12 layers, and training stands still."""
    torch.manual_seed(0)
    widths = [256, 128, 64, 32, 32, 16]
    net, x = NodeAutoencoder(400, widths=widths), torch.randn(64, 400)
    with torch.no_grad():
        spread = net(x).std(dim=0).mean()
        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        assert 0.1 < spread < 10 and spread > 30 * net(x).std(dim=0).mean()


def test_an_autoencoder_learns_what_rows_have_in_common():
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(3, 40, generator=generator)
    rows = torch.randn(300, 3, generator=generator) @ basis
    torch.manual_seed(0)
    net = NodeAutoencoder(40, widths=(64, 32, 8))
    optimiser = torch.optim.Adam(net.parameters(), 1e-3, weight_decay=5e-4)
    for _ in range(30):
        for part in rows[:250].split(50):
            optimiser.zero_grad()
            nn.functional.mse_loss(net(part), part).backward()
            optimiser.step()
    with torch.no_grad():
        left_out = rows[250:]
        assert nn.functional.mse_loss(net(left_out), left_out) < 0.3 * left_out.var()


def test_the_contrast_gives_both_projections():
    torch.manual_seed(0)
    mri, fa = EdgeEncoder(8, **SMALL, head=(4, 5)), EdgeEncoder(2, widths=(4, 3), head=(4, 5))
    rows, fa_rows = torch.randn(6, 8), torch.randn(6, 2)
    z, z_fa = EdgeContrast(mri, fa)(rows, fa_rows)
    assert torch.equal(z, mri(rows)) and torch.equal(z_fa, fa(fa_rows))


@pytest.mark.parametrize("use_fa", [True, False])
def test_every_parameter_that_is_trained_gets_a_gradient(use_fa):
    # several processes wait for the gradient of each of them
    mri = EdgeEncoder(12, widths=(8, 3), head=(4, 5))
    sizes = {"num_voxels": 6, "in_channels": 2, "widths": (8, 3), "fa_widths": (7, 3), "head": (4, 5)}
    net = TractPretraining(mri, use_fa=use_fa, **sizes)
    output = net(torch.rand(4, 12), torch.rand(4, 6))
    sum(x.square().sum() for x in (output if use_fa else [output])).backward()
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in net.named_parameters() if p.grad is not None}
    assert any(name.startswith("mri.head") for name in trained) is use_fa
