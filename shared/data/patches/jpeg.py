"""Whether a JPEG is whole: libjpeg repairs damaged ones and only warns, which Pillow does not pass on."""

from __future__ import annotations

from PIL.TiffImagePlugin import TiffImageFile

# What libjpeg warns of where pixels are not those that were stored; its other warnings are of harmless headers.
_DAMAGE = ("Corrupt JPEG data", "Premature end", "Inconsistent progression")
_TIFF_JPEG, _TABLES, _OFFSETS, _COUNTS = 7, 347, (324, 273), (325, 279)


def jpeg_damage(content: bytes) -> str | None:
    """What is wrong with the compressed data of a JPEG, None where nothing is or libjpeg-turbo's reader does not tell.

    Found: data cut off (also with an end marker put behind it), padded with zeros, or flipped so that the codes no
    longer fill the picture. A flipped bit after which the codes fit again cannot be found: JPEG has no checksum.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> from PIL import Image
        >>> Image.effect_noise((64, 64), 50).save(file, "JPEG")
        >>> content = file.getvalue()
        >>> jpeg_damage(content), jpeg_damage(content[:1500] + bytes(2000))
        (None, 'Premature end of JPEG file')
    """
    import simplejpeg  # here: bundles without patches do not ask for it

    try:
        # at an eighth of the size and without colour: all codes are read, hardly anything is computed
        simplejpeg.decode_jpeg(content, colorspace="GRAY", fastdct=True, fastupsample=True, min_height=1, min_width=1)
    except (ValueError, RuntimeError) as error:
        text = str(error)
        return text if any(word in text for word in _DAMAGE) else None
    return None


def tiff_jpeg_damage(image: TiffImageFile, content: bytes) -> str | None:
    """:func:`jpeg_damage` of the strips or tiles of a TIFF compressed as JPEG; None for every other TIFF."""
    tags = image.tag_v2
    if tags.get(259) != _TIFF_JPEG:
        return None
    offsets, counts = (next((tags[key] for key in keys if key in tags), ()) for keys in (_OFFSETS, _COUNTS))
    tables = bytes(tags.get(_TABLES, b""))[:-2]  # without its end marker, to which a segment is joined
    for offset, count in zip(offsets, counts, strict=True):
        segment = content[offset : offset + count]
        damage = jpeg_damage(tables + segment[2:] if tables else segment)
        if damage:
            return damage
    return None
