import copy
import json

import pytest
import torch
from ignite.engine import Engine, Events

from shared.checkpoint import save_checkpoint
from shared.errors import CheckpointError
from shared.handlers import LoadBiomarkers, LoadModel, SaveSettings, StageCheckpoint
from shared.losses import BalancedCrossEntropyLoss
from shared.networks import IRCLClassifier
from tests.support.tiny import cohort, lively_images, tiny_classifier


@pytest.fixture
def cases():
    ages = [[30.0], [44.0], [61.0], [70.0], [35.0], [66.0]]
    return cohort(lively_images(6), [0, 0, 1, 1, 0, 1], ages, names=("age",))


def biomarkers_of(network):
    return {"encoder": network.encoder.state_dict(), "biomarkers": network.biomarkers.clone()}


def fresh(**settings):
    return IRCLClassifier(
        4, 3, channels=(4, 8), embedding_dim=6, dim=8, num_layers=2, num_heads=2, mlp_dim=12, **settings
    )


def run(*handlers, epochs=1, process=lambda engine, batch: None):
    engine = Engine(process)
    for handler in handlers:
        handler.attach(engine)
    engine.run(range(2), max_epochs=epochs)
    return engine


# --- what stage II starts from ------------------------------------------------------------------------------------


def test_stage_two_starts_from_encoder_biomarkers_and_the_cohorts_covariates(tmp_path, cases):
    trained, network = tiny_classifier(IRCLClassifier), fresh(num_covariates=1)
    save_checkpoint(tmp_path / "b.pt", biomarkers_of(trained))
    run(LoadBiomarkers(tmp_path / "b.pt", network, cases))
    for found, expected in zip(network.eval().encode(lively_images()), trained.encode(lively_images()), strict=True):
        torch.testing.assert_close(found, expected, atol=0, rtol=0)
    assert torch.equal(network.biomarkers, trained.biomarkers)
    ages = cases.stack("covariates")
    torch.testing.assert_close(network.predictor.covariate_mean, ages.mean(0))
    torch.testing.assert_close(network.predictor.covariate_std, ages.std(0))
    weight = network.predictor.head.weight[:, -1]
    assert weight[1] > 0 and weight[0] == -weight[1]  # the old are the positives here


def test_without_covariates_nothing_is_fitted(tmp_path, cases):
    network = fresh()
    head = network.predictor.head.weight.clone()
    save_checkpoint(tmp_path / "b.pt", biomarkers_of(tiny_classifier(IRCLClassifier)))
    run(LoadBiomarkers(tmp_path / "b.pt", network, cases))
    assert torch.equal(network.predictor.head.weight, head)


def test_a_balancing_loss_starts_the_head_at_the_frequencies_which_covariates_know_themselves(tmp_path):
    labels, ages = [0, 1, 1, 1, 1, 1], [[30.0], [40.0], [61.0], [70.0], [35.0], [66.0]]
    unbalanced = cohort(lively_images(6), labels, ages, names=("age",))
    loss = BalancedCrossEntropyLoss(torch.tensor(labels))
    save_checkpoint(tmp_path / "b.pt", biomarkers_of(tiny_classifier(IRCLClassifier)))
    network = fresh()
    before = network.predictor.head.bias.detach().clone()
    run(LoadBiomarkers(tmp_path / "b.pt", network, unbalanced, loss=loss))
    moved = network.predictor.head.bias.detach() - before
    torch.testing.assert_close(moved.softmax(0), torch.tensor([1 / 6, 5 / 6]))
    network = fresh(num_covariates=1)
    run(LoadBiomarkers(tmp_path / "b.pt", network, unbalanced, loss=loss))
    known = (torch.tensor(ages) - torch.tensor(ages).mean(0)) / torch.tensor(ages).std(0)
    head = network.predictor.head
    probability = (known @ head.weight[:, -1:].t() + head.bias).softmax(1)[:, 1]
    assert probability.mean().item() == pytest.approx(5 / 6, abs=1e-4)


def test_a_resumed_stage_keeps_what_it_had_learnt_of_the_covariates(tmp_path, cases):
    save_checkpoint(tmp_path / "b.pt", biomarkers_of(tiny_classifier(IRCLClassifier)))

    def stage(resume):
        network = fresh(num_covariates=1)
        handlers = [
            StageCheckpoint(tmp_path / "model.pt", network, resume=resume, bare=True),
            LoadBiomarkers(tmp_path / "b.pt", network, cases),
        ]
        return network, handlers

    network, handlers = stage(False)

    def learn(engine, batch):
        if engine.state.epoch == 2:
            raise KeyboardInterrupt
        with torch.no_grad():
            network.predictor.head.weight.add_(1.0)
            network.predictor.head.bias.sub_(1.0)

    with pytest.raises(KeyboardInterrupt):
        run(*handlers, epochs=2, process=learn)
    learnt = copy.deepcopy(network.state_dict())
    again, handlers = stage(True)
    assert run(*handlers, epochs=2).state.epoch == 2
    torch.testing.assert_close(again.state_dict(), learnt, atol=0, rtol=0)


def test_a_skipped_stage_needs_no_biomarkers(tmp_path, cases):
    network = tiny_classifier(IRCLClassifier)
    save_checkpoint(tmp_path / "model.pt", network.state_dict())
    again = fresh()
    checkpoint = StageCheckpoint(tmp_path / "model.pt", again, resume=True, bare=True)
    run(checkpoint, LoadBiomarkers(tmp_path / "nowhere.pt", again, cases))
    torch.testing.assert_close(again.state_dict(), network.state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"There is no checkpoint .*b.pt\. Run the earlier stages first: --run_id pretrain_run, then"),
        ({"network": {}}, "b.pt holds no 'encoder': it is of another stage"),
        ({"num_biomarkers": 5}, r"holds biomarkers \(5, 6\), the network takes \(3, 6\).*--run_id biomarkers_run"),
        ({"num_biomarkers": 1}, r"holds biomarkers \(1, 6\), the network takes \(3, 6\)"),  # would broadcast
        ({"channels": (4, 6)}, "b.pt does not fit this network: .*in the file.*in the network"),
    ],
)
def test_biomarkers_that_are_missing_or_do_not_fit_are_refused(tmp_path, cases, content, message):
    network = fresh()
    if content is not None:
        sized = "network" not in content
        content = biomarkers_of(tiny_classifier(IRCLClassifier, **content)) if sized else content
        save_checkpoint(tmp_path / "b.pt", content)
    with pytest.raises(CheckpointError, match=message):
        run(LoadBiomarkers(tmp_path / "b.pt", network, cases))


# --- the whole model ----------------------------------------------------------------------------------------------


def test_the_model_is_loaded_before_the_first_batch(tmp_path):
    trained, network = tiny_classifier(IRCLClassifier), fresh().eval()
    save_checkpoint(tmp_path / "model.pt", trained.state_dict())
    outputs = []
    run(LoadModel(tmp_path / "model.pt", network), process=lambda e, b: outputs.append(network(lively_images())))
    torch.testing.assert_close(outputs[0], trained(lively_images()), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, r"There is no checkpoint .*model.pt\. Train first: .*--ckpt_dir"),
        ({"dim": 16}, r"model.pt does not fit this network: .*in the file.*Use the config overlays"),
        ({"num_biomarkers": 4}, r"biomarkers: \(4, 6\) in the file, \(3, 6\) in the network"),
        ({"num_layers": 3}, r"predictor.blocks.2.*: only in the file"),
    ],
)
def test_a_model_that_is_missing_or_of_other_dimensions_is_refused(tmp_path, settings, message):
    if settings is not None:
        save_checkpoint(tmp_path / "model.pt", tiny_classifier(IRCLClassifier, **settings).state_dict())
    with pytest.raises(CheckpointError, match=message):
        run(LoadModel(tmp_path / "model.pt", fresh()))


# --- what it is made of -------------------------------------------------------------------------------------------


def test_the_settings_are_written_when_the_stage_ends(tmp_path):
    network, seen = fresh(views=2), []
    engine = Engine(lambda engine, batch: seen.append((tmp_path / "model.json").exists()))
    SaveSettings(tmp_path, network, roi={"size": 32}).attach(engine)
    engine.run(range(1))
    content = json.loads((tmp_path / "model.json").read_text())
    assert seen == [False] and content["roi"] == {"size": 32} and content["network"]["views"] == 2
    rebuilt = IRCLClassifier(**content["network"])
    rebuilt.load_state_dict(network.state_dict())


def test_a_skipped_stage_keeps_the_settings_of_its_training(tmp_path):
    network = tiny_classifier(IRCLClassifier)

    def stage(size):
        checkpoint = StageCheckpoint(tmp_path / "model.pt", network, resume=True, bare=True)
        return run(checkpoint, SaveSettings(tmp_path, network, roi={"size": size})).state

    assert stage(32).epoch == 1
    assert stage(64).epoch == 0  # skipped: the weights are still those of 32 pixels
    assert json.loads((tmp_path / "model.json").read_text())["roi"] == {"size": 32}
    (tmp_path / "model.json").unlink()  # as if training had ended between the two files
    stage(32)
    assert json.loads((tmp_path / "model.json").read_text())["roi"] == {"size": 32}


def test_an_interrupted_stage_writes_no_settings(tmp_path):
    def press(engine):
        raise KeyboardInterrupt

    engine = Engine(lambda engine, batch: None)
    SaveSettings(tmp_path, fresh()).attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, press)
    with pytest.raises(KeyboardInterrupt):
        engine.run(range(1))
    assert not (tmp_path / "model.json").exists()
