"""Where a phantom's planted patterns can be seen, as the network's images have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shared.transforms.roi_slices import labels_to_images


def planted_truth(
    case: Mapping[str, Any], modalities: Sequence[str], visible: Mapping[str, Sequence[int]], size: int
) -> Tensor:
    """Planted patterns of each image that can be seen in its modality.

    Args:
        case: with ``planted`` (a NIfTI of codes) and ``geometry``.
        modalities: their names, in the order of the images.
        visible: modality to the codes visible in it.
        size: of the images.

    Shape:
        - returns: ``[m, size, size]`` bool, modality by modality, each with its slices
    """
    codes = labels_to_images(case["planted"], case["geometry"], size)
    return torch.cat([torch.isin(codes, torch.tensor(list(visible.get(name, [])))) for name in modalities])
