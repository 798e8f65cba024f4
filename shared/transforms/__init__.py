"""Dictionary transforms and batched augmentation."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "BrainRowsd": "brain_network",
        "SampledRows": "brain_network",
        "RegionSampler": "brain_network",
        "TractIncidence": "brain_network",
        "TractSampler": "brain_network",
        "pad_incidence": "brain_network",
        "BatchedAugmentation": "augmentation",
        "LoadCased": "roi_slices",
        "PointCloudd": "point_cloud",
        "PointGraph": "point_graph",
        "BiomarkerAnswerd": "served",
        "RequestedCased": "served",
        "ROISlicesd": "roi_slices",
        "TumourCropd": "tumour_crop",
        "TumourRotation": "tumour_crop",
        "ViewAugmentation": "view_augmentation",
        "build_point_graph": "point_graph",
        "collate_point_graphs": "point_graph",
        "farthest_point_sampling": "point_graph",
        "labels_to_images": "roi_slices",
        "masks_to_volume": "roi_slices",
        "radiological": "roi_slices",
        "source_slices": "roi_slices",
        "LoadGliomad": "glioma_cases",
        "PrepareGliomad": "glioma_cases",
    },
)
