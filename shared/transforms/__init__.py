"""Dictionary transforms and batched augmentation."""

from shared.transforms.augmentation import BatchedAugmentation
from shared.transforms.roi_slices import LoadCased, ROISlicesd, masks_to_volume

__all__ = ["BatchedAugmentation", "LoadCased", "ROISlicesd", "masks_to_volume"]
