"""Damaged JPEGs are found, and whole ones of every kind are not taken for damaged."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.data.patches.jpeg import jpeg_damage
from shared.data.patches.reading import read_patch
from shared.errors import DataError

REAL = Path(__file__).resolve().parents[4].parent / "shared" / "data" / "ebhi_seg"
RNG = np.random.default_rng(0)
SMOOTH = np.kron(RNG.integers(40, 216, (12, 12, 3)), np.ones((8, 8, 1))) + RNG.normal(0, 8, (96, 96, 3))
PICTURE = Image.fromarray(SMOOTH.clip(0, 255).astype(np.uint8))
KINDS = {
    "plain": {},
    "progressive": {"progressive": True},
    "optimised": {"optimize": True},
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "restarts": {"restart_marker_blocks": 3},
    "restarts by row": {"restart_marker_rows": 1, "progressive": True},
    "RGB": {"keep_rgb": True},
    "remarked": {"comment": b"x" * 300, "dpi": (300, 300)},
}


def encoded(picture, **options):
    file = io.BytesIO()
    picture.save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_whole_files_are_whole(kind, mode):
    options = {key: value for key, value in KINDS[kind].items() if mode == "RGB" or key != "keep_rgb"}
    for size in ((96, 96), (37, 53), (8, 8), (1, 1)):
        for quality in (5, 75, 100):
            content = encoded(PICTURE.resize(size).convert(mode), quality=quality, **options)
            assert jpeg_damage(content) is None
            assert jpeg_damage(content + bytes(999)) is None  # what follows the end is nothing of the picture


DAMAGED = {
    "cut": lambda content, at: content[:at],
    "cut, with an end": lambda content, at: content[:at] + b"\xff\xd9",
    "rest zeros": lambda content, at: content[:at] + bytes(len(content) - at),
    "zeros, with an end": lambda content, at: content[:at] + bytes(len(content) - at - 2) + b"\xff\xd9",
    "no end": lambda content, at: content[:-2],
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("progressive", [False, True])
def test_what_libjpeg_would_repair_is_refused_by_name(tmp_path, damage, progressive):
    content = encoded(PICTURE, quality=90, progressive=progressive)
    for share in (0.4, 0.7, 0.95):
        path = tmp_path / f"{share}.jpg"
        path.write_bytes(DAMAGED[damage](content, int(share * len(content))))
        with pytest.raises(DataError, match=rf"{share}\.jpg: cannot be read as PNG, JPEG.*truncated or corrupt"):
            read_patch(path)


def flipped(content, place, count=40):
    damaged = bytearray(content)
    for i in range(place, place + count):
        if damaged[i] != 0xFF and damaged[i] ^ 0x5A != 0xFF:
            damaged[i] ^= 0x5A
    return bytes(damaged)


def test_flipped_bytes_are_refused_where_the_codes_no_longer_fit(tmp_path):
    content = encoded(PICTURE.resize((224, 224)), quality=95)
    start, refused = content.rfind(b"\xff\xda") + 14, 0
    for row in range(20):
        path = tmp_path / f"{row}.jpg"
        path.write_bytes(flipped(content, start + (len(content) - start - 60) * row // 20))
        try:
            read_patch(path)
        except DataError as error:
            assert "truncated or corrupt" in str(error)
            refused += 1
    assert refused >= 18  # the codes may fit again by chance: nothing in the file then tells


def test_a_damaged_jpeg_in_a_tiff_is_refused(tmp_path):
    path = tmp_path / "p.tif"
    PICTURE.save(path, compression="jpeg", quality=90)
    assert read_patch(path).shape == (3, 96, 96)
    with Image.open(path) as image:
        start, length = image.tag_v2[273][0], image.tag_v2[279][0]
    content = path.read_bytes()
    path.write_bytes(content[: start + length // 2] + bytes(length - length // 2) + content[start + length :])
    with pytest.raises(DataError, match="the decoder would repair it: Premature end of JPEG file"):
        read_patch(path)


def test_zeros_at_the_end_of_a_webp_are_refused(tmp_path):
    path = tmp_path / "p.webp"
    PICTURE.save(path)
    content = path.read_bytes()
    path.write_bytes(content[:-400] + bytes(400))
    with pytest.raises(DataError, match="it ends in zeros"):
        read_patch(path)


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason="EBHI-Seg is not there: put it into ../shared/data/ebhi_seg")
def test_real_patches_as_jpegs_are_whole():
    for path in sorted(REAL.glob("*/image/*.png"))[::25]:
        picture = Image.open(path).convert("RGB")
        for options in KINDS.values():
            assert jpeg_damage(encoded(picture, quality=85, **options)) is None, (path.name, options)
