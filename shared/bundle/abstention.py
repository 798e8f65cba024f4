"""What a trained model needs to abstain, beside its weights: the cohort it knows, what it said of patients left out.

``cohort.npz`` is made at the end of a training, ``conformal.json`` by ``scripts/calibrate.py``; no patient is named.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from shared.bundle.record import COHORT_FILE, CONFORMAL_FILE, MODEL_FILE, read_model
from shared.errors import CheckpointError, DataError
from shared.io import atomic_path, read_json_object
from shared.metrics.cohort_distance import Cohort, CohortDistance
from shared.metrics.exchanged_channels import NAMES, ExchangedChannels

logger = logging.getLogger(__name__)


def write_cohort(ckpt_dir: str | os.PathLike, cohort: Cohort, layers: Sequence[str]) -> None:
    """Write ``cohort.npz``: no pickle, and no name of a patient.

    Args:
        ckpt_dir: folder of ``model.json``.
        cohort: the training patients; its parts are the image and the layers.
        layers: of :class:`shared.networks.LayerStatistics`.
    """
    known = {"weights": read_model(ckpt_dir).get("weights", ""), "layers": list(layers), "limits": cohort.limits}
    known["patients"] = cohort.patients
    parts = {f"{k}_{name}": x for k, part in enumerate(cohort.distances) for name, x in part.parts.items()}
    if cohort.channels is not None:
        parts |= {f"channels_{name}": x for name, x in cohort.channels.parts.items()}
        parts |= {f"by_channel_{name}": x for name, x in cohort.channels.distance.parts.items()}
    parts["covariates"] = cohort.covariates
    with atomic_path(Path(ckpt_dir) / COHORT_FILE) as temporary:
        np.savez(temporary, **known, **parts)


def read_cohort(ckpt_dir: str | os.PathLike) -> tuple[Cohort, list[str]] | None:
    """The cohort of ``cohort.npz`` and the layers; None where there is none of this version, as beside an older model.

    Raises:
        CheckpointError: it cannot be read, or is another model's.
    """
    path = Path(ckpt_dir) / COHORT_FILE
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if "patients" not in file:
                logger.warning("%s is of an older version, which measured less: no distance. Train again.", path)
                return None
            weights, layers = str(file["weights"]), [str(name) for name in file["layers"]]
            limits, names = file["limits"], ("mean", "scale", "axes", "variances", "rest")
            parts = [{name: file[f"{k}_{name}"] for name in names} for k in range(len(limits))]
            patients = int(file["patients"])
            covariates = file.get("covariates")  # None in a version before
            channels = None
            if "channels_pairs" in file:
                distance = CohortDistance({name: file[f"by_channel_{name}"] for name in names})
                known = [name for name in NAMES if f"channels_{name}" in file]  # an older version has no limit
                channels = ExchangedChannels(distance, {name: file[f"channels_{name}"] for name in known})
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}): copy it once more, or train again.") from error
    _check_weights(path, weights)
    return Cohort([CohortDistance(part) for part in parts], limits, patients, channels, covariates), layers


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
    if not _usable(content):
        raise CheckpointError(f"{path} holds no scores of two classes, or what is no number: {again}")
    _check_weights(path, str(content.get("weights", "")))
    return content


def _usable(content: dict[str, Any]) -> bool:
    """Whether a calibration is whole; a value that is no number would make every set and flag silently wrong."""
    scores, distance = content.get("scores"), content.get("distance") or {"limit": 1.0}
    try:
        parts = [np.array([part["scores"], part["weights"]], float) for part in scores]
        numbers = [*(part["patients"] for part in scores), distance["limit"]]
        numbers += (content.get("thresholds") or {}).values()
        return len(parts) == 2 and all(np.isfinite(x).all() for x in (*parts, np.array(numbers, float)))
    except (AttributeError, KeyError, TypeError, ValueError):
        return False


def _check_weights(path: Path, weights: str) -> None:
    known = read_model(path.parent).get("weights", "")
    if weights and known and weights != known:
        raise CheckpointError(
            f"{path} is of another model than the {MODEL_FILE} beside it: copy both from the same folder, or remove "
            f"{path.name} and go without it."
        )
