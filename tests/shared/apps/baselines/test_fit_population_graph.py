"""Training of the population graph on planted communities, where neighbours know what noisy features hide."""

import logging

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from shared.apps.baselines.population_training import fit_population_graph
from shared.errors import DataError
from shared.networks.glioma.population_graph import PAPER, PopulationGraphClassifier

WIDTH = 8


def citations(count, *, communities=8, seed=0, noise=2.5):
    """A citation graph's like: papers of communities cite within them, and each hardly says what it is about.

    Returns noisy features ``[N, 8]``, profiles ``[N, 12]`` which correlate within a community, labels ``[N]`` (two
    opposite corners of a square: no line parts the classes' means well).
    """
    generator = torch.Generator().manual_seed(99)
    topics = torch.randn(communities, 12, generator=generator)
    label_of = torch.arange(communities) % 2
    direction = torch.randn(WIDTH, generator=generator)
    generator.manual_seed(seed)
    community = torch.arange(count) % communities
    labels = label_of[community]
    signal = (2.0 * labels[:, None] - 1) * direction / direction.norm()
    nodes = signal + noise * torch.randn(count, WIDTH, generator=generator)
    profiles = topics[community] + 0.5 * torch.randn(count, 12, generator=generator)
    return nodes, profiles, labels


@pytest.fixture(scope="module")
def parts():
    return citations(160, seed=1), citations(160, seed=2)


def auc(parts, *, epochs=80, **settings):
    (nodes, edges, labels), (new, new_edges, truth) = parts
    torch.manual_seed(0)
    net = PopulationGraphClassifier(WIDTH, edge_features=12, hidden=(16, 16), **settings)
    fit_population_graph(net, nodes, labels, edges=edges, epochs=epochs, learning_rate=5e-3)
    return roc_auc_score(truth, net.predict(new, new_edges).probability), net


def test_two_layers_beat_a_linear_model_no_edges_and_random_edges(parts):
    (nodes, _, labels), (new, _, truth) = parts
    linear = roc_auc_score(truth, LogisticRegression().fit(nodes, labels).predict_proba(new)[:, 1])
    graph, net = auc(parts)
    none, _ = auc(parts, graph="none")
    random, _ = auc(parts, graph="random")
    assert graph > 0.9 and graph > linear + 0.1 and graph > none + 0.1 and graph > random + 0.1
    report = net.report(labels, log=False)
    assert report.homophily > 0.9 and 0.3 < report.chance < 0.6


def test_a_subgraph_of_patients_a_step_learns_too(parts):
    nodes, edges, labels = parts[0]
    net = PopulationGraphClassifier(WIDTH, edge_features=12, hidden=(16, 16))
    losses = fit_population_graph(net, nodes, labels, edges=edges, epochs=15, learning_rate=5e-3, batch_size=40)
    assert len(losses) == 15 and losses[-1] < 0.8 * losses[0]
    new, new_edges, truth = parts[1]
    assert roc_auc_score(truth, net.predict(new, new_edges).probability) > 0.85


def test_the_papers_mlp_for_lonely_patients_is_trained_and_changes_nothing_else(parts):
    nodes, edges, labels = parts[0]
    settings = {**PAPER, "hidden": (16, 16), "edge_features": 12}
    nets = []
    for without in (False, True):
        torch.manual_seed(0)
        net = PopulationGraphClassifier(WIDTH, **settings)
        if without:
            for member in net.members:
                member.alone.requires_grad_(False)
        fit_population_graph(net, nodes, labels, edges=edges, epochs=40, learning_rate=5e-3)
        nets.append(net)
    torch.testing.assert_close(nets[0].bank_logits()[0], nets[1].bank_logits()[0], atol=1e-5, rtol=1e-4)
    alone = nets[0].bank_logits()[1][0].detach()
    assert roc_auc_score(labels, alone) > 0.75


def test_the_seed_decides_and_the_callers_generator_is_left_alone(parts):
    nodes, edges, labels = parts[0]
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(7)
        net = PopulationGraphClassifier(WIDTH, edge_features=12, hidden=(4,))
        before = torch.get_rng_state()
        fit_population_graph(net, nodes, labels, edges=edges, epochs=3, seed=seed)
        assert torch.equal(torch.get_rng_state(), before) and not net.training
        found.append(net(nodes, edges))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_weight_of_the_positives_moves_predictions_up(parts):
    nodes, edges, labels = parts[0]
    means = []
    for weight in (None, 10.0):
        torch.manual_seed(0)
        net = PopulationGraphClassifier(WIDTH, edge_features=12, hidden=(8,))
        fit_population_graph(net, nodes, labels, edges=edges, epochs=20, learning_rate=5e-3, pos_weight=weight)
        means.append(net.predict(nodes, edges).probability.mean())
    assert means[1] > means[0] + 0.1


def test_the_graph_is_reported_and_a_dense_one_warned_of(parts, caplog):
    nodes, _edges, labels = parts[0]
    with caplog.at_level(logging.INFO):
        fit_population_graph(PopulationGraphClassifier(WIDTH, hidden=(4,), theta=-1), nodes, labels, epochs=1)
    assert "density 100.0%" in caplog.text and "joins 100 % of all pairs, more than 30 %" in caplog.text


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(20), r"both of them there; got \[20\] with values \[0.0\]"),
        (torch.arange(20) % 3, r"values \[0, 1, 2\]"),
        (torch.arange(19) % 2, r"each of 20 patients.*got \[19\]"),
    ],
)
def test_refuses_labels(labels, message):
    with pytest.raises(DataError, match=message):
        fit_population_graph(PopulationGraphClassifier(3), torch.rand(20, 3), labels)


def test_the_learning_rate_decays(parts):
    """To next to nothing after two epochs: what follows moves no weight."""
    nodes, edges, labels = parts[0]
    found = []
    for epochs in (2, 6):
        torch.manual_seed(0)
        net = PopulationGraphClassifier(WIDTH, edge_features=12, hidden=(4,), dropout=0.0)
        start = net.members[0].head.weight.detach().clone()
        fit_population_graph(net, nodes, labels, edges=edges, epochs=epochs, decay=1e-9, decay_every=2)
        found.append(net.members[0].head.weight.detach())
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)
    assert (found[0] - start).abs().max() > 1e-3


@pytest.mark.parametrize("batch_size", [None, 40])
def test_the_graph_is_trained_with_its_covariates(parts, batch_size):
    nodes, edges, labels = parts[0]
    known = labels[:, None] + 0.8 * torch.randn(len(labels), 1, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(0)
    net = PopulationGraphClassifier(WIDTH, edge_features=12, hidden=(4,), num_covariates=1)
    begun = PopulationGraphClassifier(WIDTH, edge_features=12, hidden=(4,), num_covariates=1)
    begun.set_bank(nodes, edges, known)
    begun.fit_covariates(known, labels)
    options = {"epochs": 5, "learning_rate": 0.01, "weight_decay": 0.0, "batch_size": batch_size}
    fit_population_graph(net, nodes, labels, edges=edges, covariates=known, **options)
    moved = net.members[0].head.weight[:, -1] - begun.members[0].head.weight[:, -1]
    assert moved.abs().item() > 1e-4, "what is not seen has no gradient"
