"""Evaluation of classes: MONAI's evaluator with the softmax, one-hot labels and AUC that all three methods use."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import SupervisedEvaluator
from monai.handlers import ROCAUC, from_engine
from monai.transforms import Activationsd, AsDiscreted, Compose, ToDeviced
from torch.utils.data import DataLoader

from shared.distributed.processes import share_cases


def class_postprocessing(device: str | torch.device, num_classes: int = 2) -> Compose:
    """Logits become probabilities, labels one-hot, both on one device."""
    return Compose(
        [
            Activationsd("pred", softmax=True),
            AsDiscreted("label", to_onehot=num_classes),
            # of labels, decollation makes numbers, and AsDiscreted tensors on the CPU
            ToDeviced("label", device),
        ]
    )


class ClassEvaluator(SupervisedEvaluator):
    """MONAI's SupervisedEvaluator whose predictions are probabilities of classes, compared by AUC.

    In several processes each evaluates its part of the cases.

    Args:
        device: where it runs.
        val_data_loader: the cases, not shuffled.
        num_classes: of the labels.
        settings: further arguments of MONAI's SupervisedEvaluator; ``postprocessing`` and ``key_val_metric`` replace
            the usual ones.
    """

    def __init__(
        self, device: str | torch.device, val_data_loader: DataLoader, *, num_classes: int = 2, **settings: Any
    ):
        device = torch.device(device)
        usual = {
            "postprocessing": class_postprocessing(device, num_classes),
            "key_val_metric": {"AUC": ROCAUC(output_transform=from_engine(["pred", "label"]))},
        }
        super().__init__(device=device, val_data_loader=share_cases(val_data_loader), **usual | settings)
