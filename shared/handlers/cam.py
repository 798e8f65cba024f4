"""Inference's pictures of patches: maps, overlays, and one table of boxes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from shared.explain.boxes import BOX_CONVENTION
from shared.explain.patches.cases import PatchCases, unique_names
from shared.explain.patches.explainer import PatchExplainer
from shared.io import write_json


class SaveGradCAM:
    """Explain the patches that an evaluator has predicted, by one kind of map.

    Writes per patch ``cam/<name>.png`` (the map, 8-bit grey, at the source image's size) and ``overlays/<name>.png``,
    and at the end ``boxes.json``: of every patch its class, probability and box (null where nothing speaks for the
    class). A name is the image's path below ``dataset_dir`` with the folders joined by ``-``.

    Args:
        network: image to logits.
        cases: the patches; each has ``image`` (``[3, H, W]``, in [0, 1] or uint8) and ``path``, and may have
            ``patient``, ``label``, ``mask``.
        output_dir: where the files go.
        dataset_dir: folder that the names leave out; None: what all paths have in common.
        explainer: settings of :class:`shared.explain.PatchExplainer`: ``explanation``, ``target_layer``,
            ``class_names``, ``class_idx``, ``threshold``, ``device``, ``bf16``, ``batch_size``, ``views`` and
            ``average`` (both as in the evaluation).
    """

    def __init__(
        self,
        network: nn.Module,
        cases: Sequence[Mapping[str, Any]],
        output_dir: str | os.PathLike,
        *,
        dataset_dir: str | os.PathLike | None = None,
        **explainer: Any,
    ):
        self.cases, self.output_dir, self.dataset_dir = cases, Path(output_dir), dataset_dir
        self.explainer = PatchExplainer(network, **explainer)

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
            "explanation": self.explainer.explanation,
            "target_layer": self.explainer.target_layer if "cam" in self.explainer.explanation else None,
            "threshold": self.explainer.threshold,
            "patches": patches,
        }
        write_json(self.output_dir / "boxes.json", content)
