"""The start of a training on slides' labels: the frozen encoder, and its features' mean and spread."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine
from torch import nn
from tqdm import tqdm

from shared.bundle.record import TrainingRecord
from shared.handlers.checkpoint import LoadEncoder
from shared.networks.sscl import load_imagenet_weights

if TYPE_CHECKING:
    from shared.data.slides.bags import SlideBags


class StartSlides(LoadEncoder):
    """At the start of a training on slides: load the encoder, compute all features, standardise them.

    Args:
        path: of a pretraining, ``model.pt`` of a fine-tuning, or ImageNet weights with torchvision's names
            (:func:`shared.networks.load_imagenet_weights`).
        network: a :class:`shared.networks.SlideMIL`.
        bags: the training slides, whose features standardise (nobody else's).
        loss: of the training; one that balances classes starts the head's bias at their frequencies.
        record: of this training.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        network: nn.Module,
        bags: SlideBags,
        *,
        loss: nn.Module | None = None,
        record: TrainingRecord | None = None,
    ):
        super().__init__(path, network, loss=loss, record=record)
        self.bags = bags

    def __call__(self, engine: Engine) -> None:
        """Load and standardise, unless the stage is skipped or goes on (its own checkpoint then holds all of it)."""
        if engine.should_terminate or engine.state.epoch > 0:
            return
        super().__call__(engine)
        moments = []
        for entry in tqdm(self.bags.entries, desc="Features", unit="slide"):
            h = self.bags.features(entry).float()
            moments.append(torch.stack([x.mean(dim=0, dtype=torch.float64) for x in (h, h.square())]))
        self.network.standardise(torch.stack(moments).to(self.network.mean.device))

    def fill(self, state: Any) -> None:
        """Load the encoder's part of what is in ``path``."""
        if isinstance(state, Mapping) and "conv1.weight" in state:
            # a split.json that lies beside them is of another training
            load_imagenet_weights(self.network.encoder, self.path)
        else:
            super().fill({"network": state} if "encoder.conv1.weight" in state else state)
