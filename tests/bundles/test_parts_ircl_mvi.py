"""What each part of ircl_mvi's configs is made of: whose images, whose labels, whose covariates."""

import pytest
import torch

from shared.losses import balanced_class_weights
from tests.support.parsed_bundles import Parsed, names


@pytest.fixture(scope="module")
def ircl(tmp_path_factory):
    return Parsed("ircl_mvi", tmp_path_factory.mktemp("ircl_mvi"))


def test_every_stage_of_ircl_trains_on_the_training_part(ircl):
    dataset = ircl.get("train#dataset")
    assert names(dataset) == names(ircl.training) and len(dataset) == 5
    assert torch.equal(ircl.get("pretrain#dataset").images, dataset.stack("image"))
    table = ircl.get("mixup")
    assert len(table) == 10 and table.parents[:5].tolist() == [[k, k] for k in range(5)]
    assert ircl.get("pretrain#dataset").table is table is ircl.get("train#features").table
    assert len(ircl.get("pretrain#loss").contrastive.bank.embeddings) == 10 * 4
    for holder in (ircl.get("biomarkers#stage"), ircl.get("train#features")):
        assert holder.cases is dataset
    assert ircl.handler("train#handlers", "LoadBiomarkers").cases is dataset


def test_class_weights_are_those_of_the_training_labels(ircl):
    labels = torch.tensor([case["label"] for case in ircl.training])
    assert labels.float().mean() != torch.tensor([case["label"] for case in ircl.validation]).float().mean()
    assert torch.equal(ircl.get("train#loss").weight, balanced_class_weights(labels))


def test_stage_two_trains_the_predictor_and_nothing_else(ircl):
    network = ircl.get("network")
    optimised = {id(p) for group in ircl.get("train#optimizer").param_groups for p in group["params"]}
    assert optimised == {id(p) for p in network.predictor.parameters()}
    assert not any(p.requires_grad for p in network.encoder.parameters())


def test_the_part_asked_for_is_evaluated_with_the_model(ircl):
    assert names(ircl.evaluate("validate#dataset")) == names(ircl.validation)
    assert ircl.handler("validate#handlers", "LoadModel", ircl.evaluate).path.name == "model.pt"


def test_model_json_says_what_the_model_was_made_with(ircl):
    model = ircl.model
    assert model["covariates"] == ["age"] and model["num_modalities"] == 2
    assert model["classes"] == ["no", "yes"] and model["modalities"] == ["T1", "T2"]
    assert model["roi"]["num_slices"] == 2 and model["roi"]["size"] == 16
    assert model["network"]["num_covariates"] == 1 and model["network"]["num_images"] == 4


def test_a_run_that_goes_on_has_all_that_is_drawn_or_learnt(ircl):
    trainer = ircl.get("pretrain#trainer")
    checkpoint = trainer.checkpoint
    assert set(checkpoint.state) == {"optimizer", "MemoryBankHandler", "log", "EarlyStopAfter"}
    assert checkpoint.state["MemoryBankHandler"] is ircl.get("pretrain#bank_handler")
    assert checkpoint.generators["shuffle"] is trainer.data_loader.generator
    assert checkpoint.generators["augmentation"] is ircl.get("pretrain#augmentation").generator
    last = ircl.get("train#trainer").checkpoint
    assert last.network is ircl.get("network") and last.bare and last.path.name == "model.pt"
    assert last.generators["shuffle"] is ircl.get("train#trainer").data_loader.generator
