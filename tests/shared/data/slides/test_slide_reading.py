"""Readers of slides: the same pixels whatever the file, regions and levels beside a plain reading of the whole."""

import os
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image

from shared.data.slides import reading
from shared.data.slides.folder import find_slides, read_slide_labels, slide_names
from shared.data.slides.grid import tile_grid
from shared.data.slides.reading import OpenSlideReader, open_slide, slide_state, stated_mpp
from shared.errors import DataError
from tests.support.tiny_slides import write_ome, write_png, write_tiff

PIXELS = np.random.default_rng(0).integers(0, 256, (300, 500, 3)).astype(np.uint8)


@pytest.fixture(params=["openslide", "tifffile", "pillow"])
def slide(request, tmp_path):
    if request.param == "openslide":
        pytest.importorskip("openslide")
    write, name = {
        "openslide": (write_tiff, "a.tif"),
        "tifffile": (write_ome, "a.ome.tif"),
        "pillow": (write_png, "a.png"),
    }[request.param]
    with open_slide(write(tmp_path / name, PIXELS, 0.5)) as reader:
        assert reader.kind == request.param
        yield reader


def test_regions_are_the_files_pixels_and_the_size_of_a_pixel_is_known(slide):
    assert (slide.width, slide.height) == (500, 300) and slide.mpp == pytest.approx((0.5, 0.5), rel=1e-4)
    for left, top, width, height in ((0, 0, 500, 300), (250, 100, 17, 90), (499, 299, 1, 1), (100, 255, 300, 2)):
        found = slide.read(0, left, top, width, height)
        assert np.array_equal(found, PIXELS[top : top + height, left : left + width])


def test_a_scaled_square_is_what_pillow_makes_of_the_whole_image(slide):
    whole = Image.fromarray(PIXELS)
    for left, top, span, size in ((10, 20, 64, 64), (0, 0, 130.5, 64), (369.5, 100.25, 130.5, 64), (40, 50, 60, 96)):
        box = (left, top, min(left + span, 500), min(top + span, 300))
        expected = np.asarray(whole.resize((size, size), Image.Resampling.BICUBIC, box=box)).astype(int)
        assert np.abs(slide.read_scaled(0, left, top, span, size) - expected).max() <= 1


def test_an_overview_is_the_mean_of_its_pixels(slide):
    # of level 0: the next level is coarser
    expected = PIXELS.reshape(100, 3, 500, 3)[:, :, :498].reshape(100, 3, 166, 3, 3).mean((1, 3))
    found = slide.overview(3.0)
    assert found.shape == (100, 167, 3)  # 500 / 3 pixels, evenly
    exact = np.asarray(Image.fromarray(PIXELS).resize((167, 100), Image.Resampling.BOX)).astype(int)
    assert np.abs(found - exact).max() <= 1 and np.abs(found[:, 0] - expected[:, 0]).max() <= 2


def test_the_level_that_still_has_the_resolution_is_read(tmp_path):
    pytest.importorskip("openslide")
    path = write_tiff(tmp_path / "a.tif", PIXELS, 0.5, levels=(2, 4))
    with open_slide(path) as reader:
        assert [reader.level_for(d) for d in (1, 1.9, 2, 3.9, 4, 100)] == [0, 0, 1, 1, 2, 2]
        grid = tile_grid(reader, size=32, mpp=1.0, slide_mpp=0.5)
        assert (grid.level, grid.side) == (1, 64) and len(grid) == 7 * 4
        for number in range(len(grid)):
            row, column = grid.cell(number)
            x, y = grid.corner(number)
            assert (x, y) == (2 * grid.lefts[column], 2 * grid.tops[row]) and x + 64 <= 500 and y + 64 <= 300
            found = reader.read_scaled(1, grid.lefts[column], grid.tops[row], grid.side / grid.downsample, 32)
            assert np.array_equal(found, PIXELS[y : y + 64 : 2, x : x + 64 : 2])


def test_a_blank_and_a_grey_page_an_edge_and_a_cut_file(tmp_path):
    with tifffile.TiffWriter(tmp_path / "grey.ome.tif", ome=True) as file:
        file.write(PIXELS[..., 0], tile=(64, 64), photometric="minisblack", metadata={"axes": "YX"})
    with pytest.raises(DataError, match="slides are 8-bit RGB, this has 1 channels"):
        open_slide(tmp_path / "grey.ome.tif")
    with pytest.raises(DataError, match="no such slide"):
        open_slide(tmp_path / "none.svs")
    path = write_ome(tmp_path / "cut.ome.tif", PIXELS, 0.5)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        place = page.dataoffsets[1]
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes(50))
    with open_slide(path) as reader:
        assert np.array_equal(reader.read(0, 0, 0, 200, 200), PIXELS[:200, :200])  # another tile
        with pytest.raises(DataError, match=r"cut.ome.tif: cannot be read at x 300, y 0 of level 0"):
            reader.read(0, 300, 0, 100, 100)


def test_72_dots_an_inch_are_no_size_of_tissue(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png", dpi=(72, 72))
    with open_slide(tmp_path / "a.png") as reader:
        assert reader.mpp is None


def test_names_that_clash_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"the results of a/b.svs and A-b.tif would have one name"):
        slide_names(tmp_path, ["a/b.svs", "A-b.tif", "c.svs"])


def test_what_was_not_scanned_is_white(tmp_path):
    pytest.importorskip("openslide")

    def blocks():
        yield from (zlib.compress(PIXELS[:256, :256].tobytes()), b"")

    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        options = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}
        file.write(blocks(), shape=(256, 512, 3), dtype=np.uint8, **options)
    with open_slide(tmp_path / "a.tif") as reader:
        assert np.array_equal(reader.read(0, 200, 0, 56, 256), PIXELS[:256, 200:256])
        assert (reader.read(0, 256, 0, 256, 256) == 255).all()


def test_qupath_counts_from_where_the_scanned_part_begins(tmp_path, monkeypatch):
    bounds = {"openslide.bounds-x": "300", "openslide.bounds-y": "70"}

    class Opened:
        level_dimensions = ((1000, 800),)

        def __init__(self, path):
            self.properties = bounds

        def close(self):
            pass

    monkeypatch.setattr(reading, "openslide_module", lambda: SimpleNamespace(OpenSlide=Opened))
    with OpenSlideReader(tmp_path / "a.mrxs") as reader:
        assert reader.origin == (0, 0)  # QuPath crops where all four are there
    bounds |= {"openslide.bounds-width": "500", "openslide.bounds-height": "600"}
    with OpenSlideReader(tmp_path / "a.mrxs") as reader:
        assert reader.origin == (300, 70) and (reader.width, reader.height) == (1000, 800)


def test_a_slide_of_several_files_changed_if_one_of_them_did(tmp_path):
    for name in ("a.mrxs", "a/Data0001.dat", "b.vms", "b(1,0).jpg", "c.svs", "c.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    slides = [tmp_path / name for name in ("a.mrxs", "b.vms", "c.svs")]
    before = [slide_state(slide) for slide in slides]
    assert [[name for name, *_ in state.get("beside", ())] for state in before] == [
        ["Data0001.dat"],
        ["b(1,0).jpg"],
        [],
    ]
    for name in ("a/Data0001.dat", "b(1,0).jpg", "c.json"):
        os.utime(tmp_path / name, ns=(0, 1))
    assert [slide_state(slide) == state for slide, state in zip(slides, before, strict=True)] == [False, False, True]
    (tmp_path / "c.svs").write_text("changed")
    assert slide_state(tmp_path / "c.svs") != before[2]


def test_a_labels_picture_is_no_level_of_the_slide(tmp_path, caplog):
    pytest.importorskip("openslide")
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}
    pixels = np.repeat(np.repeat(PIXELS, 2, 0), 2, 1)  # 600 x 1000
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(pixels, **options)
        file.write(np.full((400, 400, 3), 9, np.uint8), subfiletype=1, **options)
        file.write(
            np.ascontiguousarray(pixels[::4, ::4][:, :249]), subfiletype=1, **options
        )  # a level may lose a pixel
    with open_slide(tmp_path / "a.tif") as reader:
        assert len(reader.shapes) == 3 and reader.levels == [0, 2]
        assert [reader.level_for(factor) for factor in (1, 2, 3, 8)] == [0, 0, 0, 2]
        assert reader.overview(3.0).mean() > 100
    assert "a.tif: levels of another shape than the slide's 1000 x 600, such as a label's picture" in caplog.text
    assert "are not used: 400 x 400" in caplog.text


@pytest.mark.parametrize(
    ("name", "pixels", "more", "words"),
    [
        (
            "a.tif",
            PIXELS.astype(np.uint16) * 16,
            {"photometric": "rgb", "tile": (256, 256)},
            "has 3 channels of uint16",
        ),
        ("a.tif", PIXELS[..., 0], {"photometric": "minisblack", "tile": (256, 256)}, "has 1 channels of uint8"),
        ("a.ome.tif", PIXELS, {"photometric": "rgb", "metadata": None}, "holds no OME-XML: it may be truncated"),
        ("a.ome.tif", np.stack([PIXELS] * 3), {"photometric": "rgb", "metadata": {"axes": "ZYXS"}}, "holds 3 planes"),
    ],
)
def test_what_would_be_read_as_something_else_is_refused(tmp_path, name, pixels, more, words):
    with tifffile.TiffWriter(tmp_path / name, ome=name != "a.tif" and more.get("metadata") is not None) as file:
        file.write(pixels, **more)
    with pytest.raises(DataError, match=words):
        open_slide(tmp_path / name)


def test_the_size_of_a_pixel_in_two_places_of_a_file(tmp_path, caplog):
    metadata = {"axes": "YXS", "PhysicalSizeX": 500.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5}
    options = {"photometric": "rgb", "ome": True, "metadata": metadata, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, resolution=(1e4 / 0.25, 1e4 / 0.25), **options)
    assert stated_mpp(tmp_path / "a.tif") == (0.5, 0.5)
    assert "its OME-XML says 0.5 micrometres per pixel, its resolution 0.25; the first is taken" in caplog.text
    with open_slide(tmp_path / "a.tif") as reader:
        assert reader.kind == "pillow" and reader.mpp == (0.5, 0.5)
    Image.fromarray(PIXELS).save(tmp_path / "b.jpg", dpi=(300, 300))  # a camera's
    assert stated_mpp(tmp_path / "b.jpg") is None


def test_a_path_that_is_another_slides_name_too_is_the_path_and_other_kinds_are_named(tmp_path, caplog):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/a.png"):
        write_png(tmp_path / name, PIXELS, 0.5)
    for name in ("b.isyntax", "notes.txt", "sub/a.geojson"):
        (tmp_path / name).touch()
    slides = find_slides(tmp_path, mpp=0.5)
    assert "coarser" not in caplog.text
    find_slides(tmp_path / "a.png", mpp=0.25)
    assert "1 slides have coarser pixels than the tiles' 0.25 micrometres, their tiles are enlarged" in caplog.text
    assert [slide.inner for slide in slides] == ["a.png", "sub/a.png"]
    assert "1 files are of no kind that is read as a slide: b.isyntax" in caplog.text
    (tmp_path / "labels.csv").write_text("slide,label\na.png,1\nsub/a.png,0\n")
    found = read_slide_labels(tmp_path / "labels.csv", slides, ["x", "y"])
    assert {name: label.label for name, label in found.items()} == {"a.png": 1, "sub/a.png": 0}
    (tmp_path / "labels.csv").write_text("slide,label\na,1\n")
    with pytest.raises(DataError, match=r"a: is the name of a.png, sub/a.png; give the path"):
        read_slide_labels(tmp_path / "labels.csv", slides, ["x", "y"])
