"""Inference's trace: what each prediction was made from, by hashes, so that the same inputs can be told from others."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from shared.bundle.contents import shared_digest
from shared.bundle.record import SWITCHES, building_config, plain_settings
from shared.digests import sha256
from shared.distributed.processes import is_main
from shared.handlers.model_check import ModelCheck
from shared.io import write_json
from shared.reports.trace import TRACE, case_entry, with_digests

MODEL_FILES = ("model.pt", "model.json", "atlas.npz", "cohort.npz", "conformal.json")
CONFIG_FILES = ("inference.json", "train.json", "metadata.json")
PACKAGES = ("torch", "monai", "numpy", "scipy", "nibabel", "pillow", "scikit-image")
VALUES = ("tumour_labels", "trust_affines", "lacking")


class SaveTrace:
    """Write ``trace.json`` once an inference has ended.

    A case's trace is a SHA-256 over its inputs' contents, the values that the network is given beside them, the model's
    files, the bundle's configs, every plain setting that the evaluator depends on, the transforms and the versions (of
    the shared code its digest). No time, no name of a file or folder is part of it: the same inputs give the same trace
    on another machine of the same software. Where the data lie stands beside, in ``places``.

    Args:
        output_dir: where it goes.
        check: knows the cases, the model's folder, and the files' digests that it read already.
        dataset_dir: files are named by their path below it.
        bundle_root: whose configs are hashed.
        keys: entries of a case that hold input files.
        covariates: names of those that the network is given.
        transforms: of a case, a ``Compose`` or one object; its classes are named.
        device: where it runs: processors round in other ways.
        config: the configuration; None: the one that is being built.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        check: ModelCheck,
        *,
        dataset_dir: str | os.PathLike,
        bundle_root: str | os.PathLike,
        keys: Sequence[str] = ("image", "mask"),
        covariates: Sequence[str] = (),
        transforms: Any = None,
        device: Any = "cpu",
        config: Mapping[str, Any] | None = None,
    ):
        self.output_dir, self.check, self.dataset_dir = Path(output_dir), check, Path(dataset_dir)
        self.bundle_root, self.keys, self.covariates = Path(bundle_root), list(keys), list(covariates)
        steps = transforms.flatten().transforms if hasattr(transforms, "flatten") else [transforms]
        self.transforms = [type(step).__name__ for step in steps if step is not None]
        self.device = str(getattr(device, "type", device))
        self.config = dict(building_config() if config is None else config)

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.COMPLETED, self)

    def started(self, engine: Engine) -> None:
        """Take an older trace away: predictions that are not finished have none."""
        if is_main():
            (self.output_dir / TRACE).unlink(missing_ok=True)

    def __call__(self, engine: Engine) -> None:
        """Hash and write."""
        if is_main():
            write_json(self.output_dir / TRACE, self.content())

    def content(self) -> dict[str, Any]:
        """What the file holds."""
        digests = self.check.digests
        given: dict[str, Any] = {"keys": self.keys, "values": VALUES, "covariates": self.covariates, "digest": digests}
        cases = [case_entry(case, self.dataset_dir, **given) for case in self.check.cases]
        digests.save()
        places = {"dataset_dir": str(self.dataset_dir.absolute()), "ckpt_dir": str(self.check.ckpt_dir.absolute())}
        return with_digests(
            {
                "model": _digests(self.check.ckpt_dir, MODEL_FILES),
                "configs": _digests(self.bundle_root / "configs", CONFIG_FILES),
                "settings": self._settings(),
                "transforms": self.transforms,
                "versions": self._versions(),
                "cases": cases,
                "outputs": _digests(self.output_dir, ("predictions.csv",)),
                "places": places,
            }
        )

    def _settings(self) -> dict[str, Any]:
        settings = plain_settings(self.config, "evaluator")[0] if "evaluator" in self.config else {}
        # these change no weight, but some of them the answer
        switches = {key: self.config[key] for key in SWITCHES if key in self.config}
        return settings | {key: value for key, value in switches.items() if not isinstance(value, Mapping | list)}

    def _versions(self) -> dict[str, str]:
        found = {"shared": shared_digest(), "python": platform.python_version(), "device": self.device}
        for package in PACKAGES:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                found[package] = "not installed"
        return found


def _digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return {name: sha256(folder / name) for name in names if (folder / name).is_file()}
