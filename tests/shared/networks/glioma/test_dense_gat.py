import math

import pytest
import torch
from torch_geometric.nn import GATConv

from shared.networks.glioma.dense_gat import DenseGATConv
from tests.references import population_graph as reference


def graph(count=12, sources=None, edge_dim=1, *, seed=0, dtype=torch.float64):
    """Nodes, an asymmetric mask in which node 3 stands alone, and edge attributes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=generator, dtype=torch.float64).to(dtype)
    mask = torch.rand(count, sources or count, generator=generator) < 0.4
    mask[3] = False
    if sources is None:
        mask.fill_diagonal_(False)
    edge = torch.randn(count, sources or count, edge_dim, generator=generator, dtype=torch.float64).to(dtype)
    return x, mask, edge


def layer(edge_dim=1, heads=2, residual=False, dtype=torch.float64):
    torch.manual_seed(1)
    found = DenseGATConv(5, 4, heads=heads, edge_dim=edge_dim, residual=residual).to(dtype)
    with torch.no_grad():  # the bias away from zero
        for parameter in found.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return found


def lists(module):
    return {name: parameter.tolist() for name, parameter in module.state_dict().items()}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("edge_dim", [1, 3])
@pytest.mark.parametrize("sources", [None, 7])
def test_equals_the_naive_loop(sources, edge_dim, residual):
    x, mask, edge = graph(sources=sources, edge_dim=edge_dim)
    bank = x if sources is None else torch.randn(sources, 5, dtype=torch.float64)
    dense = layer(edge_dim, residual=residual)
    found = dense(x, mask, edge, None if sources is None else bank)
    wanted = reference.attention_layer(x.tolist(), bank.tolist(), mask.tolist(), edge.tolist(), lists(dense), heads=2)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
def test_equals_gat_conv_with_its_weights(heads, residual):
    torch.manual_seed(0)
    sparse = GATConv(5, 4, heads=heads, edge_dim=1, residual=residual)
    with torch.no_grad():
        sparse.bias.add_(torch.randn_like(sparse.bias))
    dense = DenseGATConv(5, 4, heads=heads, edge_dim=1, residual=residual)
    dense.load_state_dict(sparse.state_dict())
    x, mask, edge = graph(40, dtype=torch.float32)
    target, source = mask.nonzero().t()
    wanted = sparse(x, torch.stack([source, target]), edge[target, source])
    torch.testing.assert_close(dense(x, mask, edge[..., 0]), wanted, atol=1e-5, rtol=0)
    wanted.square().sum().backward()
    dense(x, mask, edge).square().sum().backward()
    for (name, mine), (other, its) in zip(dense.named_parameters(), sparse.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(mine.grad, its.grad, atol=1e-3, rtol=1e-4)


def test_weights_go_back_to_gat_conv():
    dense = layer(residual=True, dtype=torch.float32)
    GATConv(5, 4, heads=2, edge_dim=1, residual=True).load_state_dict(dense.state_dict())


def test_without_edge_attributes_equals_gat_conv():
    torch.manual_seed(0)
    sparse, dense = GATConv(5, 4), DenseGATConv(5, 4)
    dense.load_state_dict(sparse.state_dict())
    x, mask, _ = graph(dtype=torch.float32)
    target, source = mask.nonzero().t()
    torch.testing.assert_close(dense(x, mask), sparse(x, torch.stack([source, target])), atol=1e-5, rtol=0)


def test_closed_form_of_two_nodes():
    dense = DenseGATConv(1, 1, edge_dim=1)
    values = {"lin.weight": 1.0, "lin_edge.weight": 1.0, "att_src": 1.0, "att_dst": 0.0, "att_edge": 2.0, "bias": 0.5}
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            parameter.fill_(values[name])
    x, mask = torch.tensor([[1.0], [3.0]]), torch.tensor([[False, True], [False, False]])
    found = dense(x, mask, torch.full((2, 2), 0.25))
    # scores: 3 + 2 * 0.25 of the neighbour, 1 + 2 * 0.25 of the self-loop, whose attribute is the mean of one edge
    share = math.exp(3.5) / (math.exp(3.5) + math.exp(1.5))
    assert found[0].item() == pytest.approx(share * 3 + (1 - share) * 1 + 0.5, abs=1e-6)
    assert found[1].item() == pytest.approx(3.5, abs=1e-6)


def test_a_node_of_its_own_is_its_linear_map_and_keeps_gradients_finite():
    x, mask, edge = graph()
    dense = layer()
    found = dense(x, mask, edge)
    torch.testing.assert_close(found[3], dense.lin(x[3]) + dense.bias)
    found.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in dense.parameters())


def test_batch_of_graphs_equals_each_graph_alone():
    graphs = [graph(edge_dim=3, seed=seed) for seed in range(3)]
    dense = layer(3)
    together = dense(*(torch.stack(part) for part in zip(*graphs, strict=True)))
    for found, (x, mask, edge) in zip(together, graphs, strict=True):
        torch.testing.assert_close(found, dense(x, mask, edge), atol=1e-12, rtol=0)


def test_order_of_nodes_and_the_diagonal_do_not_matter():
    x, mask, edge = graph()
    dense, order = layer(), torch.randperm(12, generator=torch.Generator().manual_seed(2))
    found = dense(x, mask, edge)
    torch.testing.assert_close(dense(x[order], mask[order][:, order], edge[order][:, order]), found[order])
    torch.testing.assert_close(dense(x, mask | torch.eye(12, dtype=torch.bool), edge), found)


def test_says_when_edge_attributes_do_not_fit():
    x, mask, edge = graph()
    with pytest.raises(ValueError, match="edge_dim is None, edge attributes are given"):
        DenseGATConv(5, 4).double()(x, mask, edge)
    with pytest.raises(ValueError, match="edge_dim is 1, edge attributes are not given"):
        layer()(x, mask)
