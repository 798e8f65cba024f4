"""Tiles of a slide as a dataset: read from the slide when a batch is formed, by each worker with a file of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from shared.data.patches.resizing import resize_images
from shared.data.slides.grid import TileGrid
from shared.data.slides.reading import SlideReader, open_slide
from shared.errors import DataError


class SlideTiles(Dataset):
    """Tiles as the network's patches: the pixels that a patch file of the tile would have after its cache.

    Args:
        path: the slide.
        grid: of its tiles.
        numbers: which tiles.
        cache_size: side after resizing, as in the training's cache (:class:`shared.data.PatchCache`); None: as read.

    Shape:
        - an item: uint8 ``[3, S, S]``; a batch of a loader: ``[B, 3, S, S]``, or the error that reading met
    """

    def __init__(
        self, path: str | os.PathLike, grid: TileGrid, numbers: Sequence[int], *, cache_size: int | None = None
    ):
        self.path, self.grid, self.numbers, self.cache_size = Path(path), grid, list(numbers), cache_size
        self._reader: SlideReader | None = None
        self._process = 0

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Tensor:
        image = torch.from_numpy(self.pixels(self.numbers[index]).transpose(2, 0, 1).copy())
        return image if self.cache_size is None else resize_images(image[None], self.cache_size)[0]

    def __getitems__(self, indices: Sequence[int]) -> Tensor | DataError:
        """A batch; an error is handed on as it is, since torch would wrap a worker's into its traceback."""
        try:
            return torch.stack([self[index] for index in indices])
        except DataError as error:
            return error

    @staticmethod
    def collate(batch: Tensor | DataError) -> Tensor:
        """What a loader needs as ``collate_fn``: the batch as it is."""
        return batch

    def pixels(self, number: int) -> Any:
        """A tile uint8 ``[size, size, 3]``, before the cache.

        Raises:
            DataError: the slide is damaged there.
        """
        grid = self.grid
        row, column = grid.cell(number)
        span = grid.side / grid.downsample
        return self.reader.read_scaled(grid.level, grid.lefts[column], grid.tops[row], span, grid.size)

    @property
    def reader(self) -> SlideReader:
        """This process's own: two that share an open file would move its position under each other."""
        if self._reader is None or self._process != os.getpid():
            self._reader, self._process = open_slide(self.path), os.getpid()
        return self._reader

    def close(self) -> None:
        """Close this process's file."""
        if self._reader is not None and self._process == os.getpid():
            self._reader.close()
        self._reader = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}
