"""Stage II as train.json puts it together: cached features, frozen encoder, covariates, checkpoints."""

import copy

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch.utils.data import DataLoader

from shared.bundle.settings import trained_network
from shared.checkpoint import load_checkpoint, load_weights, save_checkpoint
from shared.data import FeatureRows, MixupTable
from shared.engines import PrepareFeatures
from shared.handlers import LoadBiomarkers, SaveSettings, StageCheckpoint, TrainingLog
from shared.networks import IRCLClassifier
from tests.support.tiny import cohort, lively_images, tiny_classifier

SIZES = {"num_modalities": 2, "per_modality": True, "pooling": "modality", "num_covariates": 1, "views": 2}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("shared.visualize.loss_curve", lambda *arguments, **settings: None)


@pytest.fixture
def cases():
    ages = [[30.0], [44.0], [61.0], [70.0], [35.0], [66.0]]
    return cohort(lively_images(6), [0, 0, 1, 1, 0, 1], ages, names=("age",))


def stage_two(folder, cases, *, seed=0, resume=False):
    """The classifier and its trainer: 12 rows in batches of 4, 4 epochs."""
    if not (folder / "biomarkers.pt").exists():
        trained = tiny_classifier(IRCLClassifier, **SIZES)
        save_checkpoint(
            folder / "biomarkers.pt", {"encoder": trained.encoder.state_dict(), "biomarkers": trained.biomarkers}
        )
    torch.manual_seed(seed)
    settings = {**SIZES, "channels": (4, 8), "embedding_dim": 6, "dim": 8, "num_layers": 2, "num_heads": 2}
    network = IRCLClassifier(4, 3, **settings, mlp_dim=12, dropout=0.5)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.predictor.parameters(), lr=0.01, weight_decay=0.1)
    features = FeatureRows(cases, network, MixupTable(6, ratio=1))
    checkpoint = StageCheckpoint(
        folder / "model.pt",
        network,
        state={"optimizer": optimizer},
        generators={"shuffle": generator},
        resume=resume,
        bare=True,
        save_interval=2,
    )
    handlers = [checkpoint, LoadBiomarkers(folder / "biomarkers.pt", network, cases), TrainingLog("train", folder)]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=4,
        train_data_loader=DataLoader(features, batch_size=4, shuffle=True, generator=generator),
        network=network.predictor,
        optimizer=optimizer,
        loss_function=torch.nn.CrossEntropyLoss(),
        prepare_batch=PrepareFeatures(),
        train_handlers=[*handlers, SaveSettings(folder, network)],
        decollate=False,
        optim_set_to_none=True,
    )
    return network, trainer


def test_the_encoder_is_bitwise_unchanged_and_runs_once(tmp_path, cases):
    network, trainer = stage_two(tmp_path, cases)
    seen, start = [], {}
    network.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    trainer.add_event_handler(Events.STARTED, lambda engine: start.update(copy.deepcopy(network.state_dict())))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: network.train())
    trainer.run()
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, start[key])}
    assert changed and all(key.startswith("predictor.") for key in changed)
    assert seen == [48, 48]  # 12 cases of 4 images, two views; not again in epochs 2 to 4
    trained = load_checkpoint(tmp_path / "biomarkers.pt")
    assert all(torch.equal(value, trained["encoder"][key]) for key, value in network.encoder.state_dict().items())
    assert torch.equal(network.biomarkers, trained["biomarkers"])


def test_what_is_saved_is_enough_to_predict(tmp_path, cases):
    network, trainer = stage_two(tmp_path, cases)
    trainer.run()
    again = trained_network(IRCLClassifier, tmp_path, "no such configuration").eval()
    load_weights(again, load_checkpoint(tmp_path / "model.pt"), "model.pt")
    x, age = lively_images(3, seed=5), torch.tensor([[40.0], [50.0], [60.0]])
    assert torch.equal(again(x, age), network.eval()(x, age))


def test_an_interrupted_and_resumed_stage_ends_as_one_that_was_not(tmp_path, cases):
    (tmp_path / "parts").mkdir()
    (tmp_path / "whole").mkdir()
    whole, trainer = stage_two(tmp_path / "whole", cases)
    trainer.run()

    def press(engine):
        raise KeyboardInterrupt

    _, trainer = stage_two(tmp_path / "parts", cases)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=11), press)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    again, trainer = stage_two(tmp_path / "parts", cases, seed=4, resume=True)
    trainer.run()
    for key, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
