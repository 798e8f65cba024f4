"""What each part of glioma_idh's configs is made of: which part of the patients, which weights."""

import pytest

from tests.support.parsed_bundles import Parsed, names


@pytest.fixture(scope="module")
def glioma(tmp_path_factory):
    return Parsed("glioma_idh", tmp_path_factory.mktemp("glioma_idh"))


def test_each_stage_of_glioma_trains_on_its_part_of_the_training_patients(glioma):
    datalist = glioma.get("datalist")
    own = {part: set(names(getattr(datalist, part))) for part in ("self_supervised", "contrastive", "population")}
    assert set.union(*own.values()) == set(names(glioma.training)) and sum(map(len, own.values())) == 14
    assert set(glioma.get("cases").patients) == set(names(glioma.training))
    assert set(glioma.get("nodes#dataset").patients) == own["self_supervised"]
    assert set(glioma.get("edges#dataset").patients) == own["self_supervised"]
    assert set(glioma.get("contrast#dataset").patients) == own["contrastive"]
    assert set(glioma.get("train#rows").patients) == own["population"]
    assert glioma.get("train#dataset").rows is glioma.get("train#rows")
    assert glioma.handler("contrast#handlers", "StartContrast").rows is glioma.get("contrast#dataset")
    assert glioma.get("contrast#trainer").prepare_batch.rows is glioma.get("contrast#dataset")
    assert glioma.handler("train#handlers", "StartPopulation").embeddings is glioma.get("train#dataset")


def test_who_is_evaluated_is_told_apart_from_who_trained(glioma):
    assert glioma.evaluate("validate#dataset").patients == names(glioma.validation)
    saver = glioma.handler("validate#handlers", "SaveGliomaPredictions", glioma.evaluate)
    assert sorted(saver.training) == sorted(names(glioma.training))
    assert set(names(saver.known)) == {*names(glioma.training), *names(glioma.validation)}
    assert glioma.handler("validate#handlers", "LoadModel", glioma.evaluate).path.name == "model.pt"


def test_what_the_stages_of_glioma_train(glioma):
    def optimised(stage):
        return {id(p) for group in glioma.get(f"{stage}#optimizer").param_groups for p in group["params"]}

    network = glioma.get("network")
    assert optimised("nodes") == {id(p) for p in network.features.nodes.parameters()}
    assert optimised("edges") == {id(p) for p in glioma.get("edges#network").parameters()}
    assert glioma.get("edges#network").mri is network.features.edges
    assert optimised("contrast") == {id(p) for p in network.features.glioma.parameters()}
    own = {id(p) for part in (network.population, network.mlp) for p in part.parameters()}
    assert optimised("train") == own
    assert glioma.get("contrast#trainer").prepare_batch.rotation is glioma.get("contrast#augmentation")
    assert glioma.get("contrast#augmentation").degrees == 180
