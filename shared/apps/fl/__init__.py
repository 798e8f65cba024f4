"""Federated learning of a bundle's stage: what a site does, FedAvg, and the same under NVFlare's simulator."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__, {"fed_avg": "averaging", "run_flare": "flare", "site_algo": "site", "weighted_mean": "averaging"}
)
