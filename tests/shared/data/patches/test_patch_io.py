import logging
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from shared.data import read_patch, read_patch_mask
from shared.data.patches import reading
from shared.errors import DataError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)


def save(folder, image, name="p.png", **options):
    path = folder / name
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def raw_png(path, rows, width, depth, colour):
    """A PNG of given bit depth and colour type (0 grey, 2 RGB) from packed rows of bytes, which Pillow cannot write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + bytes(row) for row in rows)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))
    return path


# --- taken and converted ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p.png", "p.tif", "p.tiff", "p.bmp", "p.jp2"])
def test_rgb_comes_back_as_it_was_stored(tmp_path, name):
    found = read_patch(save(tmp_path, PIXELS, name))
    assert found.dtype == np.uint8 and found.flags["C_CONTIGUOUS"] and found.flags["WRITEABLE"]
    np.testing.assert_array_equal(found, PIXELS.transpose(2, 0, 1))


def test_jpeg_is_read_as_pillow_decodes_it(tmp_path):
    path = save(tmp_path, PIXELS, "p.jpg", quality=95)
    np.testing.assert_array_equal(read_patch(path).transpose(1, 2, 0), np.asarray(Image.open(path)))


def test_webp_without_loss_comes_back_and_its_frames_are_refused(tmp_path):
    np.testing.assert_array_equal(
        read_patch(save(tmp_path, PIXELS, "p.webp", lossless=True)), PIXELS.transpose(2, 0, 1)
    )
    pages = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    refused(save(tmp_path, pages[0], "f.webp", save_all=True, append_images=pages[1:]), "this file holds 2")


def test_greyscale_is_repeated_and_warned_of_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(reading, "_warned_of_grey", False)
    paths = [save(tmp_path, PIXELS[..., 0], name) for name in ("a.png", "b.jpg", "c.tif")]
    with caplog.at_level(logging.WARNING):
        found = [read_patch(path) for path in paths]
    for channel in found[0]:
        np.testing.assert_array_equal(channel, PIXELS[..., 0])
    assert all((image[0] == image[2]).all() for image in found)
    assert [record.message for record in caplog.records] == [
        f"{paths[0]} is greyscale, as others may be: its channel is repeated three times."
    ]


def test_palettes_and_opaque_alpha_are_converted(tmp_path):
    palette = Image.fromarray(PIXELS).quantize(200)
    found = read_patch(save(tmp_path, palette))
    np.testing.assert_array_equal(found.transpose(1, 2, 0), np.asarray(palette.convert("RGB")))
    opaque = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(read_patch(save(tmp_path, opaque, name)), PIXELS.transpose(2, 0, 1))
    grey = Image.merge("LA", [Image.fromarray(PIXELS[..., 0]), Image.new("L", (16, 12), 255)])
    np.testing.assert_array_equal(read_patch(save(tmp_path, grey))[1], PIXELS[..., 0])


# --- refused ------------------------------------------------------------------------------------------------------


def see_through():
    alpha = np.full(PIXELS.shape[:2], 255, np.uint8)
    alpha[:3, :4] = 254
    return Image.fromarray(np.dstack([PIXELS, alpha]))


def refused(path, *words):
    with pytest.raises(DataError) as caught:
        read_patch(path)
    assert str(caught.value).startswith(f"{path}: ")
    for word in words:
        assert word in str(caught.value)


def test_real_transparency_is_refused(tmp_path):
    refused(save(tmp_path, see_through()), "6.2% of the pixels are transparent", "flatten", "8-bit RGB PNG")
    keyed = save(tmp_path, Image.fromarray(PIXELS), "key.png", transparency=tuple(int(v) for v in PIXELS[2, 5]))
    refused(keyed, "0.5% of the pixels are transparent")
    palette = save(tmp_path, Image.fromarray(PIXELS).quantize(200), "palette.png", transparency=0)
    refused(palette, "are transparent")


@pytest.mark.parametrize("colour", [0, 2])
def test_sixteen_bit_png_is_refused_though_pillow_would_drop_half_of_it(tmp_path, colour):
    rows = RNG.integers(0, 256, (4, 5 * 2 * (3 if colour else 1)), dtype=np.uint8)
    path = raw_png(tmp_path / "deep.png", rows, 5, 16, colour)
    if colour:
        assert Image.open(path).mode == "RGB"
    refused(path, "patches have 8 bits a channel, this is a 16-bit image", "save it as an 8-bit RGB PNG")


def test_sixteen_bit_and_float_tiff_are_refused(tmp_path):
    deep, grey, real = (tmp_path / name for name in ("rgb.tif", "grey.tif", "float.tif"))
    tifffile.imwrite(deep, PIXELS.astype(np.uint16) * 257, photometric="rgb")
    tifffile.imwrite(grey, PIXELS[..., 0].astype(np.uint16) * 257)
    tifffile.imwrite(real, PIXELS[..., 0].astype(np.float32))
    refused(deep, "16-bit")
    refused(grey, "16-bit")
    refused(real, "float")


def test_few_bits_other_colours_and_several_pages_are_refused(tmp_path):
    refused(save(tmp_path, Image.fromarray(PIXELS[..., 0] > 99), "one.png"), "1-bit greyscale")
    refused(raw_png(tmp_path / "four.png", PIXELS[:, :8, 0], 16, 4, 0), "4-bit greyscale")
    refused(save(tmp_path, Image.fromarray(PIXELS).convert("CMYK"), "c.jpg"), "patches are RGB, this image is CMYK")
    refused(save(tmp_path, Image.fromarray(PIXELS).convert("CMYK"), "c.tif"), "CMYK")
    pages = [Image.fromarray(PIXELS)] * 2
    refused(save(tmp_path, pages[0], "p.tif", save_all=True, append_images=pages), "this file holds 3", "of its own")


def test_missing_empty_foreign_and_folder_are_refused(tmp_path):
    refused(tmp_path / "none.png", "no such file", "dataset_dir")
    refused(tmp_path, "no such file")
    for name, content, word in (("e.png", b"", "it is empty"), ("t.png", b"not an image", "another format")):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "cannot be read as PNG, JPEG, TIFF, BMP, WebP or JPEG 2000", word, "download it again")
    refused(save(tmp_path, PIXELS, "renamed.gif"), "another format")


@pytest.mark.parametrize("name", ["p.png", "p.jpg", "p.tif", "p.bmp", "p.webp", "p.jp2"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused(tmp_path, name, share):
    path = save(tmp_path, np.tile(PIXELS, (8, 8, 1)), name)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, "truncated or corrupt", "remove it from the datalist")


def test_a_single_flipped_byte_of_a_png_is_noticed(tmp_path):
    content = save(tmp_path, PIXELS).read_bytes()
    damaged = tmp_path / "damaged.png"
    for place in range(0, len(content) - 12, 13):  # the end's own chunk carries nothing
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        with pytest.raises(DataError):
            read_patch(damaged)


def test_sixteen_bit_jpeg_2000_and_five_bit_bmp_are_refused(tmp_path):
    deep = save(tmp_path, PIXELS[..., 0].astype(np.uint16) * 257, "deep.jp2")
    refused(deep, "16-bit")
    content = bytearray(save(tmp_path, PIXELS, "p.bmp").read_bytes())
    content[28:30] = (16).to_bytes(2, "little")
    (tmp_path / "five.bmp").write_bytes(bytes(content))
    refused(tmp_path / "five.bmp", "5-bit colour")


# --- upright ------------------------------------------------------------------------------------------------------

# The picture that a viewer shows of stored rows and columns, by the EXIF standard's words for its first row and column.
SHOWN = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],  # top, right
    3: lambda stored: stored[::-1, ::-1],  # bottom, right
    4: lambda stored: stored[::-1],  # bottom, left
    5: lambda stored: stored.swapaxes(0, 1),  # left, top
    6: lambda stored: np.rot90(stored, -1),  # right, top
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda stored: np.rot90(stored),  # left, bottom
}


def turned(folder, image, name, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    lossless = {"lossless": True} if name.endswith(".webp") else {}
    tag = {"tiffinfo": {274: orientation}} if name.endswith(".tif") else {"exif": exif}
    return save(folder, image, name, **tag, **lossless)


@pytest.mark.parametrize("orientation", SHOWN)
def test_patches_and_masks_are_upright_whatever_the_file(tmp_path, orientation):
    expected = SHOWN[orientation](PIXELS)
    for name in ("p.png", "p.tif", "p.webp", "p.jpg"):
        path = turned(tmp_path, PIXELS, name, orientation)
        found = read_patch(path).transpose(1, 2, 0)
        if name == "p.jpg":
            plain = save(tmp_path, PIXELS, "plain.jpg")  # the same bytes but for the tag
            np.testing.assert_array_equal(found, SHOWN[orientation](np.asarray(Image.open(plain))))
        else:
            np.testing.assert_array_equal(found, expected, err_msg=name)
        assert reading.patch_header(path) == (expected.shape[:2], "RGB", orientation)
    inside = PIXELS[..., 0] > 128
    for name in ("m.png", "m.tif"):
        mask = turned(tmp_path, inside.astype(np.uint8), name, orientation)
        np.testing.assert_array_equal(read_patch_mask(mask), SHOWN[orientation](inside), err_msg=name)


# --- masks --------------------------------------------------------------------------------------------------------


def test_a_mask_is_whatever_is_not_zero(tmp_path):
    inside = PIXELS[..., 0] > 128
    expected = inside.copy()
    images = {
        "grey.png": inside.astype(np.uint8),
        "white.tif": inside.astype(np.uint8) * 255,
        "bits.png": inside,
        "deep.png": inside.astype(np.uint16) * 300,
        "colour.png": np.dstack([inside * 0, inside * 9, inside * 0]).astype(np.uint8),
        "alpha.png": np.dstack([inside * 0, inside * 9, inside * 0, inside * 0 + 255]).astype(np.uint8),
    }
    for name, image in images.items():
        found = read_patch_mask(save(tmp_path, image, name))
        assert found.dtype == bool
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_the_index_counts_in_a_palette_mask(tmp_path):
    image = Image.fromarray((PIXELS[..., 0] > 128).astype(np.uint8)).convert("P")
    image.putpalette([255, 255, 255, 0, 0, 0])  # the background is white
    np.testing.assert_array_equal(read_patch_mask(save(tmp_path, image)), PIXELS[..., 0] > 128)


def test_codes_choose_what_is_inside(tmp_path):
    path = save(tmp_path, PIXELS[..., 0] // 64)
    np.testing.assert_array_equal(read_patch_mask(path, [1, 3]), np.isin(PIXELS[..., 0] // 64, [1, 3]))


def test_jpeg_and_broken_masks_are_refused(tmp_path):
    with pytest.raises(DataError, match="a mask must be stored without loss, this is a JPEG; save it as PNG"):
        read_patch_mask(save(tmp_path, PIXELS, "m.jpg"))
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        read_patch_mask(tmp_path / "none.png")
    path = save(tmp_path, PIXELS)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="truncated"):
        read_patch_mask(path)
