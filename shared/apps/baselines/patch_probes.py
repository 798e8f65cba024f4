"""Controls of a patch classifier: frozen features under a logistic regression, measured features under a forest."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import CheckpointError, DataError
from shared.io import atomic_path, write_csv
from shared.metrics.classifiers import classifier

# inverse strengths of the penalty among which the inner cross-validation chooses
STRENGTHS = tuple(np.logspace(-5, 1, 13))


def fit_probe(features: np.ndarray, labels: np.ndarray, patients: Sequence[str], *, seed: int = 0) -> Any:
    """Fit a logistic regression on standardised features, its penalty chosen by cross-validation within these rows.

    The inner folds keep patients together, as many as five of them as the smaller class has patients for; the penalty
    is that of the best log-likelihood. Where no split is possible the middle penalty is taken.

    Args:
        features: one row a patch.
        labels: 0 or 1.
        patients: whose patches they are.
        seed: of the inner folds.

    Shape:
        - features: ``[n, D]``; labels, patients: ``[n]``

    Example:
        >>> x = np.arange(24.0)[:, None]
        >>> probe = fit_probe(x, (x[:, 0] > 11).astype(int), [f"{i // 2}" for i in range(24)])
        >>> probe.predict([[0.0], [23.0]]).tolist()
        [0, 1]
    """
    from sklearn.model_selection import GridSearchCV

    from shared.data.splits import grouped_folds

    def model(strength: float) -> Any:
        return classifier("logistic", fill=False).set_params(logisticregression__C=strength)

    for folds in (5, 4, 3, 2):
        try:
            fold_of = grouped_folds(list(patients), labels.tolist(), folds, seed)
        except DataError:
            continue
        fold = np.array([fold_of[patient] for patient in patients])
        split = [(np.flatnonzero(fold != number), np.flatnonzero(fold == number)) for number in range(folds)]
        grid = {"logisticregression__C": list(STRENGTHS)}
        search = GridSearchCV(model(1.0), grid, scoring="neg_log_loss", cv=split)
        return search.fit(features, labels).best_estimator_
    return model(STRENGTHS[len(STRENGTHS) // 2]).fit(features, labels)


def fit_forest(features: np.ndarray, labels: np.ndarray, *, seed: int = 0, trees: int = 500) -> Any:
    """Fit a random forest.

    Example:
        >>> x = np.arange(24.0)[:, None]
        >>> fit_forest(x, (x[:, 0] > 11).astype(int), trees=20).predict([[0.0], [23.0]]).tolist()
        [0, 1]
    """
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(trees, random_state=seed).fit(features, labels)


def imagenet_encoder(path: str | os.PathLike, *, stages: Sequence[int] = (4,)) -> Any:
    """The encoder that fits an ImageNet state dict with torchvision's names, with its weights, in eval mode.

    Blocks, depths and widths are read off the weights; settings that weights do not show (``stride_in_1x1``) come
    from a JSON file beside them, which ``scripts/convert_keras_resnet50.py`` writes.

    Raises:
        CheckpointError: it is no such state dict.
    """
    from shared.checkpoint import load_checkpoint
    from shared.networks.sscl import IMAGENET_MEAN, PatchEncoder, load_imagenet_weights

    path = Path(path)
    state = load_checkpoint(path, hint="Give the path of a ResNet state dict, see scripts/convert_keras_resnet50.py.")
    first = [f"layer{stage}.0.conv1.weight" for stage in range(1, 5)]
    if not isinstance(state, Mapping) or not set(first) <= set(state):
        raise CheckpointError(f"{path} is no state dict with torchvision's ResNet names (layer1.0.conv1.weight, ...).")
    settings: dict[str, Any] = {
        "block": "bottleneck" if "layer1.0.conv3.weight" in state else "basic",
        "layers": [len({m[1] for k in state if (m := re.match(rf"layer{s}\.(\d+)\.", k))}) for s in range(1, 5)],
        "channels": [state[name].shape[0] for name in first],
    }
    beside = path.with_suffix(".json")
    if beside.is_file():
        settings |= json.loads(beside.read_text(encoding="utf-8")).get("encoder", {})
    encoder = PatchEncoder(**settings, stages=stages, input_mean=IMAGENET_MEAN)
    load_imagenet_weights(encoder, path)
    return encoder.eval()


def pretrained_encoder(path: str | os.PathLike, settings: Mapping[str, Any]) -> Any:
    """The encoder of a pretraining's checkpoint (``pretrain.pt``), in eval mode.

    Args:
        path: the checkpoint.
        settings: of :class:`shared.networks.PatchEncoder`.

    Raises:
        CheckpointError: it is no such checkpoint, or of an encoder with other settings.
    """
    from shared.checkpoint import load_checkpoint, load_weights, part_of, weights_below
    from shared.networks import PatchEncoder

    state = part_of(load_checkpoint(path, hint="Run the bundle's --run_id pretrain_run first."), "network", path)
    encoder = PatchEncoder(**settings)
    load_weights(encoder, weights_below(state, "encoder."), path)
    return encoder.eval()


def random_encoder(settings: Mapping[str, Any], seed: int) -> Any:
    """An encoder as it is before any training, in eval mode."""
    import torch

    from shared.networks import PatchEncoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PatchEncoder(**settings).eval()


def frozen_features(encoder: Any, images: Any, *, size: int | None, batch_size: int = 16, name: str = "") -> np.ndarray:
    """What an encoder makes of images, resized as the bundle's evaluation resizes them.

    Args:
        encoder: image to h.
        images: of a :class:`shared.data.PatchCache`.
        size: side that the encoder sees; None: as they are.
        batch_size: images at once.
        name: before the progress bar.

    Shape:
        - images: uint8 ``[N, 3, S, S]``
        - returns: float32 ``[N, D]``
    """
    import torch
    from tqdm import tqdm

    from shared.engines import PreparePatches

    prepare, features = PreparePatches(size=size), []
    with torch.inference_mode():
        for start in tqdm(range(0, len(images), batch_size), desc=name, unit="batch", leave=False, dynamic_ncols=True):
            features.append(encoder(prepare({"image": images[start : start + batch_size]})[0]).float())
    return torch.cat(features).numpy()


def measured_features(images: Any, names: Sequence[str], path: Path) -> np.ndarray:
    """Colour and texture of images, kept as a table that can be read; those of images that are in it are not measured.

    Args:
        images: uint8.
        names: of each image.
        path: the table (.csv).

    Shape:
        - images: ``[N, 3, H, W]``
        - returns: ``[N, D]``
    """
    from tqdm import tqdm

    from shared.apps.baselines.patch_features import patch_features

    known: dict[str, dict] = {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as lines:
            known = {row["pixels"]: row for row in csv.DictReader(lines)}
    rows, about = [], ("image", "pixels")
    digests = pixel_digests(images)
    for i in tqdm(range(len(images)), desc="colour and texture", unit="patch", leave=False, dynamic_ncols=True):
        values = known.get(digests[i]) or patch_features(images[i].numpy())
        numbers = {key: float(value) for key, value in values.items() if key not in about}
        rows.append({"image": names[i], "pixels": digests[i], **numbers})
    write_csv(path, rows)
    return np.array([[value for key, value in row.items() if key not in about] for row in rows])


def cached_features(
    path: Path, key: Mapping[str, Any], digests: Sequence[str], compute: Callable[[list[int]], np.ndarray]
) -> np.ndarray:
    """Features of the images with these digests; those that are not yet in the file are computed and added.

    Args:
        path: the cache (.npz); one made with another ``key`` is replaced.
        key: what the features depend on but for the images.
        digests: one for each image.
        compute: from rows of ``digests`` to their features ``[rows, D]``.
    """
    text = json.dumps(key, sort_keys=True)
    known: dict[str, np.ndarray] = {}
    if path.is_file():
        with np.load(path) as stored:
            if str(stored["key"]) == text:
                known = dict(zip(stored["digests"].tolist(), stored["features"], strict=True))
    rows = [row for row, digest in enumerate(digests) if digest not in known]
    if rows:
        known |= dict(zip([digests[row] for row in rows], compute(rows), strict=True))
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, key=text, digests=np.array(list(known)), features=np.stack(list(known.values())))
    return np.stack([known[digest] for digest in digests])


def pixel_digests(images: Any) -> list[str]:
    """A digest of each image's pixels."""
    return [hashlib.sha256(memoryview(image.contiguous().numpy()).cast("B")).hexdigest()[:24] for image in images]
