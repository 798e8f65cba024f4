"""The explanation of a cohort: Shapley values of the biomarkers, masks, and how well they hit planted patterns."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from shared.data.cases import CaseDataset
from shared.explain.localisation import centred_box_map, localisation_scores, random_map
from shared.explain.patient import PatientExplainer, occurring_biomarkers
from shared.handlers.checkpoint import LoadModel
from shared.io import write_csv, write_json
from shared.transforms.roi_slices import labels_to_images

logger = logging.getLogger(__name__)


class ExplainStage:
    """Explain every patient of a cohort and write the figures of the paper's section 4.4.

    Writes ``shapley.csv``, ``shapley_distribution.png`` (like Fig. 4(a)), ``shapley_patients.png`` (Fig. 4(b): the
    surest correct positive and negative patient), per patient the files of :class:`PatientExplainer` in ``patients/``,
    and, where the datalist says where patterns were planted, ``localisation.csv`` and ``localisation.json``: pointing
    game, energy inside, energy ratio to chance and IoU of the masks beside a centred box and a random map.

    Args:
        explainer: explains one patient.
        cases: the cohort.
        checkpoint: ``model.pt``.
        output_dir: where the files go.
        planted_visible: modality to the codes of planted patterns visible in it; empty: no localisation.
        max_masks: patients whose masks are optimised; None: all.
        seed: of the random map.
    """

    def __init__(
        self,
        explainer: PatientExplainer,
        cases: CaseDataset,
        *,
        checkpoint: str | os.PathLike,
        output_dir: str | os.PathLike,
        planted_visible: Mapping[str, list[int]] | None = None,
        max_masks: int | None = None,
        seed: int = 0,
    ):
        self.explainer, self.cases, self.checkpoint = explainer, cases, checkpoint
        self.output_dir, self.planted_visible = Path(output_dir), dict(planted_visible or {})
        self.max_masks, self.seed = max_masks, seed

    def run(self) -> None:
        """Explain, score and draw."""
        LoadModel(self.checkpoint, self.explainer.network)()
        optimiser = self.explainer.mask
        results, scores = [], []
        try:
            for number, case in enumerate(tqdm(self.cases, desc="Explaining", unit="patient")):
                self.explainer.mask = optimiser if self.max_masks is None or number < self.max_masks else None
                result = self.explainer(case)
                self.explainer.write(case, result, self.output_dir / "patients")
                results.append(result)
                if result["masks"] is not None and case.get("planted") and self.planted_visible:
                    scores += self._localise(case, result)
        finally:
            self.explainer.mask = optimiser
        self._shapley(results)
        if scores:
            self._summarise(scores)

    def _shapley(self, results: list[dict[str, Any]]) -> None:
        from shared.visualize import shapley_distribution, shapley_patient_bars

        values = np.concatenate([result["shapley"].values for result in results])
        base = np.array([float(result["shapley"].base[0]) for result in results])
        full = np.array([result["probability"] for result in results])
        shown = np.stack([occurring_biomarkers(result, values.shape[1]) for result in results])
        labels = [case.get("label") for case in self.cases]
        rows = [
            {"patient": result["patient"], "label": "" if label is None else int(label), "probability": p, "base": b}
            | {f"biomarker_{k}": v for k, v in enumerate(row)}
            for result, label, p, b, row in zip(results, labels, full, base, values, strict=True)
        ]
        write_csv(self.output_dir / "shapley.csv", rows)
        logger.info(
            "Shapley: hiding all prototypes moves the probability by %.3f on average; without any it spreads by %.3f.",
            np.abs(full - base).mean(),
            base.std(),
        )
        if any(label is None for label in labels):
            return
        truth, names = np.array([int(label) for label in labels]), self.explainer.class_names
        shapley_distribution(
            values, truth, self.output_dir / "shapley_distribution.png", class_names=names, shown=shown
        )
        picked = [
            max(np.flatnonzero(truth == label), key=lambda i, sign=sign: sign * full[i])
            for label, sign in ((1, 1), (0, -1))
            if (truth == label).any()
        ]
        shapley_patient_bars(
            values[picked],
            self.output_dir / "shapley_patients.png",
            titles=[f"{results[i]['patient']} ({names[truth[i]]})" for i in picked],
            base=base[picked],
            full=full[picked],
            shown=shown[picked],
            positive_name=names[1],
        )

    def _localise(self, case: Mapping[str, Any], result: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Scores of the images of a case in which a planted pattern can be seen, for the mask and both controls."""
        masks = result["masks"].mask.cpu().numpy()
        codes = labels_to_images(case["planted"], case["geometry"], masks.shape[-1])
        slices = len(codes)
        rows = []
        for i, image in enumerate(result["images"]):
            visible = torch.tensor(self.planted_visible.get(image["modality"], []))
            truth = torch.isin(codes[i % slices], visible).numpy()[None, None]
            if not truth.any():
                continue
            maps = {
                "mask": masks[i : i + 1],
                "centred box": centred_box_map(truth.shape),
                "random map": random_map(truth.shape, seed=self.seed + len(rows)),
            }
            for name, values in maps.items():
                score = localisation_scores(values, truth)
                rows.append(
                    {"patient": result["patient"], "modality": image["modality"], "slice": image["slice"], "map": name}
                    | {key: float(value[0]) for key, value in score.items()}
                )
        return rows

    def _summarise(self, scores: list[dict[str, Any]]) -> None:
        write_csv(self.output_dir / "localisation.csv", scores)
        summary = {}
        for name in dict.fromkeys(row["map"] for row in scores):
            rows = [row for row in scores if row["map"] == name]
            summary[name] = {"images": len(rows)} | {
                key: float(np.mean([row[key] for row in rows]))
                for key in ("pointing", "energy_inside", "energy_ratio", "iou")
            }
            logger.info(
                "Localisation of planted patterns, %s: pointing game %.2f, energy inside %.2f (%.1f x chance).",
                name,
                *(summary[name][key] for key in ("pointing", "energy_inside", "energy_ratio")),
            )
        write_json(self.output_dir / "localisation.json", summary)
