"""Whole slides through the SSCL bundle's inference, with a tiny network: the numbers of its patches, and its ends."""

import csv
import json
import logging
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from shared.bundle.record import weights_digest
from shared.bundle.settings import save_settings
from shared.data.patches.reading import read_patch
from shared.engines import slide_stage
from shared.networks import SSCLClassifier
from tests.support.bundle_runs import bundle_workflow, cause, rows
from tests.support.documented import undocumented_in
from tests.support.tiny_slides import stained, write_ome, write_png, write_tiff

pytest.importorskip("openslide")
workflow = partial(bundle_workflow, "sscl_crc", "inference", kind="infer")
SIZE, MPP = 96, 1.0
CLASSES = ["straight crypts", "serrated crypts"]


@pytest.fixture(autouse=True)
def _own_hook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model as a training leaves it: random weights, of patches of 96 pixels of 1 micrometre, read at 64."""
    folder = tmp_path_factory.mktemp("model") / "models"
    folder.mkdir()
    torch.manual_seed(0)
    encoder = {"block": "bottleneck", "layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16], "stages": [3, 4]}
    network = SSCLClassifier(encoder=encoder, num_classes=2, dropout=0.2)
    for name, value in network.state_dict().items():
        if name == "head.weight":
            value.mul_(20)  # so that tiles differ
    torch.save(network.state_dict(), folder / "model.pt")
    numbers = {"size": 64, "cache_size": 64, "views": 2, "average": "logits", "num_classes": 2, "classes": CLASSES}
    numbers |= {"mpp": MPP, "patch_size": SIZE, "weights": weights_digest(network.state_dict())}
    save_settings(folder, network=network.settings, **numbers)
    return folder


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Half a millimetre of noise on glass, as three kinds of files."""
    folder = tmp_path_factory.mktemp("slides")
    pixels = stained(1024, 1024, box=(256, 256, 800, 720))
    write_tiff(folder / "tiled.tif", pixels, 0.5, levels=(2, 8))
    (folder / "more").mkdir()
    write_ome(folder / "more/ome.ome.tif", pixels, 0.5)
    write_png(folder / "plain.png", np.ascontiguousarray(pixels[::2, ::2]), 1.0)
    return folder


def run(folder, model, out, **given):
    """Run the inference; the rows of slides.csv by slide."""
    places = {"data": out / "none", "out": out, "ckpt_dir": str(model), "slides": str(folder), "bf16": False}
    workflow(**places, **given).run()
    return {row["slide"]: row for row in rows(out / "eval/slides.csv")}


def refused(folder, model, out, **given):
    with pytest.raises(Exception) as raised:
        run(folder, model, out, **given)
    return str(cause(raised.value))


@pytest.fixture(scope="module")
def predicted(slides, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    hook = sys.excepthook
    (out / "labels.csv").write_text(
        "slide,label,patient\ntiled,1,A\nmore/ome.ome.tif,straight crypts,B\nplain.png,,C\n"
    )
    found = run(slides, model, out, slide_labels=str(out / "labels.csv"), **{"slide_stage#overlap": 0.5})
    sys.excepthook = hook
    return out / "eval", found


def test_every_kind_of_file_leaves_the_same_files_and_all_are_described(predicted):
    out, found = predicted
    assert set(found) == {"tiled.tif", "more/ome.ome.tif", "plain.png"}
    for row in found.values():
        names = {path.name for path in (out / "slides" / row["name"]).iterdir()}
        assert names == {
            *("tiles.csv", "slide.json", "heatmap.ome.tiff", "slide.png", "gallery.png"),
            *("tiles.geojson", "regions.geojson"),
        }
        assert 0 < int(row["tiles"]) == len(rows(out / "slides" / row["name"] / "tiles.csv"))
        assert float(row["tissue_mm2"]) == pytest.approx(544 * 464 * 0.25e-6, rel=0.1)
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    assert not undocumented_in(out, "sscl_crc")


def test_a_tiles_probability_is_the_patchs(predicted, slides, model, tmp_path):
    out, _ = predicted
    folder = tmp_path / "patches"
    folder.mkdir()
    expected = {}
    with Image.open(slides / "plain.png") as image:
        for number, row in enumerate(rows(out / "slides/plain/tiles.csv")):
            x, y = int(row["x"]), int(row["y"])
            image.crop((x, y, x + SIZE, y + SIZE)).save(folder / f"s{number}.png")
            expected[f"s{number}.png"] = float(row["probability"])
    workflow(data=folder, out=tmp_path, ckpt_dir=str(model), bf16=False, handlers=PREDICTIONS).run()
    found = {Path(row["image"]).name: float(row["probability"]) for row in rows(tmp_path / "eval/predictions.csv")}
    assert found.keys() == expected.keys() and len(found) >= 9 and np.ptp(list(found.values())) > 1e-3
    for name, value in found.items():
        assert value == pytest.approx(expected[name], abs=1e-6)


PREDICTIONS = [
    {"_target_": "shared.handlers.LoadModel", "path": "$@ckpt_dir + '/model.pt'", "network": "@network"},
    {"_target_": "shared.handlers.SavePredictions", "output_dir": "@output_dir", "dataset_dir": "@dataset_dir"},
]


def test_slides_of_other_pixels_show_the_same_tissue(predicted):
    out, _ = predicted
    same = [rows(out / f"slides/{name}/tiles.csv") for name in ("tiled", "more-ome")]
    # the same pixels, once by OpenSlide's level of half the size, once by tifffile and a reduction by two
    assert [(row["x"], row["y"]) for row in same[0]] == [(row["x"], row["y"]) for row in same[1]]
    plain = rows(out / "slides/plain/tiles.csv")
    assert [(int(r["x"]) // 2, int(r["y"]) // 2) for r in same[0]] == [(int(r["x"]), int(r["y"])) for r in plain]
    for one, other in zip(same[0], plain, strict=True):  # every second pixel, both
        assert float(one["probability"]) == pytest.approx(float(other["probability"]), abs=1e-6)
    assert json.loads((out / "slides/tiled/slide.json").read_text())["level"] == 1


def test_heat_map_and_shapes_say_what_the_table_says(predicted):
    out, _ = predicted
    table = rows(out / "slides/tiled/tiles.csv")
    with tifffile.TiffFile(out / "slides/tiled/heatmap.ome.tiff") as file:
        values, xml = file.asarray(), file.ome_metadata
    assert 'PhysicalSizeX="8.0"' in xml and values.shape == (64, 64) and values.dtype == np.float32
    # at a pixel: the mean over the tiles above it
    for row, column in ((30, 30), (20, 40)):
        centre = (column + 0.5) * 16, (row + 0.5) * 16
        over = [
            float(t["probability"])
            for t in table
            if 0 <= centre[0] - int(t["x"]) < 192 and 0 <= centre[1] - int(t["y"]) < 192
        ]
        assert over and values[row, column] == pytest.approx(np.mean(over), abs=1e-6)
    assert np.isnan(values[1, 1])
    tiles = json.loads((out / "slides/tiled/tiles.geojson").read_text())["features"]
    assert len(tiles) == len(table)
    for feature, row in zip(tiles, table, strict=True):
        value = float(row["probability"])
        assert feature["geometry"]["coordinates"][0][0] == [int(row["x"]), int(row["y"])]
        assert feature["properties"]["measurements"]["probability"] == pytest.approx(value, abs=1e-6)
        assert feature["properties"]["classification"]["name"] == CLASSES[value >= 0.5]
    regions = json.loads((out / "slides/tiled/regions.geojson").read_text())["features"]
    assert sum(each["properties"]["measurements"]["tiles"] for each in regions) == len(table)


def test_labels_of_slides_give_their_auc(predicted):
    out, found = predicted
    assert found["plain.png"]["label"] == "" and found["more/ome.ome.tif"]["label"] == "0"
    content = json.loads((out / "slides.json").read_text())
    assert content["n"] == 2 and content["positives"] == 1 and content["mean"]["AUC"]["value"] in (0.0, 0.5, 1.0)
    assert (out / "slides_roc.png").is_file()


def test_workers_read_the_same(slides, model, predicted, tmp_path):
    given = {"slide_stage#overlap": 0.5, "slide_stage#num_workers": 2, "slide_stage#batch_size": 3}
    run(slides / "tiled.tif", model, tmp_path, **given)
    before = [float(row["probability"]) for row in rows(predicted[0] / "slides/tiled/tiles.csv")]
    found = [float(row["probability"]) for row in rows(tmp_path / "eval/slides/tiled/tiles.csv")]
    assert found == pytest.approx(before, abs=1e-6)


def test_a_stopped_run_leaves_whole_slides_only_and_goes_on(slides, model, tmp_path, monkeypatch, caplog):
    write = slide_stage.write_heat_map
    calls = []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(slide_stage, "write_heat_map", killed)
    with pytest.raises(BaseException):  # noqa: B017
        run(slides, model, tmp_path)
    done = sorted(path.name for path in (tmp_path / "eval/slides").iterdir())
    assert done == ["more-ome"] and not (tmp_path / "eval/slides.csv").exists()
    first = (tmp_path / "eval/slides/more-ome/tiles.csv").stat().st_mtime_ns
    # what a process that was killed outright leaves
    (tmp_path / "eval/slides/.plain.part").mkdir()
    (tmp_path / "eval/slides/.plain.part/tiles.csv").write_text("half")
    with caplog.at_level(logging.INFO):
        found = run(slides, model, tmp_path)
    assert "more/ome.ome.tif: finished before, kept" in caplog.text and len(found) == 3
    assert (tmp_path / "eval/slides/more-ome/tiles.csv").stat().st_mtime_ns == first
    assert sorted(path.name for path in (tmp_path / "eval/slides").iterdir()) == ["more-ome", "plain", "tiled"]
    # other settings: computed anew
    run(slides, model, tmp_path, **{"slide_stage#min_tissue": 0.9})
    assert (tmp_path / "eval/slides/more-ome/tiles.csv").stat().st_mtime_ns != first


def test_slides_without_tissue_and_damaged_ones_are_named_and_the_others_finished(slides, model, tmp_path, caplog):
    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copy(slides / "plain.png", folder / "good.png")
    (tmp_path / "eval/slides/torn").mkdir(parents=True)  # of other settings, when it was whole
    write_png(folder / "bare.png", np.full((300, 300, 3), 243, np.uint8), 1.0)
    path = write_tiff(folder / "torn.tif", stained(1024, 1024, box=(256, 256, 800, 720)), 0.5, levels=(2, 8))
    with tifffile.TiffFile(path) as file:  # a tile of the level that is read, not of the overview's
        page = file.pages[1]
        place = page.dataoffsets[0], page.databytecounts[0]
    with path.open("r+b") as file:
        file.seek(place[0])
        file.write(bytes(place[1]))
    message = refused(folder, model, tmp_path)
    assert "torn.tif" in message and "cannot be read" in message and "the other slides are finished" in message
    found = {row["slide"]: row for row in rows(tmp_path / "eval/slides.csv")}
    assert found["bare.png"]["problem"] == "no tissue" and found["bare.png"]["tiles"] == "0"
    assert found["bare.png"]["mean"] == "" and found["good.png"]["problem"] == "" and found["good.png"]["mean"]
    assert found["torn.tif"]["problem"].startswith("damaged: torn.tif: cannot") and found["torn.tif"]["tiles"] == ""
    assert "1 of 3 slides have no tissue: bare.png" in caplog.text
    assert sorted(path.name for path in (tmp_path / "eval/slides").iterdir()) == ["bare", "good"]
    assert json.loads((tmp_path / "eval/slides/bare/regions.geojson").read_text())["features"] == []
    assert not undocumented_in(tmp_path / "eval", "sscl_crc")


def test_what_cannot_be_used_is_told_at_once_before_anything_is_computed(slides, model, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    write_tiff(folder / "unknown.tif", np.full((300, 300, 3), 243, np.uint8), None, levels=())
    write_tiff(folder / "oblong.tif", np.full((300, 300, 3), 243, np.uint8), 0.5, mpp_y=1.0, levels=())
    write_png(folder / "small.png", np.full((80, 300, 3), 243, np.uint8), 1.0)
    (folder / "torn.svs").write_bytes(b"II*\0" + bytes(40))
    message = refused(folder, model, tmp_path)
    for part in (
        "1 of 4 slides do not say how large a pixel is: unknown.tif; give micrometres per pixel of level 0 with --sl",
        "oblong.tif: a pixel is 0.5 micrometres wide and 1 high",
        "small.png: 300 x 80 pixels of 1 micrometres are smaller than a tile, which is 96 micrometres wide",
        "torn.svs: cannot be read as a slide",
    ):
        assert part in message, message
    assert message.startswith("4 problems") and not (tmp_path / "eval").exists()
    (folder / "torn.svs").unlink()
    (folder / "small.png").unlink()
    found = run(folder, model, tmp_path, slide_mpp=1.0)
    assert {row["problem"] for row in found.values()} == {"no tissue"}


def test_slides_of_one_name_are_refused(slides, model, tmp_path):
    folder = tmp_path / "slides"
    (folder / "a").mkdir(parents=True)
    for name in ("a/b.png", "A-b.tif"):
        shutil.copy(slides / ("plain.png" if name.endswith("png") else "tiled.tif"), folder / name)
    assert "the results of A-b.tif and a/b.png would have one name; rename one" in refused(folder, model, tmp_path)
    assert "no such folder of slides" in refused(tmp_path / "none", model, tmp_path)
    assert "holds no slides" in refused(model, model, tmp_path)
    assert "lies in the folder of slides" in refused(tmp_path, model, tmp_path)


def test_a_model_of_unknown_size_needs_it_and_a_known_one_keeps_its_own(slides, model, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(model, older)
    content = json.loads((older / "model.json").read_text())
    del content["mpp"], content["patch_size"]
    (older / "model.json").write_text(json.dumps(content))
    message = refused(slides, older, tmp_path)
    assert "--mpp (micrometres per pixel) and --slide_stage#patch_size (pixels of a side)" in message
    given = {"mpp": MPP, "slide_stage#patch_size": SIZE}
    found = run(slides / "plain.png", older, tmp_path, **given)
    with (tmp_path / "eval/slides/plain/tiles.csv").open() as file:
        assert len(list(csv.DictReader(file))) == int(found["plain.png"]["tiles"]) > 0
    message = refused(slides, model, tmp_path, mpp=0.25)
    assert "mpp is 0.25, the model was trained with 1.0" in message
    assert "must be 0.05 to 20.0 micrometres per pixel" in refused(slides, older, tmp_path, **given | {"mpp": 400})


def test_labels_of_no_slide_and_of_no_class_are_refused(slides, model, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("slide,label\nplain,2\ntiled,1\ntiled.tif,0\n")
    message = refused(slides, model, tmp_path, slide_labels=str(table))
    assert (
        "plain: label '2' is none of 0, 1" in message and "tiled.tif: appears in labels.csv more than once" in message
    )
    table.write_text("slide,label\nother,1\n")
    assert "names no slide of the folder: other" in refused(slides, model, tmp_path, slide_labels=str(table))


def test_without_openslide_it_is_said_what_to_install(slides, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    message = refused(slides / "tiled.tif", model, tmp_path)
    assert "openslide, which is not installed" in message and "requirements-slides.txt" in message
    assert run(slides / "plain.png", model, tmp_path)["plain.png"]["problem"] == ""  # images need none


def test_tiles_are_the_files_pixels(slides):
    from shared.data.slides.grid import tile_grid
    from shared.data.slides.reading import open_slide
    from shared.data.slides.tiles import SlideTiles

    image = read_patch(slides / "plain.png")
    with open_slide(slides / "plain.png") as reader:
        grid = tile_grid(reader, size=SIZE, mpp=1.0, slide_mpp=1.0)
    tiles = SlideTiles(slides / "plain.png", grid, range(len(grid)))
    for number in range(len(grid)):
        x, y = grid.corner(number)
        assert np.array_equal(tiles[number].numpy(), image[:, y : y + SIZE, x : x + SIZE])
