"""Scores of every explanation of a patient, and their means over patients beside those of one of the methods."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.errors import DataError
from shared.explain.grad_cam import frozen
from shared.explain.ircl.methods import CAM, CONTRIBUTIONS, GRADIENTS, ExplanationMethod, log_odds
from shared.explain.ircl.planted import planted_truth
from shared.explain.localisation import energy_ratio, pointing_game
from shared.explain.perturbation import FILLS, perturbation_areas
from shared.metrics.classification import grouped_mean
from shared.transforms.roi_slices import source_slices

IMAGE_SCORES = ("pointing", "energy_ratio", "energy_ratio_in_region", "agreement", "repeatability")
PATIENT_SCORES = (*(f"{kind}_{fill}" for fill in FILLS for kind in ("deletion", "insertion")), "seconds")
SCORES = (*IMAGE_SCORES, *PATIENT_SCORES)


class ExplanationComparison:
    """Explain a patient by every method, and score the maps.

    Per image, only where a planted pattern can be seen: the pointing game and the energy over chance, within the image
    and within what the network is shown of it, of what each map says for the positive class. Per image, over the pixels
    that are shown: rank correlation with the maps of the slice's other modalities (``agreement``), and, of what depends
    on training, of the maps of all pairs of networks (``repeatability``). Per patient: areas under deletion and
    insertion of the predicted class's probability, and the time of the first network's maps.

    Args:
        networks: trained; the first one's maps are scored, the others are trained with other seeds.
        methods: see :func:`shared.explain.explanation_methods`.
        modalities: their names, in the order of the images.
        planted_visible: modality to the codes of planted patterns visible in it; empty: no localisation.
        steps: of deletion and insertion.
        cell: side of the cells that are deleted, in pixels.
        seed: of the order among equal cells.
        device: where the networks run.

    Raises:
        DataError: a method cannot explain such a network, see :func:`inapplicable_methods`.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        methods: Sequence[ExplanationMethod],
        *,
        modalities: Sequence[str],
        planted_visible: Mapping[str, Sequence[int]] | None = None,
        steps: int = 20,
        cell: int = 4,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ):
        self.networks = [network.to(device).eval() for network in networks]
        self.methods, self.modalities, self.device = list(methods), list(modalities), torch.device(device)
        self.planted_visible = dict(planted_visible or {})
        self.steps, self.cell, self.seed = steps, cell, seed

    def __call__(self, case: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        """Rows of a patient, one of each method and image and one of each method, and the maps ``[m, H, W]``."""
        image, covariates = case_inputs(case, self.device)
        network, shown = self.networks[0], (image[0] != 0).cpu().numpy()
        with torch.no_grad(), frozen(network):
            odds = float(log_odds(network, image, covariates))
        truth = None
        if case.get("planted") and self.planted_visible:
            truth = planted_truth(case, self.modalities, self.planted_visible, image.shape[-1]).numpy()
        label = case.get("label")
        who = {"patient": str(case["patient"]), "label": None if label is None else int(label)}
        who["probability"] = float(torch.tensor(odds, dtype=torch.float64).sigmoid())
        rows, maps = [], {}
        for method in self.methods:
            start = time.perf_counter()
            found = method.explain(network, image, covariates).detach()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - start
            # an empty pixel says nothing, whatever a coarse map lays over it
            found = found * (image[0] != 0)
            values = found.double().cpu().numpy()
            maps[method.name] = values.astype(np.float32)
            scores = self._localisation(method.evidence(found).double().cpu().numpy(), truth, shown)
            scores["agreement"] = _agreement(values, shown, len(self.modalities))
            scores["repeatability"] = self._repeatability(method, image, covariates, values, shown)
            for i, (modality, index) in enumerate(image_places(case, self.modalities, len(values))):
                rows.append(_row(who, method.name, modality, index, {key: of[i] for key, of in scores.items()}))
            areas = self._perturbation(method.order(found, odds > 0), image, covariates, odds > 0)
            rows.append(_row(who, method.name, None, None, areas | {"seconds": seconds}))
        return rows, maps

    def _localisation(
        self, evidence: np.ndarray, truth: np.ndarray | None, shown: np.ndarray
    ) -> dict[str, list[float | None]]:
        keys = IMAGE_SCORES[:3]
        scores: dict[str, list[float | None]] = {key: [None] * len(evidence) for key in keys}
        for i in range(0 if truth is None else len(evidence)):
            if not (truth[i] & shown[i]).any():
                continue
            given = [x[None, None] for x in (evidence[i], truth[i])]
            found = [pointing_game(*given), energy_ratio(*given), energy_ratio(*given, region=shown[i][None, None])]
            for key, value in zip(keys, found, strict=True):
                scores[key][i] = float(value[0])
        return scores

    def _repeatability(
        self, method: ExplanationMethod, image: Tensor, covariates: Tensor | None, first: np.ndarray, shown: np.ndarray
    ) -> list[float | None]:
        """Mean rank correlation of an image's maps over all pairs of networks."""
        if len(self.networks) < 2 or not method.learnt:
            return [None] * len(first)
        others = [method.explain(network, image, covariates).double().cpu().numpy() for network in self.networks[1:]]
        return [
            _mean([rank_correlation(a[i], b[i], shown[i]) for a, b in itertools.combinations([first, *others], 2)])
            for i in range(len(first))
        ]

    def _perturbation(
        self, order: Tensor, image: Tensor, covariates: Tensor | None, positive: bool
    ) -> dict[str, float]:
        network, sign = self.networks[0], 1 if positive else -1

        def probability(x: Tensor) -> Tensor:
            return (sign * log_odds(network, x, covariates)).double().sigmoid()

        with frozen(network):
            return perturbation_areas(probability, image, order, steps=self.steps, cell=self.cell, seed=self.seed)


def case_inputs(case: Mapping[str, Any], device: str | torch.device) -> tuple[Tensor, Tensor | None]:
    """Images ``[1, m, H, W]`` and covariates ``[1, C]`` of a case, None where it has none."""
    image = torch.as_tensor(case["image"]).as_subclass(Tensor).float()[None].to(device)
    covariates = case["covariates"][None].to(device)
    return image, covariates if covariates.shape[1] else None


def image_places(case: Mapping[str, Any], modalities: Sequence[str], count: int) -> list[tuple[str, int]]:
    """Modality and slice of each image, the slice as the source file counts it where the case says how it was cut."""
    slices = source_slices(case["geometry"]) if "geometry" in case else range(count // len(modalities))
    return [(name, int(index)) for name in modalities for index in slices]


def inapplicable_methods(
    network: nn.Module,
    methods: Sequence[ExplanationMethod],
    case: Mapping[str, Any],
    device: str | torch.device = "cpu",
) -> dict[str, str]:
    """By name, why a method cannot explain such a network: no contributions, or an answer without a gradient."""
    image, covariates = case_inputs(case, device)
    reasons = {}
    for method in methods:
        if method.name in (CONTRIBUTIONS, CAM, GRADIENTS):
            try:
                method.explain(network.to(device).eval(), image, covariates)
            except DataError as error:
                reasons[method.name] = str(error)
    return reasons


def rank_correlation(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float | None:
    """Spearman's rank correlation of two maps over some pixels; None where a map is the same at all of them.

    Example:
        >>> everywhere = np.ones(3, bool)
        >>> round(rank_correlation(np.array([1, 2, 9]), np.array([0, 5, 6]), everywhere), 6)
        1.0
        >>> rank_correlation(np.array([1, 2, 9]), np.zeros(3), everywhere)
    """
    from scipy.stats import spearmanr

    a, b = a[where], b[where]
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)


def _agreement(maps: np.ndarray, shown: np.ndarray, modalities: int) -> list[float | None]:
    """Of each image, mean rank correlation with the same slice of the other modalities, where both are shown."""
    slices = len(maps) // modalities
    found: list[float | None] = []
    for i in range(len(maps)):
        others = [j for j in range(i % slices, len(maps), slices) if j != i]
        found.append(_mean([rank_correlation(maps[i], maps[j], shown[i] & shown[j]) for j in others]))
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of what is defined."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _row(
    who: Mapping[str, Any], method: str, modality: str | None, index: int | None, scores: Mapping[str, Any]
) -> dict[str, Any]:
    return {**who, "method": method, "modality": modality, "slice": index} | {key: scores.get(key) for key in SCORES}


def mean_method_scores(
    rows: Sequence[Mapping[str, Any]],
    *,
    reference: str = CONTRIBUTIONS,
    bootstrap: int = 2000,
    seed: int = 0,
    scores: Sequence[str] = SCORES,
    image: Sequence[str] = ("modality", "slice"),
) -> dict[str, Any]:
    """Mean of each method's scores over patients, and minus the reference's, paired, with 95 % intervals.

    A mean is over images, whole patients are drawn; a difference is over the images of which both methods have a score.

    Args:
        rows: of :class:`ExplanationComparison`, or of patches, of all patients.
        reference: a method.
        bootstrap: draws of the intervals.
        seed: of the draws.
        scores: columns of the rows to average.
        image: columns that tell a patient's images apart.

    Returns:
        by method ``scores`` and ``minus reference``, each by score ``value``, ``low``, ``high`` and ``rows``; a score
        that no row has is left out.
    """
    by_method: dict[str, dict[tuple, Mapping[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["patient"], *(row[key] for key in image)] = row
    base = by_method.get(reference, {})

    def means(values: dict[str, list[tuple[str, float]]]) -> dict[str, Any]:
        return {
            score: grouped_mean([v for _, v in of], [p for p, _ in of], bootstrap=bootstrap, seed=seed)
            | {"rows": len(of)}
            for score, of in values.items()
            if of
        }

    content = {}
    for name, own in by_method.items():
        alone = {
            score: [(key[0], row[score]) for key, row in own.items() if row[score] is not None] for score in scores
        }
        paired = {
            score: [
                (key[0], row[score] - base[key][score])
                for key, row in own.items()
                if key in base and row[score] is not None and base[key][score] is not None
            ]
            for score in scores
        }
        content[name] = {"scores": means(alone), "minus reference": {} if name == reference else means(paired)}
    return content
