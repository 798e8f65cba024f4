"""Patient-level predictions of an evaluator as a table, with their metrics and pictures."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from ignite.engine import Engine, Events

from shared.io import write_csv, write_json

logger = logging.getLogger(__name__)


class SavePredictions:
    """Write ``predictions.csv``; where labels are known also ``metrics.json``, ``roc.png`` and ``calibration.png``.

    Args:
        output_dir: where they go.
        class_names: names of the classes; the second is the positive one.
        bootstrap: draws of the 95 % intervals, over patients.
        seed: of the draws.

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
    ):
        self.output_dir, self.class_names = Path(output_dir), list(class_names)
        self.bootstrap, self.seed = bootstrap, seed
        self.rows: list[dict] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def started(self, engine: Engine) -> None:
        """Forget earlier rows."""
        self.rows = []

    def collect(self, engine: Engine) -> None:
        """Keep the batch's probabilities."""
        for case, output in zip(engine.state.batch, engine.state.output, strict=True):
            label = case.get("label")
            self.rows.append(
                {
                    "patient": case["patient"],
                    "label": "" if label is None else int(label),
                    "probability": float(output["pred"][1]),
                }
            )

    def write(self, engine: Engine) -> None:
        """Write table, metrics and pictures."""
        write_csv(self.output_dir / "predictions.csv", self.rows)
        known = [row for row in self.rows if row["label"] != ""]
        if not known:
            return
        from shared.metrics import classification_metrics
        from shared.visualize import calibration_figure, roc_curve_figure

        labels = [row["label"] for row in known]
        probability = [row["probability"] for row in known]
        metrics = classification_metrics(labels, probability, bootstrap=self.bootstrap, seed=self.seed)
        write_json(self.output_dir / "metrics.json", metrics)
        for name in ("AUC", "ACC", "F1", "PRE", "REC"):
            value = metrics[name]
            logger.info("%s %s [%s, %s]", name, *(_text(value[key]) for key in ("value", "low", "high")))
        if len(set(labels)) > 1:
            roc_curve_figure({"": (labels, probability)}, self.output_dir / "roc.png")
            calibration_figure(labels, probability, self.output_dir / "calibration.png")


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
