"""Pictures of one channel: what is taken as stored, what is converted, what is refused."""

import numpy as np
import pytest
from PIL import Image

from shared.data.patches.reading import read_grey, read_mask_values
from shared.errors import DataError

GREY = np.random.default_rng(0).integers(0, 256, (12, 16), dtype=np.uint8)
RGB = np.repeat(GREY[..., None], 3, axis=-1)


def save(folder, image, name="p.png", **options):
    path = folder / name
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["p.png", "p.tif", "p.bmp", "p.jp2"])
@pytest.mark.parametrize("stored", [GREY, RGB])
def test_grey_comes_back_as_it_was_stored(tmp_path, name, stored):
    found, turned = read_grey(save(tmp_path, stored, name))
    assert found.dtype == np.uint8 and not turned
    np.testing.assert_array_equal(found, GREY)


@pytest.mark.parametrize(
    ("name", "kind"), [("p.png", np.uint16), ("p.tif", np.uint16), ("p.tif", np.int32), ("p.tif", np.float32)]
)
def test_deep_pictures_are_not_cut_to_bytes(tmp_path, name, kind):
    stored = GREY.astype(kind) * 200
    found = read_grey(save(tmp_path, stored, name))[0]
    assert found.dtype == kind and found.dtype.isnative
    np.testing.assert_array_equal(found, stored)


def test_grey_jpegs_saved_in_colour_and_palettes_of_greys(tmp_path):
    smooth = np.add.outer(np.arange(12), np.arange(16)).astype(np.uint8) * 5
    path = save(tmp_path, np.repeat(smooth[..., None], 3, axis=-1), "p.jpg", quality=90)
    np.testing.assert_array_equal(read_grey(path)[0], np.asarray(Image.open(path).convert("L")))
    path = save(tmp_path, Image.fromarray(GREY).convert("P"))
    np.testing.assert_array_equal(read_grey(path)[0], GREY)
    rgba = np.concatenate([RGB, np.full((12, 16, 1), 255, np.uint8)], axis=-1)
    np.testing.assert_array_equal(read_grey(save(tmp_path, rgba))[0], GREY)


@pytest.mark.parametrize("name", ["p.tif", "p.jpg", "p.png"])
def test_turned_upright_by_its_tag(tmp_path, name):
    exif = Image.Exif()
    exif[274] = 8
    path = save(tmp_path, GREY, name, exif=exif)
    found, turned = read_grey(path)
    assert turned and found.shape == (16, 12)
    np.testing.assert_array_equal(found, np.rot90(np.asarray(Image.open(path)) if name != "p.tif" else GREY))


def refused(path, message, **options):
    with pytest.raises(DataError, match=message) as caught:
        read_grey(path, **options)
    assert str(path) in str(caught.value)


def test_what_cannot_be_meant_is_refused(tmp_path):
    colour = RGB.copy()
    colour[0, :4] = (200, 10, 10)
    refused(save(tmp_path, colour), r"2.1% of the pixels are coloured")
    red = read_grey(tmp_path / "p.png", luminance=True)[0]
    assert (red[0, :4] == np.asarray(Image.open(tmp_path / "p.png").convert("L"))[0, :4]).all()
    clear = np.concatenate([RGB, np.full((12, 16, 1), 255, np.uint8)], axis=-1)
    clear[0, 0, 3] = 0
    refused(save(tmp_path, clear), "a picture is opaque, but 0.5% of the pixels are transparent")
    refused(save(tmp_path, GREY > 99), "is an image of 1-bit 1, a grey one is needed")
    refused(save(tmp_path, Image.fromarray(RGB).convert("CMYK"), "p.tif"), "8-bit CMYK")
    refused(save(tmp_path, np.full((4, 4), 7, np.uint8)), "every pixel is 7")
    holed = GREY.astype(np.float32)
    holed[0, :2] = np.nan
    refused(save(tmp_path, holed, "p.tif"), "holds 2 NaN or Inf pixels")
    pages = [Image.fromarray(GREY), Image.fromarray(GREY)]
    refused(save(tmp_path, pages[0], "p.tif", save_all=True, append_images=pages[1:]), "this file holds 2")
    path = save(tmp_path, GREY, "p.jpg")
    path.write_bytes(path.read_bytes()[:300])
    refused(path, "cannot be read as PNG, JPEG")
    refused(tmp_path / "none.png", "no such file")


def test_values_of_masks(tmp_path):
    inside = GREY > 99
    for stored, values in (
        (inside, {0, 1}),
        (255 * inside.astype(np.uint8), {0, 255}),
        (Image.fromarray(2 * inside.astype(np.uint8)), {0, 2}),
        (np.stack([255 * inside.astype(np.uint8), *(np.zeros_like(GREY),) * 2], axis=-1), {0, 76}),
    ):
        found, turned = read_mask_values(save(tmp_path, stored))
        assert set(np.unique(found)) == values and found.dtype == np.uint8 and not turned
        np.testing.assert_array_equal(found > 0, inside)
    palette = Image.fromarray(3 * inside.astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0] * 3 + [255, 0, 0])
    assert set(np.unique(read_mask_values(save(tmp_path, palette))[0])) == {0, 3}
    with pytest.raises(DataError, match="a mask must be stored without loss, this is a JPEG"):
        read_mask_values(save(tmp_path, GREY, "p.jpg"))
