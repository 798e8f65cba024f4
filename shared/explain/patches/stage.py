"""The explanation of patches: maps, how well they hit the lesion, and whether they depend on the weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from shared.bundle.model import load_model
from shared.explain.boxes import bounding_box
from shared.explain.localisation import scores_beside_controls
from shared.explain.patches.cases import mask_at, source_image, stack_images
from shared.explain.patches.explainer import PatchExplainer, PatchExplanation
from shared.explain.randomisation import cascading_randomisation
from shared.io import write_csv, write_json
from shared.metrics.classification import grouped_mean

logger = logging.getLogger(__name__)

SCORES = ("pointing", "energy_inside", "energy_ratio", "iou", "box_iou", "box_mask_iou")


class PatchExplainStage:
    """Explain patches by one kind of map and measure the maps.

    Writes ``explanations.csv`` (a row a patch: classes, probability, box, whether the map is all zero),
    ``gallery.png`` (a random sample), ``randomisation.json`` and ``randomisation.png`` (do the maps change when the
    weights are randomised layer by layer from the top), and, where patches have masks, ``localisation.csv`` (every
    score of every patch and map) and ``localisation.json`` (means with 95 % bootstrap intervals over patients, for
    the maps and for each control, and the maps minus each control; of a signed map its positive part is scored).

    Args:
        network: image to logits.
        cases: the patches: ``image`` (``[3, H, W]`` in [0, 1], or uint8), ``patient``, ``path``, and where known
            ``label`` and ``mask`` (``[1, h, w]``, non-zero inside, of any size), such as
            :class:`shared.explain.PatchCases`.
        output_dir: where the files go.
        seed: of samples, random maps, draws and random weights.
        checkpoint: ``model.pt``, loaded before; None: the network is used as it is.
        bootstrap: draws of the intervals.
        gallery_size: patches in the gallery.
        randomisation_images: patches whose maps (of the one view) are followed while the weights are randomised; 0:
            no such check.
        randomisation_shown: how many of them are drawn.
        randomisation_draws: how often the weights are drawn; a single draw may leave whole classes without a map.
        explainer: settings of :class:`shared.explain.PatchExplainer`: ``explanation``, ``target_layer``,
            ``class_names``, ``class_idx``, ``threshold``, ``device``, ``bf16``, ``batch_size``, ``views`` and
            ``average`` (both as in the evaluation).
    """

    def __init__(
        self,
        network: nn.Module,
        cases: Sequence[Mapping[str, Any]],
        *,
        output_dir: str | os.PathLike,
        seed: int = 0,
        checkpoint: str | os.PathLike | None = None,
        bootstrap: int = 2000,
        gallery_size: int = 12,
        randomisation_images: int = 32,
        randomisation_shown: int = 4,
        randomisation_draws: int = 3,
        **explainer: Any,
    ):
        self.cases, self.output_dir, self.checkpoint = cases, Path(output_dir), checkpoint
        self.explainer = PatchExplainer(network, **explainer)
        self.name = self.explainer.title
        self.seed, self.bootstrap, self.gallery_size = seed, bootstrap, gallery_size
        self.randomisation_images, self.randomisation_shown = randomisation_images, randomisation_shown
        self.randomisation_draws = randomisation_draws

    def run(self) -> None:
        """Explain, score and draw."""
        if self.checkpoint is not None:
            load_model(self.checkpoint, self.explainer.network)
        rows, scores, results = [], [], []
        for number, (case, found) in enumerate(self.explainer(self.cases, progress=True)):
            rows.append(self._row(case, found))
            results.append(found)
            if case.get("mask") is not None and torch.as_tensor(case["mask"]).any():
                scores += self._localise(case, found, self.seed + number)
        write_csv(self.output_dir / "explanations.csv", rows)
        zero = sum(found.all_zero for found in results)
        logger.info("%s of %d patches; in %d of them nothing speaks for the class.", self.name, len(rows), zero)
        if scores:
            self._summarise(scores, len(rows), zero)
        self._gallery(results)
        if self.randomisation_images:
            self._randomise()

    def _row(self, case: Mapping[str, Any], found: PatchExplanation) -> dict[str, Any]:
        # in pixels of the source image, as in boxes.json
        box = bounding_box(found.evidence(source_image(case).shape[-2:]), threshold=self.explainer.threshold)
        row = self.explainer.record(case, found, box)
        row["predicted"], row["all_zero"] = self.explainer.class_names[found.predicted], int(found.all_zero)
        corners = row.pop("box") or {}
        return row | {key: corners.get(key, "") for key in ("x0", "y0", "x1", "y1", "score")}

    def _localise(self, case: Mapping[str, Any], found: PatchExplanation, seed: int) -> list[dict[str, Any]]:
        """Scores of a patch at its mask's size, for the map and for the controls."""
        truth = torch.as_tensor(case["mask"])[None].numpy()
        maps = scores_beside_controls(
            found.evidence(truth.shape[-2:])[None, None],
            truth,
            images=stack_images([case]),
            grid=tuple(found.raw.shape[-2:]),
            name=self.name,
            threshold=self.explainer.threshold,
            seed=seed,
        )
        who = {"image": str(case.get("path", "")), "patient": str(case.get("patient", ""))}
        area = {"truth_share": float((truth != 0).mean())}
        return [who | area | {"map": name} | {k: float(v[0]) for k, v in score.items()} for name, score in maps.items()]

    def _summarise(self, scores: list[dict[str, Any]], patches: int, zero: int) -> None:
        write_csv(self.output_dir / "localisation.csv", scores)
        maps = {name: [row for row in scores if row["map"] == name] for name in dict.fromkeys(r["map"] for r in scores)}
        patients = [row["patient"] for row in maps[self.name]]

        def mean(values: Sequence[float]) -> dict[str, float | None]:
            return grouped_mean(values, patients, bootstrap=self.bootstrap, seed=self.seed)

        summary: dict[str, Any] = {
            "patches": patches,
            "all_zero_maps": zero,
            "scored_patches": len(patients),
            "patients": len(set(patients)),
            "truth_share": mean([row["truth_share"] for row in maps[self.name]]),
            "maps": {},
            f"{self.name} minus control": {},
        }
        for name, rows in maps.items():
            values = {key: [row[key] for row in rows] for key in SCORES}
            count = int(sum(row["all_zero"] for row in rows))
            summary["maps"][name] = {"all_zero": count} | {key: mean(column) for key, column in values.items()}
            if name != self.name:
                paired = {
                    key: np.subtract([row[key] for row in maps[self.name]], column) for key, column in values.items()
                }
                summary[f"{self.name} minus control"][name] = {key: mean(column) for key, column in paired.items()}
            logger.info(
                "Localisation, %s: pointing game %.2f, energy %.2f x chance, box IoU %.2f, %d all zero.",
                name,
                *(float(np.mean(values[key])) for key in ("pointing", "energy_ratio", "box_iou")),
                count,
            )
        write_json(self.output_dir / "localisation.json", summary)

    def _sample(self, count: int) -> list[int]:
        """Patches drawn at random, in order of their labels."""
        drawn = np.random.default_rng(self.seed).permutation(len(self.cases))[:count].tolist()
        return sorted(
            drawn, key=lambda i: (-1 if self.cases[i].get("label") is None else int(self.cases[i]["label"]), i)
        )

    def _title(self, case: Mapping[str, Any], found: PatchExplanation) -> str:
        names, label = self.explainer.class_names, case.get("label")
        known = "" if label is None else f"label: {names[int(label)]}\n"
        what = "predicted" if self.explainer.class_idx is None else "explained"
        return f"{case.get('patient', '')}\n{known}{what}: {names[found.class_idx]} {found.probability:.2f}"

    def _gallery(self, results: Sequence[PatchExplanation]) -> None:
        from shared.visualize import cam_gallery

        picked = self._sample(self.gallery_size)
        cases = [self.cases[i] for i in picked]
        images = stack_images(cases).numpy()
        maps = [results[i].map(images.shape[-2:]) for i in picked]
        masks = [mask_at(case.get("mask"), images.shape[-2:]) for case in cases]
        outlines = np.stack([np.zeros_like(maps[0], dtype=bool) if mask is None else mask for mask in masks])
        cam_gallery(
            images,
            np.stack(maps),
            self.output_dir / "gallery.png",
            titles=[self._title(case, results[i]) for case, i in zip(cases, picked, strict=True)],
            boxes=[bounding_box(one.clip(min=0), threshold=self.explainer.threshold) for one in maps],
            outline=outlines if outlines.any() else None,
            outline_name="mask",
            header=f"{self.name[0].upper()}{self.name[1:]} of {len(picked)} patches drawn at random",
            name=self.name,
            signed=self.explainer.signed,
        )

    def _randomise(self) -> None:
        from shared.visualize import randomisation_figure

        picked = self._sample(self.randomisation_images)
        cases = [self.cases[i] for i in picked]
        images = stack_images(cases)
        checks = [
            cascading_randomisation(
                self.explainer.network,
                images.to(self.explainer.device),
                self.explainer.target_layer,
                class_idx=self.explainer.class_idx,
                explain=self.explainer.maps_of,
                seed=self.seed + draw,
                batch_size=self.explainer.batch_size,
            )
            for draw in range(self.randomisation_draws)
        ]
        first, known = checks[0], np.isfinite(checks[0].spearman[0])
        content = {"images": len(picked), "compared": int(known.sum()), "draws": len(checks), "seed": self.seed}
        if not known.any():
            write_json(self.output_dir / "randomisation.json", content | {"stages": []})
            logger.warning("All %d maps are constant: there is nothing to randomise away.", len(picked))
            return
        patients = [str(case.get("patient", i)) for i, case in zip(picked, cases, strict=True)]
        patients = np.tile(np.array(patients)[known], len(checks))
        measured = {
            key: np.concatenate([getattr(check, key)[:, known] for check in checks], axis=1)
            for key in ("spearman", "ssim", "all_zero")
        }
        stages: list[dict[str, Any]] = []
        for i, name in enumerate(first.stages):
            row = {"randomised_up_to": name, "all_zero_share": float(measured["all_zero"][i].mean())}
            for key in ("spearman", "ssim"):
                row[key] = grouped_mean(measured[key][i], patients, bootstrap=self.bootstrap, seed=self.seed)
            stages.append(row)
        write_json(self.output_dir / "randomisation.json", content | {"stages": stages})
        logger.info(
            "Randomised from the top, the maps' rank correlation with the original falls: %s.",
            ", ".join(f"{row['randomised_up_to']} {row['spearman']['value']:.2f}" for row in stages),
        )
        # maps that are zero everywhere show nothing
        shown = np.flatnonzero(known)[
            np.linspace(0, known.sum() - 1, min(self.randomisation_shown, int(known.sum()))).round().astype(int)
        ]
        randomisation_figure(
            images[shown].numpy(),
            first.maps[:, shown, 0],
            self.output_dir / "randomisation.png",
            stages=first.stages,
            **measured,
            titles=[str(cases[i].get("patient", "")) for i in shown],
            title=f"{self.name[0].upper()}{self.name[1:]} while the weights are randomised from the top",
            signed=self.explainer.signed,
        )
