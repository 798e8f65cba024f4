"""Dictionary transforms and batched augmentation."""

from shared.transforms.augmentation import BatchedAugmentation
from shared.transforms.roi_slices import (
    LoadCased,
    ROISlicesd,
    labels_to_images,
    masks_to_volume,
    radiological,
    source_slices,
)

__all__ = [
    "BatchedAugmentation",
    "LoadCased",
    "ROISlicesd",
    "labels_to_images",
    "masks_to_volume",
    "radiological",
    "source_slices",
]
