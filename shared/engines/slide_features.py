"""Features of slides' tiles by a frozen encoder, computed once and kept by the content of the slides."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.networks.utils import eval_mode
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from shared.bundle.record import MODEL_FILE, read_model, read_split, weights_digest
from shared.bundle.settings import refuse_others
from shared.data.slides.folder import check_mpp
from shared.data.slides.grid import tile_grid
from shared.data.slides.reading import open_slide, slide_state
from shared.data.slides.tiles import SlideTiles
from shared.data.slides.tissue import find_tissue
from shared.data.tables import some
from shared.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from shared.data.disk_cache import DiskCache
    from shared.data.slides.datalist import SlideDatalist

logger = logging.getLogger(__name__)

WRITTEN = ("model.pt", "pretrain.pt")  # by trainings, beside their model.json


def trained_size(
    folder: str | os.PathLike, *, mpp: float | None, patch_size: int | None, section: str = ""
) -> tuple[float, int]:
    """Micrometres per pixel and pixels of a side of the patches that a model was trained on.

    Args:
        folder: of ``model.json``, if there is one; or weights that have none.
        mpp: where that does not say.
        patch_size: likewise.
        section: of the key ``patch_size`` on the command line, with its ``#``.

    Raises:
        CheckpointError: what is given is not the model's, or neither says.
    """
    path, model = Path(folder) / MODEL_FILE, read_model(folder)
    given = {key: value for key, value in (("mpp", mpp), ("patch_size", patch_size)) if value is not None}
    known = {key: model[key] for key in ("mpp", "patch_size") if model.get(key) is not None}
    refuse_others(path, known, given)
    known = {**given, **known}
    if missing := [key for key in ("mpp", "patch_size") if key not in known]:
        words = {"mpp": "micrometres per pixel", "patch_size": "pixels of a side"}
        where = folder if Path(folder).is_file() else path
        raise CheckpointError(
            f"{where} does not say of which size the training's patches were: give "
            + " and ".join(f"--{section * (key != 'mpp')}{key} ({words[key]})" for key in missing)
            + ", or prepare the patches with their --mpp and train again"
        )
    return check_mpp(known["mpp"], "--mpp"), int(known["patch_size"])


@torch.inference_mode()
def tile_outputs(
    tiles: SlideTiles, compute: Callable[[Tensor], Tensor], *, batch_size: int, num_workers: int, title: str
) -> Tensor:
    """What a network makes of tiles, in batches read by the workers.

    Args:
        tiles: of a slide; its file is closed at the end.
        compute: gives a row for each tile of a batch.
        batch_size: tiles per step.
        num_workers: processes that read.
        title: of the progress bar.

    Shape:
        - compute: uint8 ``[B, 3, S, S]`` -> ``[B, *]``
        - returns: ``[len(tiles), *]``, on the CPU
    """
    loader: DataLoader = DataLoader(tiles, batch_size, num_workers=num_workers, collate_fn=tiles.collate)
    parts = []
    try:
        with tqdm(total=len(tiles), desc=title, unit="tile") as bar:
            for image in loader:
                if isinstance(image, DataError):
                    raise image
                parts.append(compute(image).cpu())
                bar.update(len(image))
    finally:
        tiles.close()
    return torch.cat(parts)


class SlideFeatures:
    """Features h of a slide's tiles of tissue, each of the physical size of the encoder's patches.

    They are kept in the disk cache by the content of the slide, the encoder's weights and the settings, so that a run
    that is stopped goes on after the last whole slide, and evaluation reads what training computed. In memory are those
    that fit; one slide at a time beyond.

    Args:
        network: its ``encoder``, filled by the time of the first call, gives h.
        encoder: checkpoint that it is filled from: a ``model.json`` beside it says of which size its patches were; None
            (evaluation): that of ``ckpt_dir`` does.
        ckpt_dir: of the model of slides.
        prepare_batch: as in the evaluation of patches.
        inferer: likewise; of several views h is the mean.
        device: where the encoder runs.
        disk_cache: keeps the features.
        used: further settings in use, by section of ``model.json``, which must be the encoder's.
        cache_size: side to which the encoder's patches were resized when they were read; None: none.
        mpp: micrometres per pixel of the tiles, where ``model.json`` does not say.
        patch_size: pixels of a tile's side, likewise.
        overlap: largest share of a tile that its neighbour covers.
        min_tissue: least share of a tile that is tissue.
        max_ink: largest share of a tile that is ink of a pen.
        overview_mpp: micrometres per pixel at which tissue is looked for.
        tissue: thresholds of :func:`shared.data.slides.tissue.tissue_mask`.
        batch_size: tiles per step.
        num_workers: processes that read tiles.

    Attributes:
        mpp: micrometres per pixel of the tiles.
        patch_size: pixels of a tile's side.
        choice: how tiles are chosen: ``overlap``, ``min_tissue``, ``max_ink``, ``overview_mpp`` and ``tissue``.

    Shape:
        - of a call: an entry of :class:`shared.data.slides.datalist.SlideDatalist` -> float16 ``[n, D]``

    Raises:
        CheckpointError: no encoder, tiles of unknown size, other settings than the model's.
        DataError: of a call: no tissue, a damaged slide, no room for the features.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        encoder: str | os.PathLike | None,
        ckpt_dir: str | os.PathLike,
        prepare_batch: Callable[..., Any],
        inferer: Callable[..., Tensor],
        disk_cache: DiskCache,
        device: str | torch.device = "cpu",
        used: Mapping[str, Any] | None = None,
        cache_size: int | None = None,
        mpp: float | None = None,
        patch_size: int | None = None,
        overlap: float = 0.0,
        min_tissue: float = 0.25,
        max_ink: float = 0.1,
        overview_mpp: float = 8.0,
        tissue: Mapping[str, Any] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
    ):
        self.network, self.encoder, self.ckpt_dir = network, encoder and Path(encoder), Path(ckpt_dir)
        self.prepare_batch, self.inferer, self.device = prepare_batch, inferer, torch.device(device)
        self.disk_cache, self.cache_size = disk_cache, cache_size
        self.batch_size, self.num_workers = batch_size, num_workers
        self.choice = {"overlap": overlap, "min_tissue": min_tissue, "max_ink": max_ink, "overview_mpp": overview_mpp}
        self.choice["tissue"] = dict(tissue or {})
        folder = self.ckpt_dir
        if self.encoder is not None:
            # ImageNet weights may lie beside a model.json and are not what that is about
            folder = self.encoder.parent if self.encoder.name in WRITTEN else self.encoder
            refuse_others(folder / MODEL_FILE, read_model(folder), used or {})
        else:
            if not (self.ckpt_dir / MODEL_FILE).is_file():
                raise CheckpointError(_NO_ENCODER)
            refuse_others(self.ckpt_dir / MODEL_FILE, read_model(self.ckpt_dir), {"tiles": self.choice})
        self.mpp, self.patch_size = trained_size(folder, mpp=mpp, patch_size=patch_size)
        self._held: dict[str, Tensor] = {}
        self._room = disk_cache.memory

    def begin(self, datalist: SlideDatalist) -> None:
        """Before a training: is there an encoder, does every slide have tissue, and whom does the encoder know?

        Raises:
            CheckpointError: no encoder, or the folder for the model holds one of patches.
            DataError: slides without tissue.
        """
        if self.encoder is None:
            raise CheckpointError(_NO_ENCODER)
        there = read_model(self.ckpt_dir).get("network")
        if there is not None and there.get("class") != self.network.settings["class"]:
            raise CheckpointError(f"{self.ckpt_dir} holds a model of patches: give the model of slides --ckpt_dir")
        entries = [entry for part in ("training", "validation", "testing") for entry in getattr(datalist, part)]
        bare = [entry["slide"] for entry in entries if not len(self._numbers(entry))]
        if bare:
            raise DataError(
                f"{len(bare)} of {len(entries)} slides have no tissue: {some(bare)}; move them away, or change how it "
                "is looked for (--slide_features#tissue#saturation, --slide_features#min_tissue)"
            )
        seen = {name for stage in read_split(self.encoder.parent).get("images", {}).values() for name in stage}
        apart = {entry["patient"] for part in ("validation", "testing") for entry in getattr(datalist, part)}
        if self.encoder.name in WRITTEN and (again := sorted(seen & apart)):
            logger.warning(
                "%s was trained on patches of %d patients of these names who validate or test: %s. If they are the "
                "same, figures of them say nothing about new patients.",
                self.encoder,
                len(again),
                some(again),
            )

    def __call__(self, entry: Mapping[str, Any]) -> Tensor:
        """The features of a slide: held, read or computed."""
        key = str(entry["image"])
        if key in self._held:
            return self._held[key]
        numbers = self._numbers(entry)
        if not len(numbers):
            raise DataError(f"{entry['slide']}: has no tissue")
        settings = {"encoder": self._weights, "network": self.network.settings["encoder"], "cut": self._cut}
        settings |= {"cache_size": self.cache_size, "size": getattr(self.prepare_batch, "size", None)}
        settings |= {key: getattr(self.inferer, key, None) for key in ("views", "bf16")} | _beside(entry)

        def compute(_: dict[str, Any]) -> dict[str, Any]:
            return {"features": self._encode(entry, numbers)}

        # what only this datalist says of the slide is no part of the key
        known = {"image": key, "mpp": entry["mpp"]}
        found = torch.from_numpy(self.disk_cache(known, json.dumps(settings, sort_keys=True), compute)["features"])
        size = found.element_size() * found.numel()
        if size <= self._room:
            self._room -= size
            self._held[key] = found
        elif not self.disk_cache.writable:
            raise DataError(
                f"{entry['slide']}: features of the slides are more than memory_gb, and cache_dir keeps none: give "
                "--cache_dir a folder with room, or raise --memory_gb"
            )
        return found

    @cached_property
    def _weights(self) -> str:
        return weights_digest(self.network.encoder.state_dict())

    @property
    def _cut(self) -> dict[str, Any]:
        return {"mpp": self.mpp, "patch_size": self.patch_size, **self.choice}

    def _numbers(self, entry: Mapping[str, Any]) -> Any:
        """Numbers of the tiles of tissue in the slide's grid."""

        def compute(_: dict[str, Any]) -> dict[str, Any]:
            with open_slide(entry["image"]) as reader:
                grid, cut = self._grid(reader, entry), {**self.choice, **self.choice["tissue"]}
                cut = {key: value for key, value in cut.items() if key not in ("overlap", "tissue")}
                return {"numbers": np.flatnonzero(find_tissue(reader, grid, entry["mpp"], **cut).taken)}

        known = {"image": str(entry["image"]), "mpp": entry["mpp"]}
        return self.disk_cache(known, json.dumps({"tissue of": self._cut} | _beside(entry), sort_keys=True), compute)[
            "numbers"
        ]

    def _grid(self, reader: Any, entry: Mapping[str, Any]) -> Any:
        size = {"size": self.patch_size, "mpp": self.mpp, "overlap": self.choice["overlap"]}
        return tile_grid(reader, slide_mpp=entry["mpp"], **size)

    def _encode(self, entry: Mapping[str, Any], numbers: Sequence[int]) -> Any:
        with open_slide(entry["image"]) as reader:
            grid = self._grid(reader, entry)
        tiles = SlideTiles(entry["image"], grid, [int(number) for number in numbers], cache_size=self.cache_size)
        read = {"batch_size": self.batch_size, "num_workers": self.num_workers, "title": entry["slide"]}
        with eval_mode(self.network):
            found = tile_outputs(tiles, self.encode, **read)
        logger.info("%s: features of %d tiles", entry["slide"], len(found))
        return found.numpy()

    def encode(self, image: Tensor) -> Tensor:
        """Features float16 of a batch of tiles: half the room, and alike in training and inference."""
        batch, _ = self.prepare_batch({"image": image}, self.device, True)
        return self.inferer(batch, self.network.encoder).half()


def _beside(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Of a slide of several files those that the cache's digest, of the first, does not tell of."""
    return {key: value for key, value in slide_state(Path(entry["image"])).items() if key == "beside"}


_NO_ENCODER = (
    "a model of slides needs an encoder: give --train#pretrained FILE, pretrain.pt or model.pt of a training on "
    "patches, or ImageNet weights with torchvision's names (then with --mpp and --patch_size)"
)
