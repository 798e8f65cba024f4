"""The folds of a cross-validation: which patients each leaves out, its datalist, its checkpoints, its predictions.

Rows are patients, or patches of patients, named by their image; the patches of a patient are in one fold, and so are
the patients of a group.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shared.apps.experiments.processes import SECONDS, is_complete
from shared.digests import sha256
from shared.errors import DataError
from shared.io import atomic_path
from shared.reports.predictions import patch_name


@dataclass(frozen=True)
class Fold:
    """One fold of one seed below an experiment's folder, with the true labels of the rows it leaves out.

    ``patients`` says whose the images are where rows are patches, which are named relative to ``dataset_dir``;
    ``groups`` which patients belong together.
    """

    experiment: Path
    seed: int
    number: int
    truth: Mapping[str, int]
    relabelled: bool = False
    patients: Mapping[str, str] | None = None
    dataset_dir: Path | None = None
    groups: Mapping[str, str] | None = None

    @property
    def name(self) -> str:
        """Where it lies below the experiment."""
        return f"seed{self.seed}/fold{self.number}"

    @property
    def folder(self) -> Path:
        """Its predictions, metrics and logs."""
        return self.experiment / self.name

    @property
    def checkpoints(self) -> Path:
        """Its checkpoints."""
        return self.folder / "models"

    @property
    def datalist(self) -> Path:
        """The datalist of all folds of its seed."""
        return self.folder.parent / "datalist.json"

    @property
    def training_datalist(self) -> Path:
        """The datalist it trains on: one of its own where labels are not the true ones."""
        return self.folder / "datalist.json" if self.relabelled else self.datalist

    def rows(self) -> list[dict]:
        """Return the fold's predictions with seed and fold.

        Raises:
            DataError: predictions.csv is missing, incomplete, or not about these patients.
        """
        rows = complete_rows(self.folder / "predictions.csv", self.truth, self.patients, self.dataset_dir)
        group = {} if self.groups is None else {"group": self.groups}
        return [
            {"seed": self.seed, "fold": self.number, **row, **{key: of[row["patient"]] for key, of in group.items()}}
            for row in rows
        ]

    def done(self) -> bool:
        """Say whether its predictions are complete, so that it need not run."""
        return is_complete(self)

    def of(self, other: Path) -> Fold:
        """The same fold of another experiment."""
        return replace(self, experiment=other, relabelled=False)

    def seconds(self) -> float | None:
        """How long its commands ran, by the last lines of their logs; None where one has not ended well."""
        found = [SECONDS.search(_text(self.folder / f"{step}.log")) for step in ("train", "evaluate")]
        return sum(float(match[1]) for match in found if match) if all(found) else None

    def take_checkpoints(self, other: Path, names: Sequence[str] | None = None) -> None:
        """Copy the earlier stages' checkpoints of the same fold of ``other``, if the very same patients trained there.

        Args:
            other: the experiment.
            names: of the stages (default: all).

        Raises:
            DataError: nothing there, or not all of ``names``; trained on other patients than this fold's; not ended;
                this fold began with other ones.
        """
        origin = self.of(other)
        # what is fitted to labels and covariates in a moment is made anew
        made_anew = ("model.pt", "additive.pt")
        stages = sorted(path for path in origin.checkpoints.rglob("*.pt") if path.name not in made_anew)
        if not stages:
            raise DataError(
                f"{origin.checkpoints} holds no checkpoint of an earlier stage: finish that experiment first"
            )
        if lacking := sorted(set(names or ()) - {path.stem for path in stages}):
            raise DataError(f"{origin.checkpoints} holds no checkpoint of the stages {', '.join(lacking)}")
        stages = [path for path in stages if names is None or path.stem in names]
        if origin._trained() != self._trained():
            raise DataError(f"{origin.folder} was trained on other patients than this fold: patients would leak")
        if not origin.done():
            raise DataError(f"{origin.folder} has not ended, its checkpoints may be half trained: finish it first")
        for path in stages:
            target = self.checkpoints / path.relative_to(origin.checkpoints)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(target) as temporary:
                    shutil.copyfile(path, temporary)
            elif sha256(target) != sha256(path):
                raise DataError(f"{target} is not {path}, which was trained again: remove {self.folder}")

    def _trained(self) -> set[str]:
        cases = json.loads(self.datalist.read_text(encoding="utf-8"))["training"]
        return {str(case["patient"]) for case in cases if case["fold"] != self.number}


def complete_rows(
    path: Path,
    truth: Mapping[str, int],
    patients: Mapping[str, str] | None = None,
    dataset_dir: Path | None = None,
    *,
    part: str = "fold",
) -> list[dict]:
    """Read a bundle's predictions.csv, which must be about these patients or images.

    Args:
        path: the table.
        truth: label of each patient, or of each image.
        patients: of each image, where rows are patches.
        dataset_dir: images below it are named by their path from there.
        part: what they are of, for the message.

    Raises:
        DataError: it is missing, incomplete, or about others.
    """
    unit = "patient" if patients is None else "image"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [(row[unit], int(row["label"]), float(row["probability"])) for row in csv.DictReader(file)]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} needs the columns {unit}, label, probability in numbers ({error!r})") from error
    if patients is not None:
        rows = [(patch_name(name, dataset_dir), label, probability) for name, label, probability in rows]
    found = {name: label for name, label, _ in rows}
    if found != truth or len(rows) != len(found):
        odd = sorted(p for p in {**found, **truth} if found.get(p) != truth.get(p))
        reason = f"not so: {', '.join(odd[:5])}" if odd else f"a {unit} stands in it twice"
        rule = f"must hold each of the {part}'s {len(truth)} {unit}s once, with the datalist's label"
        raise DataError(f"{path} {rule}; {reason}")
    if not all(math.isfinite(p) and 0 <= p <= 1 for _, _, p in rows):
        raise DataError(f"{path} holds a probability outside [0, 1]")
    owner = {} if patients is None else patients
    return [
        {**({"image": name} if owner else {}), "patient": owner.get(name, name), "label": label, "probability": p}
        for name, label, p in rows
    ]


def _text(path: Path) -> str:
    """A log; nothing where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
