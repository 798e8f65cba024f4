"""Watch whether contrastive pretraining has left ln(2B - 1), the loss of embeddings without information."""

from __future__ import annotations

import logging
import math

from ignite.engine import Engine, Events

from shared.errors import DataError

logger = logging.getLogger(__name__)


class ContrastivePlateau:
    """Log each epoch's mean contrastive loss as a share of ln(2B - 1); warn while the stage does not get below it.

    ln(2B - 1) is NT-Xent of B samples whose embeddings are all alike. With an augmentation too strong for the network
    or the time, training stays there, and nothing else shows it: the loss is finite and the network is of no use.

    Args:
        batch_size: B, samples contrasted together: of all processes where the loss gathers them.
        after: first epoch that warns.
        every: epochs from one warning to the next.
        tolerance: share of ln(2B - 1) that the loss must have fallen by. At temperature 0.7 it can fall by about a
            quarter only, at 0.1 by nearly all.
        name: of the stage, in the messages.

    Raises:
        DataError: a number outside its range.

    Example:
        >>> engine = Engine(lambda engine, batch: {"loss": 5.5})
        >>> ContrastivePlateau(128, after=2).attach(engine)
        >>> round(ContrastivePlateau(128).ceiling, 3)
        5.541
    """

    def __init__(
        self, batch_size: int, *, after: int = 5, every: int = 10, tolerance: float = 0.02, name: str = "pretrain"
    ):
        problems = [
            f"{key} must be {rule}, got {value}"
            for key, value, rule, good in (
                ("batch_size", batch_size, "at least 2: the other samples are the negatives", batch_size >= 2),
                ("after", after, "at least 1: epochs are counted from 1", after >= 1),
                ("every", every, "at least 1", every >= 1),
                ("tolerance", tolerance, "from 0 to below 1", 0.0 <= tolerance < 1.0),
            )
            if not good
        ]
        if problems:
            raise DataError(problems)
        self.batch_size, self.after, self.every, self.tolerance, self.name = batch_size, after, every, tolerance, name
        self.ceiling = math.log(2 * batch_size - 1)
        self.warned: int | None = None

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def epoch_started(self, engine: Engine) -> None:
        """Start the sum."""
        self.total, self.count = 0.0, 0

    def iteration_completed(self, engine: Engine) -> None:
        """Add the batch's loss, without waiting for the device."""
        loss = engine.state.output["loss"]
        self.total = self.total + (loss.detach() if hasattr(loss, "detach") else loss)
        self.count += 1

    def epoch_completed(self, engine: Engine) -> None:
        """Log the epoch's mean, and warn where it is due."""
        epoch, mean = engine.state.epoch, float(self.total) / max(self.count, 1)
        share = mean / self.ceiling
        logger.info(
            "%s, epoch %d: contrastive loss %.4f, %.1f %% of ln(2B - 1) = %.4f",
            self.name,
            epoch,
            mean,
            100 * share,
            self.ceiling,
        )
        due = epoch >= self.after and (self.warned is None or epoch >= self.warned + self.every)
        if due and share >= 1.0 - self.tolerance:
            self.warned = epoch
            logger.warning(
                "%s has not left the plateau: after epoch %d the contrastive loss is %.4f, %.1f %% of ln(2B - 1) = "
                "%.4f, which embeddings without information have (B = %d). Try weaker colour jitter, a lower "
                "temperature (0.1 to 0.2), or a higher learning rate; next word in epoch %d.",
                self.name,
                epoch,
                mean,
                100 * share,
                self.ceiling,
                self.batch_size,
                epoch + self.every,
            )

    def state_dict(self) -> dict:
        """Epoch of the last warning."""
        return {"warned": self.warned}

    def load_state_dict(self, state: dict) -> None:
        """Go on from the last warning."""
        self.warned = state["warned"]
