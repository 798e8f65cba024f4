import logging
import math

import pytest
import torch
from ignite.engine import Engine

from shared.errors import DataError
from shared.handlers import ContrastivePlateau
from shared.losses import NTXentLoss

CEILING = math.log(2 * 32 - 1)


def run(epochs, handler, caplog, start=0):
    """An engine whose batches, a list for each epoch, have these losses; return levels and texts."""
    caplog.set_level(logging.INFO, logger="shared.handlers.plateau")
    caplog.clear()
    values = iter([loss for epoch in epochs for loss in epoch])
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(next(values))})
    handler.attach(engine)
    length, last = len(epochs[0]), start + len(epochs)
    if start:
        engine.load_state_dict({"epoch": start, "max_epochs": last, "epoch_length": length})
    engine.run(range(length), max_epochs=last)
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def warned_epochs(said):
    return [int(text.split("after epoch ")[1].split()[0]) for level, text in said if level == "WARNING"]


def test_each_epoch_is_set_beside_the_loss_of_no_information(caplog):
    said = run([[4.0, 2.0], [1.0, 1.0]], ContrastivePlateau(32, name="stage I"), caplog)
    assert said == [
        ("INFO", f"stage I, epoch 1: contrastive loss 3.0000, {300 / CEILING:.1f} % of ln(2B - 1) = 4.1431"),
        ("INFO", f"stage I, epoch 2: contrastive loss 1.0000, {100 / CEILING:.1f} % of ln(2B - 1) = 4.1431"),
    ]


@pytest.mark.parametrize(
    ("losses", "settings", "expected"),
    [
        ([1.0] * 8, {"after": 3, "every": 2}, [3, 5, 7]),
        ([1.0] * 8, {"after": 1, "every": 100}, [1]),
        ([1.0, 1.0, 0.5, 0.5, 0.5, 0.5], {"after": 3, "every": 1}, []),  # it left in time
        ([1.0, 1.0, 1.0, 0.5, 0.5, 1.0], {"after": 2, "every": 1}, [2, 3, 6]),
        ([0.97] * 4, {"after": 1, "every": 1}, []),
        ([0.97] * 4, {"after": 1, "every": 1, "tolerance": 0.05}, [1, 2, 3, 4]),
        ([1.2] * 2, {"after": 2}, [2]),  # worse than no information is no better
    ],
)
def test_it_warns_while_the_loss_stays(losses, settings, expected, caplog):
    said = run([[CEILING * loss] * 3 for loss in losses], ContrastivePlateau(32, **settings), caplog)
    assert warned_epochs(said) == expected and len(said) == len(losses) + len(expected)


def test_the_warning_says_what_to_try(caplog):
    ((_, text),) = (line for line in run([[4.1]], ContrastivePlateau(32, after=1), caplog) if line[0] == "WARNING")
    assert text.startswith("pretrain has not left the plateau: after epoch 1 the contrastive loss is 4.1000, 99.0 %")
    assert "B = 32" in text and "weaker colour jitter" in text and "lower temperature" in text and "epoch 11" in text


def test_collapsed_embeddings_are_on_the_plateau_and_distinct_ones_are_not(caplog):
    loss, views = NTXentLoss(0.1), torch.eye(32)
    collapsed = loss(torch.ones(32, 8), torch.ones(32, 8)).item()
    assert warned_epochs(run([[collapsed]], ContrastivePlateau(32, after=1, tolerance=1e-4), caplog)) == [1]
    assert warned_epochs(run([[loss(views, views).item()]], ContrastivePlateau(32, after=1), caplog)) == []


def test_a_continued_stage_keeps_its_distance_between_warnings(caplog):
    first, second = (ContrastivePlateau(32, after=2, every=4) for _ in range(2))
    assert warned_epochs(run([[CEILING]] * 3, first, caplog)) == [2]
    second.load_state_dict(first.state_dict())
    assert warned_epochs(run([[CEILING]] * 5, second, caplog, start=3)) == [6]


def test_all_wrong_settings_are_named():
    with pytest.raises(DataError) as error:
        ContrastivePlateau(1, after=0, every=0, tolerance=1.0)
    assert str(error.value).startswith("4 problems:")
    assert all(word in str(error.value) for word in ("batch_size", "after", "every", "tolerance", "got 1\n", "got 1.0"))
