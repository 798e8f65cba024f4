"""A hospital in a federation: MONAI's ``MonaiAlgo`` on one stage of a bundle; images and labels stay where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems


class SiteAlgo(MonaiAlgo):
    """MONAI's client with random numbers of its own, also where several sites share a process."""

    def initialize(self, extra: dict | None = None) -> None:
        """Make trainer and network."""
        super().initialize(extra)
        self._drawn = _random_state()

    def train(self, data: Any, extra: dict | None = None) -> None:
        """A round, whose dropout goes on where the last one's ended."""
        cpu, cuda = self._drawn
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        super().train(data, extra)
        self._drawn = _random_state()


def _random_state() -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def site_algo(
    configs: Sequence[str], *, stage: str, local_epochs: int, name: str, overrides: Mapping[str, Any]
) -> SiteAlgo:
    """An initialised client whose trainer is that of a stage.

    Optimiser, schedule, memory bank and random numbers of the site live on from round to round; weights alone are
    exchanged. A federation of one site is therefore plain training, cut into rounds.

    Args:
        configs: the bundle's configs, merged in order; ``train.json`` first.
        stage: section of the trainer, ``"train"`` or ``"pretrain"``.
        local_epochs: epochs of a round.
        name: of the site, for messages.
        overrides: keys of the configs: where the data lie, seed, epochs of all rounds together.
    """
    bundle = Path(configs[0]).resolve().parents[1]
    flow = ConfigWorkflow(
        config_file=[str(config) for config in configs],
        meta_file=str(bundle / "configs/metadata.json"),
        logging_file=False,
        workflow_type="train",
        # as plain training begins, but without its check of the command line
        **{"initialize": ["$monai.utils.set_determinism(seed=@seed)"], "bundle_root": str(bundle), **overrides},
    )
    at = {"trainer": f"{stage}#trainer", "max_epochs": f"{stage}#trainer#max_epochs"}
    flow.properties = dict(flow.properties) | {
        key: {**flow.properties[key], "id": place} for key, place in at.items() if key in flow.properties
    }
    algo = SiteAlgo(
        bundle_root=str(bundle),
        local_epochs=local_epochs,
        send_weight_diff=False,
        config_evaluate_filename=None,
        train_workflow=flow,
    )
    algo.initialize(extra={ExtraItems.CLIENT_NAME: name, ExtraItems.LOGGING_FILE: False})
    algo.trainer.seed = None  # a round goes on with the random numbers of the one before
    return algo
