"""Explanations of phantom gliomas scored where signs were planted, beside controls: by patient and in the mean."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from shared.data.brain.atlas import TractAtlas
from shared.explain.glioma.explainer import GliomaExplainer, GliomaExplanation
from shared.explain.glioma.scores import surface_scores, tract_overlap, tract_scores, volume_controls, volume_scores
from shared.explain.glioma.volumes import BrainVolumes
from shared.metrics.classification import grouped_mean
from shared.transforms.glioma.tumour_crop import crop_volume

logger = logging.getLogger(__name__)

CAM, CONTRIBUTION, TRACTS = "Grad-CAM", "integrated gradients", "GNNExplainer"
PARTS = {"volume": [CAM, CONTRIBUTION], "surface": ["attention", CAM], "tracts": [TRACTS]}
EVERYTHING = "planted"


class PlantedScores:
    """Score a patient's explanation. A planted sign counts where it speaks for the class explained.

    Args:
        planted: by sign its code in the planted map and the class it speaks for, None for a decoy, which speaks for
            neither: how much a map finds it is scored whatever was predicted. ``spicules`` are scored on the surface,
            too, ``infiltrated_tracts`` among the tracts.
        atlas: regions and tracts.
        untrained: the explainer with random weights of the tumour's encoders, a control; None: without.
        sequences: names of the image's channels.
    """

    def __init__(
        self,
        planted: Mapping[str, Sequence[int | None]],
        atlas: TractAtlas,
        untrained: GliomaExplainer | None = None,
        *,
        sequences: Sequence[str] = (),
    ):
        self.planted: dict[str, Any] = dict(planted)
        self.atlas, self.untrained, self.sequences = atlas, untrained, list(sequences)

    def __call__(
        self,
        case: Mapping[str, Any],
        found: GliomaExplanation,
        volumes: BrainVolumes,
        tracts: Sequence[int] = (),
        *,
        seed: int = 0,
    ) -> dict[str, list[dict[str, Any]]]:
        """Rows of ``volume``, ``surface`` and ``tracts``, a row for each sign and map; given the infiltrated tracts."""
        control = None
        if self.untrained is not None:
            control = self.untrained(case, None if found.cam is None else found.explained("image"))
        return {
            "volume": self._volume(case, found, control, volumes, seed),
            "surface": self._surface(case, found, control, volumes, seed),
            "tracts": self._tracts(found, volumes, tracts),
        }

    def _codes(self, label: int | None) -> dict[str, int]:
        """Codes of the signs that speak for a class, or of the decoys (None)."""
        return {name: code for name, (code, spoken_for) in self.planted.items() if spoken_for == label}

    def _volume(
        self,
        case: Mapping[str, Any],
        found: GliomaExplanation,
        control: GliomaExplanation | None,
        volumes: BrainVolumes,
        seed: int,
    ) -> list[dict[str, Any]]:
        if found.cam is None:
            return []
        planted, tumour = (_cut(volume, case, len(found.cam)) for volume in (volumes.planted, volumes.mask))
        image = torch.as_tensor(case["image"]).numpy()
        support = (image != 0).any(axis=0)
        codes = self._codes(found.explained("image"))
        truths = {name: planted == code for name, code in (codes | self._codes(None)).items()}
        truths[EVERYTHING] = np.isin(planted, list(codes.values()))
        maps = {}
        for suffix, each in (("", found), (", untrained", control)):
            if each is not None:
                maps[CAM + suffix] = each.cam
                if each.contribution is not None:
                    maps[CONTRIBUTION + suffix] = each.contribution.clip(min=0)
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
        self,
        case: Mapping[str, Any],
        found: GliomaExplanation,
        control: GliomaExplanation | None,
        volumes: BrainVolumes,
        seed: int,
    ) -> list[dict[str, Any]]:
        if found.point_attention is None:
            return []
        code = self._codes(found.explained("points")).get("spicules")
        if code is None or not (volumes.planted == code).any():
            return []
        values = {"attention": found.point_attention}
        # it explains the image's own answer, which may be another one than the surface's
        values |= {} if found.point_cam is None or found.own is not None else {CAM: found.point_cam}
        values |= {} if control is None else {"attention, untrained": control.point_attention}
        points = np.asarray(case["points"], np.float64) + np.asarray(case["centroid"], np.float64)
        # a^P is known at the points that farthest point sampling left; each other point has its nearest one's
        groups = np.unique(found.point_attention, return_inverse=True)[1]
        spicules = volumes.planted == code
        scored = surface_scores(values, points, spicules, volumes.mask, volumes.affine, groups=groups, seed=seed)
        return [{"patient": found.patient, "truth": "spicules", "map": key} | row for key, row in scored.items()]

    def _tracts(self, found: GliomaExplanation, volumes: BrainVolumes, tracts: Sequence[int]) -> list[dict[str, Any]]:
        if found.edges is None or not tracts or "infiltrated_tracts" not in self._codes(found.explained("brain")):
            return []
        controls = {"overlap with the tumour": tract_overlap(self.atlas, volumes.mask)}
        if found.edge_factor is not None:
            controls["edge attention"] = found.edge_factor
        scored = tract_scores(found.edges.mask.cpu().numpy(), found.edges.kept.cpu().numpy(), tracts, controls)
        return [{"patient": found.patient, "truth": "infiltrated tracts", "map": k} | row for k, row in scored.items()]


def mean_scores(
    rows: Sequence[Mapping[str, Any]], main: Sequence[str], *, bootstrap: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Means over patients with 95 % intervals: of each map, and of each main map minus each control, paired.

    Args:
        rows: of one sign.
        main: maps that are explanations.
        bootstrap: draws of the intervals.
        seed: of the draws.
    """
    maps = {name: [row for row in rows if row["map"] == name] for name in dict.fromkeys(r["map"] for r in rows)}
    patients = [row["patient"] for row in next(iter(maps.values()))]
    keys = [key for key in rows[0] if key not in ("patient", "truth", "map", "truth_share")]
    content: dict[str, Any] = {"patients": len(patients), "maps": {}, "minus control": {}}
    if "truth_share" in rows[0]:
        content["truth_share"] = float(np.mean([row["truth_share"] for row in rows]))

    def mean(values: Any) -> dict[str, float | None]:
        return grouped_mean(values, patients, bootstrap=bootstrap, seed=seed)

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
