"""What a trained model is made of, kept beside its weights, so that inference needs no retyped numbers."""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from shared.errors import CheckpointError, DataError
from shared.evaluation.bundle_config import merge_configs, split_key
from shared.io import write_json

MODEL_FILE = "model.json"
_INSTEAD = "put null into a small JSON file and list that last in --config_file."
# values of the command line that arrive as something else, or not at all
MISREAD = {
    "false": "it would arrive as a text, which counts as true; write False.",
    "null": f"it would arrive as a text; {_INSTEAD}",
    "None": f"it would be ignored without a word; {_INSTEAD}",
}


def save_settings(ckpt_dir: str | os.PathLike, **sections: Any) -> None:
    """Write the sections (plain values) to ``model.json`` beside the checkpoint."""
    write_json(Path(ckpt_dir) / MODEL_FILE, sections)


def trained_settings(
    ckpt_dir: str | os.PathLike, train_config: str | os.PathLike, section: str, default: Any = None
) -> Any:
    """A section of the trained model's ``model.json``, else of the training configuration.

    Args:
        ckpt_dir: folder of ``model.pt`` and the ``model.json`` written with it.
        train_config: ``train.json``, read when no model was trained yet.
        section: name of the section.
        default: where no model was trained, for what training finds in its data and no configuration says.

    Raises:
        CheckpointError: ``model.json`` is not readable or lacks the section.
    """
    path = Path(ckpt_dir) / MODEL_FILE
    if not path.is_file():
        parser = _parser(train_config)
        return parser.get_parsed_content(section) if section in parser or default is None else default
    try:
        return json.loads(path.read_text(encoding="utf-8"))[section]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def trained_network(
    network: Callable[..., nn.Module], ckpt_dir: str | os.PathLike, train_config: str | os.PathLike, **overrides: Any
) -> nn.Module:
    """The network with the numbers it was trained with, else those of the training configuration; weights not loaded.

    Args:
        network: its class.
        ckpt_dir: folder of ``model.pt`` and ``model.json``.
        train_config: ``train.json``, whose ``network_def`` is built when no model was trained yet.
        overrides: arguments that win over both.

    Raises:
        CheckpointError: ``model.json`` is not readable.
    """
    if (Path(ckpt_dir) / MODEL_FILE).is_file():
        settings = trained_settings(ckpt_dir, train_config, "network")
        try:
            return network(**{**settings, **overrides})
        except TypeError as error:
            raise _damaged(Path(ckpt_dir) / MODEL_FILE, error) from error
    parser = _parser(train_config)
    for key, value in overrides.items():
        parser[f"network_def#{key}"] = value
    return parser.get_parsed_content("network_def")


def check_overrides(arguments: Sequence[str] | None = None) -> None:
    """Refuse what Fire would take without a word in ``python -m monai.bundle run``: a misspelt ``--name``, ``false``.

    Args:
        arguments: the command line; None: this process's. Commands other than ``monai.bundle run`` are not checked.

    Raises:
        DataError: a name that is in none of the config files, with the nearest ones that are; a value that does not
            arrive as it reads.
    """
    arguments = list(sys.argv if arguments is None else arguments)
    if len(arguments) < 2 or arguments[1] != "run" or "monai" not in arguments[0]:
        return
    given = {}
    for i, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
            given[name] = value or (arguments[i + 1] if i + 1 < len(arguments) else "")
    if "config_file" not in given:
        return
    files = given.pop("config_file").strip("[]").replace("'", "").replace('"', "").split(",")
    merged = merge_configs([Path(file.strip()) for file in files])
    options = {"run_id", "init_id", "final_id", "meta_file", "logging_file", "args_file", "workflow_type", "tracking"}
    for name, value in given.items():
        if split_key(name)[0] in options | {"workflow_name"}:
            continue
        if problem := _misread(value):
            raise DataError(f"--{name} {value}: {problem}")
        place: Any = merged
        for part in split_key(name):
            # a component may be given an argument that its config leaves at the default
            if not isinstance(place, dict) or ("_target_" in place and part not in place):
                break
            if part not in place:
                near = difflib.get_close_matches(part, place, n=3)
                hint = f" Did you mean {' or '.join(f'--{name.replace(part, key)}' for key in near)}?" if near else ""
                raise DataError(f"--{name} is no key of {', '.join(files)}.{hint}")
            place = place[part]


def _misread(value: str) -> str | None:
    """Why a value of the command line would not arrive as it reads, None where it does."""
    words = {value}
    if value[:1] in ("[", "{", "("):
        # within brackets a quoted word is a text, and None arrives
        words = set(re.findall(r"\w+", re.sub(r"'[^']*'|\"[^\"]*\"", "", value))) - {"None"}
    found = (MISREAD.get(word) or MISREAD.get(word.lower()) for word in words - {"False"})
    return next(filter(None, found), None)


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged or of another version ({type(error).__name__}: {error}). Run stage II again: "
        "--run_id train_run."
    )


def _parser(config: str | os.PathLike) -> Any:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(config))
    # its default is right from few folders only
    if "bundle_root" in parser and Path(config).parent.name == "configs":
        parser["bundle_root"] = str(Path(config).parents[1])
    return parser
