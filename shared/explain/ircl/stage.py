"""The explanation of a cohort: Shapley values, contributions or masks, and how well they hit planted patterns."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from shared.bundle.model import load_model
from shared.data.cases import CaseDataset
from shared.explain.controls import centred_box_map, random_map, resize_maps
from shared.explain.ircl.patient import PatientExplainer
from shared.explain.ircl.planted import planted_truth
from shared.explain.localisation import localisation_scores
from shared.io import write_csv, write_json

logger = logging.getLogger(__name__)

MOST = 12  # biomarkers of the additive predictor in a picture
SCORES = ("pointing", "energy_inside", "energy_ratio", "iou")


class ExplainStage:
    """Explain every patient of a cohort and write the figures of the paper's section 4.4.

    Writes ``shapley.csv``, ``shapley_by_class.csv`` (means by class), ``shapley_distribution.png`` (like Fig. 4(a)),
    ``shapley_patients.png`` (Fig. 4(b): the surest correct positive and negative patient), per patient the files of
    :class:`PatientExplainer` in ``patients/``, and, where the datalist says where patterns were planted,
    ``localisation.csv`` and ``localisation.json``: pointing game, energy inside, energy ratio to chance and IoU of the
    maps (of contributions: what speaks for the positive class) beside a centred box and random maps: of each image the
    mean over ``random_maps`` of them, of the cohort also the range in which 95 % of its means over one map an image lie
    (``low``, ``high``). Contributions and their controls are scored on all images of a patient together, too
    (``whole patient``): an image need not hold the evidence. The network's other predictor is explained likewise in a
    folder of its name.

    Of a network whose prediction passes the biomarkers by (``attention="self"``) there are no Shapley values; the log
    says so.

    Args:
        explainer: explains one patient.
        cases: the cohort.
        checkpoint: ``model.pt``.
        output_dir: where the files go.
        planted_visible: modality to the codes of planted patterns visible in it; empty: no localisation.
        max_masks: patients whose masks are optimised; None: all where the prototype transformer answers, else none.
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
        """Explain, score and draw: the predictor that answers, then the other one.

        Raises:
            DataError: the network has no biomarkers.
        """
        network, given, folder = self.explainer.network, self.explainer, self.output_dir
        load_model(self.checkpoint, network)
        others = [name for name in ("prototype", "additive") if name != given.answer]
        if getattr(network, "additive", None) is None:
            others = []
        try:
            self._explain(None if given.answer == "prototype" else 0)
            for name in others:
                self.explainer, self.output_dir = copy(given), folder / name
                self.explainer.answer = name
                self._explain(0)
        finally:
            self.explainer, self.output_dir = given, folder

    def _explain(self, masks: int | None) -> None:
        """One predictor; ``masks``: patients whose masks are optimised where ``max_masks`` does not say."""
        masks = masks if self.max_masks is None else self.max_masks
        optimiser = self.explainer.mask
        results, scores, self._random = [], [], []
        try:
            for number, case in enumerate(tqdm(self.cases, desc="Explaining", unit="patient")):
                self.explainer.mask = optimiser if masks is None or number < masks else None
                result = self.explainer(case)
                self.explainer.write(case, result, self.output_dir / "patients")
                results.append(result)
                if case.get("planted") and self.planted_visible:
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
        shown = np.stack([result["shown"] for result in results])
        labels = [case.get("label") for case in self.cases]
        names, additive = self.explainer.names, self.explainer.answer == "additive"
        keys = names if additive else [f"biomarker_{k}" for k in range(len(names))]
        rows = [
            {"patient": result["patient"], "label": "" if label is None else int(label), "probability": p, "base": b}
            | dict(zip(keys, row, strict=True))
            for result, label, p, b, row in zip(results, labels, full, base, values, strict=True)
        ]
        write_csv(self.output_dir / "shapley.csv", rows)
        if additive:
            logger.info("Shapley: %d biomarkers make all of the log odds.", len(names))
        else:
            logger.info(
                "Shapley: hiding all prototypes moves the probability by %.3f on average; without any it spreads by "
                "%.3f.",
                np.abs(full - base).mean(),
                base.std(),
            )
        if any(label is None for label in labels):
            return
        truth, classes = np.array([int(label) for label in labels]), self.explainer.class_names
        unit = self.explainer.unit
        write_csv(self.output_dir / "shapley_by_class.csv", class_means(values, truth, names))
        strongest, seen, words = np.arange(len(names)), shown, ("without biomarkers", "with them")
        if additive:
            # a picture of all would hold no eye: those that move the log odds most
            moved = np.abs(values).mean(axis=0)
            strongest = np.argsort(-moved, kind="stable")[: max(1, min(MOST, np.count_nonzero(moved)))]
            words = ("of the average patient", "of this one")
            seen = None  # to have none of a biomarker counts, too
        drawn, titles = values[:, strongest], [names[k] for k in strongest]
        shapley_distribution(
            drawn,
            truth,
            self.output_dir / "shapley_distribution.png",
            class_names=classes,
            names=titles,
            shown=seen,
            unit=unit,
        )
        picked = surest_correct(truth, full)
        if not picked:
            logger.warning("No patient is called right: shapley_patients.png, which shows the surest, is not drawn.")
            return
        total = np.array([float(result["shapley"].full[0]) for result in results])
        shapley_patient_bars(
            drawn[picked],
            self.output_dir / "shapley_patients.png",
            titles=[f"{results[i]['patient']} ({classes[truth[i]]})" for i in picked],
            base=base[picked],
            full=total[picked],
            shown=None if seen is None else seen[picked],
            names=titles,
            positive_name=classes[1],
            unit=unit,
            words=words,
        )

    def _localise(self, case: Mapping[str, Any], result: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
        """Scores of the images of a case in which a planted pattern can be seen, for the map and both controls."""
        if result["places"] is not None:
            side = case["image"].shape[-1]
            # what speaks for the positive class, which the patterns do
            kind, positive = "contributions", result["places"]["contributions"].clamp(min=0)[:, None]
            maps = resize_maps(positive / positive.max().clamp(min=1e-12), (side, side))
        elif result["masks"] is not None:
            kind, maps = "mask", result["masks"].mask.cpu().numpy()
            side = maps.shape[-1]
        else:
            return []
        who = {"patient": result["patient"]}
        modalities = list(dict.fromkeys(image["modality"] for image in result["images"]))
        truths = planted_truth(case, modalities, self.planted_visible, side).numpy()[:, None]
        box, rows = centred_box_map((1, 1, side, side)), []
        for i, image in enumerate(result["images"]):
            truth = truths[i : i + 1]
            if not truth.any():
                continue
            many = np.repeat(truth, self.random_maps, axis=0)
            # the patient and the image are part of the seed: no two images get the same maps
            drawn = random_map(many.shape, seed=(self.seed, number, i))
            scores = {
                kind: localisation_scores(maps[i : i + 1], truth),
                "centred box": localisation_scores(box, truth),
                "random map": localisation_scores(drawn, many),
            }
            self._random.append(scores["random map"])
            where = who | {"modality": image["modality"], "slice": image["slice"]}
            rows += [where | {"map": name} | _means(score) for name, score in scores.items()]
        if kind == "contributions" and rows:
            where, whole = who | {"modality": "all", "slice": ""}, _side_by_side(truths)
            for name, one in ((kind, maps), ("centred box", np.repeat(box, len(maps), axis=0))):
                score = localisation_scores(_side_by_side(one), whole)
                rows.append(where | {"map": f"{name}, whole patient"} | _means(score))
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


def class_means(values: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Mean Shapley value of each biomarker in either class and their difference; the largest difference first.

    Example:
        >>> class_means(np.array([[1.0], [3.0]]), np.array([0, 1]), ["T1 0"])
        [{'biomarker': 'T1 0', 'mean_negative': 1.0, 'mean_positive': 3.0, 'difference': 2.0, 'mean_absolute': 2.0}]
    """
    rows = []
    for k, name in enumerate(names):
        means = [float(values[labels == c, k].mean()) if (labels == c).any() else float("nan") for c in (0, 1)]
        row = {
            "biomarker": name,
            "mean_negative": means[0],
            "mean_positive": means[1],
            "difference": means[1] - means[0],
        }
        rows.append(row | {"mean_absolute": float(np.abs(values[:, k]).mean())})
    return sorted(rows, key=lambda row: -abs(row["difference"]))


def _means(score: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {key: float(values.mean()) for key, values in score.items()}


def _side_by_side(images: np.ndarray) -> np.ndarray:
    """All images ``[m, 1, H, W]`` of a patient as one, ``[1, 1, H, m * W]``."""
    return np.concatenate(list(images), axis=-1)[None]


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
