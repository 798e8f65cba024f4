"""Bundles as files to hand on: checked, exported, packed into one zip; importing it imports no torch, no MONAI."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "check_vendored": "vendored",
        "shared_digest": "vendored",
        "shared_files": "vendored",
    },
)
