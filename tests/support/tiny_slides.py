"""Small slides with tissue at known places: pyramidal tiled TIFF, OME-TIFF and plain images."""

import numpy as np
import tifffile
from PIL import Image

from shared.apps.phantoms.patches import draw_slide, paint_patch

GLASS = 243


def glass(height=2048, width=2048, seed=0):
    """An empty slide: nearly white, with the noise of a camera."""
    random = np.random.default_rng(seed)
    return np.clip(GLASS + random.normal(0, 1.5, (height, width, 3)), 0, 255).astype(np.uint8)


def painted(kinds, *, size=96, height=2048, width=2048, corner=(384, 384), seed=0):
    """A slide with a block of phantom patches; the pixels, and corner (x, y) and kind of each patch.

    Args:
        kinds: rows of 1 (serrated crypts), 0 (straight ones) or None (glass).
        size: side of a patch.
        corner: left and upper edge of the block.
    """
    pixels, where = glass(height, width, seed), []
    stain = draw_slide(np.random.default_rng(seed))
    for row, line in enumerate(kinds):
        for column, kind in enumerate(line):
            if kind is None:
                continue
            random = np.random.default_rng([seed, row, column])
            x, y = corner[0] + column * size, corner[1] + row * size
            pixels[y : y + size, x : x + size] = paint_patch(stain, bool(kind), 1.0, random, size=size)["image"]
            where.append((x, y, kind))
    return pixels, where


def stained(height=2048, width=2048, *, box=(512, 512, 1536, 1536), seed=0):
    """A slide with one square of purple noise (x0, y0, x1, y1): fast to make."""
    pixels = glass(height, width, seed)
    x0, y0, x1, y1 = box
    random = np.random.default_rng(seed + 1)
    shape = (y1 - y0, x1 - x0, 3)
    pixels[y0:y1, x0:x1] = np.clip(random.normal((170, 105, 165), 15, shape), 0, 255).astype(np.uint8)
    return pixels


def write_tiff(path, pixels, mpp=0.5, *, levels=(4, 16), mpp_y=None, compression="zlib"):
    """A tiled TIFF with levels of single pixels, as OpenSlide reads it; ``mpp`` None: no size of a pixel."""
    options = {"tile": (256, 256), "photometric": "rgb", "compression": compression}
    with tifffile.TiffWriter(path) as file:
        for level in (1, *levels):
            known = {} if mpp is None else {"resolution": (1e4 / mpp / level, 1e4 / (mpp_y or mpp) / level)}
            known |= {"resolutionunit": "CENTIMETER"} if known else {}
            file.write(np.ascontiguousarray(pixels[::level, ::level]), subfiletype=int(level > 1), **known, **options)
    return path


def write_ome(path, pixels, mpp=0.5, *, levels=(4,)):
    """An OME-TIFF whose levels are SubIFDs."""
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}
    metadata = {"axes": "YXS", "PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm"}
    metadata |= {"PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(pixels, subifds=len(levels), metadata=metadata, **options)
        for level in levels:
            file.write(np.ascontiguousarray(pixels[::level, ::level]), subfiletype=1, **options)
    return path


def write_png(path, pixels, mpp=0.5):
    """A plain image whose header tells the size of a pixel."""
    dots = {} if mpp is None else {"dpi": (25400 / mpp, 25400 / mpp)}
    Image.fromarray(pixels).save(path, **dots)
    return path
