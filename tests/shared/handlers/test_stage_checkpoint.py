import copy

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn
from torch.utils.data import DataLoader

from shared.checkpoint import save_checkpoint
from shared.errors import CheckpointError
from shared.handlers import EarlyStopAfter, StageCheckpoint, TrainingLog


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Curves take longer than these runs; test_progress draws one."""
    monkeypatch.setattr("shared.visualize.loss_curve", lambda *arguments, **settings: None)


class Stage:
    """A real trainer on a tiny regression with everything random that a stage has: shuffling, augmentation, dropout."""

    def __init__(self, folder, *, seed=0, count=8, epochs=4, loss=None, bare=False, **checkpoint):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(5)
        x = torch.rand(count, 3, generator=generator)
        items = [{"image": row, "label": row.sum()[None]} for row in x]
        self.network = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.05)
        self.shuffle = torch.Generator().manual_seed(seed)
        self.noise = torch.Generator().manual_seed(seed)
        self.log, self.early_stop = TrainingLog("fit", folder), EarlyStopAfter(epochs, patience=2)
        self.checkpoint = StageCheckpoint(
            folder / "fit.pt",
            self.network,
            state={"optimizer": self.optimizer, "log": self.log, "early_stop": self.early_stop},
            generators={"shuffle": self.shuffle, "noise": self.noise},
            bare=bare,
            **checkpoint,
        )
        self.batches = 0
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            train_data_loader=DataLoader(items, batch_size=4, shuffle=True, generator=self.shuffle),
            network=self.network,
            optimizer=self.optimizer,
            loss_function=loss or nn.MSELoss(),
            prepare_batch=self.prepare,
            train_handlers=[self.checkpoint, self.log, self.early_stop],
            decollate=False,
        )
        # a validation at the end of an epoch draws from the global generator, too
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED(every=2), lambda engine: torch.rand(1))

    def prepare(self, batch, device, non_blocking, **kwargs):
        self.batches += 1
        return batch["image"] + 0.1 * torch.randn(batch["image"].shape, generator=self.noise), batch["label"]

    def run(self, interrupt=None):
        """Train; ``interrupt``: the event at whose so-manieth time Ctrl-C is pressed."""
        if interrupt is None:
            self.trainer.run()
            return self

        def press(engine):
            raise KeyboardInterrupt

        event, number = interrupt
        self.trainer.add_event_handler(event(once=number), press)
        with pytest.raises(KeyboardInterrupt):
            self.trainer.run()
        return self

    def state(self):
        return copy.deepcopy(
            {
                "weights": [p.detach() for p in self.network.parameters()],
                "optimizer": self.optimizer.state_dict()["state"],
                "log": self.log.history,
                "stop": (self.early_stop.best, self.early_stop.since),
                "generators": [self.shuffle.get_state(), self.noise.get_state(), torch.get_rng_state()],
            }
        )


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".pt", ".resume"))


@pytest.mark.parametrize("count", [8, 10])  # whole batches only; a smaller last one
@pytest.mark.parametrize(
    ("interrupt", "interval"),
    [
        ((Events.ITERATION_COMPLETED, 6), 1),
        ((Events.EPOCH_STARTED, 3), 1),
        ((Events.ITERATION_COMPLETED, 7), 2),
        ((Events.EPOCH_COMPLETED, 4), 1),  # while the last epoch ends
        ((Events.ITERATION_COMPLETED, 1), 1),  # before anything is saved
    ],
)
def test_an_interrupted_and_resumed_run_ends_as_one_that_was_not(tmp_path, count, interrupt, interval):
    settings = {"count": count, "save_interval": interval}
    whole = Stage(tmp_path / "whole", **settings).run().state()
    folder = tmp_path / "parts"
    folder.mkdir()
    stopped = Stage(folder, **settings).run(interrupt)
    assert names(folder) in (["fit.pt.resume"], []) and stopped.batches > 0
    early = not names(folder)
    assert early == (interrupt == (Events.ITERATION_COMPLETED, 1))
    again = Stage(folder, **settings, seed=0 if early else 99, resume=True).run()  # another seed: all is restored
    torch.testing.assert_close(again.state(), whole, atol=0, rtol=0)
    assert early or 0 < again.batches < stopped.batches + again.batches
    assert [row["epoch"] for row in again.log.history] == [1, 2, 3, 4]
    assert names(folder) == ["fit.pt"]
    saved = [torch.load(place / "fit.pt", weights_only=True) for place in (tmp_path / "whole", folder)]
    torch.testing.assert_close(saved[0], saved[1], atol=0, rtol=0)
    assert (folder / "fit_loss.csv").read_bytes() == (tmp_path / "whole" / "fit_loss.csv").read_bytes()


def test_resuming_goes_on_rather_than_anew(tmp_path):
    Stage(tmp_path).run((Events.ITERATION_COMPLETED, 6))  # in epoch 3 of 4, two batches each
    assert Stage(tmp_path, resume=True).run().batches == 4


@pytest.mark.parametrize("bare", [False, True])
def test_a_finished_stage_is_skipped_when_resuming(tmp_path, bare):
    first = Stage(tmp_path, bare=bare).run()
    before = (tmp_path / "fit.pt").read_bytes()
    (tmp_path / "fit_loss.csv").unlink()
    second = Stage(tmp_path, seed=7, resume=True, bare=bare).run()
    assert second.batches == 0 and (tmp_path / "fit.pt").read_bytes() == before
    torch.testing.assert_close(second.state()["weights"], first.state()["weights"], atol=0, rtol=0)
    assert names(tmp_path) == ["fit.pt"] and not (tmp_path / "fit_loss.csv").exists()


def test_without_resume_the_old_file_goes_at_once_and_a_new_one_comes(tmp_path):
    Stage(tmp_path).run()
    old = (tmp_path / "fit.pt").read_bytes()
    Stage(tmp_path, seed=1).run((Events.ITERATION_COMPLETED, 3))
    assert names(tmp_path) == ["fit.pt.resume"]  # nobody can take the old weights for this run's
    third = Stage(tmp_path, seed=1).run()
    assert third.batches == 8 and (tmp_path / "fit.pt").read_bytes() != old


@pytest.mark.parametrize("bare", [False, True])
def test_what_is_written_is_the_weights(tmp_path, bare):
    stage = Stage(tmp_path, bare=bare).run()
    found = torch.load(tmp_path / "fit.pt", weights_only=True)
    expected = dict(stage.network.state_dict())
    torch.testing.assert_close(dict(found if bare else found["network"]), expected, atol=0, rtol=0)
    assert bare or set(found) == {"network"}


def test_a_diverged_epoch_is_not_what_one_resumes_from(tmp_path):
    def diverging(prediction, label):
        calls.append(1)
        return nn.functional.mse_loss(prediction, label) * (float("nan") if len(calls) > 4 else 1.0)

    calls = []
    with pytest.raises(RuntimeError, match="fit: the loss of epoch 3"):
        Stage(tmp_path, loss=diverging).run()
    kept = torch.load(tmp_path / "fit.pt.resume", weights_only=True)
    assert kept["epoch"] == 2 and all(value.isfinite().all() for value in kept["network"].values())


# --- what cannot be written or read -------------------------------------------------------------------------------


def test_a_full_disk_stops_training_and_leaves_the_last_epochs_file(tmp_path, monkeypatch):
    stage, save = Stage(tmp_path), torch.save

    def full(state, path):
        if stage.trainer.state.epoch == 3:
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        save(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*--resume true"):
        stage.run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit.pt.resume"]
    monkeypatch.undo()
    resumed = Stage(tmp_path, resume=True).run()
    assert resumed.batches == 4
    whole = Stage(tmp_path / "whole").run()
    torch.testing.assert_close(resumed.state(), whole.state(), atol=0, rtol=0)


@pytest.mark.parametrize("name", ["fit.pt", "fit.pt.resume"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"network": nn.Linear(2, 2).state_dict(), "epoch": 1}, "does not fit this network"),
        (nn.Linear(2, 2).state_dict(), "(holds no 'network'.*another stage|does not fit)"),
        ([1, 2], "holds no 'network'"),
        (b"noise", "cannot be read as a checkpoint"),
    ],
)
def test_a_file_of_something_else_is_refused_by_name(tmp_path, name, content, message):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        save_checkpoint(tmp_path / name, content)
    with pytest.raises(CheckpointError, match=f"{name} .*{message}|{name} {message}"):
        Stage(tmp_path, resume=True).run()
    assert (tmp_path / name).exists()
