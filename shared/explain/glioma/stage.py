"""The explanation of gliomas: every patient's files, and whether explanations point at what was planted in phantoms."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from shared.bundle.model import load_model
from shared.data.brain.atlas import TractAtlas
from shared.explain.glioma.disruption import DisruptedTracts
from shared.explain.glioma.explainer import GliomaExplainer, GliomaExplanation
from shared.explain.glioma.files import write_explanation
from shared.explain.glioma.localisation import PARTS, PlantedScores, mean_scores
from shared.explain.glioma.volumes import BrainVolumes
from shared.io import write_csv, write_json

logger = logging.getLogger(__name__)

COLUMN = "tracts_infiltrated"


class GliomaExplainStage:
    """Explain every patient of a cohort, and score the explanations where the truth was planted.

    Writes ``explanations.csv`` (a row a patient), the files of :func:`shared.explain.write_explanation` in
    ``patients/``, and for phantoms ``localisation_volume.csv``, ``localisation_surface.csv`` and
    ``localisation_tracts.csv`` (scores of the explanations and of controls, patient by patient) with their means and
    differences in ``localisation.json``. A planted sign counts where it speaks for the class that is explained. Where
    patients of both classes have labels, :class:`DisruptedTracts` compares their kept tracts.

    Args:
        explainer: of one patient.
        cases: with the keys that :class:`shared.explain.GliomaExplainer` names, and ``files`` for
            :class:`shared.explain.BrainVolumes`.
        atlas: regions and tracts.
        network: what the checkpoint is loaded into, the explained network part of it; None: used as it is.
        checkpoint: ``model.pt``.
        output_dir: where the files go.
        sequences: names of the image's channels.
        class_names: names of the classes; the second is the positive one.
        planted: of phantoms: by sign its code in the planted map and the class it speaks for, None for a decoy; empty:
            no scores.
        signs_file: of phantoms: CSV with the infiltrated tracts of each ``patient`` in ``tracts_infiltrated``.
        max_patients: patients whose files are written; None: all. All are scored.
        bootstrap: draws of the intervals, and permutations of the comparison.
        seed: of the random controls.
    """

    def __init__(
        self,
        explainer: GliomaExplainer,
        cases: Sequence[Mapping[str, Any]],
        *,
        atlas: TractAtlas,
        output_dir: str | os.PathLike,
        network: nn.Module | None = None,
        checkpoint: str | os.PathLike | None = None,
        sequences: Sequence[str] = (),
        class_names: Sequence[str] = ("negative", "positive"),
        planted: Mapping[str, Sequence[int | None]] | None = None,
        signs_file: str | os.PathLike | None = None,
        max_patients: int | None = None,
        bootstrap: int = 2000,
        seed: int = 0,
    ):
        self.explainer, self.cases, self.atlas = explainer, cases, atlas
        self.network, self.checkpoint, self.output_dir = network, checkpoint, Path(output_dir)
        self.sequences, self.class_names = list(sequences), list(class_names)
        self.planted, self.signs_file = dict(planted or {}), signs_file
        self.max_patients, self.bootstrap, self.seed = max_patients, bootstrap, seed

    def run(self) -> None:
        """Explain, write, score."""
        if self.checkpoint is not None and self.network is not None:
            load_model(self.checkpoint, self.network)
        infiltrated, score = self._infiltrated(), self._scores()
        rows, scores, disrupted = [], {part: [] for part in PARTS}, DisruptedTracts(self.atlas)
        for number, case in enumerate(tqdm(self.cases, desc="Explaining", unit="patient")):
            case = self.explainer.encoded(case)
            found = self.explainer(case)
            volumes = BrainVolumes.load(case["files"])
            tracts = infiltrated.get(found.patient, [])
            density = "" if found.edges is None else disrupted.add(found.edges.kept.cpu().numpy(), case.get("label"))
            rows.append(self._row(case, found) | {"tract_density": density})
            if self.max_patients is None or number < self.max_patients:
                write_explanation(
                    case,
                    found,
                    volumes,
                    self.output_dir / "patients",
                    self.atlas,
                    sequences=self.sequences,
                    class_names=self.class_names,
                    planted_tracts=tracts,
                )
            if volumes.planted is not None and self.planted:
                for part, scored in score(case, found, volumes, tracts, seed=self.seed + number).items():
                    scores[part] += scored
        write_csv(self.output_dir / "explanations.csv", rows)
        disrupted.write(self.output_dir, self.class_names, draws=self.bootstrap, seed=self.seed)
        self._summarise(scores)

    def _scores(self) -> PlantedScores:
        network = self.explainer.network
        reads_tumour = network.image_encoder is not None or network.geometric_encoder is not None
        untrained = self.explainer.untrained(self.seed) if reads_tumour and self.planted else None
        return PlantedScores(self.planted, self.atlas, untrained, sequences=self.sequences)

    def _infiltrated(self) -> dict[str, list[int]]:
        if self.signs_file is None or not Path(self.signs_file).is_file():
            return {}
        from shared.data.tables import read_table

        rows = read_table(self.signs_file, ["patient", COLUMN])
        return {row["patient"]: [int(edge) for edge in row[COLUMN].split()] for row in rows}

    def _row(self, case: Mapping[str, Any], found: GliomaExplanation) -> dict[str, Any]:
        label, edges, attention = case.get("label"), found.edges, found.node_attention
        row = {
            "patient": found.patient,
            "label": "" if label is None else int(label),
            "probability": found.probability,
            "answer": self.class_names[found.predicted],
            **{
                f"explained_{name}": self.class_names[found.explained(name)] for name in self.explainer.network.encoders
            },
            "cam_all_zero": "" if found.cam is None else int(not found.cam.any()),
            "tracts_kept": "" if edges is None else int(edges.kept.sum()),
        }
        row |= {} if edges is None else {f"p_{name}": round(value, 6) for name, value in edges.probability.items()}
        return row | {"top_region": "" if attention is None else self.atlas.names[int(attention.argmax())]}

    def _summarise(self, scores: Mapping[str, list[dict[str, Any]]]) -> None:
        summary: dict[str, Any] = {}
        for part, rows in scores.items():
            if not rows:
                continue
            write_csv(self.output_dir / f"localisation_{part}.csv", rows)
            for truth in dict.fromkeys(row["truth"] for row in rows):
                chosen = [row for row in rows if row["truth"] == truth]
                means = mean_scores(chosen, PARTS[part], bootstrap=self.bootstrap, seed=self.seed)
                summary.setdefault(part, {})[truth] = means
        if summary:
            write_json(self.output_dir / "localisation.json", summary)
