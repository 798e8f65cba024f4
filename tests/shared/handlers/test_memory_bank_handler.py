import copy

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from shared.data import ContrastiveRows, MixupTable
from shared.engines import PrepareRows
from shared.handlers import MemoryBankHandler, StageCheckpoint, TrainingLog
from shared.losses import IRCLPretrainLoss, MemoryBank, MemoryBankContrastiveLoss, PerceptualReconstructionLoss
from shared.networks import IRCLAutoencoder, IRCLClassifier
from shared.transforms import BatchedAugmentation
from tests.support.tiny import lively_images


class StageOne:
    """Stage I of 4 patients with 2 images and a mixture each: 16 rows, batches of 4."""

    def __init__(self, folder, *, seed=0, epochs=3, resume=False, ratio=1, **bank):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        self.rows = ContrastiveRows(lively_images(4, 2), MixupTable(4, ratio=ratio))
        self.network = IRCLAutoencoder((4, 8), embedding_dim=6)
        self.bank = MemoryBank(len(self.rows), 6)
        self.loss = IRCLPretrainLoss(
            PerceptualReconstructionLoss(), MemoryBankContrastiveLoss(self.bank), self.rows, contrastive_weight=0.5
        )
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.01)
        self.augmentation = BatchedAugmentation(rotation=30, gain=0.2, seed=seed)
        self.handler = MemoryBankHandler(self.rows, self.loss, self.network, **{"epochs": epochs, **bank})
        self.log = TrainingLog("pretrain", folder, self.loss.terms)
        checkpoint = StageCheckpoint(
            folder / "pretrain.pt",
            self.network,
            state={"optimizer": self.optimizer, "bank": self.handler, "log": self.log},
            generators={"shuffle": generator, "augmentation": self.augmentation.generator},
            resume=resume,
        )
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            train_data_loader=DataLoader(self.rows, batch_size=4, shuffle=True, generator=generator),
            network=self.network,
            optimizer=self.optimizer,
            loss_function=self.loss,
            prepare_batch=PrepareRows(self.rows, self.augmentation),
            train_handlers=[checkpoint, self.handler, self.log],
            decollate=False,
            optim_set_to_none=True,
        )

    def on(self, event, function):
        self.trainer.add_event_handler(event, function)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("shared.visualize.loss_curve", lambda *arguments, **settings: None)


def test_the_bank_starts_from_a_first_pass_over_the_images_as_they_are(tmp_path):
    stage, seen = StageOne(tmp_path, batch_size=5), {}

    def look(engine):
        seen["bank"] = stage.bank.embeddings.clone()
        stage.network.eval()
        with torch.no_grad():
            seen["z"] = stage.network(stage.rows.batch(torch.arange(16)))[2]
        engine.terminate()

    stage.on(Events.STARTED, look)
    stage.trainer.run()
    torch.testing.assert_close(seen["bank"], normalize(seen["z"], dim=1), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen["bank"].norm(dim=1), torch.ones(16))


def test_rows_are_updated_after_the_optimisers_step_and_outside_autograd(tmp_path):
    stage, before, steps = StageOne(tmp_path), {}, []
    step = stage.optimizer.step

    def stepping(*arguments, **settings):
        # whatever the batch did, the bank is still as it was: the update is not in backward either
        steps.append(torch.equal(stage.bank.embeddings, before["bank"]))
        return step(*arguments, **settings)

    def remember(engine):
        before["bank"] = stage.bank.embeddings.clone()

    def compare(engine):
        row, z = engine.state.output["label"]["row"], engine.state.output["pred"][-1]
        expected = before["bank"].clone()
        expected[row] = normalize(0.5 * before["bank"][row] + 0.5 * z.detach(), dim=1)
        torch.testing.assert_close(stage.bank.embeddings, expected, atol=1e-6, rtol=0)
        assert not torch.allclose(stage.bank.embeddings[row], before["bank"][row], atol=1e-4)
        assert not stage.bank.embeddings.requires_grad

    stage.optimizer.step = stepping
    stage.on(Events.ITERATION_STARTED, remember)
    stage.on(Events.ITERATION_COMPLETED, compare)
    stage.trainer.run()
    assert steps == [True] * 12


@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 4, 7]), (8, [1])])
def test_positives_are_renewed_in_epochs_1_and_every_f_thereafter(tmp_path, monkeypatch, every, expected):
    stage, renewed = StageOne(tmp_path, epochs=7, update_every=every, num_positives=2), []
    positives = stage.bank.positives

    def renewing(epoch, epochs, count, **settings):
        renewed.append((epoch, epochs, count, settings["include_self"]))
        assert torch.equal(settings["groups"], stage.rows.groups)
        return positives(epoch, epochs, count, **settings)

    monkeypatch.setattr(stage.bank, "positives", renewing)
    stage.trainer.run()
    assert renewed == [(epoch, 7, 2, False) for epoch in expected]


def test_positives_grow_with_the_epochs_and_never_share_a_parent(tmp_path):
    stage, counts = StageOne(tmp_path, epochs=4, update_every=1), []

    def look(engine):
        found = stage.loss.inter_positives
        counts.append(int((found >= 0).any(dim=1).sum()))
        parents = [set(pair) for pair in stage.rows.groups.tolist()]
        for row, listed in enumerate(found.tolist()):
            assert not any(parents[row] & parents[other] for other in listed if other >= 0)

    stage.on(Events.EPOCH_STARTED, look)
    stage.trainer.run()
    # floor(16 epoch / 4) rows, less those whose parents leave no candidate
    assert all(count <= 4 * (i + 1) for i, count in enumerate(counts)) and counts[0] < counts[-1] and counts[-1] > 10


def test_inter_patient_positives_can_be_left_out(tmp_path):
    stage = StageOne(tmp_path, num_positives=0)
    stage.trainer.run()
    assert stage.loss.inter_positives is None


def test_an_interrupted_stage_ends_as_one_that_was_not(tmp_path):
    whole = StageOne(tmp_path / "whole", update_every=2)
    whole.trainer.run()
    stopped = StageOne(tmp_path / "parts", update_every=2)

    def press(engine):
        raise KeyboardInterrupt

    stopped.on(Events.ITERATION_COMPLETED(once=10), press)
    with pytest.raises(KeyboardInterrupt):
        stopped.trainer.run()
    again = StageOne(tmp_path / "parts", seed=9, update_every=2, resume=True)
    again.trainer.run()
    assert again.log.history == whole.log.history
    assert torch.equal(again.bank.embeddings, whole.bank.embeddings)
    assert torch.equal(again.loss.inter_positives, whole.loss.inter_positives)
    for found, expected in zip(again.network.state_dict().values(), whole.network.state_dict().values(), strict=True):
        assert torch.equal(found, expected)


def test_a_restored_bank_follows_the_network_to_its_device(tmp_path):
    stage = StageOne(tmp_path)
    stage.handler.load_state_dict(copy.deepcopy(stage.handler.state_dict()))
    stage.trainer.state.device = torch.device("meta")  # stands in for an accelerator
    stage.handler.started(stage.trainer)
    assert stage.bank.embeddings.device.type == "meta"


def test_the_checkpoint_does_not_know_how_many_images_there_were(tmp_path):
    StageOne(tmp_path, epochs=1).trainer.run()
    state = torch.load(tmp_path / "pretrain.pt", weights_only=True)["network"]
    network = IRCLAutoencoder((4, 8), embedding_dim=6)
    network.load_state_dict(state)
    classifier = IRCLClassifier(3, channels=(4, 8), embedding_dim=6, dim=8, num_layers=1, num_heads=2, mlp_dim=8)
    encoder = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    classifier.encoder.load_state_dict(encoder)
    # nor does what the losses would add to one: a stage of another N takes it
    other = StageOne(tmp_path / "other", ratio=3)
    assert len(other.rows) == 32 and not other.loss.state_dict()
    other.network.load_state_dict(state)


def test_a_stage_interrupted_between_two_updates_goes_on_with_the_positives_of_the_last(tmp_path):
    settings = {"epochs": 5, "update_every": 4}  # positives are found in epochs 1 and 5
    whole, seen = StageOne(tmp_path / "whole", **settings), {}
    whole.on(Events.EPOCH_STARTED(once=3), lambda engine: seen.update(positives=whole.loss.inter_positives.clone()))
    whole.on(Events.EPOCH_COMPLETED(once=3), lambda engine: seen.update(bank=whole.bank.embeddings.clone()))
    whole.trainer.run()
    assert (seen["positives"] >= 0).any()
    stopped = StageOne(tmp_path / "parts", **settings)

    def press(engine):
        raise KeyboardInterrupt

    stopped.on(Events.ITERATION_COMPLETED(once=10), press)
    with pytest.raises(KeyboardInterrupt):
        stopped.trainer.run()
    again, found = StageOne(tmp_path / "parts", seed=9, resume=True, **settings), {}
    again.on(Events.EPOCH_STARTED(once=3), lambda engine: found.update(positives=again.loss.inter_positives.clone()))
    again.on(Events.EPOCH_COMPLETED(once=3), lambda engine: found.update(bank=again.bank.embeddings.clone()))
    again.trainer.run()
    assert torch.equal(found["positives"], seen["positives"]) and torch.equal(found["bank"], seen["bank"])
    assert again.log.history == whole.log.history
