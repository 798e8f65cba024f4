"""Everything IRCL says of one patient: probability, biomarkers, contributions or masks (Eq. 10), Shapley values."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn

from shared.errors import DataError
from shared.explain.ircl.biomarker_mask import BiomarkerMask, MaskExplanation
from shared.explain.ircl.shapley import BiomarkerShapley, additive_shapley, biomarker_shapley, no_biomarkers
from shared.io import atomic_path, write_json
from shared.networks.ircl.additive import biomarker_names
from shared.transforms.roi_slices import masks_to_volume, pixel_area, radiological, source_slices

logger = logging.getLogger(__name__)


class PatientExplainer:
    """Explain a patient's prediction by its biomarkers.

    Where the network's additive predictor answers, the explanation is the prediction: a map of contributions whose sum,
    with the bias and the covariates, is the logit. Where the prototype transformer answers, it is the Shapley values of
    its prototypes and, with ``mask``, the masks of Eq. 10.

    Args:
        network: the trained :class:`shared.networks.IRCLClassifier`.
        mask: optimiser of the biomarker masks; None: no masks.
        modalities: names of the modalities.
        class_names: names of the classes; the second is the positive one.
        covariates: names of the covariates.
        device: where the network runs.
        answer: which predictor is explained; None: the one that answers.

    Example:
        >>> from shared.networks import IRCLClassifier
        >>> net = IRCLClassifier(2, 2, channels=(4, 8), dim=8, num_layers=1, num_heads=2, mlp_dim=8).eval()
        >>> case = {"patient": "P1", "image": torch.rand(2, 8, 8), "covariates": torch.zeros(0)}
        >>> result = PatientExplainer(net)(case)
        >>> len(result["images"]), result["images"][0]["modality"]
        (2, 'modality 0')
    """

    def __init__(
        self,
        network: nn.Module,
        mask: BiomarkerMask | None = None,
        *,
        modalities: Sequence[str] | None = None,
        class_names: Sequence[str] = ("negative", "positive"),
        covariates: Sequence[str] = (),
        device: str | torch.device = "cpu",
        answer: str | None = None,
    ):
        self.network, self.mask, self.covariates = network, mask, list(covariates)
        self.modalities, self.class_names, self.device = modalities, list(class_names), device
        self.answer = answer or getattr(network, "answer", "prototype")
        self._told = False

    @property
    def names(self) -> list[str]:
        """Names of what has a Shapley value."""
        if self.answer == "additive":
            return [*biomarker_names(self.network.additive, self.modalities), *self.covariates]
        return [f"Biomarker {k}" for k in range(len(self.network.biomarkers))]

    @property
    def unit(self) -> str:
        """What Shapley values are a contribution to."""
        return "log odds" if self.answer == "additive" else "probability"

    def __call__(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """Explain one case of a :class:`shared.data.CaseDataset`.

        Returns:
            ``patient``, ``probability``, ``images`` (modality, slice and what is told of each), ``shapley`` (None, with
            a warning, where the prediction passes the biomarkers by), ``shown`` (which biomarkers the patient has),
            ``masks`` (a :class:`MaskExplanation` or None), ``places`` (map of contributions and biomarker map
            ``[m, h, w]``, areas in mm2 a slice; or None).

        Raises:
            DataError: the network has no biomarkers.
        """
        reason = None if self.answer == "additive" else no_biomarkers(self.network)
        if reason is not None and not hasattr(self.network, "biomarkers"):
            raise DataError(f"{reason}.")
        if reason is not None and not self._told:
            logger.warning("There are no Shapley values of biomarkers: %s.", reason)
            self._told = True
        network = self.network.to(self.device).eval()
        image = torch.as_tensor(case["image"])[None].to(self.device)
        covariates = case["covariates"][None].to(self.device)
        found = self._additive if self.answer == "additive" else self._prototypes
        return {"patient": str(case["patient"])} | found(network, case, image, covariates)

    def _additive(self, network: nn.Module, case: Mapping[str, Any], image: Tensor, known: Tensor) -> dict[str, Any]:
        predictor = network.additive
        contributions, biomarkers, amounts = predictor.explain(image)
        shapley = additive_shapley(predictor, amounts, known)
        side, grid = image.shape[-1], contributions.shape[-1]
        # mm2 of a place; unknown where the case was not cut from a volume
        area = pixel_area(case["geometry"], side) * (side / grid) ** 2 if "geometry" in case else float("nan")
        slices = predictor.num_images // predictor.num_modalities
        covered = predictor.coverage(image, grid)[0].cpu()
        count = predictor.num_modalities * predictor.num_biomarkers
        owner = biomarkers[0].cpu()
        areas = torch.zeros(count, dtype=covered.dtype)
        areas.index_add_(0, owner[owner >= 0], covered[owner >= 0])
        shown = torch.cat([(amounts[0] > 0).flatten().cpu(), torch.ones(len(self.covariates), dtype=torch.bool)])
        images = self._images(case, image.shape[1])
        for row, value in zip(images, contributions[0].sum(dim=(1, 2)), strict=True):
            row["contribution"] = round(float(value), 6)
        return {
            "probability": float(torch.special.expit(shapley.full[0])),
            "images": images,
            "shapley": shapley,
            "shown": shown.numpy(),
            "masks": None,
            "places": {"contributions": contributions[0].cpu(), "biomarkers": owner, "area_mm2": areas * area / slices},
        }

    def _prototypes(self, network: nn.Module, case: Mapping[str, Any], image: Tensor, known: Tensor) -> dict[str, Any]:
        with torch.no_grad():
            h, z = network.encode(image)
            assignment, similarity = network.assign(z)
            probability = network.predictor(h, assignment, known).double().softmax(dim=1)[0, 1]
        masks = None
        if self.mask is not None:
            masks = self.mask.explain(
                network.encoder, image[0, :, None], network.biomarkers[assignment[0]], network.rivals()
            )
        images = self._images(case, image.shape[1])
        for row, biomarker, value in zip(images, assignment[0], similarity[0], strict=True):
            row |= {"biomarker": int(biomarker), "similarity": round(float(value), 6)}
        return {
            "probability": float(probability),
            "images": images,
            "shapley": None if no_biomarkers(network) else biomarker_shapley(network, h, assignment, known),
            "shown": np.isin(np.arange(len(network.biomarkers)), assignment[0].cpu()),
            "masks": masks,
            "places": None,
        }

    def _images(self, case: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
        names = self.modalities or [f"modality {i}" for i in range(case.get("geometry", {}).get("num_modalities", 1))]
        slices = source_slices(case["geometry"]) if "geometry" in case else range(count // len(names))
        return [{"modality": name, "slice": int(index)} for name in names for index in slices]

    def write(self, case: Mapping[str, Any], result: Mapping[str, Any], folder: str | os.PathLike) -> None:
        """Write ``<patient>.json``, ``<patient>_overlay.png`` and the maps on the source's grid.

        Of the additive predictor ``<patient>_contributions.nii.gz`` (log odds of each voxel; their sum is the map's)
        and ``<patient>_biomarkers.nii.gz`` (biomarker + 1, 0 outside the tumour); of masks ``<patient>_mask.nii.gz``.
        """
        folder, patient = Path(folder), result["patient"]
        write_json(folder / f"{patient}.json", self.summary(result))
        if result["places"] is not None:
            places = result["places"]
            for name, values, mode in (
                ("contributions", places["contributions"], "sum"),
                ("biomarkers", places["biomarkers"] + 1, "nearest"),
            ):
                with atomic_path(folder / f"{patient}_{name}.nii.gz") as temporary:
                    nib.save(masks_to_volume(values, case["geometry"], mode=mode), temporary)
            self._draw_contributions(case, result, folder / f"{patient}_overlay.png")
        elif result["masks"] is not None:
            values = result["masks"].mask[:, 0].cpu()
            with atomic_path(folder / f"{patient}_mask.nii.gz") as temporary:
                nib.save(masks_to_volume(values, case["geometry"]), temporary)
            self._draw_masks(case, result, values, folder / f"{patient}_overlay.png")

    def _draw_masks(
        self, case: Mapping[str, Any], result: Mapping[str, Any], values: Tensor, path: str | os.PathLike
    ) -> None:
        from shared.visualize import overlay_grid

        titles = [
            f"{row['modality']}, slice {row['slice']}\nbiomarker {row['biomarker']}, similarity {row['similarity']:.2f}"
            for row in result["images"]
        ]
        overlay_grid(
            radiological(torch.as_tensor(case["image"])),
            radiological(values),
            path,
            titles=titles,
            **self._about(case, result),
        )

    def _draw_contributions(self, case: Mapping[str, Any], result: Mapping[str, Any], path: str | os.PathLike) -> None:
        from shared.visualize import contribution_grid

        summary = self.summary(result)
        contribution_grid(
            radiological(torch.as_tensor(case["image"])),
            radiological(result["places"]["contributions"]),
            path,
            titles=[f"{row['modality']}, slice {row['slice']}: {row['contribution']:+.2f}" for row in result["images"]],
            speaks=[*summary["for"], *summary["against"]],
            positive_name=self.class_names[1],
            **self._about(case, result),
        )

    def _about(self, case: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
        """What both pictures show: the tumour's outline, a header, the modalities row by row."""
        label = case.get("label")
        truth = "" if label is None else f" (label: {self.class_names[int(label)]})"
        header = f"{result['patient']}: probability of {self.class_names[1]} {result['probability']:.2f}{truth}"
        outline = radiological(case["mask"]) if "mask" in case else None
        columns = len(result["images"]) // case["geometry"]["num_modalities"]
        return {"outline": outline, "header": header, "columns": columns}

    def summary(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """The result in plain numbers."""
        shapley: BiomarkerShapley | None = result["shapley"]
        masks: MaskExplanation | None = result["masks"]
        images = [dict(row) for row in result["images"]]
        if masks is not None:
            for i, row in enumerate(images):
                row["mask_mean"] = round(float(masks.mask[i].mean()), 6)
                row["distance_before"] = round(float(masks.distance_before[i]), 6)
                row["distance_after"] = round(float(masks.distance_after[i]), 6)
        found = {
            "patient": result["patient"],
            "probability": result["probability"],
            "positive_class": self.class_names[1],
            "answer": self.answer,
            "images": images,
            "shapley": None,
        }
        if shapley is None:
            return found
        values = [float(value) + 0.0 for value in shapley.values[0]]  # no -0.0
        keys = self.names if self.answer == "additive" else [str(k) for k in range(len(values))]
        told = {"unit": self.unit, "base": float(shapley.base[0]), "values": dict(zip(keys, values, strict=True))}
        found["shapley"] = told
        if result["places"] is not None:
            predictor = self.network.additive
            found |= {
                "log_odds": float(shapley.full[0]),
                "bias": float(predictor.log_odds(predictor.bias)),
            } | self._speaks(values, result["places"])
        return found

    def rows(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Rows of a table: of every biomarker that the patient has, or of the prototypes' images."""
        if result["places"] is None:
            return result["images"]
        values, areas = result["shapley"].values[0].tolist(), result["places"]["area_mm2"].tolist()
        return [
            {"biomarker": name, "area_mm2": round(area, 4), "log_odds": round(value, 6)}
            for name, area, value, has in zip(self.names, areas, values, result["shown"], strict=False)
            if has
        ]

    def _speaks(self, values: Sequence[float], places: Mapping[str, Any], most: int = 5) -> dict[str, Any]:
        """What speaks most for and against the positive class, of the first member's biomarkers with their area."""
        areas = [float(area) for area in places["area_mm2"]]
        rows = []
        for k, (name, value) in enumerate(zip(self.names, values, strict=True)):
            row: dict[str, Any] = {"name": name, "log_odds": round(value, 6)}
            if k < len(areas):
                row["area_mm2"] = None if np.isnan(areas[k]) else round(areas[k], 2)
            rows.append(row)
        ordered = sorted(rows, key=lambda row: -abs(row["log_odds"]))
        return {
            "for": [row for row in ordered if row["log_odds"] > 0][:most],
            "against": [row for row in ordered if row["log_odds"] < 0][:most],
        }
