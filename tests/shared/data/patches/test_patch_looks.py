"""Blank tiles and masks among patches, and their centres."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.data.patches.looks import crop_square, has_few_colours, is_blank
from shared.data.patches.reading import read_patch

REAL = Path(__file__).resolve().parents[4].parent / "shared" / "data" / "ebhi_seg"


def noise(level, spread, seed=0):
    drawn = np.random.default_rng(seed).normal(0, spread, (3, 64, 64))
    return (np.reshape(level, (-1, 1, 1)) + drawn).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("level", [0, 128, 235, 255, (240, 225, 235)])
def test_blank_is_nearly_one_colour_and_a_crumb_of_tissue_is_not(level):
    tile = noise(level, 3)
    assert is_blank(tile)
    tile[:, 3:9, 3:9] = 60  # 0.9 %
    assert is_blank(tile)
    tile[:, 3:13, 3:13] = 60  # 2.4 %
    assert not is_blank(tile)


def test_pale_tissue_is_not_blank():
    assert not is_blank(noise((235, 220, 230), 10))


def test_masks_have_few_colours():
    mask = np.zeros((3, 64, 64), np.uint8)
    assert not has_few_colours(mask)  # one: blank
    for value in (1, 255):
        mask[:, 20:40] = value
        assert has_few_colours(mask)
    mask[:] = np.arange(64) // 2  # 32 cells
    assert has_few_colours(mask)
    mask[0, 7, 7] = 200
    assert not has_few_colours(mask)
    assert not has_few_colours(noise(200, 8))


def test_the_centre_is_cut(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    crop_square(tmp_path / "a.png", tmp_path / "new/b.png", mask=False)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new/b.png")), pixels[:, 2:8])
    Image.fromarray(pixels[..., 0] // 200).save(tmp_path / "m.png")
    crop_square(tmp_path / "m.png", tmp_path / "new/m.png", mask=True)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new/m.png")), (pixels[:, 2:8, 0] // 200 > 0) * 255)


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason="EBHI-Seg is not there: put it into ../shared/data/ebhi_seg")
def test_no_real_patch_is_blank_or_a_mask():
    images = [read_patch(path) for path in sorted(REAL.glob("*/image/*.png"))[::20]]
    assert len(images) > 20 and not any(is_blank(image) or has_few_colours(image) for image in images)
