import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch_geometric.nn import GATConv

from shared.errors import DataError
from shared.networks.glioma.population_graph import PAPER, PopulationGraphClassifier
from tests.references import population_graph as reference


def cohort(count=20, width=6, *, seed=0, dtype=torch.float64):
    """Features on very different scales."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return (x * torch.logspace(-2, 2, width) + 5).to(dtype)


def network(bank, covariates=None, *, dtype=torch.float64, **settings):
    torch.manual_seed(0)
    number = 0 if covariates is None else covariates.shape[1]
    found = PopulationGraphClassifier(bank.shape[1], num_covariates=number, **{"hidden": (4, 3), **settings}).to(dtype)
    with torch.no_grad():  # biases away from zero
        for parameter in found.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    found.set_bank(bank, covariates=covariates)
    return found.eval()


def naive_layers(member, x, bank_states, joined, weight):
    """States of every layer, the targets' ``x`` listening to ``bank_states``, or to each other where that is None."""
    states = [x]
    for number, layer in enumerate(member.layers):
        sources = states[-1] if bank_states is None else bank_states[number]
        attributes = [[[value] for value in row] for row in weight]
        parameters = {name: p.tolist() for name, p in layer.state_dict().items()}
        rows = reference.attention_layer(states[-1], sources, joined, attributes, parameters, heads=1)
        states.append([[y if y > 0 else math.expm1(y) for y in row] for row in rows])
    return states


# --- against the paper --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("residual", "compress"), [(True, True), (True, False), (False, False)])
def test_equals_the_naive_loops_for_the_bank_and_for_new_patients(residual, compress):
    bank, queries = cohort(), cohort(5, seed=1)
    net = network(bank, residual=residual, theta=0.3, compress=compress)
    member = net.members[0]
    x, new = bank.tolist(), queries.tolist()
    if compress:
        x, new = (reference.compress(rows, bank.tolist()) for rows in (x, new))
    x, new = (reference.standardise(rows, x) for rows in (x, new))
    weight = reference.edge_weights(x, theta=0.3)
    states = naive_layers(member, x, None, np.array(weight) > 0, weight)
    head, bias = member.head.weight[0].tolist(), member.head.bias.item()
    wanted = [reference.dot(head, row) + bias for row in states[-1]]
    torch.testing.assert_close(net.bank_logits()[0][0], torch.tensor(wanted, dtype=torch.float64), atol=1e-9, rtol=0)

    weight = reference.edge_weights(new, x, theta=0.3)
    joined = np.array(weight) > 0
    assert joined.any(axis=1).all()
    last = naive_layers(member, new, states, joined, weight)[-1]
    wanted = [reference.dot(head, row) + bias for row in last]
    torch.testing.assert_close(net(queries)[:, 0], torch.tensor(wanted, dtype=torch.float64), atol=1e-9, rtol=0)
    assert net.predict(queries).neighbours.tolist() == joined.sum(axis=1).tolist()


def test_the_papers_network_equals_torch_geometric():
    bank = cohort(60, 10)  # in float64: this network's logits here are in the tens
    net = network(bank, **PAPER)
    weight, mask = net.bank_graph()
    target, source = mask.nonzero().t()
    x = (bank - bank.mean(dim=0)) / bank.std(dim=0)
    assert [layer.lin.out_features for layer in net.members[0].layers] == [64, 128, 128, 128]
    for layer in net.members[0].layers:
        sparse = GATConv(layer.lin.in_features, layer.lin.out_features, edge_dim=1).double()
        sparse.load_state_dict(layer.state_dict())
        x = nn.functional.elu(sparse(x, torch.stack([source, target]), weight[target, source]))
    found, wanted = net.bank_logits()[0][0], net.members[0].head(x)[:, 0]
    torch.testing.assert_close(found, wanted, atol=1e-9 * wanted.abs().max().item(), rtol=0)


# --- new patients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", ["correlation", "random"])
@pytest.mark.parametrize("members", [1, 2])
def test_a_prediction_does_not_depend_on_the_other_queries(members, graph):
    bank, queries = cohort(40, dtype=torch.float32), cohort(9, seed=1, dtype=torch.float32)
    net = network(bank, dtype=torch.float32, members=members, graph=graph)
    together = net.predict(queries)
    for i in range(len(queries)):
        alone = net.predict(queries[i : i + 1])
        assert abs(alone.probability.item() - together.probability[i].item()) < 1e-6
        assert alone.neighbours.item() == together.neighbours[i].item()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    assert (net.predict(queries[order]).probability - together.probability[order]).abs().max() < 1e-6


def test_order_of_the_bank_does_not_matter():
    bank, queries = cohort(), cohort(5, seed=1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(bank[order])(queries), network(bank)(queries), atol=1e-12, rtol=0)
    torch.testing.assert_close(network(bank[order]).bank_logits()[0], network(bank).bank_logits()[0][:, order])


def test_features_may_be_on_any_scale():
    bank, queries = cohort(), cohort(5, seed=1)
    wanted = network(bank)(queries)
    torch.testing.assert_close(network(bank * 1000 + 7)(queries * 1000 + 7), wanted, atol=1e-8, rtol=0)


def test_a_few_extreme_patients_do_not_decide_a_features_scale():
    bank = cohort(40)
    extreme = bank.clone()
    extreme[0, :3] += 100 * bank.std(dim=0)[:3]
    graphs = {
        compress: [network(x, compress=compress).bank_graph()[0][1:, 1:] for x in (bank, extreme)]
        for compress in (False, True)
    }
    moved = {compress: float((before - after).abs().mean()) for compress, (before, after) in graphs.items()}
    assert moved[True] < 0.5 * moved[False]


def test_a_feature_that_most_patients_share_and_a_constant_one_are_scaled_all_the_same():
    bank = cohort()
    bank[:, 0], bank[:, 1] = 7.0, 3.0
    bank[:3, 1] = torch.tensor([4.0, 5.0, 9.0])  # its quartiles are the same
    net = network(bank)
    x = net._standard(bank)
    assert x.isfinite().all() and not x[:, 0].any() and x[:, 1].std() == pytest.approx(1)
    assert net(cohort(5, seed=1)).isfinite().all()


@pytest.mark.parametrize("residual", [True, False])
def test_who_has_no_neighbour_is_answered_alone_and_flagged(residual):
    bank = cohort()
    mean, spread = bank.mean(dim=0), bank.std(dim=0)
    queries = torch.stack([bank[0], mean + 3 * spread])  # the second is the same everywhere once standardised
    net = network(bank, residual=residual, compress=False)
    found = net.predict(queries)
    assert found.out_of_cohort.tolist() == [False, True] and found.neighbours[0] > 0 and found.neighbours[1] == 0
    x, member = (queries[1:] - mean) / spread, net.members[0]
    if residual:  # the layers with their self-loop only
        wanted = x
        for layer in member.layers:
            wanted = nn.functional.elu(layer.lin(wanted) + layer.res(wanted) + layer.bias)
        wanted = member.head(wanted)
    else:
        wanted = member.alone_head(member.alone(x))
    torch.testing.assert_close(net(queries)[1:], wanted, atol=1e-9, rtol=0)


def test_without_edges_everybody_stands_alone():
    bank, queries = cohort(), cohort(5, seed=1)
    found = network(bank, graph="none").predict(queries)
    assert found.out_of_cohort.all() and not network(bank, graph="none").bank_graph()[1].any()
    shuffled = torch.stack([column[torch.randperm(20)] for column in bank.t()], dim=1)  # same means, other patients
    torch.testing.assert_close(network(shuffled, graph="none").predict(queries).probability, found.probability)
    assert (
        network(shuffled).predict(queries).probability - network(bank).predict(queries).probability
    ).abs().max() > 0.01


def test_random_edges_are_as_many_and_as_heavy_but_elsewhere():
    bank, queries = cohort(), cohort(5, seed=1)
    true, random = network(bank), network(bank, graph="random", graph_seed=3)
    for ours, theirs in ((true.bank_graph(), random.bank_graph()), *[[n.query_graph(queries) for n in (true, random)]]):
        torch.testing.assert_close(theirs[0].flatten().sort().values, ours[0].flatten().sort().values)
        assert (ours[1] != theirs[1]).any()
    assert torch.equal(true.query_graph(queries)[1].sum(dim=1), random.query_graph(queries)[1].sum(dim=1))
    again = network(bank, graph="random", graph_seed=3)
    assert torch.equal(again.bank_graph()[1], random.bank_graph()[1])


def test_edges_may_come_from_other_features():
    bank, edges = cohort(), cohort(20, 4, seed=5)
    net = PopulationGraphClassifier(6, edge_features=4, hidden=(4,)).double()
    net.set_bank(bank, edges)
    x = reference.compress(edges.tolist(), edges.tolist())
    wanted = reference.edge_weights(reference.standardise(x, x))
    torch.testing.assert_close(net.bank_graph()[0], torch.tensor(wanted, dtype=torch.float64))


# --- covariates ---------------------------------------------------------------------------------------------------


def test_covariates_start_at_their_logistic_regression():
    random = np.random.default_rng(0)
    age = random.normal(50, 12, 20)
    labels = (age + random.normal(0, 12, 20) < 50).astype(int)
    covariates = torch.tensor(np.stack([age, random.normal(size=20)], axis=1))
    net = network(cohort(), covariates)
    net.fit_covariates(covariates, torch.tensor(labels))
    with torch.no_grad():
        net.members[0].head.weight[:, :-2] = 0  # nothing but the covariates
    known = ((covariates - covariates.mean(dim=0)) / covariates.std(dim=0)).numpy()
    wanted = LogisticRegression().fit(known, labels).predict_proba(known)[:, 1]
    found = net.predict(cohort(), covariates=covariates).probability
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)


def test_an_unknown_covariate_is_the_banks_mean():
    covariates = torch.rand(20, 2, dtype=torch.float64) + 40
    covariates[3, 0] = torch.nan  # left out of the mean
    net, queries = network(cohort(), covariates), cohort(3, seed=1)
    mean = covariates.nanmean(dim=0)
    wanted = net(queries, covariates=mean.expand(3, 2))
    torch.testing.assert_close(net(queries), wanted)
    torch.testing.assert_close(net(queries, covariates=torch.full((3, 2), torch.nan, dtype=torch.float64)), wanted)
    assert (net(queries, covariates=mean.expand(3, 2) + 1) - wanted).abs().max() > 1e-3


# --- files and messages -------------------------------------------------------------------------------------------


def test_the_state_dict_is_enough(tmp_path):
    bank, queries = cohort(dtype=torch.float32), cohort(3, seed=1, dtype=torch.float32)
    trained = nn.ModuleDict({"graph": network(bank, dtype=torch.float32)})
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    fresh = nn.ModuleDict({"graph": PopulationGraphClassifier(6, hidden=(4, 3))}).eval()
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(fresh["graph"](queries), trained["graph"](queries))
    fresh.load_state_dict(nn.ModuleDict({"graph": network(bank[:9], dtype=torch.float32)}).state_dict())
    assert len(fresh["graph"].bank_nodes) == 9
    with pytest.raises(RuntimeError, match="size mismatch"):
        PopulationGraphClassifier(5, hidden=(4, 3)).load_state_dict(trained["graph"].state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"graph": "full"}, "one of correlation, none, random, got 'full'"), ({"theta": 1.5}, "from -1 to 1, got 1.5")],
)
def test_refuses_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        PopulationGraphClassifier(3, **settings)


def test_refuses_features_that_do_not_fit():
    with pytest.raises(DataError, match="no bank: train it"):
        PopulationGraphClassifier(6)(torch.rand(2, 6))
    with pytest.raises(DataError, match="at least 2 patients, got 1"):
        PopulationGraphClassifier(6).set_bank(torch.rand(1, 6))
    net, queries = network(cohort()), cohort(3, seed=1)
    with pytest.raises(DataError, match=r"node features must be \[3, 6\], got \[3, 5\]"):
        net(queries[:, :5], queries)
    queries[1, 2] = torch.nan
    with pytest.raises(DataError, match=r"node features must be finite; those of row 1 \(of 1 rows\) are not"):
        net(queries, cohort(3))
    with pytest.raises(DataError, match="0 covariates of each of 3 patients are needed"):
        net(cohort(3), covariates=torch.rand(3, 1))
