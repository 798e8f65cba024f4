"""MONAI's ``check_properties`` on a bundle's three workflows, with data where there are any."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from shared.bundle.checks import Result
from shared.bundle.contents import read_metadata
from shared.bundle.exports import quiet
from shared.errors import DataError

WORKFLOWS = {"train": ("train",), "evaluate": ("train", "evaluate"), "inference": ("inference",)}


class IDWorkflow(ConfigWorkflow):
    """A workflow of which only the IDs of the properties are looked up: nothing is built, no data are needed."""

    def _get_property(self, name: str, property: dict) -> Any:
        prop_id = property["id"]
        if prop_id in self.parser:
            return self.parser[prop_id]
        if property["required"]:
            raise AttributeError(name)
        return None


def check_properties(
    bundle: Path, data: Path | None, folder: Path, *, overlays: Sequence[str] = ()
) -> Iterator[Result]:
    """The three workflows, one after another.

    Args:
        bundle: the bundle's folder.
        data: a prepared folder, of which the datasets are built; None: only the IDs are looked up.
        folder: where outputs would go.
        overlays: configs merged over ``train.json``, by name.
    """
    for title, names in WORKFLOWS.items():
        first, *rest = names
        configs = [first, *(overlays if title != "inference" else ()), *rest]
        kind = "infer" if title == "inference" else "train"
        places = {"bundle_root": str(bundle), "output_dir": str(folder / "eval"), "device": "$torch.device('cpu')"}
        if data is not None:
            places["dataset_dir"] = str(data)
        if title != "inference" or not (bundle / "models/model.pt").is_file():
            places["ckpt_dir"] = str(folder / "models")
            if data is not None and (data / "atlas.npz").is_file():  # which training keeps beside its model
                (folder / "models").mkdir(exist_ok=True)
                shutil.copyfile(data / "atlas.npz", folder / "models/atlas.npz")
        name = f"check_properties {title}"
        try:
            with quiet():
                workflow = (IDWorkflow if data is None else ConfigWorkflow)(
                    [str(bundle / f"configs/{config}.json") for config in configs],
                    meta_file=str(bundle / "configs/metadata.json"),
                    logging_file=False,
                    workflow_type=kind,
                    **places,
                )
                workflow.initialize()
                wrong = workflow.check_properties()
        except Exception as error:
            while error.__cause__ is not None:
                error = error.__cause__
            yield Result(bundle.name, name, [f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"])
            continue
        note = "IDs only: --dataset_dir DIR builds them" if data is None else "built on data"
        yield Result(bundle.name, name, [f"missing or under a wrong ID: {each}" for each in wrong or ()], note)


def phantom_data(bundle: Path, root: Path, folder: Path) -> Path | None:
    """A few phantom patients, made as ``phantom_command`` of ``metadata.json`` says; None: it does not."""
    command = read_metadata(bundle).get("phantom_command")
    if not command or not (root / command.split()[0]).is_file():
        return None
    script, *options = command.split()
    made = subprocess.run(
        [sys.executable, root / script, *options, "--output", folder], capture_output=True, text=True, cwd=root
    )
    if made.returncode:
        raise DataError(f"{command} failed: {made.stderr.strip().splitlines()[-1:]}")
    return folder
