"""Training in several processes: what ignite.distributed and PyTorch lack."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "from_main": "processes",
        "gather_objects": "processes",
        "gather_rows": "processes",
        "is_main": "processes",
        "mean_of_all": "processes",
        "rank": "processes",
        "rank_device": "processes",
        "share_batches": "processes",
        "share_bounds": "processes",
        "share_cases": "processes",
        "start": "processes",
        "stop": "processes",
        "sync_batch_norm": "processes",
        "world_size": "processes",
        "GatheredBatchNorm": "batch_norm",
    },
)
