"""``prepare_batch`` functions: from a loader's batch to ``(input, target, args, kwargs)`` on the device."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import Tensor, nn

from shared.data.mixup import ContrastiveRows


class PrepareRows:
    """Stage I: form the images of a batch of bank rows on the device, augmented.

    Args:
        rows: the rows of the memory bank.
        augmentation: applied to the whole batch; None: none.
        channels_last: memory format of the images.

    Shape:
        - returns: image ``[B, 1, H, W]``, ``{"image": [B, 1, H, W], "row": [B]}``
    """

    def __init__(
        self,
        rows: ContrastiveRows,
        augmentation: Callable[[Tensor], Tensor] | None = None,
        channels_last: bool = False,
    ):
        self.rows, self.augmentation = rows, augmentation
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(
        self, batchdata: Mapping[str, Tensor], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mixed and augmented images of the batch."""
        row = batchdata["row"]
        image = self.rows.batch(row).to(device, non_blocking=non_blocking)
        if self.augmentation is not None:
            image = self.augmentation(image)
        image = image.to(memory_format=self.memory_format)
        return image, {"image": image, "row": row}


class PrepareFeatures:
    """Stage II: cached representations, assignments and covariates to the predictor's arguments."""

    def __call__(
        self, batchdata: Mapping[str, Tensor], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], dict]:
        """h ``[B, m, D]``, soft label ``[B, C]``, (assignment ``[B, m]``, covariates ``[B, V]``)."""
        moved = {key: value.to(device, non_blocking=non_blocking) for key, value in batchdata.items()}
        return moved["image"], moved["label"], (moved["assignment"], moved["covariates"]), {}


class PrepareCases:
    """Evaluation: images and covariates of whole cases to the classifier's arguments.

    Args:
        network: the classifier; one whose ``forward`` takes no ``covariates`` (the ResNet control) gets none.
    """

    def __init__(self, network: nn.Module | None = None):
        self.covariates = network is None or "covariates" in inspect.signature(network.forward).parameters

    def __call__(
        self, batchdata: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...], dict]:
        """Image ``[B, m, H, W]``, label ``[B]`` or None, (covariates ``[B, V]``,) or ()."""
        image = batchdata["image"].to(device, non_blocking=non_blocking)
        label = batchdata.get("label")
        if isinstance(label, Tensor):
            label = label.to(device, non_blocking=non_blocking)
        else:
            label = None
        if not self.covariates:
            return image, label, (), {}
        return image, label, (batchdata["covariates"].to(device, non_blocking=non_blocking),), {}


class PrototypeInferer(SimpleInferer):
    """Stage II watched while it trains: the prototype transformer's logits, whichever predictor answers."""

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Logits; of a network without a prototype transformer, its own."""
        return getattr(network, "prototype_logits", network)(inputs, *args, **kwargs)


class PrepareImages:
    """A plain classifier (a control): a patient's m images together, labels as classes, no covariates.

    Args:
        augmentation: applied to the whole batch, the same to all images of a case; None: none.
        cases: the training cases, for a loss that remembers them; None: the target is the label alone.

    Shape:
        - returns: image ``[B, m, H, W]``, label ``[B]``; with cases ``{"label": [B], "row": [B]}``, the row being the
          place among them
    """

    def __init__(
        self, augmentation: Callable[[Tensor], Tensor] | None = None, cases: Iterable[Mapping[str, Any]] | None = None
    ):
        self.augmentation = augmentation
        self.rows = None if cases is None else {str(case["patient"]): row for row, case in enumerate(cases)}

    def __call__(
        self, batchdata: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | dict[str, Tensor]]:
        """Images and labels on the device."""
        image = batchdata["image"].to(device, non_blocking=non_blocking)
        if self.augmentation is not None:
            image = self.augmentation(image)
        label = batchdata["label"].to(device, non_blocking=non_blocking)
        if self.rows is None:
            return image, label
        row = torch.tensor([self.rows[patient] for patient in batchdata["patient"]], device=label.device)
        return image, {"label": label, "row": row}
