"""Scores of every explanation of patches, beside maps that know nothing that was learnt."""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.errors import DataError
from shared.explain.controls import centred_gaussian_map, darkness_map, edge_density_map, random_map, resize_maps
from shared.explain.grad_cam import frozen
from shared.explain.localisation import box_scores, energy_ratio, pointing_game
from shared.explain.patches.cases import stack_images
from shared.explain.patches.explainer import PatchExplainer
from shared.explain.perturbation import FILLS, perturbation_areas
from shared.explain.randomisation import redraw

UNTRAINED = "untrained network"
METHODS: dict[str, dict[str, str]] = {
    "additive map": {"explanation": "additive"},
    "Grad-CAM": {"explanation": "grad_cam", "target_layer": "encoder.layer4"},
    "Grad-CAM, stage 3": {"explanation": "grad_cam", "target_layer": "encoder.layer3"},
    "LayerCAM": {"explanation": "layer_cam", "target_layer": "encoder.layer4"},
    "LayerCAM, stage 3": {"explanation": "layer_cam", "target_layer": "encoder.layer3"},
    "integrated gradients": {"explanation": "integrated_gradients"},
    UNTRAINED: {"explanation": "additive"},
}
CONTROLS = ("darkness", "edge density", "centred Gaussian", "random map")
SCORES = ("pointing", "energy_ratio", "box_iou", "all_zero")
SCORES += (*(f"{kind}_{fill}" for fill in FILLS for kind in ("deletion", "insertion")), "seconds")


class PatchComparison:
    """Explain patches by every method, and score the maps.

    Each patch is explained for its predicted class (or ``explainer.class_idx``), by all methods alike. Where it has a
    mask, what a map says for the class is scored at the mask's size: pointing game, energy over chance, IoU of the
    boxes. Areas under deletion and insertion are of the class's probability of the patch as it lies (one view), in the
    order of the map, what speaks against the class last. ``all_zero`` is 1 where nothing speaks for the class.

    Args:
        explainer: of the trained network, with its views and average; its own kind of map does not matter.
        methods: names of ``METHODS`` and ``CONTROLS``; None: all.
        steps: of deletion and insertion.
        cell: side of the cells that are deleted, in pixels of what the network sees.
        seed: of the untrained network, the random maps and the order among equal cells.

    Raises:
        DataError: no method of that name.
    """

    def __init__(
        self,
        explainer: PatchExplainer,
        methods: Sequence[str] | None = None,
        *,
        steps: int = 20,
        cell: int = 4,
        seed: int = 0,
    ):
        known = [*METHODS, *CONTROLS]
        unknown = sorted(set(methods or ()) - set(known))
        if unknown:
            raise DataError(
                f"No explanation is called {', '.join(map(repr, unknown))}; there are {', '.join(map(repr, known))}."
            )
        self.explainer, self.steps, self.cell, self.seed = explainer, steps, cell, seed
        self.methods = [name for name in known if methods is None or name in methods]
        self.networks: dict[str, nn.Module] = dict.fromkeys(self.methods, explainer.network)
        if UNTRAINED in self.networks:
            self.networks[UNTRAINED] = copy.deepcopy(explainer.network)
            redraw([self.networks[UNTRAINED]], seed)

    def predicted(self, cases: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
        """Class to explain and its probability, of each patch."""
        quick = self.explainer.like(**METHODS["Grad-CAM"])
        return [(found.class_idx, found.probability) for _, found in quick(cases)]

    def __call__(
        self,
        cases: Sequence[Mapping[str, Any]],
        explained: Sequence[tuple[int, float]],
        *,
        keep: Collection[int] = (),
        progress: bool = False,
    ) -> tuple[list[dict[str, Any]], dict[str, dict[int, np.ndarray]]]:
        """A row of each method and patch, and the maps of the patches to keep, by method and place among the cases.

        Args:
            cases: the patches, see :class:`PatchExplainer`.
            explained: of :meth:`predicted`.
            keep: places of the patches whose maps are given back, at the size that the network sees, ``[H, W]``: in
                [0, 1], signed ones in [-1, 1].
            progress: show a bar of each method.
        """
        from tqdm import tqdm

        rows: list[dict[str, Any]] = []
        kept: dict[str, dict[int, np.ndarray]] = {}
        for name in self.methods:
            kept[name] = {}
            of = tqdm(self._maps(name, cases, explained), name, len(cases), unit="patch", disable=not progress)
            for i, evidence, order, seconds in of:
                row = self._who(cases[i], *explained[i]) | {"method": name}
                row |= self._localisation(evidence, cases[i].get("mask"))
                row |= self._perturbation(torch.from_numpy(order), cases[i], explained[i][0], i)
                rows.append(row | {"all_zero": float(not evidence.any()), "seconds": seconds})
                if i in keep:
                    kept[name][i] = order
        return rows, kept

    def _maps(
        self, name: str, cases: Sequence[Mapping[str, Any]], explained: Sequence[tuple[int, float]]
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, float]]:
        """Place of a patch, what speaks for its class at its mask's size, its map at its own size, seconds."""
        if name in CONTROLS:
            for i, case in enumerate(cases):
                start = time.perf_counter()
                values = self._control(name, stack_images([case]), i)
                seconds = time.perf_counter() - start
                yield i, resize_maps(values, _size(case))[0, 0], values[0, 0].copy(), seconds
            return
        # those of one class together: an explainer explains one
        for class_idx in sorted({k for k, _ in explained}):
            rows = [i for i, (k, _) in enumerate(explained) if k == class_idx]
            explainer = self.explainer.like(self.networks[name], **METHODS[name], class_idx=class_idx)
            start = time.perf_counter()
            found = [result for _, result in explainer([cases[i] for i in rows])]
            seconds = (time.perf_counter() - start) / len(rows)
            for i, result in zip(rows, found, strict=True):
                own = torch.as_tensor(cases[i]["image"]).shape[1:]
                yield i, result.evidence(_size(cases[i])), result.map(own).copy(), seconds

    def _control(self, name: str, image: Tensor, number: int) -> np.ndarray:
        shape = (1, 1, *image.shape[2:])
        if name == "darkness":
            return darkness_map(image)
        if name == "edge density":
            return edge_density_map(image)
        return (
            centred_gaussian_map(shape) if name == "centred Gaussian" else random_map(shape, seed=(self.seed, number))
        )

    def _localisation(self, evidence: np.ndarray, mask: Any) -> dict[str, float | None]:
        truth = None if mask is None else torch.as_tensor(mask)[None].numpy()
        if truth is None or not truth.any():
            return dict.fromkeys((*SCORES[:3], "truth_share"))
        maps, threshold = evidence[None, None], self.explainer.threshold
        scores = {"pointing": pointing_game(maps, truth), "energy_ratio": energy_ratio(maps, truth)}
        scores["box_iou"] = box_scores(maps, truth, threshold=threshold)["box_iou"]
        return {key: float(value[0]) for key, value in scores.items()} | {"truth_share": float((truth != 0).mean())}

    def _perturbation(self, order: Tensor, case: Mapping[str, Any], class_idx: int, number: int) -> dict[str, float]:
        network, device = self.explainer.network, self.explainer.device
        given = {"steps": self.steps, "cell": self.cell, "seed": self.seed + number}

        def probability(x: Tensor) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=self.explainer.bf16):
                return network(x).double().softmax(dim=1)[:, class_idx]

        with frozen(network):
            return perturbation_areas(probability, stack_images([case]).to(device), order[None].to(device), **given)

    def _who(self, case: Mapping[str, Any], class_idx: int, probability: float) -> dict[str, Any]:
        names, label = self.explainer.class_names, case.get("label")
        return {
            "image": str(case.get("path", "")),
            "patient": str(case.get("patient", "")),
            "label": None if label is None else names[int(label)],
            "class": names[class_idx],
            "probability": probability,
        }


def _size(case: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of a case's mask, else of its image."""
    shown = case["image"] if case.get("mask") is None else case["mask"]
    height, width = torch.as_tensor(shown).shape[-2:]
    return height, width
