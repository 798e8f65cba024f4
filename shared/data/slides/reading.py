"""One way to read regions of a whole slide or a large image: OpenSlide, tifffile (OME-TIFF) or Pillow behind it.

A reader holds an open file, so each process opens its own. Pixels are 8-bit RGB; what a slide leaves out is white.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from shared.data.patches.files import ENDINGS, SLIDES
from shared.data.patches.reading import patch_header, read_patch
from shared.data.slides.grid import EXACT, PIXELS
from shared.errors import DataError
from shared.io import disguise

logger = logging.getLogger(__name__)

INSTALL = "pip install openslide-python openslide-bin (or -r requirements-slides.txt)"
READ = (*SLIDES, ".vmu", *ENDINGS)
LARGEST = 100_000_000  # pixels of an image that can only be read whole
TALLER = 0.02  # by which a pixel's height may differ from its width
_UNITS = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}


def openslide_module() -> Any:
    """The module ``openslide``, an optional library.

    Raises:
        DataError: it is not installed.
    """
    try:
        return importlib.import_module("openslide")
    except (ImportError, OSError) as error:
        raise DataError(f"Whole slides need openslide, which is not installed ({error}): {INSTALL}.") from error


def slide_state(path: Path) -> dict[str, Any]:
    """What tells that a slide changed: size and time of its file and of each file of data beside it.

    Returns:
        ``{"bytes", "changed_ns"}``, of slides of several files ``"beside"``, too: name, size and time of each.
    """
    kind, stat, beside = path.suffix.lower(), path.stat(), []
    if kind == ".mrxs":
        beside = list(path.with_suffix("").rglob("*"))
    elif kind in (".vms", ".vmu"):
        beside = [each for each in path.parent.iterdir() if each.name.startswith(path.stem) and each != path]
    told = sorted([each.name, (of := each.stat()).st_size, of.st_mtime_ns] for each in beside if each.is_file())
    return {"bytes": stat.st_size, "changed_ns": stat.st_mtime_ns} | ({"beside": told} if told else {})


class SlideReader:
    """An open slide.

    Attributes:
        path: the file.
        width: of level 0 in pixels.
        height: of level 0 in pixels.
        mpp: micrometres per pixel of level 0, across and down; None: the file does not say.
        downsamples: pixels of level 0 per pixel of each level, ascending.
        shapes: height and width of each level.
        levels: those that have the slide's shape.
        origin: x and y, in pixels of level 0, of the part that was scanned: QuPath counts from there.
        kind: what reads it.
    """

    kind = ""
    origin = (0, 0)

    def __init__(self, path: Path, shapes: Sequence[tuple[int, int]], mpp: tuple[float, float] | None):
        self.path, self.shapes = path, list(shapes)
        self.height, self.width = self.shapes[0]
        self.downsamples = [1.0, *((self.width / w + self.height / h) / 2 for h, w in self.shapes[1:])]
        self.mpp = _sane(mpp)
        expected = [self.width * h / self.height for h, _ in self.shapes]  # width, by the height
        self.levels = [n for n, (_, w) in enumerate(self.shapes) if abs(w - expected[n]) <= max(1.5, TALLER * w)]
        if odd := [f"{w} x {h}" for n, (h, w) in enumerate(self.shapes) if n not in self.levels]:
            told = "%s: levels of another shape than the slide's %d x %d, such as a label's picture, are not used: %s"
            logger.warning(told, path, self.width, self.height, ", ".join(odd))

    def level_for(self, downsample: float) -> int:
        """The coarsest level that is no coarser than ``downsample``."""
        fine = [row for row in self.levels if self.downsamples[row] <= downsample * (1 + EXACT)]
        return max(fine, key=self.downsamples.__getitem__, default=0)

    def read(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """Pixels of a level, uint8 ``[height, width, 3]``; the region lies within it.

        Raises:
            DataError: the file is damaged there.
        """
        try:
            return self._read(level, left, top, width, height)
        except DataError:
            raise
        except Exception as error:  # libraries raise nearly anything from a damaged file
            raise DataError(
                f"{self.path}: cannot be read at x {left}, y {top} of level {level} ({_reason(error)}); copy or "
                "download it again"
            ) from error

    def _read(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        raise NotImplementedError

    def read_scaled(self, level: int, left: float, top: float, span: float, size: int) -> np.ndarray:
        """A square of ``span`` pixels of a level as ``[size, size, 3]``: as it is where sizes agree, else bicubic.

        Pixels around the square count as they do where a whole image is resized by Pillow with a ``box``.
        """
        if abs(span - size) < EXACT and float(left).is_integer() and float(top).is_integer():
            return self.read(level, int(left), int(top), size, size)
        margin = math.ceil(2 * max(1.0, span / size)) + 1
        height, width = self.shapes[level]
        x0, y0 = max(0, math.floor(left) - margin), max(0, math.floor(top) - margin)
        x1, y1 = min(width, math.ceil(left + span) + margin), min(height, math.ceil(top + span) + margin)
        pixels = Image.fromarray(self.read(level, x0, y0, x1 - x0, y1 - y0))
        box = (left - x0, top - y0, min(left + span, width) - x0, min(top + span, height) - y0)
        return np.asarray(pixels.resize((size, size), Image.Resampling.BICUBIC, box=box))

    def overview(self, downsample: float) -> np.ndarray:
        """The whole slide ``downsample`` times smaller, uint8 ``[h, w, 3]``, read in blocks."""
        level = self.level_for(downsample)
        height, width = self.shapes[level]
        shape = (max(1, round(self.height / downsample)), max(1, round(self.width / downsample)))
        steps = height / shape[0], width / shape[1]
        block = max(1, int(2048 / max(1.0, *steps)))
        out = np.empty((*shape, 3), np.uint8)
        for row in range(0, shape[0], block):
            for column in range(0, shape[1], block):
                rows, columns = min(block, shape[0] - row), min(block, shape[1] - column)
                top, left = row * steps[0], column * steps[1]
                y0, x0 = int(top), int(left)
                bottom, right = min((row + rows) * steps[0], height), min((column + columns) * steps[1], width)
                pixels = Image.fromarray(self.read(level, x0, y0, math.ceil(right) - x0, math.ceil(bottom) - y0))
                box = (left - x0, top - y0, right - x0, bottom - y0)
                small = pixels.resize((columns, rows), Image.Resampling.BOX, box=box)
                out[row : row + rows, column : column + columns] = small
        return out

    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> SlideReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OpenSlideReader(SlideReader):
    """SVS, NDPI, MRXS, tiled TIFF and what else OpenSlide reads."""

    kind = "openslide"

    def __init__(self, path: Path):
        self.slide = openslide_module().OpenSlide(str(path))
        given = [self.slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
        mpp = None if None in given else (float(given[0]), float(given[1]))
        super().__init__(path, [(height, width) for width, height in self.slide.level_dimensions], mpp)
        bounds = [self.slide.properties.get(f"openslide.bounds-{side}") for side in ("x", "y", "width", "height")]
        if None not in bounds:  # as QuPath does, which crops such slides (MRXS, SCN)
            self.origin = (int(bounds[0]), int(bounds[1]))

    def _read(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        place = (round(left * self.downsamples[level]), round(top * self.downsamples[level]))
        pixels = np.asarray(self.slide.read_region(place, level, (width, height)))
        colour, alpha = pixels[..., :3], pixels[..., 3:]
        if alpha.min() == 255:
            return np.ascontiguousarray(colour)
        share = alpha.astype(np.float32) / 255  # outside what was scanned: glass
        return np.rint(colour * share + 255 * (1 - share)).astype(np.uint8)

    def close(self) -> None:
        """Close the file."""
        self.slide.close()


class TiffReader(SlideReader):
    """OME-TIFF by tifffile: the first image, its levels in SubIFDs; only the tiles of a region are decoded."""

    kind = "tifffile"

    def __init__(self, path: Path):
        import tifffile

        self.file = tifffile.TiffFile(path)
        if not self.file.is_ome:
            raise DataError(
                f"{path}: is called an OME-TIFF and holds no OME-XML: it may be truncated, copy or download it again; "
                "a TIFF of another kind must have another name (.tif)"
            )
        levels = self.file.series[0].levels
        self.pages = pages = [level.pages[0] for level in levels]
        for page in pages:
            if page.planarconfig != 1:
                raise DataError(f"{path}: slides are 8-bit RGB, this has its channels one plane each; convert it")
            _check_pixels(path, page)
        if len(levels[0].pages) > 1:
            raise DataError(
                f"{path}: a slide is one image, this holds {len(levels[0].pages)} planes (of focus, time or channel); "
                "save the one to predict"
            )
        super().__init__(path, [(page.imagelength, page.imagewidth) for page in pages], _ome_mpp(self.file))

    def _read(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        page = self.pages[level]
        tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        across = math.ceil(page.imagewidth / wide)
        out = np.full((height, width, 3), 255, np.uint8)
        for row in range(top // tall, (top + height - 1) // tall + 1):
            for column in range(left // wide, (left + width - 1) // wide + 1):
                tile = self._tile(page, row * across + column)
                if tile is None:
                    continue
                y, x = row * tall - top, column * wide - left
                y0, x0 = max(0, y), max(0, x)
                piece = tile[y0 - y : height - y, x0 - x : width - x]
                out[y0 : y0 + piece.shape[0], x0 : x0 + piece.shape[1]] = piece
        return out

    def _tile(self, page: Any, number: int) -> np.ndarray | None:
        offset, count = page.dataoffsets[number], page.databytecounts[number]
        if not count:
            return None
        self.file.filehandle.seek(offset)
        data = self.file.filehandle.read(count)
        if len(data) < count:
            raise ValueError("the file ends before its pixels do")
        # without imagecodecs, tifffile knows deflate and no compression, not JPEG
        pixels = page.decode(data, number, jpegtables=page.jpegtables)[0]
        return None if pixels is None else pixels[0]

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class ImageReader(SlideReader):
    """An image without tiles, read whole: PNG, JPEG, TIFF in strips, WebP, JPEG 2000."""

    kind = "pillow"

    def __init__(self, path: Path):
        (height, width), _, _ = patch_header(path)
        if height * width > LARGEST:
            raise DataError(
                f"{path}: has {width} x {height} pixels and no tiles, so that it could only be read whole; save "
                f"images of more than {LARGEST // 10**6} million pixels as a tiled TIFF (vips tiffsave IN OUT --tile "
                "--pyramid)"
            )
        super().__init__(path, [(height, width)], stated_mpp(path))
        self._pixels: np.ndarray | None = None

    def _read(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        if self._pixels is None:
            self._pixels = np.ascontiguousarray(read_patch(self.path).transpose(1, 2, 0))
        return self._pixels[top : top + height, left : left + width]


def open_slide(path: str | os.PathLike) -> SlideReader:
    """Open a slide or a large image.

    Raises:
        DataError: it cannot be read, or needs a library that is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such slide")
    if found := disguise(path):
        raise DataError(f"{path}: {found}.")
    name = path.name.lower()
    try:
        if name.endswith((".ome.tif", ".ome.tiff", ".ome.btf")):
            return TiffReader(path)
        if path.suffix.lower() in (*SLIDES, ".vmu", ".tif", ".tiff"):
            known = _is_slide(path)
            if known or path.suffix.lower() not in ENDINGS:
                return OpenSlideReader(path)
        return ImageReader(path)
    except DataError:
        raise
    except Exception as error:  # as above
        raise DataError(
            f"{path}: cannot be read as a slide, it may be truncated or corrupt ({_reason(error)}); copy or download "
            "it again, or move it away"
        ) from error


def stated_mpp(path: str | os.PathLike) -> tuple[float, float] | None:
    """Micrometres per pixel, across and down, that an image's header states: OME-XML, else the resolution.

    None where it states none, or none that tissue can have; where the two differ, that is told and OME-XML counts.

    Raises:
        DataError: the header cannot be read.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/a.png"
        >>> Image.new("RGB", (5, 4)).save(path, dpi=(50800, 50800))
        >>> [round(value, 3) for value in stated_mpp(path)]
        [0.5, 0.5]
    """
    patch_header(path)  # says what is wrong with a file
    with Image.open(path) as image:
        dpi, format_ = image.info.get("dpi"), image.format
    by_dots = _sane((25400 / float(dpi[0]), 25400 / float(dpi[1])) if dpi and min(dpi) > 0 else None)
    by_ome = None
    if format_ == "TIFF":
        import tifffile

        with tifffile.TiffFile(path) as file:
            by_ome = _sane(_ome_mpp(file))
    if by_ome and by_dots and abs(by_ome[0] - by_dots[0]) > TALLER * by_ome[0]:
        told = "%s: its OME-XML says %g micrometres per pixel, its resolution %g; the first is taken."
        logger.warning(told, path, by_ome[0], by_dots[0])
    return by_ome or by_dots


def _sane(mpp: tuple[float, float] | None) -> tuple[float, float] | None:
    """Without sizes that tissue cannot have: 72 dpi are a drawing program's."""
    return mpp if mpp is not None and all(PIXELS[0] <= value <= PIXELS[1] for value in mpp) else None


def _is_slide(path: Path) -> bool:
    """Whether OpenSlide reads a file; of a TIFF without tiles this needs no OpenSlide."""
    if path.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        with tifffile.TiffFile(path) as file:
            if not file.pages or not file.pages[0].is_tiled:
                return False
            _check_pixels(path, file.pages[0])
    return openslide_module().OpenSlide.detect_format(str(path)) is not None


def _check_pixels(path: Path, page: Any) -> None:
    """OpenSlide would make 8-bit RGB of whatever a TIFF holds, without a word."""
    if page.dtype != np.uint8 or page.samplesperpixel not in (3, 4):
        raise DataError(
            f"{path}: slides are 8-bit RGB, this has {page.samplesperpixel} channels of {page.dtype}; convert it"
        )


def _ome_mpp(file: Any) -> tuple[float, float] | None:
    """Micrometres per pixel as the OME-XML of a TIFF says."""
    if not file.ome_metadata:
        return None
    for element in ElementTree.fromstring(file.ome_metadata).iter():
        if element.tag.endswith("Pixels"):
            sizes = [
                float(element.get(f"PhysicalSize{axis}", "nan"))
                * _UNITS.get(element.get(f"PhysicalSize{axis}Unit", "µm"), math.nan)
                for axis in "XY"
            ]
            return None if any(map(math.isnan, sizes)) else (sizes[0], sizes[1])
    return None


def _reason(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
