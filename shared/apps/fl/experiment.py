"""Alone, together, or with all data in one place: the arms of the federated demonstration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from torch import Tensor

from shared.apps.fl.averaging import fed_avg
from shared.apps.fl.site import site_algo
from shared.bundle.model import load_model
from shared.bundle.record import MODEL_FILE, SPLIT_FILE, read_model, read_split, weights_digest
from shared.bundle.settings import save_settings
from shared.checkpoint import load_checkpoint, save_checkpoint
from shared.io import write_json

ONE_SITE = "one site's federation"


@dataclass
class Experiment:
    """A stage of a bundle, trained at every site alone, in a federation, and on pooled data.

    Args:
        bundle: folder of the bundle.
        stage: section of the federated trainer.
        configs: names of the configs, ``train`` first.
        datalists: site to datalist, and ``pooled``; their testing section is the unseen site's.
        sites: names of the sites.
        data: folder that the datalists' paths begin in.
        output: where everything goes.
        rounds: exchanges of weights.
        local_epochs: epochs between two exchanges.
        overrides: keys of the configs.
        epochs_keys: keys that hold the stage's epochs.
        start_encoder: checkpoint that the stage's encoder begins with; None: random weights.
        engine: ``"nvflare"`` or ``"plain"``.
    """

    bundle: Path
    stage: str
    configs: Sequence[str]
    datalists: Mapping[str, str]
    sites: Sequence[str]
    data: Path
    output: Path
    rounds: int
    local_epochs: int
    overrides: Mapping[str, Any]
    epochs_keys: Sequence[str]
    start_encoder: Path | None = None
    engine: str = "nvflare"

    @property
    def checkpoint(self) -> str:
        """File that the stage leaves."""
        return "model.pt" if self.stage == "train" else "pretrain.pt"

    def files(self, *more: str) -> list[str]:
        """Paths of the configs."""
        return [str(self.bundle / f"configs/{name}.json") for name in (*self.configs, *more)]

    def settings(self, name: str, folder: Path, **more: Any) -> dict[str, Any]:
        """Overrides of a run on the data of ``name`` that leaves its files in ``folder``."""
        places = {"bundle_root": str(self.bundle), "dataset_dir": str(self.data), "fold": -1}
        places |= {"datalist_file": self.datalists[name], "ckpt_dir": str(folder), "output_dir": str(folder)}
        epochs = dict.fromkeys(self.epochs_keys, self.rounds * self.local_epochs)
        return {**places, **epochs, **self.overrides, **more}

    def run(self, run_id: str, name: str, folder: Path, *configs: str, **more: Any) -> None:
        """Run a part of the bundle in this process, as ``monai.bundle run`` does."""
        self._flow(name, folder, *configs, run_id=run_id, **more).run()

    def parser(self, name: str, folder: Path, **more: Any) -> ConfigParser:
        """The parsed configs of such a run."""
        return self._flow(name, folder, **more).parser

    def _flow(self, name: str, folder: Path, *configs: str, run_id: str = "run", **more: Any) -> ConfigWorkflow:
        flow = ConfigWorkflow(
            config_file=self.files(*configs),
            meta_file=str(self.bundle / "configs/metadata.json"),
            logging_file=False,
            workflow_type="train",
            run_id=run_id,
            **self.settings(name, folder, **more),
        )
        flow.initialize()
        return flow

    def train_plainly(self, name: str) -> Path:
        """Train the stage as ever; a finished one is not run again."""
        folder = self.output / name
        self.run(f"{self.stage}_run", name, folder, resume=True)
        return folder

    def site(self, name: str, folder: Path) -> dict[str, Any]:
        """Arguments of :func:`shared.apps.fl.site_algo`, as plain values."""
        overrides = self.settings(name, folder)
        return {"configs": self.files(), "stage": self.stage, "local_epochs": self.local_epochs, "overrides": overrides}

    def begin(self) -> Path:
        """Write the weights that all begin with: those that plain training with this seed begins with."""
        path = self.output / "start.pt"
        algo = site_algo(name="start", **self.site(self.sites[0], self.output / ".start"))
        weights = {key: value.clone() for key, value in algo.get_weights().weights.items()}
        if self.start_encoder is not None:
            state = load_checkpoint(self.start_encoder)["network"]
            weights |= {key: value for key, value in state.items() if key.startswith("encoder.")}
        save_checkpoint(path, weights)
        return path

    def federate(self, sites: Sequence[str], name: str, engine: str) -> Path:
        """Train the stage in a federation of these sites; a finished one is not run again."""
        folder = self.output / name.replace(" ", "_").replace("'", "")
        path = folder / self.checkpoint
        if path.is_file():
            return folder
        start = self.begin()
        members = {site: self.site(site, folder / site) for site in sites}
        if engine == "nvflare":
            from shared.apps.fl.flare import run_flare

            weights = run_flare(members, start, rounds=self.rounds, output=folder / "nvflare")
        else:
            algos = [site_algo(name=site, **settings) for site, settings in members.items()]
            weights = fed_avg(algos, load_checkpoint(start), self.rounds)
        if self.stage == "train":
            # the settings are those of any site; whom it was trained on is known where the sites' folders lie together
            content = {key: value for key, value in read_model(folder / sites[0]).items() if key != "record"}
            save_settings(folder, **content | {"weights": weights_digest(weights)})
            images = {f"{site}/{stage}": found for site in sites
                      for stage, found in read_split(folder / site).get("images", {}).items()}  # fmt: skip
            write_json(folder / SPLIT_FILE, {"cohort": "", "images": images})
            for site in sites:
                self._own_cohort(folder, site, weights)
        save_checkpoint(path, weights if self.stage == "train" else {"network": weights})
        return folder

    def _own_cohort(self, folder: Path, site: str, weights: Mapping[str, Tensor]) -> None:
        """Leave the common model at a site, with the distance to that site's patients, of whom nothing leaves it."""
        own = folder / site
        shutil.copy(folder / MODEL_FILE, own / MODEL_FILE)
        save_checkpoint(own / self.checkpoint, weights)
        parser = self.parser(site, own)
        load_model(own / self.checkpoint, parser.get_parsed_content("network"))
        parser.get_parsed_content("cohort#stage").run()

    def weights(self, folder: Path) -> dict[str, Tensor]:
        """The stage's weights that a folder holds."""
        state = load_checkpoint(folder / self.checkpoint)
        return state if self.stage == "train" else state["network"]

    def arms(self) -> dict[str, Path]:
        """Train all; the folder of each arm."""
        found = {name: self.train_plainly(name) for name in self.sites}
        found["federated"] = self.federate(self.sites, "federated", self.engine)
        found["pooled"] = self.train_plainly("pooled")
        found[ONE_SITE] = self.federate(self.sites[:1], ONE_SITE, "plain")
        return found

    def difference(self, one: Path, other: Path) -> float:
        """Largest difference between the weights of two arms."""
        a, b = self.weights(one), self.weights(other)
        return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)


def tested(folder: Path) -> dict[str, Any]:
    """Metrics that an evaluation left, by name; None where there is none."""
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


@torch.no_grad()
def reconstruction_error(network: torch.nn.Module, images: Tensor) -> float:
    """Mean absolute error of the reconstruction of images ``[n, m, H, W]`` in [0, 1]."""
    x = images.flatten(0, 1).unsqueeze(1)
    return float((network.eval()(x)[0].clamp(0, 1) - x).abs().mean())
