"""Tissue of a slide: stains in, glass, ink, shadows and dust out."""

from types import SimpleNamespace

import numpy as np
import pytest

from shared.data.slides.grid import TileGrid
from shared.data.slides.tissue import find_tissue, tissue_mask, tissue_shares
from shared.errors import DataError
from tests.support.tiny_slides import glass

# mean colours: pink stroma, blue-violet nuclei, pale mucus, blood
TISSUE = {"stroma": (225, 160, 195), "nuclei": (110, 75, 150), "pale": (228, 194, 218), "blood": (205, 85, 105)}
INK = {
    "green": (40, 130, 70),
    "blue": (40, 70, 170),
    "black": (25, 25, 30),
    "red": (220, 35, 45),
    "yellow": (235, 215, 60),
}


@pytest.fixture(scope="module")
def slide():
    """Glass with a square of each colour; and where each lies."""
    pixels, where = glass(200, 360), {}
    for number, (name, colour) in enumerate({**TISSUE, **INK}.items()):
        row, column = divmod(number, 5)
        y, x = 20 + 90 * row, 15 + 68 * column
        square = slice(y, y + 50), slice(x, x + 50)
        pixels[square] = np.clip(pixels[square].astype(int) - 243 + colour, 0, 255)
        where[name] = slice(y + 2, y + 48), slice(x + 2, x + 48)  # without the rim, which is smoothed
    return pixels, where


def test_stains_are_tissue_and_inks_are_not(slide):
    pixels, where = slide
    mask, ink, threshold = tissue_mask(pixels, 8.0)
    assert 0.05 <= threshold <= 0.12
    for name, place in where.items():
        share = mask[place].mean()
        assert (share > 0.95 if name in TISSUE else share == 0) and ink[place].mean() == (name in INK), (name, share)
    outside = mask.copy()
    for place in where.values():
        outside[place[0].start - 4 : place[0].stop + 4, place[1].start - 4 : place[1].stop + 4] = False
    assert not outside.any()


def test_the_thresholds_are_keys(slide):
    pixels, where = slide
    everything, *_ = tissue_mask(pixels, 8.0, pen=255, red_pen=255, dark=0)
    assert all(everything[where[name]].mean() > 0.9 for name in ("green", "blue", "red", "yellow"))
    strict, _, threshold = tissue_mask(pixels, 8.0, saturation=(0.3, 0.3))
    assert threshold == 0.3 and not strict[where["pale"]].any() and strict[where["nuclei"]].all()
    with pytest.raises(DataError, match="saturation must be two thresholds"):
        tissue_mask(pixels, 8.0, saturation=(0.3, 0.1))


def test_glass_alone_has_no_tissue_and_tissue_alone_is_all(slide):
    assert tissue_mask(glass(100, 100), 8.0)[0].sum() == 0
    assert tissue_mask(np.full((50, 50, 3), 243, np.uint8), 8.0)[0].sum() == 0
    random = np.random.default_rng(0)
    two = np.where(random.random((100, 100, 1)) < 0.5, TISSUE["stroma"], TISSUE["nuclei"])
    noise = np.clip(two + random.normal(0, 8, (100, 100, 3)), 0, 255).astype(np.uint8)
    assert tissue_mask(noise, 8.0)[0].mean() > 0.98


def test_dust_is_left_out_and_lumina_belong_to_the_tissue():
    pixels = glass(120, 120)
    pixels[10:100, 10:100] = TISSUE["stroma"]
    pixels[40:60, 40:60] = 243  # 160 x 160 um
    pixels[110:114, 110:114] = TISSUE["nuclei"]  # 32 x 32 um
    mask, *_ = tissue_mask(pixels, 8.0)
    assert mask[12:98, 12:98].all() and not mask[105:, 105:].any()
    open_mask, *_ = tissue_mask(pixels, 8.0, holes_um2=100.0, smallest_um2=100.0)
    assert not open_mask[45:55, 45:55].any() and open_mask[111:113, 111:113].all()


def test_sizes_are_areas_in_square_micrometres():
    pixels = glass(160, 160)
    pixels[5:155, 5:100] = TISSUE["stroma"]
    pixels[20:42, 20:42] = pixels[60:90, 20:50] = 243  # of 16 um2 a pixel: 7,744 and 14,400
    pixels[10:32, 110:132] = pixels[60:90, 110:140] = TISSUE["stroma"]
    mask, *_ = tissue_mask(pixels, 4.0, holes_um2=11_000, smallest_um2=11_000)
    assert mask[25:37, 25:37].all() and not mask[66:84, 26:44].any()
    assert not mask[12:30, 112:130].any() and mask[63:87, 113:137].all()


def test_ink_within_tissue_is_none_and_no_tile_of_more_ink_is_taken():
    pixels = np.full((80, 160, 3), TISSUE["stroma"], np.uint8)
    pixels[:] = np.clip(pixels + np.random.default_rng(0).normal(0, 3, pixels.shape), 0, 255)
    pixels[:, :4], pixels[30:50, 30:50] = 243, INK["black"]
    reader = SimpleNamespace(width=160, height=80, overview=lambda downsample: pixels)
    grid = TileGrid(80, 80.0, 0, 1.0, (0, 80), (0,))
    for most, taken in ((0.05, [False, True]), (0.3, [True, True])):
        found = find_tissue(reader, grid, 8.0, max_ink=most)
        assert found.taken.tolist() == taken and not found.mask[32:48, 32:48].any()


def test_shares_are_the_means_over_the_tiles():
    random = np.random.default_rng(0)
    mask = random.random((40, 60)) < 0.4
    # level of 2 pixels; the mask has 8 pixels of level 0 each
    grid = TileGrid(16, 64.0, 1, 2.0, (0, 32, 100, 208), (0, 40, 128))
    found = tissue_shares(mask, grid, 8.0)
    for row, top in enumerate(grid.tops):
        for column, left in enumerate(grid.lefts):
            y, x = top * 2 / 8, left * 2 / 8
            inside = mask[round(y) : round(y + 8), round(x) : round(x + 8)]
            assert found[row, column] == pytest.approx(inside.mean())
