"""Dictionary transforms and batched augmentation."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "BatchedAugmentation": "augmentation",
        "LoadCased": "roi_slices",
        "ROISlicesd": "roi_slices",
        "labels_to_images": "roi_slices",
        "masks_to_volume": "roi_slices",
        "radiological": "roi_slices",
        "source_slices": "roi_slices",
        "ViewAugmentation": "view_augmentation",
    },
)
