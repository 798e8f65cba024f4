"""Inference's pictures of patches: maps, overlays, and one table of boxes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from shared.explain.boxes import BOX_CONVENTION
from shared.explain.patch import PatchExplainer
from shared.explain.patch_cases import PatchCases, unique_names
from shared.io import write_json


class SaveGradCAM:
    """Explain the patches that an evaluator has predicted, by Grad-CAM.

    Writes per patch ``cam/<name>.png`` (the map, 8-bit grey, at the source image's size) and ``overlays/<name>.png``,
    and at the end ``boxes.json``: of every patch its class, probability and box (null where the map is all zero). A
    name is the image's path below ``dataset_dir`` with the folders joined by ``-``.

    Args:
        network: image to logits.
        cases: the patches; each has ``image`` (``[3, H, W]``, in [0, 1] or uint8) and ``path``, and may have
            ``patient``, ``label``, ``mask``.
        output_dir: where the files go.
        target_layer: where the maps are taken.
        class_names: names of the classes.
        class_idx: the class to explain; None: what is predicted.
        threshold: share of a map's maximum from which a pixel belongs to its box.
        dataset_dir: folder that the names leave out; None: what all paths have in common.
        device: where the network runs.
        bf16: run it under bfloat16 autocast.
        batch_size: patches at once.
        views: flips and rotations (1 to 8) over which probabilities and maps are averaged; as in the evaluation.
    """

    def __init__(
        self,
        network: nn.Module,
        cases: Sequence[Mapping[str, Any]],
        output_dir: str | os.PathLike,
        *,
        target_layer: str = "encoder.layer4",
        class_names: Sequence[str] = ("negative", "positive"),
        class_idx: int | None = None,
        threshold: float = 0.5,
        dataset_dir: str | os.PathLike | None = None,
        device: str | torch.device = "cpu",
        bf16: bool = False,
        batch_size: int = 32,
        views: int = 1,
    ):
        self.cases, self.output_dir, self.dataset_dir = cases, Path(output_dir), dataset_dir
        self.explainer = PatchExplainer(
            network,
            target_layer=target_layer,
            class_names=class_names,
            class_idx=class_idx,
            threshold=threshold,
            device=device,
            bf16=bf16,
            batch_size=batch_size,
            views=views,
        )

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Explain and write all patches."""
        paths = self.cases.paths if isinstance(self.cases, PatchCases) else [case["path"] for case in self.cases]
        names, patches = unique_names(paths, self.dataset_dir), []
        for (case, found), name in zip(self.explainer(self.cases, progress=True), names, strict=True):
            patches.append(self.explainer.write(case, found, self.output_dir, name))
        content = {
            "boxes": BOX_CONVENTION,
            "target_layer": self.explainer.target_layer,
            "threshold": self.explainer.threshold,
            "patches": patches,
        }
        write_json(self.output_dir / "boxes.json", content)
