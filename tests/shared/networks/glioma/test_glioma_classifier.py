import pytest
import torch

from shared.apps.baselines.population_training import fit_population_graph
from shared.checkpoint import load_weights
from shared.errors import CheckpointError
from shared.losses import PopulationLoss
from shared.networks import GliomaClassifier, GliomaInputs, PopulationTraining
from tests.support.tiny_brains import PAIRS, REGIONS, cloud, lively

VOXELS = 6


def classifier(*, seed=0, **settings):
    """A small one."""
    torch.manual_seed(seed)
    given = {
        "num_regions": REGIONS,
        "in_channels": 2,
        "size": 16,
        "num_voxels": VOXELS,
        "embedding_dim": 8,
        "projection": [8, 8, 16],
        "image": {"channels": [4, 8], "hidden": [8]},
        "points": {"channels": [4, 8], "hidden": [8], "radii": [8.0, 14.0]},
        "brain": {"channels": [8], "hidden": [8]},
        "attribute_widths": [8, 4],
        "edge_head": [4, 6],
    }
    return GliomaClassifier(PAIRS.tolist(), **(given | settings))


def inputs(batch=4, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    incidence = torch.randint(-1, PAIRS.shape[1], (batch, 64, 2), generator=generator)
    return {
        "image": torch.randn(batch, 2, 16, 16, 16, generator=generator),
        "points": cloud(batch=batch, seed=seed),
        "region_rows": torch.randn(batch, REGIONS, 2 * VOXELS, generator=generator),
        "tract_rows": torch.randn(batch, PAIRS.shape[1], 2 * VOXELS, generator=generator),
        "incidence": incidence,
    }


def with_bank(network, *, patients=12):
    """Random embeddings as the bank."""
    generator = torch.Generator().manual_seed(1)
    nodes, edges = (
        torch.randn(patients, d, generator=generator) for d in (network.population.in_dim, network.brain_dim)
    )
    network.population.set_bank(nodes, edges)
    network.bank_labels = torch.arange(patients).remainder(2).float()
    return network.eval()


def with_any_bank(network, *, patients=9):
    """Random embeddings as the bank, whatever their width."""
    generator = torch.Generator().manual_seed(2)
    widths = network.population.in_dim, network.population.edge_features
    network.population.set_bank(*(torch.randn(patients, width, generator=generator) for width in widths))
    return network.eval()


def test_the_whole_is_its_parts():
    network, given = with_bank(lively(classifier())), inputs()
    with torch.no_grad():
        logits = network(**given)
        nodes, edges = network.features.attributes(given["region_rows"], given["tract_rows"])
        out = network.features.glioma(
            GliomaInputs(given["image"], given["points"], None, nodes, edges, given["incidence"])
        )
        both = torch.cat([out.u_tumour, out.u_brain], dim=1)
        expected = network.population(both, out.u_brain)[:, 0]
    assert logits.shape == (4, 2) and torch.equal(logits[:, 0], torch.zeros(4))
    torch.testing.assert_close(logits[:, 1], expected)


def test_a_model_of_an_older_version_loads_without_its_hashes_of_names():
    network, given = with_bank(lively(classifier())), inputs()
    state = {**network.state_dict(), "features.seen": torch.tensor([5, -7])}
    other = GliomaClassifier(**network.settings, seen_size=2).eval()
    load_weights(other, state, "model.pt")
    with torch.no_grad():
        assert torch.equal(other(**given), network(**given))
    assert "features.seen" not in other.state_dict() and "seen_size" not in other.settings


# all that a model.json of version 0.1 says of the network
OLD_SETTINGS = {
    "edge_index": PAIRS.tolist(), "num_regions": REGIONS, "in_channels": 2, "size": 16, "num_voxels": VOXELS,
    "encoders": ["image", "points", "brain"], "edge_attention": "literal", "objective": "multitask", "unimodal": True,
    "classification_weight": 1.0, "unimodal_weight": 0.0, "embedding_dim": 8, "projection": [8, 8, 16], "hidden": [6],
    "image": {"channels": [4, 8], "hidden": [8]}, "points": {"channels": [4, 8], "hidden": [8], "radii": [8.0, 14.0]},
    "brain": {"channels": [8], "hidden": [8]}, "attribute_widths": [8, 4], "edge_head": [4, 6], "batch_norm": False,
    "standardise": "unit", "graph": "both-tumour", "population": {"hidden": [5]}, "num_covariates": 0,
    "mlp_hidden": [7], "bf16": False, "channels_last": True, "checkpointing": False, "bank_size": 12,
}  # fmt: skip


# what came later, with what an older model is without it
LATER = {"additive": False, "answer": "graph"}


def test_a_model_json_of_before_says_all_that_one_of_today_does_but_what_came_later():
    network = lively(GliomaClassifier(**OLD_SETTINGS))
    assert network.settings == OLD_SETTINGS | LATER
    glioma = network.features.glioma
    assert glioma.edge_attention == "literal" and glioma.classifier[0].out_features == 6 and not glioma.unimodal
    assert set(classifier().settings) == set(OLD_SETTINGS | LATER)
    with pytest.raises(TypeError, match="edge_atention"):
        classifier(edge_atention="none")


def test_weights_of_another_atlas_with_as_many_tracts_are_refused():
    network = with_bank(lively(classifier()))
    key = "features.glioma.brain_encoder.edge_index"
    state = network.state_dict()
    state[key] = state[key].flip(1)
    before = network.state_dict()[key].clone()
    with pytest.raises(CheckpointError, match="was trained with another tract atlas"):
        load_weights(network, state, "model.pt")
    assert torch.equal(network.state_dict()[key], before)


def test_a_prediction_does_not_depend_on_its_batch():
    network, given = with_bank(lively(classifier())), inputs()
    with torch.no_grad():
        alone = torch.cat([network(**{key: value[k : k + 1] for key, value in given.items()}) for k in range(4)])
        torch.testing.assert_close(network(**given), alone, atol=1e-5, rtol=1e-5)


def test_the_state_dict_is_tensors_and_enough(tmp_path):
    network, given = with_bank(lively(classifier())), inputs()
    path = tmp_path / "model.pt"
    torch.save(network.state_dict(), path)
    other = GliomaClassifier(**classifier(seed=3).settings)
    load_weights(other, torch.load(path, weights_only=True), path)
    with torch.no_grad():
        assert torch.equal(other.eval()(**given), network(**given))
    assert torch.equal(other.bank_labels, network.bank_labels)
    with pytest.raises(CheckpointError, match="does not fit this network"):
        load_weights(classifier(embedding_dim=6), torch.load(path, weights_only=True), path)


def test_attributes_are_standardised_by_the_patients_they_were_fitted_to_and_never_trained():
    network, given = classifier(batch_norm=True), inputs(8)
    features = network.features.train()
    before = [buffer.clone() for buffer in features.nodes.buffers()]
    raw = features.attributes(given["region_rows"], given["tract_rows"], standardised=False)
    features.fit_attributes(*raw)
    for x in features.attributes(given["region_rows"], given["tract_rows"]):
        assert not x.requires_grad
        torch.testing.assert_close(x.mean(dim=0), torch.zeros_like(x[0]), atol=1e-4, rtol=0)
        spread = x.std(dim=0)
        assert (((spread - 1).abs() < 1e-3) | (spread < 1e-3)).all()
    assert features.nodes.training and all(map(torch.equal, before, features.nodes.buffers()))
    # nor do they depend on who else is in the batch
    together = features.attributes(given["region_rows"], given["tract_rows"])
    alone = features.attributes(given["region_rows"][1:2], given["tract_rows"][1:2])
    for x, one in zip(together, alone, strict=True):
        torch.testing.assert_close(one[0], x[1])
    literal = classifier(standardise="none").features
    literal.fit_attributes(*raw)
    assert torch.equal(literal.node_mean, torch.zeros_like(literal.node_mean))


@pytest.mark.parametrize("encoders", [["image"], ["brain"], ["image", "points"], ["points", "brain"]])
def test_with_fewer_encoders_the_graph_takes_what_there_is(encoders):
    network, given = classifier(encoders=encoders), inputs()
    tumour = 8 * len({"image", "points"} & set(encoders))
    brain = 8 * ("brain" in encoders)
    assert network.population.in_dim == tumour + brain
    assert network.population.edge_features == (brain or tumour)
    edges = None if not (tumour and brain) else torch.randn(9, brain)
    network.population.set_bank(torch.randn(9, tumour + brain), edges)
    assert network.eval()(**given).shape == (4, 2)


@pytest.mark.parametrize("encoders", [["image"], ["points"], ["image", "points"]])
def test_without_the_brain_encoder_its_attributes_encoders_are_not_built_and_older_weights_fit(encoders, tmp_path):
    network, whole = with_any_bank(lively(classifier(encoders=encoders))), classifier()
    used = {"image": "image_encoder", "points": "geometric_encoder"}
    modules = [getattr(network.features.glioma, used[name]) for name in encoders]
    modules += [network.features.glioma.classifier, network.features.glioma.project_image, network.population]
    modules += [network.features.glioma.project_points, network.mlp]
    counted = sum(p.numel() for module in modules if module is not None for p in module.parameters())
    assert counted == sum(p.numel() for p in network.parameters())
    state = network.state_dict()
    assert not any("nodes." in key or "edges." in key or "edge_mean" in key for key in state if "population" not in key)
    # a model that an older version trained and stored with all of them
    older = {k: v for k, v in whole.state_dict().items() if k.startswith(("features.node", "features.edge"))}
    torch.save(older | state, tmp_path / "model.pt")
    assert {"features.nodes.encoder.0.weight", "features.edges.head.0.bias", "features.node_mean"} < set(older)
    other = classifier(encoders=encoders, seed=5).eval()
    load_weights(other, torch.load(tmp_path / "model.pt", weights_only=True), tmp_path / "model.pt")
    with torch.no_grad():
        assert torch.equal(other(**inputs()), network(**inputs()))
    # but with the brain encoder nothing of it may be left out, or be too much
    with pytest.raises(CheckpointError, match="only in the file"):
        load_weights(whole, whole.state_dict() | {"features.nodes.more": torch.zeros(1)}, "model.pt")


@pytest.mark.parametrize("population", [{"dropout": 0.0}, {"dropout": 0.0, "residual": False, "members": 2}])
def test_training_it_step_by_step_equals_the_fit_of_the_population_graph(population):
    # float64 and many edges: where a gradient is next to nothing, Adam makes steps of its rounding
    settings = {"population": {"hidden": [8], "theta": 0.0, **population}, "num_covariates": 1}
    network, other = classifier(**settings).double(), classifier(**settings).double()
    generator = torch.Generator().manual_seed(0)
    nodes, edges, known = (torch.randn(16, width, generator=generator).double() for width in (24, 8, 1))
    labels = torch.arange(16) % 2
    fit_population_graph(other.population, nodes, labels, edges=edges, covariates=known, epochs=20, log=False)
    network.population.set_bank(nodes, edges, known)
    network.population.fit_covariates(known, labels)
    training, loss = PopulationTraining(network), PopulationLoss()
    optimiser = torch.optim.Adam(training.parameters(), 1e-3, weight_decay=0.01)
    for _ in range(20):
        rows = torch.randperm(16, generator=generator)  # the order of a batch does not matter
        optimiser.zero_grad()
        loss(training(rows, known[rows]), labels[rows].double()).backward()
        optimiser.step()
    ours, theirs = network.population.state_dict(), other.population.state_dict()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], atol=1e-5, rtol=1e-5, msg=key)


def test_settings_are_refused():
    with pytest.raises(ValueError, match="graph must be one of tumour-brain"):
        classifier(graph="brain")
    with pytest.raises(ValueError, match="standardise must be one of"):
        classifier(standardise="all")


# --- exports ------------------------------------------------------------------------------------------------------

EXPORTED = {
    "default": {},
    "covariates, several members, plain layers": {
        "num_covariates": 2,
        "population": {"members": 2, "residual": False, "compress": False},
    },
    "all of the brain encoder": {
        "batch_norm": True,
        "brain": {"channels": [8], "hidden": [8], "node_attention": "literal", "tract_means": True, "residual": True},
    },
    "without attention, random graph": {"edge_attention": "none", "population": {"graph": "random", "theta": 0}},
    "surface and brain, literally": {
        "encoders": ["points", "brain"],
        "edge_attention": "literal",
        "graph": "brain-tumour",
        "population": {"graph": "none"},
    },
    "image alone, pooled": {"encoders": ["image"], "image": {"channels": [4, 8], "hidden": [8], "global_pool": True}},
}


@pytest.mark.parametrize("settings", EXPORTED.values(), ids=EXPORTED)
def test_torchscript_equals_eager_for_any_batch_and_number_of_points(settings, tmp_path):
    network = lively(classifier(**settings))
    generator = torch.Generator().manual_seed(1)
    covariates = torch.randn(12, network.population.num_covariates, generator=generator)
    widths = network.population.in_dim, network.population.edge_features
    network.population.set_bank(*(torch.randn(12, width, generator=generator) for width in widths), covariates)
    torch.jit.save(torch.jit.script(network.eval()), tmp_path / "model.ts")
    scripted = torch.jit.load(tmp_path / "model.ts")
    for batch, points in ((1, 64), (5, 50)):
        given = inputs(batch) | {"covariates": covariates[:batch] if covariates.shape[1] else None}
        given |= {"points": given["points"][:, :points], "incidence": given["incidence"][:, :points]}
        expected = network(**given)
        torch.testing.assert_close(scripted(**given), expected)
        assert batch == 1 or expected[:, 1].std() > 1e-4


def test_exported_program_equals_eager_for_any_batch_size():
    network, given = with_bank(lively(classifier())), inputs(2)
    shapes = {key: {0: torch.export.Dim("batch", min=1, max=64)} for key in given}
    program = torch.export.export(network, (), kwargs=given, dynamic_shapes=shapes).module()
    for batch in (1, 5):
        torch.testing.assert_close(program(**inputs(batch)), network(**inputs(batch)))


def test_a_script_says_which_input_is_missing():
    scripted = torch.jit.script(with_bank(classifier()))
    with pytest.raises(torch.jit.Error, match="need points; it is missing"):
        scripted(inputs()["image"])
