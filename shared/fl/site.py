"""A hospital in a federation: MONAI's ``MonaiAlgo`` on one stage of a bundle; images and labels stay where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems


def site_algo(
    configs: Sequence[str], *, stage: str, local_epochs: int, name: str, overrides: Mapping[str, Any]
) -> MonaiAlgo:
    """An initialised ``MonaiAlgo`` whose trainer is that of a stage.

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
    algo = MonaiAlgo(
        bundle_root=str(bundle),
        local_epochs=local_epochs,
        send_weight_diff=False,
        config_evaluate_filename=None,
        train_workflow=flow,
    )
    algo.initialize(extra={ExtraItems.CLIENT_NAME: name, ExtraItems.LOGGING_FILE: False})
    return algo
