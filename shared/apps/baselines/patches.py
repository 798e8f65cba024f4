"""The controls a network for patches has to beat: a forest on colour and texture, linear probes of frozen encoders.

A probe is a logistic regression on standardised features; its penalty is chosen by cross-validation within the patients
it is fitted to. Probes are made of a random encoder, of a pretraining's checkpoint and of ImageNet weights. Nothing is
fitted outside the patches that train: in the folds of a study (:func:`run`), or on the draws of label efficiency.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import CheckpointError, DataError

if TYPE_CHECKING:
    import numpy as np

    from shared.apps.baselines.given import Given

TITLES = {
    "forest": "random forest",
    "random": "probe of a random encoder",
    "pretrained": "probe of the pretrained encoder",
    "imagenet": "probe of an ImageNet encoder",
}
CONTROLS = tuple(TITLES)
TREES, IMAGENET_SIZE = 500, 224


def encoder_settings(config: Mapping[str, Any]) -> tuple[dict[str, Any], int, int | None]:
    """Return the bundle's encoder, the side it sees and the side of its cached images.

    Args:
        config: the merged configs.

    Raises:
        DataError: values that are not there, or are expressions.
    """
    try:
        settings, size, cache_size = config["network_def"]["encoder"], config["size"], config["cache_size"]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"The configs name no encoder for patches ({error!r}): is the bundle one for patches?"
        ) from error
    settings = {key: value for key, value in settings.items() if not key.startswith("_")}
    if '"@' in (text := json.dumps([settings, size, cache_size])) or '"$' in text:
        raise DataError("The encoder's settings are expressions: give an overlay with their values (--config FILE)")
    return settings, size, cache_size


class Patches:
    """Entries of a datalist, their pixels, and what controls see of them, cached below a folder.

    Args:
        entries: with absolute paths.
        dataset_dir: images are named by their path from there.
        folder: of the cache.
        config: the bundle's merged configs, for encoder and sizes.
    """

    def __init__(
        self, entries: Sequence[Mapping[str, Any]], dataset_dir: Path, folder: Path, config: Mapping[str, Any]
    ):
        import numpy as np

        from shared.apps.baselines.patch_probes import pixel_digests
        from shared.data import PatchCache
        from shared.reports.predictions import patch_name

        self.entries, self.folder, self.config = list(entries), folder, config
        self.native = PatchCache(self.entries)
        self.digests = pixel_digests(self.native.images)
        self.labels = np.array([entry["label"] for entry in self.entries])
        self.patients = [str(entry["patient"]) for entry in self.entries]
        self.names = [patch_name(entry["image"], dataset_dir) for entry in self.entries]

    def features(self, control: str, seed: int = 0, weights: Path | None = None) -> np.ndarray:
        """What a control sees: colour and texture, or what an encoder makes of the patches.

        Args:
            control: one of ``CONTROLS``.
            seed: of a random encoder; of a pretrained one it tells several apart.
            weights: the pretraining's checkpoint, or a ResNet state dict.

        Shape:
            - returns: ``[N, D]``

        Raises:
            CheckpointError: no weights, or others than the encoder's.
        """
        from shared.apps.baselines import patch_probes

        if control == "forest":
            return patch_probes.measured_features(self.native.images, self.names, self.folder / "colour_texture.csv")
        settings, size, cache_size = encoder_settings(self.config)
        if control == "random":
            make = lambda: patch_probes.random_encoder(settings, seed)  # noqa: E731
            return self._encoded(f"random{seed}", make, {"encoder": settings, "seed": seed}, size, cache_size)
        key = weights_digests(weights)
        if control == "pretrained":
            make = lambda: patch_probes.pretrained_encoder(weights, settings)  # noqa: E731
            return self._encoded(f"pretrained{seed}", make, {"encoder": settings, **key}, size, cache_size)
        stages = settings["stages"]
        make = lambda: patch_probes.imagenet_encoder(weights, stages=stages)  # noqa: E731
        return self._encoded("imagenet", make, {"stages": stages, **key}, IMAGENET_SIZE)

    def _encoded(
        self, name: str, encoder: Callable[[], Any], key: Mapping[str, Any], size: int, cache_size: int | None = None
    ) -> np.ndarray:
        from shared.apps.baselines.patch_probes import cached_features, frozen_features
        from shared.data import PatchCache

        images = self.native.images
        if cache_size is not None and cache_size != images.shape[-1]:
            images = PatchCache(self.entries, size=cache_size).images

        def compute(rows: list[int]) -> Any:
            return frozen_features(encoder(), images[rows], size=size, name=name)

        given = {**key, "size": size, "cached": cache_size}
        return cached_features(self.folder / f"{name}.npz", given, self.digests, compute)

    def predict(
        self, control: str, features: np.ndarray, train: Sequence[int], test: Sequence[int], seed: int
    ) -> list[dict[str, Any]]:
        """Fit a control to the rows ``train``; return image, patient, label, probability of the rows ``test``."""
        from shared.apps.baselines.patch_probes import fit_forest, fit_probe

        if control == "forest":
            model = fit_forest(features[train], self.labels[train], seed=seed, trees=TREES)
        else:
            model = fit_probe(features[train], self.labels[train], [self.patients[i] for i in train], seed=seed)
        rows = zip(test, model.predict_proba(features[test])[:, 1], strict=True)
        return [
            {"image": self.names[i], "patient": self.patients[i], "label": int(self.labels[i]), "probability": float(p)}
            for i, p in rows
        ]


def weights_digests(weights: Path | None) -> dict[str, str]:
    """Digests of a weights file and of the JSON beside it, which holds settings that weights do not show.

    Raises:
        CheckpointError: there is no such file.
    """
    from shared.digests import sha256

    if weights is None or not weights.is_file():
        raise CheckpointError(f"There is no file {weights}.")
    beside = weights.with_suffix(".json")
    return {"weights": sha256(weights), **({"settings": sha256(beside)} if beside.is_file() else {})}


def run(controls: Sequence[str], given: Given) -> None:
    """Cross-validate controls within the training section, in the folds of ``scripts/cross_validate.py``.

    Raises:
        DataError, CheckpointError: no patches, results of other data in a folder, no weights.
    """
    import numpy as np
    import torch

    from shared.apps.experiments.data_record import data_record
    from shared.apps.experiments.folder import write_experiment, write_results
    from shared.data import PatchDatalist
    from shared.data.splits import grouped_folds
    from shared.metrics.repeated import RepeatedPredictions

    torch.set_num_threads(given.threads)
    parts = PatchDatalist(given.dataset_dir, given.datalist_file, fold=-1)
    patches = Patches(parts.training + parts.validation, given.dataset_dir, given.output / "features", given.config)
    settings = {"folds": given.folds, "data": data_record(patches.entries, given.dataset_dir, given.output)}
    for control in controls:
        own = {"trees": TREES} if control == "forest" else {"encoder": encoder_settings(given.config)}
        own |= weights_digests(given.weights) if control == "imagenet" else {}
        folder, rows = given.output / control, []
        write_experiment(folder, title=TITLES[control], command=given.command, settings={**settings, **own})
        for seed in given.seeds:
            table = patches.features(control, seed, given.weights)
            fold_of = grouped_folds(patches.patients, patches.labels.tolist(), given.folds, seed)
            of_row = np.array([fold_of[patient] for patient in patches.patients])
            for k in range(given.folds):
                found = patches.predict(control, table, np.flatnonzero(of_row != k), np.flatnonzero(of_row == k), seed)
                rows += [{"seed": seed, "fold": k, **row} for row in found]
        write_results(folder, RepeatedPredictions.from_rows(rows), bootstrap=given.bootstrap)
