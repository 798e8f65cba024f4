"""Which parts of a slide are tissue: Otsu's threshold on saturation at low magnification, pen marks left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shared.data.slides.grid import TileGrid
from shared.errors import DataError

if TYPE_CHECKING:
    from shared.data.slides.reading import SlideReader


class Tissue(NamedTuple):
    """Where a slide's tissue is, and which tiles are tissue.

    Args:
        overview: the slide at low magnification, uint8 ``[H, W, 3]``.
        mask: of its tissue, bool ``[H, W]``.
        threshold: on saturation.
        downsample: pixels of level 0 per pixel of the overview.
        shares: of each tile that is tissue, ``[tiles]``.
        taken: tiles of enough tissue and little ink, bool ``[tiles]``.
    """

    overview: np.ndarray
    mask: np.ndarray
    threshold: float
    downsample: float
    shares: np.ndarray
    taken: np.ndarray


def find_tissue(
    reader: SlideReader,
    grid: TileGrid,
    slide_mpp: float,
    *,
    overview_mpp: float = 8.0,
    min_tissue: float = 0.25,
    max_ink: float = 0.1,
    **thresholds: Any,
) -> Tissue:
    """Look for tissue on a slide's overview, and choose tiles: alike for the training and for new slides.

    Args:
        reader: of the slide.
        grid: of its tiles.
        slide_mpp: micrometres per pixel of level 0.
        overview_mpp: micrometres per pixel of the overview.
        min_tissue: least share of a tile that is tissue.
        max_ink: largest share of a tile that is ink of a pen.
        thresholds: of :func:`tissue_mask`.
    """
    overview = reader.overview(max(1.0, overview_mpp / slide_mpp))
    downsample = (reader.width / overview.shape[1] + reader.height / overview.shape[0]) / 2
    mask, ink, threshold = tissue_mask(overview, downsample * slide_mpp, **thresholds)
    shares = tissue_shares(mask, grid, downsample).ravel()
    clean = tissue_shares(ink, grid, downsample).ravel() <= max_ink
    return Tissue(overview, mask, threshold, downsample, shares, (shares >= min_tissue) & (shares > 0) & clean)


def tissue_mask(
    overview: np.ndarray,
    mpp: float,
    *,
    saturation: Sequence[float] = (0.05, 0.12),
    pen: int = 20,
    red_pen: int = 150,
    dark: int = 60,
    smallest_um2: float = 10000.0,
    holes_um2: float = 50000.0,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Tissue of a slide, ink on it, and the threshold on saturation that was taken.

    The threshold is Otsu's (A threshold selection method from gray-level histograms, 1979), held within ``saturation``:
    of glass alone, or of tissue alone, Otsu's would divide noise, or tissue. Haematoxylin and eosin absorb green most;
    where green is not the darkest channel, ink is taken for the reason.

    Args:
        overview: the slide at low magnification.
        mpp: micrometres per pixel of it.
        saturation: least and largest threshold on saturation (of HSV, 0 to 1).
        pen: grey levels by which green may exceed red or blue; beyond that it is green, blue or yellow ink; 255: all is
            tissue.
        red_pen: grey levels by which red may exceed green and blue; beyond that it is red ink; 255: all is tissue.
        dark: brightest channel below which a pixel is black ink or a shadow; 0: none is.
        smallest_um2: smaller pieces of tissue are dust, in square micrometres.
        holes_um2: smaller gaps (lumina, fat) belong to the tissue, in square micrometres.

    Shape:
        - overview: uint8 ``[H, W, 3]``
        - returns: bool ``[H, W]`` twice, and a number

    Raises:
        DataError: thresholds out of range.
    """
    from scipy.ndimage import binary_dilation, uniform_filter
    from skimage.filters import threshold_otsu

    low, high = saturation
    if not 0 <= low <= high <= 1:
        raise DataError(f"saturation must be two thresholds from 0 to 1, the least first, got {list(saturation)}")
    smooth = uniform_filter(overview.astype(np.float32), (3, 3, 0))  # noise of single pixels has colours of its own
    red, green, blue = smooth[..., 0], smooth[..., 1], smooth[..., 2]
    brightest = smooth.max(-1)
    ink = (green - red > pen) | (green - blue > pen) | (red - np.maximum(green, blue) > red_pen) | (brightest < dark)
    ink = binary_dilation(ink, iterations=2)  # its pale rim
    depth = (brightest - smooth.min(-1)) / np.maximum(brightest, 1)
    clean = depth[~ink]
    found = float(threshold_otsu(clean)) if clean.size and np.ptp(clean) > 0 else low
    threshold = min(max(found, low), high)
    mask = (depth > threshold) & ~ink
    mask = _without(mask, smallest_um2 / mpp**2)
    return ~_without(~mask, holes_um2 / mpp**2) & ~ink, ink, threshold


def _without(mask: np.ndarray, area: float) -> np.ndarray:
    """A mask without its pieces of fewer than ``area`` pixels."""
    from scipy.ndimage import label

    pieces, count = label(mask)
    if not count:
        return mask
    large = np.bincount(pieces.ravel()) >= area
    large[0] = False
    return large[pieces]


def tissue_shares(mask: np.ndarray, grid: TileGrid, downsample: float) -> np.ndarray:
    """Share of each tile that is tissue, or whatever the mask is of.

    Args:
        mask: of the slide's overview.
        grid: of the slide.
        downsample: pixels of level 0 per pixel of the mask.

    Shape:
        - mask: bool ``[H, W]``
        - returns: float ``[rows, columns]``
    """
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    total[1:, 1:] = mask.cumsum(0).cumsum(1)

    def ends(starts: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray]:
        first = np.asarray(starts) * grid.downsample
        a = np.clip(np.rint(first / downsample).astype(int), 0, length - 1)
        return a, np.clip(np.rint((first + grid.side) / downsample).astype(int), a + 1, length)

    y0, y1 = ends(grid.tops, mask.shape[0])
    x0, x1 = ends(grid.lefts, mask.shape[1])
    inside = total[np.ix_(y1, x1)] - total[np.ix_(y0, x1)] - total[np.ix_(y1, x0)] + total[np.ix_(y0, x0)]
    return inside / np.outer(y1 - y0, x1 - x0)
