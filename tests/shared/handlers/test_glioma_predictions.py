"""The table of glioma predictions: neighbours, their labels, and the other classifiers' answers, each in its column."""

import csv
import json

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from sklearn.calibration import CalibratedClassifierCV
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from shared.data import collate_glioma, glioma_inputs
from shared.handlers import SaveGliomaPredictions
from shared.networks.glioma.classifier import given_rows
from tests.support.tiny_brains import lively
from tests.support.tiny_glioma_rows import glioma_classifier, patients_rows

THETA = 0.2


@pytest.fixture(scope="module")
def network():
    """A classifier whose encoders have answers of their own, with a bank of twelve random patients."""
    net = lively(glioma_classifier(unimodal=True, population={"theta": THETA, "hidden": [8]}))
    generator = torch.Generator().manual_seed(5)
    nodes, edges = (torch.randn(12, d, generator=generator) for d in (net.population.in_dim, net.brain_dim))
    net.population.set_bank(nodes, edges)
    net.bank_labels = torch.tensor([0.0, 1, 1, 0, 1, 1, 0, 1, 0, 1, 1, 0])
    return net.eval()


@pytest.fixture(scope="module")
def evaluated(network, tmp_path_factory):
    """Folder, rows of the table, and inputs of six new patients, evaluated in batches of four and two."""
    folder, rows = tmp_path_factory.mktemp("out"), patients_rows(6, covariates=0, seed=40)

    def process(engine, cases):
        with torch.no_grad():
            logits = network(**given(cases))
        return [{"pred": one} for one in logits.softmax(dim=1)]

    def given(cases):
        inputs = glioma_inputs(collate_glioma(cases))
        return {key: value for key, value in inputs.items() if key != "covariates"}

    engine = Engine(process)
    SaveGliomaPredictions(folder, network, per_patient=True, bootstrap=20, known=[]).attach(engine)
    engine.run([rows.items[:4], rows.items[4:]], max_epochs=1)
    with (folder / "predictions.csv").open(newline="") as file:
        return folder, list(csv.DictReader(file)), given(rows.items)


@pytest.fixture(scope="module")
def correlation(network, evaluated):
    """Pearson's correlation of each new patient's standardised edges with the bank's, in float64."""
    with torch.no_grad():
        _, edges = network.graph_parts(network.embed(given_rows(evaluated[2])))
        mine, bank = (
            network.population._standard(x, "edge").double().numpy() for x in (edges, network.population.bank_edges)
        )
    return np.corrcoef(mine, bank)[:6, 6:]


def test_a_patient_who_lacks_a_sequence_is_told(network, tmp_path):
    rows = patients_rows(4, covariates=0, seed=40)
    batch = [{**case, "lacking": "FLAIR, T2" if k == 2 else ""} for k, case in enumerate(rows.items)]

    def process(engine, cases):
        given = {k: x for k, x in glioma_inputs(collate_glioma(cases)).items() if k != "covariates"}
        with torch.no_grad():
            return [{"pred": one} for one in network(**given).softmax(dim=1)]

    engine = Engine(process)
    SaveGliomaPredictions(tmp_path, network, bootstrap=5).attach(engine)
    engine.run([batch[:2], batch[2:]], max_epochs=1)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["lacking"] for row in table] == ["", "", "FLAIR, T2", ""]
    said = [row["reason"] for row in table]
    assert said[2].startswith("predicted without FLAIR, T2") and not any("without F" in said[k] for k in (0, 1, 3))


def test_neighbours_are_those_who_correlate_most_the_nearest_first(network, evaluated, correlation):
    folder, table, _ = evaluated
    assert (correlation >= THETA).sum(axis=1).max() >= 3
    for row, similar in zip(table, correlation, strict=True):
        near = np.flatnonzero(similar >= THETA)
        assert int(row["neighbours"]) == len(near)
        expected = sorted(near, key=lambda k: -similar[k])[:5]
        told = json.loads((folder / f"patients/{row['patient']}.json").read_text())["nearest"]
        assert [each["bank_row"] for each in told] == expected
        assert [each["correlation"] for each in told] == pytest.approx([similar[k] for k in expected], abs=1e-4)
        assert [each["label"] for each in told] == [int(network.bank_labels[k]) for k in expected]


def test_the_share_of_mutants_is_that_of_the_neighbours(network, evaluated, correlation):
    labels, seen = network.bank_labels.numpy(), 0
    for row, similar in zip(evaluated[1], correlation, strict=True):
        near = similar >= THETA
        if near.any():
            assert float(row["neighbours_mutant"]) == pytest.approx(labels[near].mean(), abs=1e-4)
            seen += 1
        else:
            assert row["neighbours_mutant"] == "" and row["out_of_cohort"] == "1"
    assert seen


def test_every_answer_stands_in_its_own_column(network, evaluated):
    _, table, inputs = evaluated
    glioma, population = network.features.glioma, network.population
    with torch.no_grad():
        out = network.embed(given_rows(inputs))
        nodes, _ = network.graph_parts(out)
        expected = {
            "unimodal_image": glioma.classify_image(out.u_image)[:, 0].sigmoid(),
            "unimodal_points": glioma.classify_points(out.u_points)[:, 0].sigmoid(),
            "unimodal_brain": glioma.classify_brain(out.u_brain)[:, 0].sigmoid(),
            "multitask": glioma.classifier(torch.cat([out.u_tumour, out.u_brain], dim=1))[:, 0].sigmoid(),
            "mlp": network.mlp_logits(nodes).sigmoid(),
            "probability": network(**inputs).softmax(dim=1)[:, 1],
        }
        alone = torch.stack([m.own(population._standard(nodes), nodes.new_zeros(6, 0)) for m in population.members])
        expected["no_edges"] = alone.mean(dim=0).sigmoid()
    scale = StandardScaler().fit(population._standard(population.bank_nodes).numpy())
    machine = CalibratedClassifierCV(SVC(), ensemble=False)
    machine.fit(scale.transform(population._standard(population.bank_nodes).numpy()), network.bank_labels.long())
    expected["svm"] = machine.predict_proba(scale.transform(population._standard(nodes).numpy()))[:, 1]
    for name, values in expected.items():
        assert [float(row[name]) for row in table] == pytest.approx(values.tolist(), abs=1e-5), name
    assert [row["patient"] for row in table] == [f"P{k}" for k in range(6)]
