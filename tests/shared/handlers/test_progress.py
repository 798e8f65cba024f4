import csv
import math

import pytest
import torch
from ignite.engine import Engine, Events

from shared.handlers import EarlyStopAfter, TrainingLog


def run(losses, *handlers, epochs=None, length=2):
    """An engine whose batches have these losses, one after the other."""
    values = iter(losses)
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(next(values))})
    for handler in handlers:
        handler.attach(engine)
    engine.run(range(length), max_epochs=epochs or len(losses) // length)
    return engine


def test_the_table_holds_the_means_of_every_epoch(tmp_path, capfd):
    extra = iter([1.0, 2.0, 5.0, 7.0])
    log = TrainingLog("pretrain", tmp_path / "out", lambda: {"contrastive": torch.tensor(next(extra))})
    run([4.0, 2.0, 1.0, 0.5], log)
    with (tmp_path / "out" / "pretrain_loss.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert rows == [{"epoch": 1, "loss": 3.0, "contrastive": 1.5}, {"epoch": 2, "loss": 0.75, "contrastive": 6.0}]
    assert (tmp_path / "out" / "pretrain_loss.png").stat().st_size > 5000
    bar = capfd.readouterr().err
    assert "pretrain: 100%" in bar and "4/4" in bar and "loss=0.750" in bar


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_loss_stops_the_stage_by_name(tmp_path, bad):
    seen = []
    with pytest.raises(RuntimeError, match=r"pretrain: the loss of epoch 2 is .*lower the learning rate.*--bf16 False"):
        run([1.0, 1.0, 1.0, bad, 1.0, 1.0], TrainingLog("pretrain", tmp_path, lambda: seen.append(1) or {}))
    assert len(seen) == 4 and not (tmp_path / "pretrain_loss.csv").exists()


def test_an_error_in_a_batch_reaches_the_caller(tmp_path):
    class Broken(Exception):
        pass

    def process(engine, batch):
        raise Broken("batch 0")

    engine = Engine(process)
    TrainingLog("train", tmp_path).attach(engine)
    with pytest.raises(Broken, match="batch 0"):
        engine.run(range(2))


def test_a_continued_table_keeps_its_earlier_epochs(tmp_path):
    first = TrainingLog("train", tmp_path)
    run([1.0, 1.0], first)
    second = TrainingLog("train", tmp_path)
    second.load_state_dict(first.state_dict())
    run([0.5, 0.5], second)
    assert [row["loss"] for row in second.history] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("losses", "after", "patience", "last"),
    [
        ([5, 4, 3, 3, 3, 3, 3, 3], 1, 2, 5),  # epochs 4 and 5 did not fall
        ([5, 4, 3, 3, 3, 3, 3, 3], 7, 2, 7),  # not before epoch 7
        ([5, 4, 4, 3, 3, 2, 2, 2], 1, 2, 8),  # a fall starts the count anew
        ([5, 4, 3, 2, 1, 0.9, 0.8, 0.7], 1, 1, 8),
    ],
)
def test_early_stopping(tmp_path, losses, after, patience, last):
    engine = run(
        [float(loss) for loss in losses], TrainingLog("t", tmp_path), EarlyStopAfter(after, patience), length=1
    )
    assert engine.state.epoch == last


def test_early_stopping_goes_on_counting_where_it_stopped(tmp_path):
    first = EarlyStopAfter(1, patience=3)
    run([1.0, 2.0, 2.0], TrainingLog("t", tmp_path), first, length=1)
    second = EarlyStopAfter(1, patience=3)
    second.load_state_dict(first.state_dict())
    assert run([2.0, 2.0, 2.0], TrainingLog("t", tmp_path), second, length=1).state.epoch == 1


def test_a_stage_that_stops_early_still_writes_its_table(tmp_path):
    ended = []
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(1.0)})
    for handler in (TrainingLog("t", tmp_path), EarlyStopAfter(2, patience=1)):
        handler.attach(engine)
    engine.add_event_handler(Events.COMPLETED, lambda engine: ended.append(engine.state.epoch))
    engine.run(range(3), max_epochs=9)
    assert ended == [2] and len((tmp_path / "t_loss.csv").read_text().split()) == 3
