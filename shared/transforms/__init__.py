"""Dictionary transforms and batched augmentation."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "BatchedAugmentation": "augmentation",
        "LoadCased": "load",
        "ROISlicesd": "roi_slices",
        "labels_to_images": "roi_slices",
        "masks_to_volume": "roi_slices",
        "radiological": "roi_slices",
        "source_slices": "roi_slices",
        "ViewAugmentation": "view_augmentation",
        "BrainRowsd": "glioma.brain_network",
        "SampledRows": "glioma.brain_network",
        "RegionSampler": "glioma.brain_network",
        "TractIncidence": "glioma.brain_network",
        "TractSampler": "glioma.brain_network",
        "PointCloudd": "glioma.point_cloud",
        "build_point_graph": "glioma.point_graph",
        "farthest_point_sampling": "glioma.point_graph",
        "TumourCropd": "glioma.tumour_crop",
        "SequenceDropout": "glioma.tumour_crop",
        "TumourRotation": "glioma.tumour_crop",
        "LoadGliomad": "glioma.cases",
        "PrepareGliomad": "glioma.cases",
    },
)
