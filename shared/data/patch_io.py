"""One way to read a patch or its mask from a PNG, JPEG or TIFF file; imports neither torch nor MONAI."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
from PIL import Image

from shared.errors import DataError

logger = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "TIFF")
COLOUR = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA")
GREY = ("L", "LA", "La")
REMEDY = "save it as an 8-bit RGB PNG without transparency"
_warned_of_grey = False


def read_patch(path: str | os.PathLike) -> np.ndarray:
    """Pixels of a patch, always as 8-bit RGB.

    Taken: 8-bit RGB. Converted: 8-bit greyscale (repeated over the channels, warned of once), palettes, and an alpha
    channel that is opaque everywhere. Refused: everything else.

    Args:
        path: a PNG, JPEG or TIFF file.

    Shape:
        - returns: uint8 ``[3, H, W]``

    Raises:
        DataError: the file is missing, truncated or corrupt, has real transparency, several pages, 16 bits or floats
            a channel, fewer than 8 bits of grey, or other colours than RGB (CMYK).

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/patch.png"
        >>> Image.new("RGB", (5, 4), (255, 0, 7)).save(path)
        >>> read_patch(path).shape, read_patch(path)[:, 0, 0].tolist()
        ((3, 4, 5), [255, 0, 7])
    """
    image = _open(path)
    try:
        depth = _bits(image, path)
        if depth > 8 or image.mode.startswith(("I", "F")):
            kind = "float" if image.mode == "F" else f"{max(depth, 16)}-bit"
            raise DataError(f"{path}: patches have 8 bits a channel, this is a {kind} image; {REMEDY}.")
        if image.mode == "1" or (image.mode == "L" and depth < 8):
            raise DataError(f"{path}: patches have 8 bits a channel, this is a {depth}-bit greyscale image; {REMEDY}.")
        if image.mode not in COLOUR + GREY:
            raise DataError(f"{path}: patches are RGB, this image is {image.mode}; {REMEDY}.")
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format in ("PNG", "TIFF"):
            raise DataError(f"{path}: a patch is one image, this file holds {frames}; save each as a file of its own.")
        _load(image, path)
        if image.mode in GREY:
            _warn_of_grey(path)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            clear = float((np.asarray(image)[..., 3] < 255).mean())
            if clear > 0:
                raise DataError(
                    f"{path}: patches are opaque, but {clear:.1%} of the pixels are transparent; flatten the image on "
                    f"its background (white, in histology) and {REMEDY}."
                )
        return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    finally:
        image.close()


def read_patch_mask(path: str | os.PathLike) -> np.ndarray:
    """A mask: true where its file is not zero (in any colour channel; of a palette image, its index).

    Shape:
        - returns: bool ``[H, W]``

    Raises:
        DataError: the file is missing, truncated or corrupt, or a JPEG, whose compression puts non-zero pixels around
            every border.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/mask.png"
        >>> Image.fromarray(np.array([[0, 1], [255, 0]], dtype=np.uint8)).save(path)
        >>> read_patch_mask(path).tolist()
        [[False, True], [True, False]]
    """
    image = _open(path)
    try:
        if image.format not in ("PNG", "TIFF"):
            raise DataError(f"{path}: a mask must be stored without loss, this is a {image.format}; save it as PNG.")
        _load(image, path)
        if image.mode in ("LA", "La", "RGBA", "RGBa", "PA"):
            image = image.convert("L" if image.mode in ("LA", "La") else "RGB")
        inside = np.asarray(image) != 0
        return inside.any(-1) if inside.ndim == 3 else inside
    finally:
        image.close()


def _open(path: str | os.PathLike) -> Image.Image:
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; the datalist's paths are relative to dataset_dir.")
    try:
        # verify checks the checksums that decoding skips, and needs the file opened anew
        with Image.open(path, formats=FORMATS) as image:
            image.verify()
        return Image.open(path, formats=FORMATS)
    except Exception as error:  # a broken header can raise nearly anything
        raise _unreadable(path, error) from error


def _load(image: Image.Image, path: str | os.PathLike) -> None:
    try:
        image.load()
    except Exception as error:  # as above, in the pixels
        raise _unreadable(path, error) from error


def _unreadable(path: str | os.PathLike, error: Exception) -> DataError:
    reason = str(error).strip() or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        reason = "its contents are of another format" if Path(path).stat().st_size else "it is empty"
    return DataError(
        f"{path}: cannot be read as PNG, JPEG or TIFF, it may be truncated or corrupt ({reason}); "
        "copy or download it again, or remove it from the datalist."
    )


def _bits(image: Image.Image, path: str | os.PathLike) -> int:
    """Bits a channel in the file: Pillow reads 16-bit colour as 8 bits without a word."""
    if image.format == "PNG":
        with Path(path).open("rb") as file:
            return file.read(25)[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))
    return 8


def _warn_of_grey(path: str | os.PathLike) -> None:
    global _warned_of_grey
    if not _warned_of_grey:
        logger.warning(f"{path} is greyscale, as others may be: its channel is repeated three times.")
        _warned_of_grey = True
