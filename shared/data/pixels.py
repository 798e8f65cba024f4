"""Pixels of many images, one after another in a file or in memory; an image is read when it is asked for."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from shared.data.cache_entry import kept
from shared.errors import DataError

WAITING = 64  # results that may wait for their turn; all of them at once would be all pixels
Item = TypeVar("Item")
Result = TypeVar("Result")


@kept("shapes", "checksums")
class Pixels:
    """Images of 8 bits, appended once and read by their number, in any order and by any thread.

    Without a file they are held in memory. A file is read by position instead of being mapped: a mapped file's pages
    count as resident memory until the system takes them back, and one that was cut off ends the process at its next
    reading; here it is an error. Of a file, each image's checksum is compared when it is read for the first time.

    Args:
        shapes: of the images a file holds already, ``[N, 3]``: channels, height, width.
        checksums: CRC-32 of each, ``[N]``.
        file: open for writing and reading, empty; None: memory, or what :meth:`open` opens.
        path: of ``file``, where it has a name.

    Raises:
        DataError: of its methods: the disk is full, or an image is not what was written.

    Example:
        >>> pixels = Pixels()
        >>> [pixels.append(np.full((3, 2, 2), value, np.uint8)) for value in (5, 7)]
        [0, 1]
        >>> pixels.read(1)[0].tolist(), pixels.nbytes
        ([[7, 7], [7, 7]], 24)
    """

    def __init__(
        self,
        shapes: Sequence[Any] = (),
        checksums: Sequence[Any] = (),
        *,
        file: BinaryIO | None = None,
        path: Path | None = None,
    ):
        self._shapes = [tuple(shape) for shape in np.asarray(shapes, int).reshape(-1, 3).tolist()]
        self._checksums = [int(checksum) for checksum in checksums]
        self._starts = [0, *np.cumsum([np.prod(shape) for shape in self._shapes], dtype=np.int64).tolist()]
        self._file, self.path = file, path
        self._arrays: list[np.ndarray] = []
        self._checked: set[int] = set()
        self._flushed = True
        self.copies: list[tuple[Any, dict[int, int]]] = []  # of these images on devices, and which rows they are

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def shapes(self) -> np.ndarray:
        """Channels, height and width of every image, ``[N, 3]``."""
        return np.array(self._shapes, int).reshape(-1, 3)

    @property
    def checksums(self) -> np.ndarray:
        """CRC-32 of every image of a file, ``[N]``."""
        return np.array(self._checksums, np.uint32)

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return int(self._starts[-1])

    def append(self, image: np.ndarray) -> int:
        """Add an image ``[C, H, W]`` of 8 bits; returns its number."""
        image = np.ascontiguousarray(image).view(np.uint8)
        if self._file is None:
            self._arrays.append(image)
        else:
            self._checksums.append(zlib.crc32(image))
            self._do(lambda file: file.write(image))
            self._flushed = False
        self._shapes.append(image.shape)
        self._starts.append(self._starts[-1] + image.size)
        return len(self) - 1

    def read(self, number: int, out: np.ndarray | None = None) -> np.ndarray:
        """An image ``[C, H, W]``, written into ``out`` where that is given."""
        out = np.empty(self._shapes[number], np.uint8) if out is None else out
        if self._file is None:
            np.copyto(out, self._arrays[number])
            return out
        self.flush()
        count = os.preadv(self._file.fileno(), [memoryview(out).cast("B")], self._starts[number])
        if count < out.size or not (number in self._checked or zlib.crc32(out) == self._checksums[number]):
            self.discard()
            raise DataError(
                f"{self.path or 'a temporary file'}: image {number + 1} of {len(self)} is not what was written there, "
                "the disk or the file is damaged; the file is removed, start again: the patches are decoded anew."
            )
        self._checked.add(number)
        return out

    def flush(self) -> None:
        """Hand to the system what was appended."""
        if not self._flushed:
            self._do(lambda file: file.flush())
            self._flushed = True

    def publish(self, path: Path) -> None:
        """Give the file the name under which :meth:`open` finds it; memory stays memory.

        Raises:
            OSError: it cannot be.
        """
        if self.path is not None:
            self.flush()
            path.parent.mkdir(parents=True, exist_ok=True)
            self.path = self.path.replace(path)

    def open(self, path: Path) -> None:
        """Read from the file at ``path``, which holds these images.

        Raises:
            OSError: there is none, or it has other bytes.
        """
        self._file, self.path = path.open("rb"), path
        if (size := os.fstat(self._file.fileno()).st_size) != self.nbytes:
            raise OSError(f"{self.nbytes} bytes of pixels are needed, it has {size}")

    def discard(self) -> None:
        """Remove the file from its folder; this object goes on reading it."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _do(self, act: Callable[[BinaryIO], Any]) -> None:
        assert self._file is not None
        try:
            act(self._file)
        except OSError as error:
            self.discard()
            raise DataError(
                f"{self.path or tempfile.gettempdir()}: no room for decoded patches ({error}); make room on that disk, "
                "or set cache_dir to a folder on another (--cache_dir)."
            ) from error


def in_order(call: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Results of ``call`` in the order of ``items``, made by threads that do not run far ahead of who takes them.

    ``Executor.map`` starts all at once and holds what is not taken yet.

    Example:
        >>> list(in_order(lambda x: 2 * x, range(4), 2))
        [0, 2, 4, 6]
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) >= WAITING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
