"""A bundle: its configs, its model's settings, its package; importing it imports neither torch nor MONAI."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "check_vendored": "contents",
        "shared_digest": "contents",
        "shared_files": "contents",
        "begin": "beginning",
        "load_model": "model",
        "trained_atlas": "model",
        "TrainedModel": "settings",
        "trained_network": "settings",
        "trained_settings": "settings",
        "TrainingRecord": "record",
    },
)
