"""What a stage of glioma begins with: weights of the stages before, attributes and bank of its own patients."""

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from sklearn.linear_model import LogisticRegression

from shared.checkpoint import save_checkpoint
from shared.handlers import StartContrast, StartPopulation
from shared.networks import FeaturesTraining, FrozenEmbeddings, TractPretraining
from shared.networks.glioma.embeddings import brain_networks
from tests.support.tiny_brains import lively
from tests.support.tiny_glioma_rows import VOXELS, glioma_classifier, patients_rows

WIDTHS = {"widths": [8, 4], "fa_widths": [8, 4], "head": [4, 6]}


def start(handler):
    engine = Engine(lambda engine, batch: None)
    handler.attach(engine)
    engine.run([0], max_epochs=1)


@pytest.fixture
def earlier(tmp_path):
    """Checkpoints of the stages of nodes and edges, and the network whose they are."""
    other = lively(glioma_classifier(seed=7), seed=7)
    save_checkpoint(tmp_path / "nodes.pt", {"network": other.features.nodes.state_dict()})
    edges = TractPretraining(other.features.edges, use_fa=True, num_voxels=VOXELS, in_channels=2, **WIDTHS)
    save_checkpoint(tmp_path / "edges.pt", {"network": edges.state_dict()})
    return tmp_path, other.features


def test_contrast_begins_with_the_attribute_encoders_and_standardises_over_its_patients(earlier):
    folder, other = earlier
    network, rows = FeaturesTraining(glioma_classifier().features), patients_rows(6)
    kept = {key: value.clone() for key, value in network.features.glioma.state_dict().items()}
    start(StartContrast(network, rows, nodes=folder / "nodes.pt", edges=folder / "edges.pt"))
    for name in ("nodes", "edges"):
        own, stored = (getattr(each, name).state_dict() for each in (network.features, other))
        assert all(torch.equal(value, own[key]) for key, value in stored.items())
    assert all(torch.equal(value, network.features.glioma.state_dict()[key]) for key, value in kept.items())
    for name, x in zip(("node", "edge"), brain_networks(rows.items, other, standardised=False), strict=True):
        mean, std = x.double().mean(dim=0), x.double().std(dim=0)
        alive = std > 1e-4
        assert alive.any()
        torch.testing.assert_close(getattr(network.features, f"{name}_mean").double(), mean, atol=1e-5, rtol=1e-4)
        found = getattr(network.features, f"{name}_std").double()
        torch.testing.assert_close(found[alive], std[alive], atol=1e-5, rtol=1e-4)


def test_a_run_that_goes_on_keeps_what_it_has(earlier):
    folder, _ = earlier
    network = FeaturesTraining(glioma_classifier().features)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    engine = Engine(lambda engine, batch: None)
    engine.state.epoch = 3
    StartContrast(network, patients_rows(4), nodes=folder / "nodes.pt", edges=folder / "edges.pt")(engine)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in before.items())


@pytest.fixture
def begun(tmp_path):
    """The population stage after its start, its rows, and the network whose encoders it took."""
    other = lively(glioma_classifier(seed=7, num_covariates=1), seed=7)
    save_checkpoint(tmp_path / "contrast.pt", {"network": FeaturesTraining(other.features).state_dict()})
    network, rows = glioma_classifier(num_covariates=1, population={"theta": 0.0, "hidden": [8]}), patients_rows(8)
    start(StartPopulation(tmp_path / "contrast.pt", network, FrozenEmbeddings(rows, network, batch_size=4)))
    return network, rows, other


def test_the_graph_begins_with_its_patients_embeddings_and_labels(begun):
    network, rows, other = begun
    for key, value in other.features.glioma.state_dict().items():
        assert torch.equal(network.features.glioma.state_dict()[key], value), key
    nodes, edges = FrozenEmbeddings(rows, other.eval()).embeddings()
    torch.testing.assert_close(network.population.bank_nodes, nodes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network.population.bank_edges, edges, atol=1e-5, rtol=1e-5)
    assert network.bank_labels.tolist() == [k % 2 for k in range(8)]


def test_the_head_begins_with_the_logistic_regression_of_the_covariates(begun):
    network, rows, _ = begun
    known = rows.covariate_table.double()
    mean, std = known.mean(dim=0), known.std(dim=0)
    torch.testing.assert_close(network.population.covariate_mean.double(), mean, atol=1e-4, rtol=1e-5)
    fit = LogisticRegression().fit(((known - mean) / std).numpy(), rows.labels.numpy())
    (member,) = network.population.members
    np.testing.assert_allclose(member.head.weight.detach()[:, -1:].numpy(), fit.coef_, rtol=1e-3)
    np.testing.assert_allclose(member.head.bias.detach().numpy(), fit.intercept_, atol=1e-3)
    assert abs(fit.coef_).max() > 0.1
