"""The folds of a cross-validation: which patients each leaves out, its datalist, its checkpoints, its predictions."""

from __future__ import annotations

import csv
import json
import math
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.errors import DataError
from shared.io import atomic_path


@dataclass(frozen=True)
class Fold:
    """One fold of one seed below an experiment's folder, with the true labels of the patients it leaves out."""

    experiment: Path
    seed: int
    number: int
    truth: Mapping[str, int]
    shuffled: bool = False

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
        """The datalist it trains on: one of its own where labels are shuffled."""
        return self.folder / "datalist.json" if self.shuffled else self.datalist

    def rows(self) -> list[dict]:
        """Return the fold's predictions with seed and fold.

        Raises:
            DataError: predictions.csv is missing, incomplete, or not about these patients.
        """
        path = self.folder / "predictions.csv"
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = [(row["patient"], int(row["label"]), float(row["probability"])) for row in csv.DictReader(file)]
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror})") from error
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} needs the columns patient, label, probability in numbers ({error!r})") from error
        found = {patient: label for patient, label, _ in rows}
        if found != self.truth or len(rows) != len(found):
            odd = sorted(p for p in {**found, **self.truth} if found.get(p) != self.truth.get(p))
            reason = f"not so: {', '.join(odd[:5])}" if odd else "a patient stands in it twice"
            rule = f"must hold each of the fold's {len(self.truth)} patients once, with the datalist's label"
            raise DataError(f"{path} {rule}; {reason}")
        if not all(math.isfinite(p) and 0 <= p <= 1 for _, _, p in rows):
            raise DataError(f"{path} holds a probability outside [0, 1]")
        return [
            {"seed": self.seed, "fold": self.number, "patient": patient, "label": label, "probability": probability}
            for patient, label, probability in rows
        ]

    def done(self) -> bool:
        """Say whether its predictions are complete, so that it need not run."""
        try:
            return bool(self.rows())
        except DataError:
            return False

    def take_checkpoints(self, other: Path) -> None:
        """Copy the earlier stages' checkpoints of the same fold of ``other``, if the very same patients trained there.

        Raises:
            DataError: nothing there, trained on other patients than this fold's, or not to the end.
        """
        origin = Fold(other, self.seed, self.number, self.truth)
        stages = sorted(path for path in origin.checkpoints.glob("*.pt") if path.name != "model.pt")
        if not stages:
            raise DataError(
                f"{origin.checkpoints} holds no checkpoint of an earlier stage: finish that experiment first"
            )
        if origin._trained() != self._trained():
            raise DataError(f"{origin.folder} was trained on other patients than this fold: patients would leak")
        if not origin.done():
            raise DataError(f"{origin.folder} has not ended, its checkpoints may be half trained: finish it first")
        for path in stages:
            target = self.checkpoints / path.name
            if not target.exists():
                with atomic_path(target) as temporary:
                    shutil.copyfile(path, temporary)

    def _trained(self) -> set[str]:
        cases = json.loads(self.datalist.read_text(encoding="utf-8"))["training"]
        return {str(case["patient"]) for case in cases if case["fold"] != self.number}


def read_datalist(path: Path) -> tuple[dict, dict[str, int]]:
    """Return the datalist and the label of every training patient.

    Raises:
        DataError: no such file, no datalist, or all that is wrong with the labels at once.
    """
    try:
        datalist = json.loads(path.read_text(encoding="utf-8"))
        pairs = [(str(case["patient"]), case["label"]) for case in datalist["training"]]
    except OSError as error:
        remedy = "make one with scripts/prepare_patients.py, scripts/prepare_tcga_lgg.py or bash scripts/demo.sh"
        raise DataError(f"no datalist at {path} ({error.strerror}): {remedy}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no datalist: a 'training' list of patient and label is needed ({error!r})"
        ) from error
    problems = [f"{path}: {p} has label {label!r}, must be 0 or 1" for p, label in pairs if label not in (0, 1)]
    labels: dict[str, int] = {}
    for patient, label in pairs:
        if labels.setdefault(patient, label) != label:
            problems.append(f"{path}: {patient} has two labels")
    if problems:
        raise DataError(problems)
    return datalist, labels


def split_datalist(datalist: Mapping, fold_of: Mapping[str, int], labels: Mapping[str, int]) -> dict:
    """Return the datalist with these folds and labels in its training section; the rest is kept.

    Example:
        >>> datalist = {"training": [{"patient": "a", "label": 0, "fold": 7}], "testing": []}
        >>> split_datalist(datalist, {"a": 1}, {"a": 0})
        {'training': [{'patient': 'a', 'label': 0, 'fold': 1}], 'testing': []}
    """
    names = [str(case["patient"]) for case in datalist["training"]]
    cases = [
        {**case, "label": labels[name], "fold": fold_of[name]}
        for name, case in zip(names, datalist["training"], strict=True)
    ]
    return {**datalist, "training": cases}


def shuffle_labels(labels: Mapping[str, int], fold_of: Mapping[str, int], *, fold: int, seed: int) -> dict[str, int]:
    """Permute the labels among the patients that train; those of the validation fold stay true.

    Example:
        >>> labels = {"a": 0, "b": 1, "c": 0, "d": 1}
        >>> shuffled = shuffle_labels(labels, {"a": 0, "b": 0, "c": 1, "d": 1}, fold=1, seed=1)
        >>> [shuffled[name] for name in "cd"], sorted(shuffled[name] for name in "ab")
        ([0, 1], [0, 1])
    """
    training = [patient for patient in sorted(labels) if fold_of[patient] != fold]
    values = [labels[patient] for patient in training]
    random.Random(f"{seed}/{fold}").shuffle(values)
    return {**labels, **dict(zip(training, values, strict=True))}
