"""The explanation of gliomas: every patient's files, and whether explanations point at what was planted in phantoms."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from shared.data.atlas import TractAtlas
from shared.explain.glioma import GliomaExplainer, GliomaExplanation
from shared.explain.glioma_files import write_explanation
from shared.explain.glioma_scores import surface_scores, tract_overlap, tract_scores, volume_controls, volume_scores
from shared.explain.glioma_volumes import BrainVolumes
from shared.handlers.checkpoint import LoadModel
from shared.io import write_csv, write_json
from shared.metrics.intervals import grouped_mean
from shared.transforms.tumour_crop import crop_volume

logger = logging.getLogger(__name__)

CAM, UNTRAINED, TRACTS = "Grad-CAM", "Grad-CAM, untrained", "GNNExplainer"
EVERYTHING, COLUMN = "planted", "tracts_infiltrated"


class GliomaExplainStage:
    """Explain every patient of a cohort, and score the explanations where the truth was planted.

    Writes ``explanations.csv`` (a row a patient), the files of :func:`shared.explain.write_explanation` in
    ``patients/``, and for phantoms ``localisation_volume.csv``, ``localisation_surface.csv`` and
    ``localisation_tracts.csv`` (scores of the explanations and of controls, patient by patient) with their means and
    differences in ``localisation.json``. A planted sign counts where it speaks for the class that was predicted, and
    therefore explained.

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
        planted: of phantoms: by sign its code in the planted map and the class it speaks for; empty: no scores.
        signs_file: of phantoms: CSV with the infiltrated tracts of each ``patient`` in ``tracts_infiltrated``.
        max_patients: patients whose files are written; None: all. All are scored.
        bootstrap: draws of the intervals.
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
        planted: Mapping[str, Sequence[int]] | None = None,
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
        self.untrained: GliomaExplainer | None = None

    def run(self) -> None:
        """Explain, write, score."""
        if self.checkpoint is not None and self.network is not None:
            LoadModel(self.checkpoint, self.network)()
        if self.explainer.network.image_encoder is not None and self.planted:
            self.untrained = self.explainer.untrained(self.seed)
        infiltrated = self._infiltrated()
        rows, scores = [], {"volume": [], "surface": [], "tracts": []}
        for number, case in enumerate(tqdm(self.cases, desc="Explaining", unit="patient")):
            found = self.explainer(case)
            volumes = BrainVolumes.load(case["files"])
            tracts = infiltrated.get(found.patient, [])
            rows.append(self._row(case, found))
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
                seed = self.seed + number
                scores["volume"] += self._volume(case, found, volumes, seed)
                scores["surface"] += self._surface(case, found, volumes, seed)
                scores["tracts"] += self._tracts(found, volumes, tracts)
        write_csv(self.output_dir / "explanations.csv", rows)
        self._summarise(scores)

    def _infiltrated(self) -> dict[str, list[int]]:
        if self.signs_file is None or not Path(self.signs_file).is_file():
            return {}
        from shared.data.prepare import read_table

        rows = read_table(self.signs_file, ["patient", COLUMN])
        return {row["patient"]: [int(edge) for edge in row[COLUMN].split()] for row in rows}

    def _row(self, case: Mapping[str, Any], found: GliomaExplanation) -> dict[str, Any]:
        label, edges, attention = case.get("label"), found.edges, found.node_attention
        row = {
            "patient": found.patient,
            "label": "" if label is None else int(label),
            "probability": found.probability,
            "explained": self.class_names[found.predicted],
            "cam_all_zero": "" if found.cam is None else int(not found.cam.any()),
            "tracts_kept": "" if edges is None else int(edges.kept.sum()),
        }
        row |= {} if edges is None else {f"p_{name}": round(value, 6) for name, value in edges.probability.items()}
        return row | {"top_region": "" if attention is None else self.atlas.names[int(attention.argmax())]}

    def _signs(self, predicted: int) -> dict[str, int]:
        """Codes of the signs that speak for a class."""
        return {name: code for name, (code, label) in self.planted.items() if label == predicted}

    def _volume(
        self, case: Mapping[str, Any], found: GliomaExplanation, volumes: BrainVolumes, seed: int
    ) -> list[dict[str, Any]]:
        if found.cam is None:
            return []
        planted, tumour = (_cut(volume, case, len(found.cam)) for volume in (volumes.planted, volumes.mask))
        image = np.asarray(case["image"])
        support = (image != 0).any(axis=0)
        codes = self._signs(found.predicted)
        truths = {name: planted == code for name, code in codes.items()}
        truths[EVERYTHING] = np.isin(planted, list(codes.values()))
        maps = {CAM: found.cam, UNTRAINED: self.untrained.cam(case, found.predicted)}
        maps |= volume_controls(image, tumour, grid=found.cam_grid, sequences=self.sequences, seed=seed)
        rows = []
        for name, truth in truths.items():
            if (truth & tumour & support).any():
                share = float((truth & tumour & support).sum() / (tumour & support).sum())
                scored = volume_scores(maps, truth & tumour, tumour, support)
                rows += [
                    {"patient": found.patient, "truth": name, "truth_share": share, "map": key} | values
                    for key, values in scored.items()
                ]
        return rows

    def _surface(
        self, case: Mapping[str, Any], found: GliomaExplanation, volumes: BrainVolumes, seed: int
    ) -> list[dict[str, Any]]:
        code = self._signs(found.predicted).get("spicules")
        if found.point_attention is None or code is None or not (volumes.planted == code).any():
            return []
        values = {"attention": found.point_attention}
        values |= {} if found.point_cam is None else {CAM: found.point_cam}
        points = np.asarray(case["points"], np.float64) + np.asarray(case["centroid"], np.float64)
        scored = surface_scores(values, points, volumes.planted == code, volumes.affine, seed=seed)
        return [{"patient": found.patient, "truth": "spicules", "map": key} | row for key, row in scored.items()]

    def _tracts(self, found: GliomaExplanation, volumes: BrainVolumes, tracts: Sequence[int]) -> list[dict[str, Any]]:
        if found.edges is None or not tracts or "infiltrated_tracts" not in self._signs(found.predicted):
            return []
        controls = {"overlap with the tumour": tract_overlap(self.atlas, volumes.mask)}
        if found.edge_factor is not None:
            controls["edge attention"] = found.edge_factor
        scored = tract_scores(found.edges.mask.cpu().numpy(), found.edges.kept.cpu().numpy(), tracts, controls)
        return [{"patient": found.patient, "truth": "infiltrated tracts", "map": k} | row for k, row in scored.items()]

    def _summarise(self, scores: Mapping[str, list[dict[str, Any]]]) -> None:
        summary: dict[str, Any] = {}
        for part, rows in scores.items():
            if not rows:
                continue
            write_csv(self.output_dir / f"localisation_{part}.csv", rows)
            main = {"volume": [CAM], "surface": ["attention", CAM], "tracts": [TRACTS]}[part]
            for truth in dict.fromkeys(row["truth"] for row in rows):
                chosen = [row for row in rows if row["truth"] == truth]
                summary.setdefault(part, {})[truth] = self._means(chosen, main)
        if summary:
            write_json(self.output_dir / "localisation.json", summary)

    def _means(self, rows: Sequence[Mapping[str, Any]], main: Sequence[str]) -> dict[str, Any]:
        maps = {name: [row for row in rows if row["map"] == name] for name in dict.fromkeys(r["map"] for r in rows)}
        patients = [row["patient"] for row in next(iter(maps.values()))]
        keys = [key for key in rows[0] if key not in ("patient", "truth", "map", "truth_share")]
        content: dict[str, Any] = {"patients": len(patients), "maps": {}, "minus control": {}}
        if "truth_share" in rows[0]:
            content["truth_share"] = float(np.mean([row["truth_share"] for row in rows]))

        def mean(values: Any) -> dict[str, float | None]:
            return grouped_mean(values, patients, bootstrap=self.bootstrap, seed=self.seed)

        for name, own in maps.items():
            content["maps"][name] = {key: mean([row[key] for row in own]) for key in keys}
            for first in (first for first in main if first in maps and name not in main):
                paired = {key: [a[key] - b[key] for a, b in zip(maps[first], own, strict=True)] for key in keys}
                content["minus control"].setdefault(first, {})[name] = {k: mean(v) for k, v in paired.items()}
            figures = ", ".join(f"{key} {content['maps'][name][key]['value']:.2f}" for key in keys)
            logger.info("Localisation of %s (%d patients), %s: %s", rows[0]["truth"], len(patients), name, figures)
        return content


def _cut(volume: np.ndarray, case: Mapping[str, Any], size: int) -> np.ndarray:
    """The same crop of a volume as the case's image."""
    start = tuple(int(first) for first in case["crop"]["start"])
    return crop_volume(torch.from_numpy(volume)[None], start, size)[0].numpy()
