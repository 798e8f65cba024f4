"""A progress bar over a whole stage, its loss table and curve, and early stopping."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from tqdm import tqdm

from shared.distributed.processes import is_main, mean_of_all
from shared.io import write_csv

logger = logging.getLogger(__name__)


class TrainingLog:
    """One bar over all epochs of a stage; mean loss per epoch in ``<name>_loss.csv`` and ``<name>_loss.png``.

    The mean is over all processes, in all of them: what stops a stage by it stops all.

    Args:
        name: of the stage.
        output_dir: where table and curve go.
        terms: called after each iteration: named terms of the loss; None: the loss alone.

    Raises:
        RuntimeError: the mean loss of an epoch is NaN or infinite.
    """

    def __init__(
        self,
        name: str,
        output_dir: str | os.PathLike,
        terms: Callable[[], Mapping[str, torch.Tensor]] | None = None,
    ):
        self.name, self.output_dir, self.terms = name, Path(output_dir), terms
        self.history: list[dict[str, float]] = []
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self.completed)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.failed)

    def epoch_started(self, engine: Engine) -> None:
        """Open the bar, start the sums."""
        length = engine.state.epoch_length
        if self.bar is None:
            total, done = engine.state.max_epochs * length, (engine.state.epoch - 1) * length
            self.bar = tqdm(total=total, initial=done, desc=self.name, unit="batch")
        self.sums: dict[str, torch.Tensor] = {}

    def iteration_completed(self, engine: Engine) -> None:
        """Add the batch's losses, without waiting for the device."""
        values = {"loss": engine.state.output["loss"].detach(), **(self.terms() if self.terms else {})}
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0) + value
        self.bar.update()

    def epoch_completed(self, engine: Engine) -> None:
        """Write the epoch's means."""
        sums = torch.stack([torch.as_tensor(value).double() for value in self.sums.values()])
        values = (mean_of_all(sums) / engine.state.epoch_length).tolist()
        means = dict(zip(self.sums, values, strict=True))
        if not all(math.isfinite(value) for value in means.values()):
            raise RuntimeError(
                f"{self.name}: the loss of epoch {engine.state.epoch} is {means}; lower the learning rate, or switch "
                "bf16 off (--bf16 False). The last checkpoint is from before."
            )
        self.history.append({"epoch": engine.state.epoch, **means})
        engine.state.epoch_loss = means["loss"]
        self.bar.set_postfix(epoch=engine.state.epoch, **{key: f"{value:.3f}" for key, value in means.items()})

    def completed(self, engine: Engine) -> None:
        """Close the bar, write table and curve."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        if not self.history or not is_main():
            return
        from shared.visualize import loss_curve

        write_csv(self.output_dir / f"{self.name}_loss.csv", self.history)
        curves = {key: [row[key] for row in self.history] for key in self.history[0] if key != "epoch"}
        loss_curve(curves, self.output_dir / f"{self.name}_loss.png", title=f"Loss of stage {self.name}")

    def failed(self, engine: Engine, error: BaseException) -> None:
        """Close the bar before the error is shown."""
        if self.bar is not None:
            self.bar.close()
        raise error

    def state_dict(self) -> dict:
        """The table so far."""
        return {"history": self.history}

    def load_state_dict(self, state: dict) -> None:
        """Go on with the table."""
        self.history = state["history"]


class EarlyStopAfter:
    """Stop once the epoch's loss has not fallen for ``patience`` epochs, but not before epoch ``after``.

    Args:
        after: first epoch that may be the last (E = 80 in the IRCL paper, section 4.1, of at most 120).
        patience: epochs without a fall.
    """

    def __init__(self, after: int, patience: int = 10):
        self.after, self.patience = after, patience
        self.best, self.since = math.inf, 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after its :class:`TrainingLog`."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Count epochs without improvement."""
        loss = engine.state.epoch_loss
        if loss < self.best:
            self.best, self.since = loss, 0
        else:
            self.since += 1
        if engine.state.epoch >= self.after and self.since >= self.patience:
            logger.info("Early stop at epoch %d: no fall for %d epochs.", engine.state.epoch, self.since)
            engine.terminate()

    def state_dict(self) -> dict:
        """Best loss and epochs since."""
        return {"best": self.best, "since": self.since}

    def load_state_dict(self, state: dict) -> None:
        """Restore the count."""
        self.best, self.since = state["best"], state["since"]
