"""A trained model: its weights, and the atlas it was trained with, refused where they are not those of its training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from shared.bundle.record import check_weights, read_model
from shared.checkpoint import load_checkpoint, load_weights
from shared.data.brain.atlas import TractAtlas
from shared.distributed.processes import from_main
from shared.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

ATLAS_FILE = "atlas.npz"


def load_model(path: str | os.PathLike, network: nn.Module) -> None:
    """Load a checkpoint strictly; a ``model.pt`` must be the one that ``model.json`` beside it describes.

    Raises:
        CheckpointError: no checkpoint, weights of another network, or a ``model.json`` of other weights.
    """
    path = Path(path)
    hint = "Train first: see the bundle's docs/README.md, or give --ckpt_dir."
    state = from_main(lambda: load_checkpoint(path, hint=hint))
    if path.name == "model.pt":
        from_main(lambda: check_weights(path, state))
    load_weights(network, state, path)


def trained_atlas(ckpt_dir: str | os.PathLike, atlas_file: str | os.PathLike | None = None) -> TractAtlas:
    """The atlas that a model was trained with.

    Args:
        ckpt_dir: folder of ``model.pt`` and ``atlas.npz``.
        atlas_file: what is taken where no model was trained yet.

    Raises:
        CheckpointError: there is none beside the checkpoint, or it is another one.
    """
    path = Path(ckpt_dir) / ATLAS_FILE
    if atlas_file is not None and not path.is_file() and not read_model(ckpt_dir):
        return TractAtlas.load(atlas_file)
    if not path.is_file():
        raise CheckpointError(f"{path} is not there: copy it with model.pt and model.json, or train first.")
    atlas = TractAtlas.load(path)
    known = read_model(ckpt_dir).get("record", {}).get("atlas")
    if known not in (None, atlas.digest):
        raise CheckpointError(f"{path} is not the atlas that the model was trained with: copy it from the training.")
    return atlas
