"""Predictions of an evaluator, of patients or of their patches, as a table with metrics and pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from shared.bundle.record import read_model
from shared.distributed.processes import from_main, gather_objects, is_main
from shared.handlers.abstention import Abstention
from shared.handlers.model_check import ModelCheck
from shared.reports.predictions import patch_name, write_predictions


class SavePredictions:
    """Write ``predictions.csv``; where labels are known also ``metrics.json``, ``roc.png``, ``calibration.png`` and
    ``decision.png``.

    Where the cases have a ``path`` they are patches: rows then begin with ``image``, intervals are over patients (whose
    patches are drawn together), and precision, recall and F1 of each class and ``confusion.png`` are written too. Where
    they have a ``group``, rows have it too, and intervals are over groups.

    Args:
        output_dir: where they go.
        class_names: names of the classes; the second is the positive one.
        bootstrap: draws of the 95 % intervals, over patients.
        seed: of the draws.
        dataset_dir: patches below it are named by their path from there.
        check: says of each patient whether the model was trained on it, in the column ``trained_on`` (1, 0, or empty
            where that is not known), and in metrics.json which model predicts.
        network: one with several predictors (``answers(image, covariates) -> {name: logits}``): the probability of each
            is written, too, as ``probability_<name>``.
        thresholds: name to threshold, fixed on training patients: sensitivity, specificity and predictive values are
            told there, too, beside 0.5 (None: those of the abstention, where the model is calibrated).
        abstention: adds ``set``, ``out_of_cohort``, ``cohort_distance`` and ``reason``.

    Shape:
        - the evaluator's output: decollated, ``pred`` ``[num_classes]`` probabilities
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        *,
        class_names: Sequence[str] = ("negative", "positive"),
        bootstrap: int = 2000,
        seed: int = 0,
        dataset_dir: str | os.PathLike | None = None,
        check: ModelCheck | None = None,
        network: nn.Module | None = None,
        thresholds: Mapping[str, float] | None = None,
        abstention: Abstention | None = None,
    ):
        self.thresholds, self.abstention = thresholds, abstention
        self.output_dir, self.class_names = Path(output_dir), list(class_names)
        self.bootstrap, self.seed, self.dataset_dir = bootstrap, seed, dataset_dir
        self.check, self.seen = check, None
        self._predictors = network if hasattr(network, "answers") else None
        self.rows: list[dict] = []
        self.shift: dict[str, Any] | None = None

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        if self.abstention is not None:
            self.abstention.attach(engine)
        engine.add_event_handler(Events.EPOCH_STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def started(self, engine: Engine) -> None:
        """Forget earlier rows."""
        self.rows = []
        if self.check is not None and from_main(self.check.known):
            self.seen = from_main(self.check.seen)
        if self.abstention is not None and self.check is not None and self.check.switched:
            self.abstention.without_sets()

    def collect(self, engine: Engine) -> None:
        """Keep the batch's probabilities."""
        others = self._others(engine)
        first = len(self.rows)
        for number, (case, output) in enumerate(zip(engine.state.batch, engine.state.output, strict=True)):
            label = case.get("label")
            row: dict[str, Any] = {}
            if "path" in case:
                row["image"] = patch_name(case["path"], self.dataset_dir)
            row |= {"patient": case["patient"], **({"group": case["group"]} if "group" in case else {})}
            row |= {"label": "" if label is None else int(label)}
            row |= {"probability": float(output["pred"][1])}
            row |= {f"probability_{name}": float(values[number]) for name, values in others.items()}
            self.rows.append(row | self._trained_on(case["patient"]))
        new = self.rows[first:]
        if self.abstention is not None:
            patients = [row.get("group", row["patient"]) for row in new]
            known = [case["covariates"] for case in engine.state.batch if "covariates" in case]
            lacking = [bool(case.get("lacking")) for case in engine.state.batch]
            answers = [row["probability"] for row in new]
            found = self.abstention.columns(answers, self.class_names, patients, known, lacking)
            self.rows[first:] = [row | columns for row, columns in zip(new, found, strict=True)]

    @torch.no_grad()
    def _others(self, engine: Engine) -> dict[str, Tensor]:
        """Probability of every predictor of the network, of the batch's cases."""
        if self._predictors is None:
            return {}
        image = torch.stack([torch.as_tensor(output["image"]) for output in engine.state.output])
        known = torch.stack([torch.as_tensor(case["covariates"]) for case in engine.state.batch]).to(image.device)
        answers = self._predictors.eval().answers(image, known)
        return {name: logits.softmax(dim=1)[:, 1] for name, logits in answers.items()}

    def _trained_on(self, patient: str) -> dict[str, int | str]:
        if self.check is None:
            return {}
        return {"trained_on": "" if self.seen is None else int(str(patient) in self.seen)}

    def gathered(self) -> bool:
        """Bring the rows of all processes together; whether this process is the one that writes them."""
        self.rows = [row for rows in gather_objects(self.rows) for row in rows]
        self.shift = None if self.abstention is None else self.abstention.shift(self.rows)
        return is_main()

    @property
    def options(self) -> dict[str, Any]:
        """Of :func:`shared.reports.predictions.write_predictions`."""
        given: dict[str, Any] = {"bootstrap": self.bootstrap, "seed": self.seed, "thresholds": self.thresholds}
        given["shift"] = self.shift
        if self.check is not None:
            given |= {"weights": read_model(self.check.ckpt_dir).get("weights", ""), "switched": self.check.switched}
        if self.abstention is None:
            return given | {"coverage": None}
        if self.thresholds is None:
            given["thresholds"] = self.abstention.thresholds
        return given | {"coverage": self.abstention.coverage}

    def write(self, engine: Engine) -> None:
        """Write table, metrics and pictures, of the cases of all processes."""
        if not self.gathered():
            return
        write_predictions(self.output_dir, self.rows, class_names=self.class_names, **self.options)
