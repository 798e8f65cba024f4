"""How a cohort was prepared, shipped beside the model, so that new patients are prepared likewise; holds no names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.errors import DataError
from shared.io import write_json

PREPARATION, REFERENCE = "preparation.json", "histogram_reference.json"
# what decides the voxels; what a cohort needs to get there (skull strip, labels of its masks) is its own
KEYS = ("version", "sequences", "n4", "histogram", "smoothing", "registration", "template")


def read_preparation(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The record beside a model or a prepared cohort, None where there is none.

    Raises:
        DataError: it cannot be read.
    """
    path = Path(folder) / PREPARATION
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {key: content[key] for key in KEYS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: is no readable record of a preparation ({error!r}); copy it again from the training"
        ) from error


def check_preparation(trained: Mapping[str, Any], now: Mapping[str, Any], source: str | os.PathLike) -> list[str]:
    """Refuse to prepare new patients otherwise than the model's.

    Args:
        trained: the model's record.
        now: that of these patients.
        source: where the model's was found.

    Returns:
        what may differ and is to be told: who registered.

    Raises:
        DataError: naming each setting that differs.

    Example:
        >>> record = dict.fromkeys(KEYS)
        >>> check_preparation({**record, "n4": True}, {**record, "n4": False}, "models")
        Traceback (most recent call last):
        ...
        shared.errors.DataError: the patients of models were prepared otherwise: n4 was true, is now false; prepare...
    """
    differ = {key: f"was {json.dumps(trained[key])}, is now {json.dumps(now[key])}" for key in KEYS}
    differ = {key: line for key, line in differ.items() if trained[key] != now[key]}
    told = []
    if "registration" in differ and "none" in (trained["registration"], now["registration"]):
        who = "the model's patients" if trained["registration"] == "none" else "these patients"
        told.append(f"{who} came in MNI152 and the others are registered here: look at the pictures of both")
        differ.pop("registration")
        differ.pop("template", None)  # which nothing was registered to
    if differ:
        lines = "; ".join(f"{key} {line}" for key, line in differ.items())
        raise DataError(
            f"the patients of {source} were prepared otherwise: {lines}; prepare new patients likewise (--model takes "
            "over what is not given), or train on patients prepared so"
        )
    return told


def shipped_preparation(dataset_dir: str | os.PathLike) -> dict[str, dict[str, Any] | None]:
    """What goes along with a model by file name: the cohort's record, its histogram reference without the patient.

    None stands for a file that this cohort does not have.

    Raises:
        DataError: a file is damaged.
    """
    record = read_preparation(dataset_dir)
    found: dict[str, dict[str, Any] | None] = {PREPARATION: record, REFERENCE: None}
    if record is not None and record["histogram"]:
        path = Path(dataset_dir) / REFERENCE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found[REFERENCE] = {key: content[key] for key in ("percentiles", "landmarks")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: cannot be read as a reference ({error!r}); prepare the cohort again") from error
    return found


def write_preparation(found: Mapping[str, dict[str, Any] | None], ckpt_dir: str | os.PathLike) -> None:
    """Write these files beside the checkpoint; those of an earlier training go where there are none."""
    for name, content in found.items():
        if content is None:
            (Path(ckpt_dir) / name).unlink(missing_ok=True)
        else:
            write_json(Path(ckpt_dir) / name, content)
