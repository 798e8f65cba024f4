"""Inference's files: per patient the prediction, its biomarkers and maps; one table of all."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ignite.engine import Engine, Events
from tqdm import tqdm

from shared.data.cases import CaseDataset
from shared.explain.ircl.patient import PatientExplainer
from shared.explain.ircl.shapley import no_biomarkers
from shared.io import write_csv

logger = logging.getLogger(__name__)


class SaveExplanations:
    """Explain each patient of an evaluator's batches; tables ``biomarkers.csv``, files in ``<output_dir>/patients``.

    Patients of a network without biomarkers (a control) are predicted, not explained; the log says so.

    Args:
        explainer: explains and writes one patient.
        cases: the dataset behind the evaluator's loader.
        output_dir: where the files go.
    """

    def __init__(self, explainer: PatientExplainer, cases: CaseDataset, output_dir: str | os.PathLike):
        self.explainer, self.cases, self.output_dir = explainer, cases, Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Explain and write all patients."""
        if not hasattr(self.explainer.network, "biomarkers"):
            logger.warning("Nothing is explained: %s.", no_biomarkers(self.explainer.network))
            return
        rows = []
        for case in tqdm(self.cases, desc="Explaining", unit="patient"):
            result = self.explainer(case)
            self.explainer.write(case, result, self.output_dir / "patients")
            rows += [{"patient": result["patient"], **row} for row in self.explainer.rows(result)]
        write_csv(self.output_dir / "biomarkers.csv", rows)
