"""NVFlare's FedAvg that begins with a state dict and leaves one; of use with NVFlare only."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import Any

import torch

from shared.checkpoint import load_checkpoint, save_checkpoint

FedAvg: Any = object  # NVFlare is an extra: without it this module is still imported, by whatever imports all modules
with suppress(ImportError):
    FLModel: Any = import_module("nvflare.app_common.abstract.fl_model").FLModel
    FedAvg = import_module("nvflare.app_common.workflows.fedavg").FedAvg


class BundleFedAvg(FedAvg):
    """FedAvg over state dicts in files.

    Args:
        num_clients: sites of a round.
        num_rounds: exchanges of weights.
        start: state dict that all begin with.
        result: where the state dict of every round's end goes.
    """

    def __init__(self, num_clients: int, num_rounds: int, start: str, result: str):
        super().__init__(num_clients=num_clients, num_rounds=num_rounds, persistor_id="")
        self.start, self.result = start, result

    def load_model(self) -> FLModel:
        """The weights all begin with."""
        self.begun = load_checkpoint(self.start)
        return FLModel(params={key: value.numpy() for key, value in self.begun.items()})

    def save_model(self, model: FLModel) -> None:
        """Write the mean, each entry in the type it began with."""
        mean = {key: torch.as_tensor(value).to(self.begun[key].dtype) for key, value in model.params.items()}
        save_checkpoint(self.result, {key: value.reshape(self.begun[key].shape) for key, value in mean.items()})
