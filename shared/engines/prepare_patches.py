"""``prepare_batch`` functions for patches: from a batch of uint8 images to the network's input and its target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from shared.data.patches.resizing import resize_images


class PrepareViews:
    """Contrastive pretraining: two views of every image, augmented independently on the device.

    Args:
        augmentation: from uint8 images ``[B, 3, H, W]`` to float views, with a draw for every image of the batch.
        channels_last: memory format of the views.

    Shape:
        - returns: views ``[2 B, 3, S, S]``, the first of all images before the second of all; ``[2 B]``: which image of
          the batch a view is of

    Example:
        >>> views, source = PrepareViews(lambda x: x / 255)({"image": torch.zeros(2, 3, 4, 4)})
        >>> views.shape, source
        (torch.Size([4, 3, 4, 4]), tensor([0, 1, 0, 1]))
    """

    def __init__(self, augmentation: Callable[[Tensor], Tensor], channels_last: bool = False):
        self.augmentation = augmentation
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(
        self, batchdata: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Stacked views, and their images' positions in the batch."""
        image = batchdata["image"].to(device, non_blocking=non_blocking)
        views = self.augmentation(image.repeat(2, 1, 1, 1))
        source = torch.arange(len(image), device=image.device).repeat(2)
        return views.to(memory_format=self.memory_format), source


class PreparePatches:
    """Fine-tuning and evaluation: images in [0, 1], augmented or resized, with labels or soft labels.

    Args:
        augmentation: of a whole batch in training; it decides the size. None: none.
        channels_last: memory format of the images.
        size: side of the images; None: the cache's.
        soft_labels: the target is ``soft_label`` (shares of votes) rather than ``label``.

    Shape:
        - returns: image float ``[B, 3, S, S]``, label ``[B]`` or soft label ``[B, num_classes]`` (None where unknown)

    Raises:
        ValueError: the augmentation's images have another size than ``size``.

    Example:
        >>> batch = {"image": torch.full((2, 3, 8, 8), 255, dtype=torch.uint8), "label": torch.tensor([0, 1])}
        >>> image, label = PreparePatches(size=4)(batch)
        >>> image.shape, float(image.max().round()), label
        (torch.Size([2, 3, 4, 4]), 1.0, tensor([0, 1]))
    """

    def __init__(
        self,
        augmentation: Callable[[Tensor], Tensor] | None = None,
        channels_last: bool = False,
        size: int | None = None,
        soft_labels: bool = False,
    ):
        made = getattr(augmentation, "size", size)
        if size is not None and made != size:
            raise ValueError(f"The augmentation's images have side {made}, but size asks for {size}; make them equal.")
        self.augmentation, self.size = augmentation, size
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.target = "soft_label" if soft_labels else "label"

    def __call__(
        self, batchdata: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Images and targets on the device."""
        image = batchdata["image"].to(device, non_blocking=non_blocking)
        target = batchdata.get(self.target)
        if target is not None:
            target = target.to(device, non_blocking=non_blocking)
        if self.augmentation is not None:
            image = self.augmentation(image)
        else:
            scale = 1 if image.is_floating_point() else 255
            # in float, so that resizing does not round to whole grey values
            image = (resize_images(image.float(), self.size or image.shape[-1]) / scale).clamp_(0, 1)
        return image.to(memory_format=self.memory_format), target
