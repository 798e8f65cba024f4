"""Graph attention on a citation graph of our own making, a hard one: words say little, few labels are known."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy, elu
from torch_geometric.nn import GATConv

from shared.networks.glioma.graph_attention import GraphAttentionNetwork

CLASSES, WORDS = 4, 200
VELICKOVIC = {"hidden": (8,), "heads": 4, "head": "attention", "dropout": 0.6, "input_dropout": 0.6}
DEFAULT = {"hidden": (32, 32), "residual": True, "dropout": 0.5}  # the population graph's, narrower


def citations(count=240, *, degree=5.0, homophily=0.85, labelled=12, seed=0):
    """Documents of four topics: rows of words, citations both ways of which most stay in the topic, who is labelled.

    A planted partition: each document cites ``degree / 2`` others and has about 12 words, 3 of its topic's 50.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    share = torch.full((count, WORDS), 9 / WORDS)
    share += 3 / (WORDS // CLASSES) * (torch.arange(WORDS) % CLASSES == labels[:, None])
    words = (torch.rand(count, WORDS, generator=generator) < share).float()
    same = (labels[:, None] == labels).float().fill_diagonal_(0)
    other = (labels[:, None] != labels).float()
    chance = degree / 2 * (homophily * same / same.sum(1, True) + (1 - homophily) * other / other.sum(1, True))
    source, target = (torch.rand(count, count, generator=generator) < chance).nonzero().t()
    edges = torch.stack([torch.cat([source, target]), torch.cat([target, source])])
    order = torch.randperm(count, generator=generator)
    known = torch.zeros(count, dtype=torch.bool)
    for topic in range(CLASSES):
        known[order[labels[order] == topic][:labelled]] = True
    return words / words.sum(1, True).clamp(min=1), edges, labels, known


@pytest.fixture(scope="module")
def graph():
    return citations()


def accuracy(graph, edges, settings, *, epochs=60):
    """Of the documents without a label, after training on those with one."""
    x, _, labels, known = graph
    torch.manual_seed(0)
    net = GraphAttentionNetwork(WORDS, out_channels=CLASSES, **settings)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=5e-4)
    for _ in range(epochs):
        loss = cross_entropy(net(x, edges)[known], labels[known])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = net.eval()(x, edges).argmax(dim=1)
    return (found == labels)[~known].float().mean().item()


@pytest.mark.parametrize("settings", [VELICKOVIC, DEFAULT], ids=["attention head", "linear head"])
def test_two_layers_read_what_words_alone_do_not_say(graph, settings):
    x, edges, labels, known = graph
    linear = LogisticRegression(C=100, max_iter=1000).fit(x[known], labels[known]).score(x[~known], labels[~known])
    shuffled = torch.stack([edges[0], edges[1][torch.randperm(edges.shape[1])]])
    found = accuracy(graph, edges, settings)
    alone = accuracy(graph, edges[:, :0], settings)
    random = accuracy(graph, shuffled, settings)
    assert found > 0.8 and found > max(alone, random, linear) + 0.1


@pytest.mark.parametrize("residual", [False, True])
def test_equals_layers_of_torch_geometric(graph, residual):
    x, edges = graph[0].double(), graph[1].unique(dim=1)
    weight = torch.rand(edges.shape[1], dtype=torch.float64)
    torch.manual_seed(0)
    net = GraphAttentionNetwork(WORDS, (8,), CLASSES, heads=4, head="attention", edge_dim=1, residual=residual).double()
    convs = []
    for layer in (*net.layers, net.head):
        convs.append(
            GATConv(
                layer.lin.in_features,
                layer.bias.numel() // layer.heads,
                heads=layer.heads,
                edge_dim=1,
                residual=residual,
            ).double()
        )
        convs[-1].load_state_dict(layer.state_dict())
    wanted = convs[1](elu(convs[0](x, edges, weight)), edges, weight)
    torch.testing.assert_close(net(x, edges, weight), wanted, atol=1e-10, rtol=0)
    matrix, attributes = torch.zeros(len(x), len(x), dtype=torch.bool), torch.zeros(len(x), len(x)).double()
    matrix[edges[1], edges[0]], attributes[edges[1], edges[0]] = True, weight
    torch.testing.assert_close(net(x, matrix, attributes), wanted, atol=1e-10, rtol=0)
    twice = torch.cat([edges, edges[:, :9], torch.tensor([[3], [3]])], dim=1)  # some again, and a loop
    again = torch.cat([weight, weight[:9], weight[:1]])
    wanted = convs[1](elu(convs[0](x, twice, again)), twice, again)
    torch.testing.assert_close(net(x, twice, again), wanted, atol=1e-10, rtol=0)


def test_order_of_the_nodes_does_not_matter(graph):
    x, edges = graph[0].double(), graph[1]
    torch.manual_seed(0)
    net = GraphAttentionNetwork(WORDS, (8, 8), CLASSES, heads=2, residual=True, dropout=0.5).double().eval()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x[order], order.argsort()[edges]), net(x, edges)[order], atol=1e-12, rtol=0)


def test_an_edge_goes_from_its_first_node_to_its_second():
    edges = torch.tensor([[0, 2], [1, 0]])
    net = GraphAttentionNetwork(2, (3,), 2, head="attention", edge_dim=2).eval()
    x = torch.randn(3, 2)
    before, after = net(x, edges, torch.ones(2, 2)), net(x + torch.eye(3)[:, 2:], edges, torch.ones(2, 2))
    # node 2 hears nobody: 0 hears it after one layer, 1 after two
    assert (before != after).any(dim=1).tolist() == [True, True, True]
    after = net(x + torch.eye(3)[:, 1:2], edges, torch.ones(2, 2))
    assert (before != after).any(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["dropout", "input_dropout", "attention_dropout"])
def test_each_dropout_is_there_in_training_only(graph, name):
    torch.manual_seed(0)
    net = GraphAttentionNetwork(WORDS, (8,), CLASSES, heads=2, **{name: 0.5})
    assert (net(*graph[:2]) != net(*graph[:2])).any()
    net.eval()
    assert torch.equal(net(*graph[:2]), net(*graph[:2]))


@pytest.mark.parametrize(
    ("settings", "graph", "message"),
    [
        ({"head": "mean"}, None, "head must be linear or attention, got 'mean'"),
        ({"head": "attention", "extra": 2}, None, "Only a linear head sees further features, got extra=2"),
        ({}, torch.zeros(3, 3), r"\[N, N\] bool or edges \[2, E\] long, got torch.float32 \[3, 3\]"),
        ({}, torch.ones(2, 2) > 0, r"A graph of 3 nodes .* got torch.bool \[2, 2\]"),
        ({}, torch.tensor([[0], [3]]), "Nodes are numbered 0 to 2, got 0 to 3"),
        ({}, torch.tensor([[0, 1], [1, 2]]), r"A graph \[2, 2\] needs attributes of each edge, got \[3\]"),
    ],
)
def test_refuses(settings, graph, message):
    with pytest.raises(ValueError, match=message):
        net = GraphAttentionNetwork(4, (2,), 3, edge_dim=1, **settings)
        net(torch.rand(3, 4), graph, torch.rand(3))
