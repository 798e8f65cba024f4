"""Checkpoints: written whole or not at all, read without running code, and explained when they do not fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared.errors import CheckpointError
from shared.io import atomic_path, disguise

_RETIRED = ("seen",)  # buffers that older versions wrote
_FIXED = ("edge_index",)  # buffers that belong to the network's structure: loading must not replace them


def save_checkpoint(path: str | os.PathLike, state: Any) -> None:
    """``torch.save`` to a temporary name, then rename: a full disk leaves the older file as it was.

    Raises:
        CheckpointError: the file could not be written.
    """
    try:
        with atomic_path(path) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"The checkpoint {path} could not be written ({error}); an older file of that name is untouched. "
            "Free disk space or choose another --ckpt_dir, then run again with --resume true."
        ) from error


def load_checkpoint(path: str | os.PathLike, *, hint: str = "", device: Any = "cpu") -> Any:
    """``torch.load`` with ``weights_only=True``.

    Args:
        path: the file.
        hint: how to make it, for the message when it is missing.
        device: where tensors go.

    Raises:
        CheckpointError: there is no such file, or it is no checkpoint.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"There is no checkpoint {path}. {hint}".strip())
    if found := disguise(path):
        raise CheckpointError(f"{path} {found}.")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        # an empty file raises an error without a text
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])[:200]
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({reason}). Train again or copy the file once more."
        ) from error


def part_of(state: Any, key: str, path: str | os.PathLike) -> Any:
    """``state[key]`` of a loaded checkpoint.

    Raises:
        CheckpointError: the file was written by another stage or program.
    """
    if not isinstance(state, dict) or key not in state:
        raise CheckpointError(
            f"{path} holds no {key!r}: it is of another stage or program. Run the stage that writes it again."
        )
    return state[key]


def weights_below(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries of a state dict whose names begin with ``prefix``, without it.

    Example:
        >>> weights_below({"encoder.conv.weight": 1, "head.weight": 2}, "encoder.")
        {'conv.weight': 1}
    """
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_weights(network: nn.Module, state: Any, path: str | os.PathLike) -> None:
    """Load a state dict strictly, naming what differs.

    Raises:
        CheckpointError: it is no state dict, or keys or dimensions differ from the network's.
    """
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict.")
    state = {key: value for key, value in state.items() if key.rpartition(".")[2] not in _RETIRED}
    if hasattr(network, "make_room"):  # buffers with a row for every training patient
        network.make_room(state)
    if hasattr(network, "unused"):  # what older versions stored though nothing reads it
        state = {key: value for key, value in state.items() if not network.unused(key)}
    own = network.state_dict()
    shapes = [
        f"{key}: {_kind(state[key])} in the file, {_kind(own[key])} in the network"
        for key in own
        if key in state and getattr(state[key], "shape", None) != own[key].shape
    ]
    missing, extra = [key for key in own if key not in state], [key for key in state if key not in own]
    if shapes or missing or extra:
        details = (
            shapes + [f"{key}: not in the file" for key in missing] + [f"{key}: only in the file" for key in extra]
        )
        shown = "; ".join(details[:4]) + (f"; and {len(details) - 4} more" if len(details) > 4 else "")
        raise CheckpointError(
            f"{path} does not fit this network: {shown}. Use the config overlays that the checkpoint was trained with "
            "(for example cpu.json), or train again."
        )
    for key in own:
        if key.rpartition(".")[2] in _FIXED and not torch.equal(state[key].cpu(), own[key].cpu()):
            raise CheckpointError(
                f"{path} was trained with another tract atlas (its {key} differs): use that atlas, or train again."
            )
    network.load_state_dict(state)


def _kind(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__
