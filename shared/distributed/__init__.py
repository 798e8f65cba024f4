"""Training in several processes: what ignite.distributed and PyTorch lack."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "from_main": "processes",
        "gather_objects": "processes",
        "is_main": "processes",
        "mean_of_all": "processes",
        "rank": "processes",
        "share_batches": "processes",
        "world_size": "processes",
        "GatheredBatchNorm": "batch_norm",
    },
)
