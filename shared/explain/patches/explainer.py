"""Everything that is said of a patch: class, probability, map and box at the source's size; and its files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from shared.errors import DataError
from shared.explain.boxes import Box, bounding_box, box_record
from shared.explain.grad_cam import CAMExplanation, resize_cam
from shared.explain.patches.cases import mask_at, source_image, stack_images
from shared.explain.patches.maps import SIGNED, TITLES, class_margin, patch_maps, resize_signed
from shared.networks.blocks import check_views, turned, turned_back


@dataclass(frozen=True)
class PatchExplanation:
    """What a map says of one patch.

    Attributes:
        raw: the map before it is scaled or resized, ``[1, 1, h, w]``.
        class_idx: the class explained.
        probabilities: of all classes.
        margin: logit of the class explained less the mean of the others', mean over the views.
        signed: the map is negative where a place speaks against the class.
    """

    raw: Tensor
    class_idx: int
    probabilities: list[float]
    margin: float = 0.0
    signed: bool = False

    @property
    def probability(self) -> float:
        """Probability of the class explained."""
        return self.probabilities[self.class_idx]

    @property
    def predicted(self) -> int:
        """The most probable class."""
        return int(np.argmax(self.probabilities))

    @property
    def all_zero(self) -> bool:
        """Nothing in the patch speaks for the class."""
        return not bool((self.raw > 0).any())

    def map(self, size: Sequence[int]) -> np.ndarray:
        """The map at a height and width, ``[H, W]``: in [0, 1], a signed one in [-1, 1] with 0 where it is 0."""
        resize = resize_signed if self.signed else resize_cam
        return resize(self.raw, size)[0, 0].numpy()

    def evidence(self, size: Sequence[int]) -> np.ndarray:
        """What of the map speaks for the class, not negative, ``[H, W]``."""
        return self.map(size).clip(min=0)

    def balance(self) -> dict[str, float]:
        """What all places together add to the margin, for and against the class, and what no place does (the bias).

        Of an additive map the three sum to ``margin``.
        """
        speaks = {"for": float(self.raw.clamp(min=0).mean()), "against": float(self.raw.clamp(max=0).mean())}
        return {**speaks, "bias": self.margin - sum(speaks.values()), "margin": self.margin}


class PatchExplainer:
    """Explain the predictions of patches by one kind of map.

    A case is a dictionary with ``image`` (``[3, H, W]`` in [0, 1], or uint8) and, where known, ``path`` (the source
    image), ``patient``, ``label``, ``mask`` (``[1, H, W]``, non-zero inside the lesion).

    Args:
        network: image to logits ``[B, K]``.
        explanation: ``"additive"`` (the network has ``contributions``), ``"grad_cam"``, ``"layer_cam"`` or
            ``"integrated_gradients"``, see :func:`shared.explain.patch_maps`.
        target_layer: where Grad-CAM and LayerCAM are taken.
        class_names: names of the K classes.
        class_idx: the class to explain; None: what is predicted.
        threshold: share of a map's maximum from which a pixel belongs to its box; of a signed map its positive part
            counts.
        device: where the network runs.
        bf16: run it under bfloat16 autocast.
        batch_size: patches at once.
        views: 1 to 8 of the square's symmetries, whose answers and maps (turned back) are averaged, as
            :class:`shared.engines.DihedralInferer` does with the former; 1 is the patch as it is.
        average: ``"logits"`` or ``"probabilities"`` of the views. Additive maps speak of the mean logits in both cases,
            which are the answer in the first.

    Raises:
        DataError: no such layer, or no contributions; a number of class names that is not that of the logits; several
            views of patches that are not square.
        ValueError: ``views`` is out of range, an unknown ``explanation`` or ``average``.

    Example:
        >>> features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        >>> network = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> given = {"explanation": "grad_cam", "target_layer": "0", "class_names": ["HP", "SSA"]}
        >>> explainer = PatchExplainer(network, **given)
        >>> case, found = next(explainer([{"image": torch.rand(3, 16, 16)}]))
        >>> found.raw.shape, found.map((32, 32)).shape, len(found.probabilities)
        (torch.Size([1, 1, 14, 14]), (32, 32), 2)
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        explanation: str = "additive",
        target_layer: str = "encoder.layer4",
        class_names: Sequence[str] = ("negative", "positive"),
        class_idx: int | None = None,
        threshold: float = 0.5,
        device: str | torch.device = "cpu",
        bf16: bool = False,
        batch_size: int = 32,
        views: int = 1,
        average: str = "probabilities",
    ):
        check_views(views)
        if average not in ("logits", "probabilities"):
            raise ValueError(f"average must be logits or probabilities, got {average!r}.")
        self.views, self.average, self.explanation = views, average, explanation
        self.network, self.target_layer, self.class_names = network, target_layer, list(class_names)
        self.cam, self.signed, self.title = self.maps_of(network), explanation in SIGNED, TITLES[explanation]
        self.class_idx, self.threshold, self.batch_size = class_idx, threshold, batch_size
        self.device, self.bf16 = torch.device(device), bf16

    def like(self, network: nn.Module | None = None, **changes: Any) -> PatchExplainer:
        """Another one with some settings changed."""
        kept = ("explanation", "target_layer", "class_names", "class_idx", "threshold", "device", "bf16", "batch_size")
        given = {key: getattr(self, key) for key in (*kept, "views", "average")}
        return PatchExplainer(self.network if network is None else network, **given | changes)

    def maps_of(self, network: nn.Module) -> Any:
        """What makes such maps of a network of the same build."""
        return patch_maps(network, self.explanation, self.target_layer)

    def __call__(
        self, cases: Sequence[Mapping[str, Any]], *, progress: bool = False
    ) -> Iterator[tuple[Mapping[str, Any], PatchExplanation]]:
        """Each case with its explanation, in order, computed in batches."""
        self.network.to(self.device)
        with tqdm(total=len(cases), desc="Explaining", unit="patch", disable=not progress) as bar:
            for start in range(0, len(cases), self.batch_size):
                batch = [cases[i] for i in range(start, min(start + self.batch_size, len(cases)))]
                yield from zip(batch, self._explain(batch), strict=True)
                bar.update(len(batch))

    def _explain(self, batch: Sequence[Mapping[str, Any]]) -> list[PatchExplanation]:
        images = stack_images(batch).to(self.device)
        if self.views > 1 and images.shape[2] != images.shape[3]:
            raise DataError(f"Several views need square patches, got {tuple(images.shape[2:])}: set views to 1.")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            found = [self.cam.explain(turned(images, view), self.class_idx) for view in range(self.views)]
        classes = found[0].logits.shape[1]
        if classes != len(self.class_names):
            raise DataError(f"The network has {classes} classes, the names are {self.class_names}: give one for each.")
        logits = torch.stack([part.logits.double() for part in found])
        mean = logits.mean(dim=0)
        probabilities = mean.softmax(dim=1) if self.average == "logits" else logits.softmax(dim=2).mean(dim=0)
        target = probabilities.argmax(dim=1) if self.class_idx is None else found[0].target
        raw = torch.stack([self._raw(images, view, part, target) for view, part in enumerate(found)]).mean(dim=0)
        margin = class_margin(mean, target)[:, 0]
        return [
            PatchExplanation(one[None], int(class_idx), values.tolist(), float(difference), self.signed)
            for one, class_idx, values, difference in zip(raw.cpu(), target, probabilities.cpu(), margin, strict=True)
        ]

    def _raw(self, images: Tensor, view: int, found: CAMExplanation, target: Tensor) -> Tensor:
        """Maps of a view turned back; where the view alone would predict another class, they are made anew."""
        raw, other = found.raw, found.target != target
        if other.any():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                again = self.cam.explain(turned(images[other], view), target[other])
            raw = raw.index_put((other,), again.raw)
        return turned_back(raw, view)

    def write(
        self, case: Mapping[str, Any], found: PatchExplanation, folder: str | os.PathLike, name: str
    ) -> dict[str, Any]:
        """Write ``cam/<name>.png`` (the map at the source image's size) and ``overlays/<name>.png``.

        Grey is 255 times the map; of a signed map 128 is 0, 1 is -1 and 255 is 1.

        Returns:
            What ``boxes.json`` says of the patch.
        """
        from shared.visualize import cam_overlay, cam_picture

        source = source_image(case)
        cam = found.map(source.shape[1:])
        box = bounding_box(cam.clip(min=0), threshold=self.threshold)
        files = {"cam": f"cam/{name}.png", "overlay": f"overlays/{name}.png"}
        cam_picture(cam, Path(folder) / files["cam"], signed=self.signed)
        outline = mask_at(case.get("mask"), source.shape[1:])
        cam_overlay(source, cam, Path(folder) / files["overlay"], box=box, outline=outline, signed=self.signed)
        return self.record(case, found, box) | files

    def record(self, case: Mapping[str, Any], found: PatchExplanation, box: Box | None) -> dict[str, Any]:
        """Plain values of a patch: image, patient, label, class explained, its probability, box (None: no map).

        Of an additive map also what the places together speak for and against the class, see ``balance``.
        """
        label, name = case.get("label"), self.class_names[found.class_idx]
        values = {
            "image": str(case.get("path", "")),
            "patient": str(case.get("patient", "")),
            "label": None if label is None else self.class_names[int(label)],
            "class": name,
            "probability": round(found.probability, 6),
            "box": box_record(box, class_name=name, probability=found.probability),
        }
        if self.explanation == "additive":
            values |= {key: round(value, 6) for key, value in found.balance().items()}
        return values
