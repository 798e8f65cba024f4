"""MONAI's ``--tracking mlflow`` for every stage of a bundle, not only for the one called ``train``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from shared.errors import DataError

_MLFLOW = "MLFlowHandler"
_NEEDED = {_MLFLOW: "mlflow", "TensorBoardStatsHandler": "tensorboard"}
_LOSS = {"_target_": "shared.bundle.tracking.batch_loss", "_mode_": "callable"}


def track_stages(workflows: Sequence[ConfigWorkflow]) -> None:
    """Where MONAI has added its MLflow handler, give one to the trainer of every stage, each a run of its own.

    MONAI's handler reads the loss from a list of cases; our trainers hand on the batch as it is (``decollate:
    false``). MONAI knows one trainer only, joins whatever run is unfinished, and never finishes that of an evaluation.

    Args:
        workflows: the one being initialised, first; one without tracking is left alone.

    Raises:
        DataError: MLflow or TensorBoard is not installed.
    """
    if not workflows:
        return
    parser = workflows[0].parser
    config, run_id = parser.config, workflows[0].run_id
    stages = {key: value for key, value in config.items() if isinstance(value, dict) and "handlers" in value}
    lists = {key: value["handlers"] for key, value in stages.items()}
    if isinstance(config.get("handlers"), list):
        lists[""] = config["handlers"]
    used = {_name(handler) for handlers in lists.values() for handler in handlers}
    for package in [package for name, package in _NEEDED.items() if name in used and find_spec(package) is None]:
        raise DataError(f"--tracking needs {package}: pip install {package} (the version in requirements-dev.txt).")
    if _MLFLOW not in used:
        return
    model = next((handler for handler in lists.get("train", []) if _name(handler) == _MLFLOW), None)
    trains = "trainer" in str(config.get(run_id))
    for key, handlers in lists.items():
        if "trainer" in stages.get(key, {}):
            found = next((handler for handler in handlers if _name(handler) == _MLFLOW), None)
            if found is None and model is not None:
                handlers.append(found := {**model, "tag_name": f"{key}_loss"})
            settings: dict[str, Any] = {"output_transform": _LOSS}
        else:
            settings = {} if trains else {"close_on_complete": True}
        handlers[:] = [{**handler, **settings} if _name(handler) == _MLFLOW else handler for handler in handlers]
    if config.get("run_name") is None:
        config["run_name"] = f"{run_id}_{time.strftime('%Y%m%d_%H%M%S')}"
    saved = config.get("save_execute_config")
    if isinstance(saved, str) and not saved.startswith("$"):
        # MONAI adds to a folder that is no expression as if it were one
        config["save_execute_config"] = saved.removesuffix("'").replace(" + '", "")
    parser.parse(reset=True)
    parser.get_parsed_content("bundle_path")  # where the bundle lies is seen from within the workflow only


def batch_loss(output: Mapping[str, Any]) -> torch.Tensor:
    """The loss of a trainer's output.

    Example:
        >>> batch_loss({"loss": torch.tensor(0.5)})
        tensor(0.5000)
    """
    return output["loss"]


def _name(handler: Any) -> str:
    return str(handler.get("_target_")).rpartition(".")[2] if isinstance(handler, dict) else ""
