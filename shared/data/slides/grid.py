"""Where tiles of one physical size lie on a slide, and which pixels of which level they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from shared.data.slides.reading import SlideReader

PIXELS = (0.05, 20.0)  # micrometres: from the finest scanner to an overview
EXACT = 1e-3  # pixels: rounding of the sizes that files state


def places(length: int, side: float, overlap: float) -> list[int]:
    """Where tiles begin along a side of an image, in its pixels: evenly from border to border, one alone in the middle.

    Args:
        length: of the image.
        side: of a tile.
        overlap: largest share of a tile that its neighbour may cover.

    Example:
        >>> places(100, 40, 0.0), places(100, 40, 0.5), places(50, 40, 0.0), places(30, 40, 0.0)
        ([0, 60], [0, 20, 40, 60], [5], [])
    """
    room = length - side
    if room < -1e-6:
        return []
    count = int(room / (side * (1 - overlap)) + 1e-6) + 1
    return [int(room / 2)] if count == 1 else [int(room * i / (count - 1) + 1e-6) for i in range(count)]


@dataclass(frozen=True)
class TileGrid:
    """Tiles of a slide, row by row.

    Attributes:
        size: pixels of a tile's side as the network gets it.
        side: the same side in pixels of level 0.
        level: which level is read.
        downsample: pixels of level 0 per pixel of that level.
        lefts: first column of each column of tiles, in pixels of that level.
        tops: first row of each row of tiles, likewise.
    """

    size: int
    side: float
    level: int
    downsample: float
    lefts: tuple[int, ...]
    tops: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.lefts) * len(self.tops)

    def cell(self, number: int) -> tuple[int, int]:
        """Row and column of a tile among the tiles."""
        return divmod(number, len(self.lefts))

    def corner(self, number: int) -> tuple[int, int]:
        """Left and upper edge of a tile in pixels of level 0."""
        row, column = self.cell(number)
        return round(self.lefts[column] * self.downsample), round(self.tops[row] * self.downsample)

    def borders(self) -> tuple[np.ndarray, np.ndarray]:
        """Borders of the cells that the tiles stand for, in pixels of level 0: half-way between tiles' centres.

        Shape:
            - returns: x ``[columns + 1]``, y ``[rows + 1]``
        """
        import numpy as np  # the preparation scripts' --help needs none

        found = []
        for starts in (self.lefts, self.tops):
            first = np.asarray(starts, float) * self.downsample
            middle = (first[1:] + first[:-1] + self.side) / 2
            found.append(np.concatenate([first[:1], middle, first[-1:] + self.side]))
        return found[0], found[1]


def tile_grid(reader: SlideReader, *, size: int, mpp: float, slide_mpp: float, overlap: float = 0.0) -> TileGrid:
    """The grid of a slide; without tiles where it is smaller than one.

    Read is the coarsest level that still has the tiles' resolution; tiles begin on its pixels.

    Args:
        reader: of the slide.
        size: pixels of a tile's side.
        mpp: micrometres per pixel of the tiles.
        slide_mpp: micrometres per pixel of the slide's level 0.
        overlap: largest share of a tile that its neighbour may cover.
    """
    side = size * mpp / slide_mpp
    level = reader.level_for(mpp / slide_mpp)
    downsample = reader.downsamples[level]
    starts = []
    for length, pixels in zip((reader.width, reader.height), reversed(reader.shapes[level]), strict=True):
        last = max(0, int(pixels - side / downsample + EXACT))  # a level may have lost its last pixel
        starts.append(tuple(min(int(start / downsample + EXACT), last) for start in places(length, side, overlap)))
    return TileGrid(size, side, level, downsample, starts[0], starts[1])
