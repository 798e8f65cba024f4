"""Running bundles within a test: workflows with their places, errors unwrapped, tables read."""

import csv
from pathlib import Path

from monai.bundle import ConfigWorkflow

from shared.errors import CheckpointError, DataError

ROOT = Path(__file__).parents[2]


def bundle_workflow(bundle, *configs, data, out, run_id="run", kind="train", **overrides):
    """An initialised workflow of ``bundles/<bundle>`` on the CPU, its outputs below ``out``."""
    folder = ROOT / "bundles" / bundle
    places = {"bundle_root": str(folder), "dataset_dir": str(data), "ckpt_dir": str(out / "models")}
    places |= {"output_dir": str(out / "eval"), "device": "$torch.device('cpu')"}
    flow = ConfigWorkflow(
        config_file=[str(folder / f"configs/{name}.json") for name in configs],
        meta_file=str(folder / "configs/metadata.json"),
        logging_file=False,
        run_id=run_id,
        workflow_type=kind,
        **(places | overrides),
    )
    flow.initialize()
    return flow


def cause(error):
    """The project's own error behind those MONAI wraps it in."""
    while error is not None and not isinstance(error, (DataError, CheckpointError)):
        error = error.__cause__
    return error


def rows(path):
    """A CSV as a list of dictionaries."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
