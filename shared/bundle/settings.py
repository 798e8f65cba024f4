"""What a trained model is made of, kept beside its weights, so that inference needs no retyped numbers."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from shared.bundle.record import MODEL_FILE, SWITCHES
from shared.errors import CheckpointError
from shared.io import write_json


def save_settings(ckpt_dir: str | os.PathLike, **sections: Any) -> None:
    """Write the sections (plain values) to ``model.json`` beside the checkpoint."""
    write_json(Path(ckpt_dir) / MODEL_FILE, sections)


def trained_settings(
    ckpt_dir: str | os.PathLike, train_config: str | os.PathLike, section: str, default: Any = None, **given: Any
) -> Any:
    """A section of the trained model's ``model.json``, else of the training configuration.

    Args:
        ckpt_dir: folder of ``model.pt`` and the ``model.json`` written with it.
        train_config: ``train.json``, read when no model was trained yet.
        section: name of the section.
        default: where no model was trained, for what training finds in its data and no configuration says; also where
            an older ``model.json`` lacks the section.
        given: entries of the section that an overlay or the command line sets; they must be the model's.

    Raises:
        CheckpointError: ``model.json`` is not readable or lacks the section, or ``given`` says otherwise.
    """
    path = Path(ckpt_dir) / MODEL_FILE
    if not path.is_file():
        parser = _parser(train_config)
        _set_below(parser, section, given)
        return parser.get_parsed_content(section) if section in parser or default is None else default
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content[section] if default is None else content.get(section, default)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    refuse_others(path, {section: found}, {section: given} if given else {})
    return found


class TrainedModel:
    """Sections of a trained model's ``model.json`` by name, else of the training configuration.

    Args:
        ckpt_dir: folder of ``model.pt`` and ``model.json``.
        train_config: ``train.json``, read when no model was trained yet.

    Raises:
        CheckpointError: ``model.json`` is not readable or lacks the section.
    """

    def __init__(self, ckpt_dir: str | os.PathLike, train_config: str | os.PathLike):
        self.ckpt_dir, self.train_config = ckpt_dir, train_config

    def get(self, section: str, default: Any = None) -> Any:
        """A section, see :func:`trained_settings`."""
        return trained_settings(self.ckpt_dir, self.train_config, section, default)

    def __getattr__(self, section: str) -> Any:
        if section.startswith("_"):
            raise AttributeError(section)
        return self.get(section)


def trained_network(
    network: str | Callable[..., nn.Module],
    ckpt_dir: str | os.PathLike,
    train_config: str | os.PathLike,
    **overrides: Any,
) -> nn.Module:
    """The network with the numbers it was trained with, else those of the training configuration; weights not loaded.

    Args:
        network: its class, or the class's dotted name.
        ckpt_dir: folder of ``model.pt`` and ``model.json``.
        train_config: ``train.json``, whose ``network_def`` is built when no model was trained yet.
        overrides: arguments that an overlay or the command line sets: switches of speed (``bf16``, ``channels_last``,
            ``checkpointing``) and the ``answer`` win over ``model.json`` unless None, all others must be what it says;
            an empty section sets nothing.

    Raises:
        CheckpointError: ``model.json`` is not readable, or ``overrides`` says otherwise.
    """
    path, overrides = Path(ckpt_dir) / MODEL_FILE, {key: value for key, value in overrides.items() if value != {}}
    if path.is_file():
        network = _network_class(network, Path(train_config)) if isinstance(network, str) else network
        settings = dict(trained_settings(ckpt_dir, train_config, "network"))
        kind = _network_class(settings.pop("class"), path) if "class" in settings else network
        switches = {key: value for key, value in overrides.items() if key in SWITCHES and value is not None}
        try:
            built = kind(**{**settings, **(switches if kind is network else {})})
        except TypeError as error:
            raise _damaged(path, error) from error
        settings = {**getattr(built, "settings", {}), **settings}  # an older model.json lacks those that came later
        # what the class takes and does not keep, such as frozen layers, is of the training alone
        taken = _passing(network)
        known = {key for key in overrides if key in settings or key not in taken}
        others = {key: value for key, value in overrides.items() if key in known - set(SWITCHES)}
        refuse_others(path, {"network_def": settings}, {"network_def": others})
        return built
    parser = _parser(train_config)
    given = {key: value for key, value in overrides.items() if value is not None or key not in SWITCHES}
    _set_below(parser, "network_def", given)
    return parser.get_parsed_content("network_def")


def refuse_others(path: str | os.PathLike, trained: Mapping[str, Any], used: Mapping[str, Any]) -> None:
    """Refuse settings that are not those a model was trained with; keys that ``trained`` lacks are not compared.

    Raises:
        CheckpointError: with every difference by name.

    Example:
        >>> refuse_others("model.json", {"roi": {"size": 64}}, {"roi": {"size": 32}})
        Traceback (most recent call last):
            ...
        shared.errors.CheckpointError: roi#size is 32, the model was trained with 64 (model.json): leave the setting ...
    """
    problems = [
        f"{key} is {json.dumps(now, default=str)}, the model was trained with {json.dumps(before)}"
        for key, before, now in _differences("", trained, used)
    ]
    if problems:
        raise CheckpointError(
            f"{'; '.join(problems)} ({path}): leave the setting out, a trained model brings its own, or train with it."
        )


def _differences(prefix: str, trained: Mapping[str, Any], used: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    found = []
    # a section that an older model.json lacks cannot be compared, an entry that a section lacks is another setting
    for key in used.keys() if prefix else trained.keys() & used.keys():
        before, now = trained.get(key, "unset"), used[key]
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += _differences(f"{prefix}{key}#", before, now)
        elif json.loads(json.dumps(now, default=str)) != before:
            found.append((prefix + key, before, now))
    return sorted(found, key=lambda item: item[0])


def _passing(network: Callable[..., nn.Module]) -> set[str]:
    """Names of the arguments that a network takes."""
    try:
        return set(inspect.signature(network).parameters)
    except (TypeError, ValueError):
        return set()


def _network_class(name: str, path: Path) -> Callable[..., nn.Module]:
    """The class of a network that was not this bundle's own; model.json may name networks, and nothing else."""
    from pydoc import locate

    found = locate(name) if name.startswith(("monai.networks.nets.", "shared.networks.")) else None
    if found is None:
        raise CheckpointError(f"{path} names the network {name!r}, which is none of MONAI's or of this package.")
    return found


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged or of another version ({type(error).__name__}: {error}), or of another bundle's model. "
        "Give this bundle's --ckpt_dir, or run stage II again: --run_id train_run."
    )


def _set_below(parser: Any, key: str, values: Mapping[str, Any]) -> None:
    """Set entries below ``key``, those of nested ones beside what is there."""
    for name, value in values.items():
        if isinstance(value, Mapping) and f"{key}#{name}" in parser:
            _set_below(parser, f"{key}#{name}", value)
        else:
            parser[f"{key}#{name}"] = value


def _parser(config: str | os.PathLike) -> Any:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(config))
    # its default is right from few folders only
    if "bundle_root" in parser and Path(config).parent.name == "configs":
        parser["bundle_root"] = str(Path(config).parents[1])
    return parser
