"""What a prediction was made from: hashes of inputs, model and code, settings, versions; and a check of them later."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.digests import Digests, sha256
from shared.errors import DataError
from shared.io import read_json_object
from shared.reports.predictions import patch_name

TRACE = "trace.json"
COMMON = ("model", "configs", "settings", "transforms", "versions")
"""Sections that the traces of all cases share."""


def text_digest(content: Any) -> str:
    """SHA-256 of plain values, whatever the order of their keys.

    Example:
        >>> text_digest({"a": 1, "b": [2.0]}) == text_digest({"b": [2.0], "a": 1})
        True
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def case_entry(
    case: Mapping[str, Any],
    dataset_dir: str | os.PathLike | None,
    *,
    keys: Sequence[str],
    values: Sequence[str] = (),
    covariates: Sequence[str] = (),
    digest: Callable[[str | os.PathLike], str] = sha256,
) -> dict[str, Any]:
    """A case's inputs by what they are, with their hashes; files are named by their path below ``dataset_dir``.

    Args:
        case: of a checked datalist, with absolute paths.
        dataset_dir: what the names leave out.
        keys: entries that hold files.
        values: entries that hold plain values which change how the files are read.
        covariates: names of those that the network is given.
        digest: of a file.
    """
    inputs = []
    for key in keys:
        found = case.get(key)
        for path in found if isinstance(found, list | tuple) else [found]:
            if path and Path(path).is_file():
                name = patch_name(path, dataset_dir)
                name = Path(name).name if Path(name).is_absolute() else name
                inputs.append({"of": key, "file": name, "sha256": digest(path)})
    known = case.get("covariates") or {}
    given = {key: case[key] for key in values if key in case}
    given |= {f"covariate {name}": float(known[name]) for name in covariates}
    return {"patient": str(case["patient"]), "inputs": inputs, "values": given}


def case_digest(common: str, entry: Mapping[str, Any]) -> str:
    """The trace of a case: of its inputs' contents, not their names, and of what all cases share.

    Args:
        common: :func:`text_digest` of the sections ``COMMON``.
        entry: of :func:`case_entry`.
    """
    inputs = [[part["of"], part["sha256"]] for part in entry["inputs"]]
    return text_digest([common, inputs, entry["values"]])


def with_digests(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``trace.json`` with the trace of every case and of the whole run."""
    common = text_digest({key: content[key] for key in COMMON})
    cases = [{**entry, "trace": case_digest(common, entry)} for entry in content["cases"]]
    return {"trace": text_digest([case["trace"] for case in cases]), **content, "cases": cases}


def check_trace(
    folder: str | os.PathLike, dataset_dir: str | os.PathLike, ckpt_dir: str | os.PathLike | None = None
) -> list[str]:
    """What has changed since a prediction was made; nothing where all is as it was.

    Args:
        folder: output folder of the inference.
        dataset_dir: where its inputs are now.
        ckpt_dir: where the model is now; None: it is not compared.

    Raises:
        DataError: there is no readable ``trace.json``.
    """
    path = Path(folder) / TRACE
    content = read_json_object(path, "trace")
    try:
        made = with_digests({key: value for key, value in content.items() if key != "trace"})
        entries = [(entry["patient"], part) for entry in content["cases"] for part in entry["inputs"]]
        problems = [] if made == content else [f"{path} was edited: its parts do not give its traces"]
        problems += _changed(Path(folder), content.get("outputs", {}), "it was written")
        digests = Digests()
        for patient, part in entries:
            file = Path(dataset_dir) / part["file"]
            if not file.is_file():
                problems.append(f"{patient}: {part['of']} {part['file']} is not in {dataset_dir}")
            elif digests(file) != part["sha256"]:
                problems.append(f"{patient}: {part['of']} {part['file']} has changed since it was predicted")
        if ckpt_dir is not None:
            problems += _changed(Path(ckpt_dir), content["model"], "the prediction")
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}): run the inference again") from error
    return problems


def _changed(folder: Path, files: Mapping[str, str], when: str) -> Iterable[str]:
    for name, digest in files.items():
        if not (folder / name).is_file():
            yield f"{folder / name} is not there"
        elif sha256(folder / name) != digest:
            yield f"{folder / name} has changed since {when}"
