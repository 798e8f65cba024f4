import pytest
import torch
from torch import nn

from shared.errors import DataError
from shared.networks import BrainEncoder, edge_attention
from shared.networks.glioma.brain_encoder import TractGATConv
from tests.references import glioma_networks as reference
from tests.support.tiny_brains import PAIRS, REGIONS, brains, lively

EDGES = PAIRS.shape[1]


def encoder(**settings):
    torch.manual_seed(0)
    given = {"num_regions": REGIONS, "channels": (8, 12), "hidden": (10,), "embedding_dim": 5, "projection": (4, 7)}
    return lively(BrainEncoder(PAIRS, **{**given, **settings})).eval()


def tumours(batch=2, width=7, dtype=torch.float32):
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


def state_of(layer):
    return {name: value.tolist() for name, value in layer.state_dict().items()}


def layers_of(sequence):
    return [(layer.weight.tolist(), layer.bias.tolist()) for layer in sequence if isinstance(layer, nn.Linear)]


# --- graph attention ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_a_layer_equals_a_loop_over_every_regions_edges(masked):
    layer = lively(TractGATConv(16, 5)).double()
    nodes, edges, _ = brains(dtype=torch.float64)
    mask = torch.linspace(0, 1, EDGES, dtype=torch.float64) if masked else None
    found = layer(nodes, edges, PAIRS, mask)
    for patient in range(2):
        factor = None if mask is None else mask.tolist()
        pairs = PAIRS.t().tolist()
        expected = reference.gat(nodes[patient].tolist(), edges[patient].tolist(), pairs, state_of(layer), factor)
        torch.testing.assert_close(found[patient], torch.tensor(expected, dtype=torch.float64), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("residual", [False, True])
def test_a_layer_equals_torch_geometrics_with_the_same_state_dict(residual):
    from torch_geometric.nn.conv import GATConv

    theirs = GATConv(16, 64, edge_dim=16, residual=residual)
    layer = TractGATConv(16, 64, residual=residual)
    layer.load_state_dict(lively(theirs).state_dict())
    nodes, edges, _ = brains(3)
    found = layer(nodes, edges, PAIRS)
    both = torch.cat([PAIRS, PAIRS.flip(0)], dim=1)
    batch = torch.cat([both + number * REGIONS for number in range(3)], dim=1)
    expected = theirs(nodes.flatten(0, 1), batch, torch.cat([edges, edges], dim=1).flatten(0, 1))
    torch.testing.assert_close(found.flatten(0, 1), expected, atol=1e-5, rtol=1e-5)


def test_a_tract_hidden_from_an_explanation_carries_nothing():
    layer = lively(TractGATConv(16, 5))
    nodes, edges, _ = brains()
    mask = torch.ones(EDGES)
    torch.testing.assert_close(layer(nodes, edges, PAIRS, mask), layer(nodes, edges, PAIRS))
    mask[4] = 0  # the tract between 3 and 4
    changed = (layer(nodes, edges, PAIRS, mask) - layer(nodes, edges, PAIRS)).abs().amax(dim=(0, 2)) > 1e-5
    assert changed.tolist() == [False, False, False, True, True, False]


# --- Eq. 2 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["residual", "literal"])
def test_edge_attention_equals_equation_2(mode):
    _, _, incidence = brains()
    attention = torch.rand(2, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = edge_attention(attention, incidence, EDGES, mode)
    for patient in range(2):
        expected = reference.edge_attention(attention[patient].tolist(), incidence[patient].tolist(), EDGES)
        expected = torch.tensor(expected, dtype=torch.float64) + (mode == "residual")
        torch.testing.assert_close(found[patient], expected)
    # tract 3 crosses no point
    assert (found[:, 3] == (1 if mode == "residual" else 0)).all()


def test_edge_attention_without_any_crossing_and_in_any_order_of_points():
    nothing = torch.full((1, 4, 2), -1)
    assert torch.equal(edge_attention(torch.rand(1, 4), nothing, 3), torch.ones(1, 3))
    attention, incidence = torch.rand(2, 64), brains()[2]
    order = torch.randperm(64)
    once, again = (
        edge_attention(a, i, EDGES) for a, i in ((attention, incidence), (attention[:, order], incidence[:, order]))
    )
    torch.testing.assert_close(again, once)
    with pytest.raises(ValueError, match="mode must be one of"):
        edge_attention(attention, incidence, EDGES, "sum")


def test_edge_attention_reaches_all_sixteen_channels_and_the_points_learn_from_it():
    net, (nodes, edges, incidence) = encoder(), brains()
    attention = torch.rand(2, 64, requires_grad=True)
    factor = edge_attention(attention, incidence, EDGES)
    found = net(nodes, edges, tumours(), factor)[0]
    torch.testing.assert_close(found, net(nodes, edges * factor[:, :, None], tumours())[0])
    found.sum().backward()
    crossed = (incidence >= 0).any(dim=2)
    assert (attention.grad[crossed] != 0).all() and (attention.grad[~crossed] == 0).all()


# --- Eq. 3 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["softmax", "literal", "none"])
def test_node_attention_and_pooling_equal_equation_3(mode):
    net = encoder(node_attention=mode).double()
    (nodes, edges, _), tumour = brains(dtype=torch.float64), tumours(dtype=torch.float64)
    u, attention = net(nodes, edges, tumour)
    for patient in range(2):
        x, pairs = nodes[patient].tolist(), PAIRS.t().tolist()
        for number, layer in enumerate(net.layers):
            x = torch.nn.functional.elu(torch.tensor(x, dtype=torch.float64)).tolist() if number else x
            x = reference.gat(x, edges[patient].tolist(), pairs, state_of(layer))
        if mode == "none":
            weights = [1 / REGIONS] * REGIONS
            assert attention is None
        else:
            projected = [reference.mlp(row, layers_of(net.project)) for row in x]
            cosine = reference.node_attention(projected, tumour[patient].tolist())
            expected = reference.softmax(cosine) if mode == "softmax" else cosine
            assert attention[patient].tolist() == pytest.approx(expected, abs=1e-6)
            weights = expected if mode == "softmax" else [value / REGIONS for value in cosine]
        pooled = [sum(w * row[c] for w, row in zip(weights, x, strict=True)) for c in range(len(x[0]))]
        assert u[patient].tolist() == pytest.approx(reference.mlp(pooled, layers_of(net.head)), abs=1e-5)


def test_no_gradient_goes_back_to_the_tumour():
    net, (nodes, edges, _) = encoder(), brains()
    tumour = tumours().requires_grad_()
    net(nodes, edges, tumour)[0].square().sum().backward()
    assert tumour.grad is None and net.project[0].weight.grad.abs().sum() > 0


def test_attention_goes_to_the_region_that_is_like_the_tumour():
    net, (nodes, edges, _) = encoder(temperature=0.05), brains()
    like = net.project(net.node_embeddings(nodes, edges))[:, 2]
    assert (net(nodes, edges, like)[1].argmax(dim=1) == 2).all()


# --- invariances --------------------------------------------------------------------------------------------------


def test_numbering_of_regions_and_tracts_does_not_matter():
    net, (nodes, edges, _) = encoder(), brains()
    u, attention = net(nodes, edges, tumours())
    regions, tracts = torch.tensor([4, 2, 0, 5, 1, 3]), torch.tensor([5, 3, 0, 1, 4, 2])
    place = torch.argsort(regions)  # where each region went
    other = encoder()
    other.load_state_dict({**net.state_dict(), "edge_index": place[PAIRS[:, tracts]].flip(0)})
    again, moved = other(nodes[:, regions], edges[:, tracts], tumours())
    torch.testing.assert_close(again, u, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(moved, attention[:, regions], atol=1e-5, rtol=1e-4)


def test_patients_do_not_know_of_each_other():
    net, (nodes, edges, _), tumour = encoder(), brains(4), tumours(4)
    u, attention = net(nodes, edges, tumour)
    for patient in range(4):
        part = slice(patient, patient + 1)
        alone, own = net(nodes[part], edges[part], tumour[part])
        torch.testing.assert_close(alone, u[part], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(own, attention[part], atol=1e-5, rtol=1e-4)
    assert (u[0] - u[1]).abs().max() > 1e-3


# --- size and refusals --------------------------------------------------------------------------------------------


def test_the_default_encoder_has_the_papers_widths():
    net = BrainEncoder(PAIRS)
    assert [layer.lin.out_features for layer in net.layers] == [64, 128, 128, 256, 256, 256]
    assert [layer.out_features for layer in net.head if isinstance(layer, nn.Linear)] == [512, 256, 32]
    assert [layer.out_features for layer in net.project if isinstance(layer, nn.Linear)] == [32, 64, 128]
    assert all(layer.res is None for layer in net.layers)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[0, 9], [1, 2]], "numbered 0 to 5, got 0 to 9"),
        ([[0, 1], [1, 1]], "1 join a region to itself"),
        ([[0, 1], [1, 0]], "1 are there again"),
        ([[0], [1], [2]], r"integers \[2, E\], got torch.int64 \[3, 1\]"),
        ([[0.0], [1.0]], "integers"),
    ],
)
def test_pairs_that_are_no_atlas_are_refused(pairs, message):
    with pytest.raises(DataError, match=message):
        BrainEncoder(pairs, num_regions=6)


def test_another_atlas_is_refused():
    nodes, edges, _ = brains()
    with pytest.raises(ValueError, match=r"edges \[6, 16\], got \[6, 16\] and \[5, 16\].*atlas it was trained with"):
        encoder()(nodes, edges[:, :5])
    with pytest.raises(ValueError, match="node_attention must be"):
        BrainEncoder(PAIRS, node_attention="hard")


def test_the_mean_of_a_regions_tracts_is_given_to_it_beside_its_own_attributes():
    nodes, edges, _ = brains(batch=3)
    net = BrainEncoder(PAIRS, num_regions=REGIONS, channels=(8,), hidden=(8,), projection=(4, 6), tract_means=True)
    means = net._means(edges, None)
    for region in range(REGIONS):
        touching = [edge for edge in range(PAIRS.shape[1]) if region in PAIRS[:, edge].tolist()]
        expected = edges[:, touching].mean(dim=1) if touching else torch.zeros_like(means[:, region])
        torch.testing.assert_close(means[:, region], expected)
    plain = TractGATConv(32, 8, edge_dim=16)
    plain.load_state_dict(net.layers[0].state_dict())
    wide = torch.cat([nodes, means], dim=2)
    torch.testing.assert_close(net.node_embeddings(nodes, edges), plain(wide, edges, PAIRS))
    assert torch.equal(net._means(edges, torch.zeros(PAIRS.shape[1])), torch.zeros_like(means))


def test_attributes_are_dropped_in_training_only():
    nodes, edges, _ = brains(batch=3)
    plain, dropping = encoder(), encoder(dropout=0.5)
    dropping.load_state_dict(plain.state_dict())
    assert torch.equal(plain(nodes, edges)[0], dropping(nodes, edges)[0])
    dropping.train()
    torch.manual_seed(0)
    assert not torch.allclose(plain(nodes, edges)[0], dropping(nodes, edges)[0])
    torch.manual_seed(0)
    seen = torch.nn.functional.dropout(nodes, 0.5), torch.nn.functional.dropout(edges, 0.5)
    expected = plain(*seen)[0]
    torch.manual_seed(0)
    torch.testing.assert_close(dropping(nodes, edges)[0], expected)
