"""A stage's trainer: what it trains is what MONAI's own trainer would, and it goes on where it was cut off."""

import copy

import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.utils import set_determinism
from torch import nn

from shared.data import ShuffledLoader
from shared.engines import StageTrainer, on_device


class Loss(nn.Module):
    """Mean squares beside a term that the log names."""

    def __init__(self):
        super().__init__()
        self.last = {}

    def forward(self, prediction, target):
        squares = (prediction - target).square().mean()
        self.last = {"squares": squares.detach()}
        return 2 * squares

    def terms(self):
        return self.last


class Counter:
    """A handler whose state must be kept."""

    def __init__(self):
        self.epochs = 0

    def attach(self, engine):
        engine.add_event_handler("EPOCH_COMPLETED", self)

    def __call__(self, engine):
        self.epochs += 1

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = state["epochs"]


def data():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(10, 4, generator=generator)
    return [{"image": row, "label": row.sum()[None]} for row in x]


def parts(seed=5):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3), nn.Linear(6, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    return network, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)


def stage(folder, *, epochs=4, resume=False, handlers=(), seed=7, **settings):
    network, optimizer, scheduler = parts()
    common = {"device": "cpu", "seed": seed, "output_dir": folder, "record": None, "resume": resume}
    trainer = StageTrainer(
        "tiny",
        common,
        checkpoint=folder / "tiny.pt",
        max_epochs=epochs,
        network=network,
        optimizer=optimizer,
        loss_function=Loss(),
        scheduler=scheduler,
        dataset=data(),
        batch_size=4,
        train_handlers=handlers,
        save_interval=1,
        **settings,
    )
    return trainer, network


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_weights_are_bitwise_those_of_monais_trainer_with_the_same_parts(tmp_path):
    trainer, network = stage(tmp_path)
    torch.manual_seed(11)
    trainer.run()
    plain, optimizer, scheduler = parts()
    start = copy.deepcopy(plain)
    torch.manual_seed(11)
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=4,
        train_data_loader=ShuffledLoader(data(), 4, seed=7),
        network=plain,
        optimizer=optimizer,
        loss_function=Loss(),
        train_handlers=[LrScheduleHandler(scheduler, print_lr=False)],
        decollate=False,
        optim_set_to_none=True,
    ).run()
    assert equal(network, plain) and not equal(network, start)
    saved = torch.load(tmp_path / "tiny.pt", weights_only=True)["network"]
    assert all(torch.equal(saved[key], value) for key, value in plain.state_dict().items())
    lines = (tmp_path / "tiny_loss.csv").read_text().splitlines()
    assert lines[0] == "epoch,loss,squares" and len(lines) == 5
    loss, squares = map(float, lines[-1].split(",")[1:])
    assert loss == pytest.approx(2 * squares, rel=1e-6)


def test_a_stage_that_was_cut_off_ends_as_one_that_was_not(tmp_path):
    whole, network = stage(tmp_path / "whole")
    torch.manual_seed(11)
    whole.run()

    class Stop(Counter):
        def __call__(self, engine):
            super().__call__(engine)
            if engine.state.epoch == 3:
                raise KeyboardInterrupt

    trainer, _ = stage(tmp_path / "cut", handlers=[Stop()])
    torch.manual_seed(11)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    torch.manual_seed(99)
    counter = Counter()
    counter.__class__ = type("Stop", (Counter,), {})  # states are kept by the handler's class
    again, resumed = stage(tmp_path / "cut", resume=True, handlers=[counter])
    again.run()
    assert equal(resumed, network) and counter.epochs == 4
    done, skipped = stage(tmp_path / "cut", resume=True)
    done.run()
    assert done.state.iteration == 0 and equal(skipped, network)


def test_what_follows_a_stage_does_not_depend_on_how_long_it_took(tmp_path):
    after = []
    for epochs in (1, 3):
        trainer, _ = stage(tmp_path / str(epochs), epochs=epochs)
        trainer.run()
        after.append(torch.rand(3))
    set_determinism(7)
    assert torch.equal(after[0], after[1]) and torch.equal(after[0], torch.rand(3))
    before = torch.rand(1)
    trainer, _ = stage(tmp_path / "none", seed=7)
    trainer.seed = None
    trainer.run()
    assert not torch.equal(torch.rand(3), after[0]) and before.shape == (1,)


def test_a_network_is_built_before_the_numbers_are_seeded_anew():
    draws = [(on_device(nn.Linear(size, 2), "cpu", 4), torch.rand(2))[1] for size in (3, 30)]
    assert torch.equal(*draws)


def test_the_bare_checkpoint_is_the_saved_networks_state_dict_and_generators_are_found(tmp_path):
    class Augmentation:
        generator = torch.Generator().manual_seed(1)

    other = nn.Linear(2, 2)
    trainer, _ = stage(tmp_path, bare=True, saved=other, generators={"augmentation": Augmentation(), "none": None})
    assert trainer.checkpoint.generators["augmentation"] is Augmentation.generator
    assert set(trainer.checkpoint.generators) == {"augmentation", "shuffle"}
    trainer.run()
    assert set(torch.load(tmp_path / "tiny.pt", weights_only=True)) == {"weight", "bias"}
