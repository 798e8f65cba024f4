"""Everything IRCL says of one patient: probability, biomarkers, masks (Eq. 10), Shapley values; and its files."""

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
from shared.explain.ircl.shapley import BiomarkerShapley, biomarker_shapley, no_biomarkers
from shared.io import atomic_path, write_json
from shared.transforms.roi_slices import masks_to_volume, radiological, source_slices

logger = logging.getLogger(__name__)


class PatientExplainer:
    """Explain a patient's prediction by its biomarkers.

    Args:
        network: the trained :class:`shared.networks.IRCLClassifier`.
        mask: optimiser of the biomarker masks; None: no masks.
        modalities: names of the modalities.
        class_names: names of the classes; the second is the positive one.
        device: where the network runs.

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
        device: str | torch.device = "cpu",
    ):
        self.network, self.mask = network, mask
        self.modalities, self.class_names, self.device = modalities, list(class_names), device
        self._told = False

    def __call__(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """Explain one case of a :class:`shared.data.CaseDataset`.

        Returns:
            ``patient``, ``probability``, ``images`` (modality, slice, biomarker, similarity of each), ``shapley``
            (None, with a warning, where the prediction passes the biomarkers by), ``masks`` (a
            :class:`MaskExplanation` or None).

        Raises:
            DataError: the network has no biomarkers.
        """
        reason = no_biomarkers(self.network)
        if reason is not None and not hasattr(self.network, "biomarkers"):
            raise DataError(f"{reason}.")
        if reason is not None and not self._told:
            logger.warning("There are no Shapley values of biomarkers: %s.", reason)
            self._told = True
        network = self.network.to(self.device).eval()
        image = torch.as_tensor(case["image"])[None].to(self.device)
        covariates = case["covariates"][None].to(self.device)
        with torch.no_grad():
            h, z = network.encode(image)
            assignment, similarity = network.assign(z)
            probability = network.predictor(h, assignment, covariates).double().softmax(dim=1)[0, 1]
        shapley = None if reason is not None else biomarker_shapley(network, h, assignment, covariates)
        masks = None
        if self.mask is not None:
            masks = self.mask.explain(
                network.encoder, image[0, :, None], network.biomarkers[assignment[0]], network.rivals()
            )
        return {
            "patient": str(case["patient"]),
            "probability": float(probability),
            "images": self._images(case, assignment[0], similarity[0]),
            "shapley": shapley,
            "masks": masks,
        }

    def _images(self, case: Mapping[str, Any], assignment: Tensor, similarity: Tensor) -> list[dict[str, Any]]:
        count = len(assignment)
        names = self.modalities or [f"modality {i}" for i in range(case.get("geometry", {}).get("num_modalities", 1))]
        slices = source_slices(case["geometry"]) if "geometry" in case else range(count // len(names))
        places = [(name, index) for name in names for index in slices]
        return [
            {"modality": name, "slice": int(index), "biomarker": int(biomarker), "similarity": round(float(value), 6)}
            for (name, index), biomarker, value in zip(places, assignment, similarity, strict=True)
        ]

    def write(self, case: Mapping[str, Any], result: Mapping[str, Any], folder: str | os.PathLike) -> None:
        """Write ``<patient>.json``, ``<patient>_mask.nii.gz`` (source grid) and ``<patient>_overlay.png``."""
        from shared.visualize import overlay_grid

        folder, patient = Path(folder), result["patient"]
        masks: MaskExplanation | None = result["masks"]
        write_json(folder / f"{patient}.json", self.summary(result))
        if masks is None:
            return
        values = masks.mask[:, 0].cpu()
        with atomic_path(folder / f"{patient}_mask.nii.gz") as temporary:
            nib.save(masks_to_volume(values, case["geometry"]), temporary)
        titles = [
            f"{row['modality']}, slice {row['slice']}\nbiomarker {row['biomarker']}, similarity {row['similarity']:.2f}"
            for row in result["images"]
        ]
        label = case.get("label")
        truth = "" if label is None else f" (label: {self.class_names[int(label)]})"
        overlay_grid(
            radiological(torch.as_tensor(case["image"])),
            radiological(values),
            folder / f"{patient}_overlay.png",
            titles=titles,
            outline=radiological(case["mask"]) if "mask" in case else None,
            header=f"{patient}: probability of {self.class_names[1]} {result['probability']:.2f}{truth}",
            columns=len(result["images"]) // case["geometry"]["num_modalities"],
        )

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
        return {
            "patient": result["patient"],
            "probability": result["probability"],
            "positive_class": self.class_names[1],
            "images": images,
            "shapley": None
            if shapley is None
            else {
                "unit": "probability",
                "base": float(shapley.base[0]),
                "values": {str(k): float(value) for k, value in enumerate(shapley.values[0])},
            },
        }


def occurring_biomarkers(result: Mapping[str, Any], count: int) -> np.ndarray:
    """Which of ``count`` biomarkers a patient shows, ``[count]`` bool."""
    return np.isin(np.arange(count), [row["biomarker"] for row in result["images"]])
