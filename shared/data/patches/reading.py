"""One way to read a patch, a grey picture or a mask from a file, upright and whole; imports neither torch nor MONAI."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from shared.data.patches.jpeg import jpeg_damage, tiff_jpeg_damage
from shared.errors import DataError
from shared.io import disguise

logger = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "JPEG2000")
LOSSLESS = ("PNG", "TIFF", "BMP")
KINDS = "PNG, JPEG, TIFF, BMP, WebP or JPEG 2000"
COLOUR = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA")
GREY = ("L", "LA", "La")
REMEDY = "save it as an 8-bit RGB PNG without transparency"
GREY_REMEDY = "save it as a grey PNG of 8 or 16 bits without transparency"
SPREAD = 2  # of 255, by which the channels of a grey pixel may differ: what JPEG rounds off
_ORIENTATION = 274
_warned_of_grey = False


def read_patch(path: str | os.PathLike) -> np.ndarray:
    """Pixels of a patch, always as 8-bit RGB, upright as a viewer shows it (turned as its EXIF orientation says).

    Taken: 8-bit RGB. Converted: 8-bit greyscale (repeated over the channels, warned of once), palettes, and an alpha
    channel that is opaque everywhere. Refused: everything else.

    Args:
        path: a PNG, JPEG, TIFF, BMP, WebP or JPEG 2000 file.

    Shape:
        - returns: uint8 ``[3, H, W]``

    Raises:
        DataError: the file is missing, truncated or corrupt (a JPEG also where libjpeg would repair it without a
            word), has real transparency, several pages, not 8 bits a channel, or other colours than RGB (CMYK).

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/patch.png"
        >>> Image.new("RGB", (5, 4), (255, 0, 7)).save(path)
        >>> read_patch(path).shape, read_patch(path)[:, 0, 0].tolist()
        ((3, 4, 5), [255, 0, 7])
    """
    return _read_patch(path)[0]


def read_turned(path: str | os.PathLike, *, mask: bool = False) -> tuple[np.ndarray, bool]:
    """:func:`read_patch` or :func:`read_patch_mask`, and whether the EXIF orientation turned it."""
    return _read_mask(path) if mask else _read_patch(path)


def _read_patch(path: str | os.PathLike) -> tuple[np.ndarray, bool]:
    image, content = _open(path)
    with image:
        depth = _bits(image, content)
        if depth > 8 or image.mode.startswith(("I", "F")):
            kind = "float" if image.mode == "F" else f"{max(depth, 16)}-bit"
            raise DataError(f"{path}: patches have 8 bits a channel, this is a {kind} image; {REMEDY}.")
        if image.mode == "1" or (image.mode in ("L", "RGB") and depth < 8):
            kind = "colour" if image.mode == "RGB" else "greyscale"
            raise DataError(f"{path}: patches have 8 bits a channel, this is a {depth}-bit {kind} image; {REMEDY}.")
        if image.mode not in COLOUR + GREY:
            raise DataError(f"{path}: patches are RGB, this image is {image.mode}; {REMEDY}.")
        _check_frames(image, path, "a patch")
        upright, turned = _upright(image, content, path)
        if upright.mode in GREY:
            _warn_of_grey(path)
        background = "flatten the image on its background (white, in histology)"
        rgb = _opaque(upright, path, f"patches are opaque, {{}}; {background} and {REMEDY}")
        return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1)), turned


def read_grey(path: str | os.PathLike, *, luminance: bool = False) -> tuple[np.ndarray, bool]:
    """Pixels of a picture of one channel, upright, and whether its EXIF orientation turned it.

    Taken as stored: grey of 8 or 16 bits, 32-bit whole numbers, float. Converted: colour whose channels are equal,
    palettes of greys, an alpha channel that is opaque everywhere.

    Args:
        path: a PNG, JPEG, TIFF, BMP, WebP or JPEG 2000 file.
        luminance: take a coloured picture's luminance (ITU-R 601, Pillow's ``L``) instead of refusing it.

    Shape:
        - returns: ``[H, W]``, uint8, uint16, int32 or float32

    Raises:
        DataError: the file is missing, truncated or corrupt (see :func:`read_patch`), coloured, transparent, of several
            pages, of less than 8 bits, of colours of 16 bits, constant, or holds NaN or Inf.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/scan.png"
        >>> Image.fromarray(np.array([[0, 40000]], dtype=np.uint16)).save(path)
        >>> read_grey(path)[0].tolist()
        [[0, 40000]]
    """
    image, content = _open(path)
    with image:
        depth, deep = _bits(image, content), image.mode.startswith(("I", "F"))
        if not deep and (image.mode not in COLOUR + GREY or depth > 8 or (depth < 8 and image.mode in ("L", "RGB"))):
            raise DataError(f"{path}: is an image of {depth}-bit {image.mode}, a grey one is needed; {GREY_REMEDY}.")
        _check_frames(image, path, "a picture")
        upright, turned = _upright(image, content, path)
        if deep or upright.mode == "L":
            values = np.asarray(upright)
            values = values.astype(values.dtype.newbyteorder("="))
        else:
            values = _one_channel(_opaque(upright, path, f"a picture is opaque, {{}}; {GREY_REMEDY}"), path, luminance)
    if not np.isfinite(values).all():
        raise DataError(f"{path}: holds {int((~np.isfinite(values)).sum())} NaN or Inf pixels; export it again.")
    if values.min() == values.max():
        raise DataError(f"{path}: every pixel is {values.min():g}; an image must vary.")
    return values, turned


def _one_channel(rgb: Image.Image, path: str | os.PathLike, luminance: bool) -> np.ndarray:
    channels = np.asarray(rgb).astype(np.int16)
    coloured = float((np.ptp(channels, axis=-1) > SPREAD).mean())
    if coloured and not luminance:
        raise DataError(
            f"{path}: {coloured:.1%} of the pixels are coloured, one grey channel is needed; remove what was drawn on "
            "the image, or take the luminance (--luminance)."
        )
    return np.asarray(rgb.convert("L"))


def read_patch_mask(path: str | os.PathLike, codes: Sequence[int] | None = None) -> np.ndarray:
    """A mask, upright by its own EXIF orientation, if it has one.

    Args:
        path: a PNG, TIFF or BMP file.
        codes: values that count as inside; None: all but 0 (in any colour channel; of a palette image, its index).

    Shape:
        - returns: bool ``[H, W]``

    Raises:
        DataError: the file is missing, truncated or corrupt, or of a kind whose compression loses: a JPEG has non-zero
            pixels around every border.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/mask.png"
        >>> Image.fromarray(np.array([[0, 1], [255, 0]], dtype=np.uint8)).save(path)
        >>> read_patch_mask(path).tolist()
        [[False, True], [True, False]]
    """
    return _read_mask(path, codes)[0]


def _read_mask(path: str | os.PathLike, codes: Sequence[int] | None = None) -> tuple[np.ndarray, bool]:
    upright, turned = _mask_image(path)
    values = np.asarray(upright)
    inside = values != 0 if codes is None else np.isin(values, list(codes))
    return (inside.any(-1) if inside.ndim == 3 else inside), turned


def read_mask_values(path: str | os.PathLike) -> tuple[np.ndarray, bool]:
    """What a mask holds, not yet what of it is inside: :func:`read_patch_mask` without ``codes``; and whether turned.

    Of a palette image its index, of a coloured one its luminance.

    Shape:
        - returns: ``[H, W]``
    """
    upright, turned = _mask_image(path)
    values = np.asarray(upright.convert("L") if len(upright.getbands()) > 1 else upright)
    return values.astype(np.uint8 if values.dtype == bool else values.dtype.newbyteorder("=")), turned


def _mask_image(path: str | os.PathLike) -> tuple[Image.Image, bool]:
    """A mask without its alpha channel, upright, and whether it had to be turned."""
    image, content = _open(path)
    with image:
        if image.format not in LOSSLESS:
            raise DataError(f"{path}: a mask must be stored without loss, this is a {image.format}; save it as PNG.")
        upright, turned = _upright(image, content, path)
    if upright.mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        upright = upright.convert("L" if upright.mode in ("LA", "La") else "RGB")
    return upright, turned


def patch_header(path: str | os.PathLike) -> tuple[tuple[int, int], str, int]:
    """Height and width (upright), mode and EXIF orientation (1: as stored) of a file, from its header.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            # in a PNG, the tag may stand behind the pixels, which are not read here
            turn = 1 if image.format == "PNG" and "exif" not in image.info else _orientation(image)
            width, height = image.size
            # of a TIFF, Pillow turns the size itself
            turned = turn > 4 and image.format != "TIFF"
            return ((width, height) if turned else (height, width)), image.mode, turn
    except Exception as error:  # a broken header can raise nearly anything
        raise _unreadable(path, error) from error


def _open(path: str | os.PathLike) -> tuple[Image.Image, bytes]:
    """The image, not yet decoded, and its file's content."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; the datalist's paths are relative to dataset_dir.")
    try:
        content = Path(path).read_bytes()
        # verify checks the checksums that decoding skips, and needs the file opened anew
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            image.verify()
        # not by its name: Pillow would map a grey TIFF into memory and mix up its rows when it turns it
        return Image.open(io.BytesIO(content), formats=FORMATS), content
    except Exception as error:  # a broken header can raise nearly anything
        raise _unreadable(path, error) from error


def _upright(image: Image.Image, content: bytes, path: str | os.PathLike) -> tuple[Image.Image, bool]:
    """The image, found whole, decoded and turned, and whether it had to be."""
    try:
        damage = _damage(image, content)
        if damage:
            raise ValueError(f"the decoder would repair it: {damage}")
        turn = _orientation(image)  # before a TIFF is turned, which loading does
        image.load()
        return ImageOps.exif_transpose(image), turn > 1
    except Exception as error:  # as above, in the pixels
        raise _unreadable(path, error) from error


def _check_frames(image: Image.Image, path: str | os.PathLike, what: str) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format in ("PNG", "TIFF", "WEBP"):
        raise DataError(f"{path}: {what} is one image, this file holds {frames}; save each as a file of its own.")


def _opaque(upright: Image.Image, path: str | os.PathLike, rule: str) -> Image.Image:
    """The image as RGB; one with transparent pixels is refused, ``rule`` takes their share."""
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        clear = float((np.asarray(upright)[..., 3] < 255).mean())
        if clear > 0:
            raise DataError(f"{path}: {rule.format(f'but {clear:.1%} of the pixels are transparent')}.")
    return upright.convert("RGB")


def _damage(image: Image.Image, content: bytes) -> str | None:
    """What Pillow's decoders pass over in silence."""
    if image.format == "WEBP":  # has no checksum; compressed data does not end like this
        return "it ends in zeros" if content.endswith(bytes(32)) else None
    if image.format in ("JPEG", "MPO"):
        return jpeg_damage(content)
    return tiff_jpeg_damage(image, content) if isinstance(image, TiffImageFile) else None


def _orientation(image: Image.Image) -> int:
    turn = image.tag_v2.get(_ORIENTATION) if isinstance(image, TiffImageFile) else image.getexif().get(_ORIENTATION)
    return turn if turn in range(2, 9) else 1


def _unreadable(path: str | os.PathLike, error: Exception) -> DataError:
    if found := disguise(path):
        return DataError(f"{path}: {found}.")
    reason = str(error).strip() or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        reason = "its contents are of another format" if Path(path).stat().st_size else "it is empty"
    return DataError(
        f"{path}: cannot be read as {KINDS}, it may be truncated or corrupt ({reason}); "
        "copy or download it again, or remove it from the datalist."
    )


def _bits(image: Image.Image, content: bytes) -> int:
    """Bits a channel in the file: Pillow reads 16-bit colour as 8 bits without a word."""
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(258, (1,)))
    if image.format == "PNG":
        return content[24]
    if image.format == "BMP":  # 16 bits a pixel are 5 a channel
        return 5 if int.from_bytes(content[28:30], "little") == 16 else 8
    return _bits_of_jpeg2000(content) if image.format == "JPEG2000" else 8


def _bits_of_jpeg2000(content: bytes) -> int:
    """The largest depth of the components that the codestream's marker SIZ names."""
    place = content.find(b"\xff\x4f\xff\x51")
    components = int.from_bytes(content[place + 40 : place + 42], "big")
    depths = [(value & 0x7F) + 1 for value in content[place + 42 : place + 42 + 3 * components : 3]]
    return max(depths, default=8)


def _warn_of_grey(path: str | os.PathLike) -> None:
    global _warned_of_grey
    if not _warned_of_grey:
        logger.warning(f"{path} is greyscale, as others may be: its channel is repeated three times.")
        _warned_of_grey = True
