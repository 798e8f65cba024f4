import pytest
import torch
from torch import nn

from shared.explain import explain_edges
from shared.explain.glioma.edges import _worth
from shared.networks.glioma.brain_encoder import BrainEncoder, TractGATConv


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_equals_torch_geometrics_explainer_on_its_own_convolution():
    """The same graph twice: our dense layer driven through the mask, GATConv masked by torch_geometric itself.

    torch_geometric masks every direction of an edge; each direction is an edge of its own here.
    """
    from torch_geometric.explain import Explainer, GNNExplainer
    from torch_geometric.nn import GATConv

    torch.manual_seed(0)
    pairs, x, attributes = torch.tensor([[0, 1, 2, 0], [1, 2, 3, 3]]), torch.randn(4, 3), torch.randn(4, 2)
    sparse, head = GATConv(3, 5, edge_dim=2), nn.Linear(5, 1)
    both, twice = torch.cat([pairs, pairs.flip(0)], dim=1), torch.cat([attributes, attributes])

    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = sparse, head

        def forward(self, x, edge_index):
            return self.head(self.layer(x, edge_index, twice).mean(dim=0, keepdim=True))

    dense = TractGATConv(3, 5, edge_dim=2)
    dense.load_state_dict(sparse.state_dict())

    class Directed(nn.Module):
        """The dense layer's arithmetic with a factor for each direction."""

        def forward(self, mask):
            mask = torch.ones(8) if mask is None else mask
            value, number = dense.lin(x), 4
            score = (twice @ (dense.att_edge[0] @ dense.lin_edge.weight)[0]).view(-1)
            square = torch.zeros(number, number).index_put((both[1], both[0]), score)
            joined = torch.zeros(number, number).index_put((both[1], both[0]), torch.ones(8))
            own = square.sum(1) / joined.sum(1)
            scores = square + torch.diag(own) + value @ dense.att_dst[0, 0, :, None]
            scores = scores + (value @ dense.att_src[0, 0, :, None]).t()
            scores = nn.functional.leaky_relu(scores, 0.2).masked_fill((joined + torch.eye(number)) == 0, -torch.inf)
            factor = torch.zeros(number, number).index_put((both[1], both[0]), mask) + torch.eye(number)
            return head(((scores.softmax(1) * factor) @ value + dense.bias).mean(dim=0, keepdim=True)).view(1)

    directed = Directed()
    model = Sparse().requires_grad_(False)
    dense.requires_grad_(False)
    assert model(x, both).item() == pytest.approx(directed(None).item(), abs=1e-5)
    assert dense(x[None], attributes[None], pairs).mean(dim=1).mul(head.weight).sum() + head.bias == pytest.approx(
        directed(None).item(), abs=1e-5
    )
    config = {"mode": "binary_classification", "task_level": "graph", "return_type": "raw"}
    explainer = Explainer(
        model,
        GNNExplainer(epochs=30, lr=0.05, edge_size=0.02),
        explanation_type="model",
        edge_mask_type="object",
        model_config=config,
    )
    torch.manual_seed(7)
    expected = explainer(x, both).edge_mask
    found = explain_edges(directed, x, both, epochs=30, learning_rate=0.05, edge_size=0.02, seed=7)
    torch.testing.assert_close(found.mask, expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.05


def planted_logit(weights):
    def logit(mask):
        mask = torch.ones(len(weights)) if mask is None else mask
        return (weights * mask).sum()[None]

    return logit


def test_keeps_what_the_class_needs_for_either_class():
    pairs = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 5, 5]])
    for sign in (1, -1):
        weights = sign * torch.tensor([3.0, 0.05, 0.05, 2.0, -0.5, 0.0])
        found = explain_edges(planted_logit(weights), torch.rand(6, 2), pairs, edge_size=0.05, seed=3)
        assert found.kept.tolist() == [True, False, False, True, False, False]
        assert found.mask[5] == 0  # no influence at all
        worth = found.probability
        assert worth["kept"] > worth["all"] > worth["removed"] and worth["all"] > 0.5
        assert worth["kept"] > worth["random_kept"] and worth["removed"] < worth["random_removed"]


def test_the_same_seed_gives_the_same_mask_and_leaves_torchs_generator():
    weights, pairs = torch.tensor([1.0, -1.0, 0.2]), torch.tensor([[0, 1, 2], [1, 2, 0]])
    before = torch.random.get_rng_state()
    masks = [explain_edges(planted_logit(weights), torch.rand(3, 2), pairs, epochs=5, seed=s).mask for s in (0, 0, 1)]
    torch.rand(9), torch.random.set_rng_state(before)
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_through_the_brain_encoder_the_edge_that_carries_the_signal_is_kept():
    """Region 0 alone has a signal and reaches region 1 alone; the answer reads region 1."""
    torch.manual_seed(0)
    pairs = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    net = BrainEncoder(pairs, num_regions=5, channels=(4,), node_attention="none").eval().requires_grad_(False)
    nodes, edges = torch.zeros(1, 5, 16), torch.zeros(1, 4, 16)
    nodes[0, 0] = 5.0
    reads = net.layers[0].lin(nodes)[0, 0]

    def logit(mask):
        return 20 * (net.node_embeddings(nodes, edges, None, mask)[:, 1] @ reads) / reads.square().sum() - 2

    found = explain_edges(logit, nodes[0], pairs, edge_size=0.02)
    assert found.kept.tolist() == [True, False, False, False]
    assert found.probability["all"] > 0.9 and found.probability["removed"] < 0.2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_sure_answer_keeps_the_edges_that_carry_it(mode):
    pairs, nodes = torch.tensor([[0, 0, 1, 2, 3], [1, 2, 3, 4, 4]]), torch.rand(5, 2)
    weights = torch.tensor([2.0, 2.0, 0.05, 0.0, 0.02])

    def logit(mask):
        # with all edges the probability is 1 - 1e-17: no edge alone changes it
        return 20 * (weights * (torch.ones(5) if mask is None else mask)).sum()[None] - 40

    with mode():
        found = explain_edges(logit, nodes, pairs, epochs=200, learning_rate=0.1, edge_size=0.05, edge_entropy=0.1)
    assert found.kept.tolist() == [True, True, False, False, False]
    assert found.probability["all"] == pytest.approx(float(torch.sigmoid(logit(None))[0]))


def test_as_many_tracts_drawn_at_random_are_worth_as_much_where_only_their_number_counts():
    def logit(mask):
        return (torch.ones(7) if mask is None else mask).sum().view(1) - 3

    kept = torch.tensor([True, False, False, True, False, False, False])
    found = _worth(logit, kept, draws=3, seed=0)
    expected = {name: torch.tensor(float(count - 3)).sigmoid() for name, count in (("kept", 2), ("removed", 5))}
    assert found["all"] == pytest.approx(float(torch.tensor(4.0).sigmoid()))
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value)) and found[f"random_{name}"] == pytest.approx(float(value))
