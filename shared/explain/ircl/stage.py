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

from shared.bundle.model import load_model
from shared.data.cases import CaseDataset
from shared.explain.ircl.patient import PatientExplainer, occurring_biomarkers
from shared.explain.localisation import centred_box_map, localisation_scores, random_map
from shared.io import write_csv, write_json
from shared.transforms.roi_slices import labels_to_images

logger = logging.getLogger(__name__)

SCORES = ("pointing", "energy_inside", "energy_ratio", "iou")


class ExplainStage:
    """Explain every patient of a cohort and write the figures of the paper's section 4.4.

    Writes ``shapley.csv``, ``shapley_distribution.png`` (like Fig. 4(a)), ``shapley_patients.png`` (Fig. 4(b): the
    surest correct positive and negative patient), per patient the files of :class:`PatientExplainer` in ``patients/``,
    and, where the datalist says where patterns were planted, ``localisation.csv`` and ``localisation.json``: pointing
    game, energy inside, energy ratio to chance and IoU of the masks beside a centred box and random maps: of each image
    the mean over ``random_maps`` of them, of the cohort also the range in which 95 % of its means over one map an image
    lie (``low``, ``high``).

    Of a network whose prediction passes the biomarkers by (``attention="self"``) there are no Shapley values; the log
    says so.

    Args:
        explainer: explains one patient.
        cases: the cohort.
        checkpoint: ``model.pt``.
        output_dir: where the files go.
        planted_visible: modality to the codes of planted patterns visible in it; empty: no localisation.
        max_masks: patients whose masks are optimised; None: all.
        random_maps: drawn for each image.
        seed: of the random maps.
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
        random_maps: int = 200,
        seed: int = 0,
    ):
        self.explainer, self.cases, self.checkpoint = explainer, cases, checkpoint
        self.output_dir, self.planted_visible = Path(output_dir), dict(planted_visible or {})
        self.max_masks, self.random_maps, self.seed = max_masks, random_maps, seed
        self._random: list[dict[str, np.ndarray]] = []  # of each image, the scores of its random maps

    def run(self) -> None:
        """Explain, score and draw.

        Raises:
            DataError: the network has no biomarkers.
        """
        load_model(self.checkpoint, self.explainer.network)
        optimiser = self.explainer.mask
        results, scores, self._random = [], [], []
        try:
            for number, case in enumerate(tqdm(self.cases, desc="Explaining", unit="patient")):
                self.explainer.mask = optimiser if self.max_masks is None or number < self.max_masks else None
                result = self.explainer(case)
                self.explainer.write(case, result, self.output_dir / "patients")
                results.append(result)
                if result["masks"] is not None and case.get("planted") and self.planted_visible:
                    scores += self._localise(case, result, number)
        finally:
            self.explainer.mask = optimiser
        if all(result["shapley"] is not None for result in results):
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
        picked = surest_correct(truth, full)
        if not picked:
            logger.warning("No patient is called right: shapley_patients.png, which shows the surest, is not drawn.")
            return
        shapley_patient_bars(
            values[picked],
            self.output_dir / "shapley_patients.png",
            titles=[f"{results[i]['patient']} ({names[truth[i]]})" for i in picked],
            base=base[picked],
            full=full[picked],
            shown=shown[picked],
            positive_name=names[1],
        )

    def _localise(self, case: Mapping[str, Any], result: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
        """Scores of the images of a case in which a planted pattern can be seen, for the mask and both controls."""
        who = {"patient": result["patient"]}
        masks = result["masks"].mask.cpu().numpy()
        codes = labels_to_images(case["planted"], case["geometry"], masks.shape[-1])
        slices = len(codes)
        rows = []
        for i, image in enumerate(result["images"]):
            visible = torch.tensor(self.planted_visible.get(image["modality"], []))
            truth = torch.isin(codes[i % slices], visible).numpy()[None, None]
            if not truth.any():
                continue
            many = np.repeat(truth, self.random_maps, axis=0)
            # the patient and the image are part of the seed: no two images get the same maps
            drawn = random_map(many.shape, seed=(self.seed, number, i))
            scores = {
                "mask": localisation_scores(masks[i : i + 1], truth),
                "centred box": localisation_scores(centred_box_map(truth.shape), truth),
                "random map": localisation_scores(drawn, many),
            }
            self._random.append(scores["random map"])
            where = who | {"modality": image["modality"], "slice": image["slice"]}
            rows += [
                where | {"map": name} | {key: float(values.mean()) for key, values in score.items()}
                for name, score in scores.items()
            ]
        return rows

    def _summarise(self, scores: list[dict[str, Any]]) -> None:
        write_csv(self.output_dir / "localisation.csv", scores)
        summary = {}
        for name in dict.fromkeys(row["map"] for row in scores):
            rows = [row for row in scores if row["map"] == name]
            summary[name] = {"images": len(rows)} | {key: float(np.mean([row[key] for row in rows])) for key in SCORES}
            logger.info(
                "Localisation of planted patterns, %s: pointing game %.2f, energy inside %.2f (%.1f x chance).",
                name,
                *(summary[name][key] for key in ("pointing", "energy_inside", "energy_ratio")),
            )
        means = {key: np.mean([drawn[key] for drawn in self._random], axis=0) for key in SCORES}
        tails = {key: np.percentile(values, [2.5, 97.5]) for key, values in means.items()}
        for place, end in enumerate(("low", "high")):
            summary["random map"][end] = {key: float(values[place]) for key, values in tails.items()}
        summary["random map"]["maps_per_image"] = self.random_maps
        write_json(self.output_dir / "localisation.json", summary)


def surest_correct(labels: np.ndarray, probability: np.ndarray) -> list[int]:
    """The surest of the positive patients that are called positive, then of the negative ones called negative.

    Args:
        labels: 0 or 1.
        probability: of class 1, which is called from 0.5 on.

    Returns:
        their places; none of a class of which nobody is called right.

    Example:
        >>> surest_correct(np.array([1, 1, 0, 0]), np.array([0.6, 0.9, 0.2, 0.7])), surest_correct([1, 0], [0.4, 0.6])
        ([1, 2], [])
    """
    labels, probability = np.asarray(labels), np.asarray(probability)
    picked = []
    for label, sureness in ((1, probability), (0, 1 - probability)):
        right = np.flatnonzero((labels == label) & ((probability >= 0.5) == bool(label)))
        picked += [int(right[sureness[right].argmax()])] if len(right) else []
    return picked
