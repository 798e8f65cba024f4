"""What a trained model needs to abstain, beside its weights: the cohort it knows, and what it said of patients left out.

``cohort.npz`` is made at the end of a training, ``conformal.json`` by ``scripts/calibrate.py``. Neither names a patient.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shared.bundle.record import COHORT_FILE, CONFORMAL_FILE, MODEL_FILE, read_model
from shared.errors import CheckpointError, DataError
from shared.io import atomic_path, read_json_object

_LIMIT = ("patients", "log_mean", "log_sd", "limit")


def write_cohort(ckpt_dir: str | os.PathLike, parts: Mapping[str, Any], layers: list[str], limit: Mapping) -> None:
    """Write ``cohort.npz``: no pickle, and no name of a patient.

    Args:
        ckpt_dir: folder of ``model.json``.
        parts: of :class:`shared.metrics.cohort_distance.CohortDistance`.
        layers: of :class:`shared.networks.LayerStatistics`.
        limit: of :func:`shared.metrics.cohort_distance.distance_limit`.
    """
    known = {"weights": read_model(ckpt_dir).get("weights", ""), "layers": layers}
    with atomic_path(Path(ckpt_dir) / COHORT_FILE) as temporary:
        np.savez(temporary, **known, **parts, **{f"limit_{key}": limit[key] for key in _LIMIT})


def read_cohort(ckpt_dir: str | os.PathLike) -> dict[str, Any] | None:
    """``parts``, ``layers`` and ``limit`` of ``cohort.npz``; None where there is none, as beside an older model.

    Raises:
        CheckpointError: it cannot be read, or is another model's.
    """
    path = Path(ckpt_dir) / COHORT_FILE
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
        limit = {key: held.pop(f"limit_{key}").item() for key in _LIMIT}
        weights, layers = str(held.pop("weights")), [str(name) for name in held.pop("layers")]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}): copy it once more, or train again.") from error
    _check_weights(path, weights)
    return {"parts": held, "layers": layers, "limit": limit}


def read_conformal(ckpt_dir: str | os.PathLike) -> dict[str, Any] | None:
    """Content of ``conformal.json``; None where there is none.

    Raises:
        CheckpointError: it cannot be read, or is another model's.
    """
    path = Path(ckpt_dir) / CONFORMAL_FILE
    if not path.is_file():
        return None
    again = "run scripts/calibrate.py again."
    try:
        content = read_json_object(path, "calibration")
    except DataError as error:
        raise CheckpointError(f"{error}; {again}") from error
    scores = content.get("scores")
    if not isinstance(scores, list) or len(scores) != 2 or not {"patients", "scores", "weights"} <= set(scores[0]):
        raise CheckpointError(f"{path} holds no scores of two classes: {again}")
    _check_weights(path, str(content.get("weights", "")))
    return content


def _check_weights(path: Path, weights: str) -> None:
    known = read_model(path.parent).get("weights", "")
    if weights and known and weights != known:
        raise CheckpointError(
            f"{path} is of another model than the {MODEL_FILE} beside it: copy both from the same folder, or remove "
            f"{path.name} and go without it."
        )
