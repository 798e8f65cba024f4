"""scripts/prepare_slides.py: slides become patches of one physical size, labelled by slide or by annotation."""

import csv
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest

from shared.apps.preparation import slides as module
from shared.apps.preparation.slides import drawn
from shared.data import PatchDatalist
from shared.data.patches.reading import read_patch
from tests.support.documented import undocumented_in
from tests.support.script_modules import load_script
from tests.support.tiny_slides import stained, write_ome, write_png

script = load_script("prepare_slides")
BOX = (128, 128, 448, 384)  # of tissue, pixels of 1 micrometre


class Cohort:
    """Four slides of four patients with a box of tissue each, as two kinds of files."""

    def __init__(self, root):
        self.folder, self.table, self.output = root / "slides", root / "slides" / "slides.csv", root / "out"
        (self.folder / "more").mkdir(parents=True)
        self.rows = []
        for number in range(4):
            pixels = stained(512, 640, box=BOX, seed=number)
            if number % 2:
                name = f"more/s{number}.ome.tif"
                write_ome(self.folder / name, np.repeat(np.repeat(pixels, 2, 0), 2, 1), 0.5, levels=(2, 4))
            else:
                name = f"s{number}.png"
                write_png(self.folder / name, pixels, 1.0)
            self.rows.append({"slide": name, "patient": f"P{number}", "label": "HP" if number < 2 else "SSA"})

    def annotate(self, name, *shapes):
        """A GeoJSON with (class, box) each, in pixels of level 0."""
        features = []
        for kind, (x0, y0, x1, y1) in shapes:
            ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
            geometry = {"type": "Polygon", "coordinates": [ring]}
            properties = {"objectType": "annotation", "classification": {"name": kind}}
            features.append({"type": "Feature", "geometry": geometry, "properties": properties})
        (self.folder / name).write_text(json.dumps({"type": "FeatureCollection", "features": features}))

    def run(self, *more):
        with self.table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        given = [str(self.folder), str(self.table), "--output", str(self.output), "--mpp", "1", "--tile-um", "64"]
        return script.main([*given, "--folds", "2", "--test-fraction", "0", *more])

    def datalist(self):
        return json.loads((self.output / "datalist.json").read_text())


@pytest.fixture
def cohort(tmp_path):
    return Cohort(tmp_path)


def test_tiles_have_one_physical_size_and_the_label_of_their_slide(cohort):
    assert cohort.run() == 0
    content = cohort.datalist()
    assert content["classes"] == ["HP", "SSA"] and content["mpp"] == 1.0
    with (cohort.output / "tiles.csv").open() as file:
        table = list(csv.DictReader(file))
    assert {row["image"] for row in table} == {entry["image"] for entry in content["training"]}
    for row in table:
        number = int(row["patient"][1])
        factor = 2 if number % 2 else 1
        x, y = int(row["x"]) // factor, int(row["y"]) // factor
        # at least a quarter of a tile is tissue, and the pixels are the slide's
        inside = max(0, min(x + 64, BOX[2]) - max(x, BOX[0])) * max(0, min(y + 64, BOX[3]) - max(y, BOX[1]))
        assert inside / 64**2 == pytest.approx(float(row["tissue"]), abs=0.35) and inside > 0
        expected = stained(512, 640, box=BOX, seed=number)[y : y + 64, x : x + 64]
        assert np.array_equal(read_patch(cohort.output / row["image"]).transpose(1, 2, 0), expected)
        assert row["label"] == str(int(number >= 2)) and row["level"] == str(int(factor == 2))
    assert {row["patient"] for row in table} == {"P0", "P1", "P2", "P3"} and len(table) >= 4 * 12
    data = PatchDatalist(cohort.output, fold=0)
    assert data.mpp == 1.0 and data.patch_size == (64, 64)
    assert not [
        key for key in undocumented_in(cohort.output, "") if "tiles." in key or "regions." in key or "[]" in key
    ]


def test_annotations_label_tiles_and_the_rest_is_left_out_or_unlabelled(cohort):
    left, right = (128, 128, 288, 384), (288, 128, 448, 384)
    for row in cohort.rows:
        factor = 2 if row["slide"].endswith("ome.tif") else 1
        boxes = [tuple(factor * value for value in box) for box in (left, right)]
        kinds = [("HP", boxes[0]), ("SSA" if row["patient"] != "P3" else "fat", boxes[1])]
        cohort.annotate(row["slide"].rsplit(".", 1)[0] + ".geojson", *kinds)
        del row["label"]
    assert cohort.run("--annotations", "--classes", "HP", "SSA", "--keep-unlabelled", "--coverage", "0.8") == 0
    content = cohort.datalist()
    for entry in content["training"]:
        x = int(entry["image"].rsplit("_x", 1)[1].removesuffix(".png")) // (2 if "ome" in entry["region"] else 1)
        share = np.clip((288 - x) / 64, 0, 1)  # of the tile that lies in the left half
        assert (share >= 0.7) if entry["label"] == 0 else (share <= 0.3), entry
        assert entry["patient"] != "P3" or entry["label"] == 0
    assert {entry["patient"] for entry in content["unlabelled"]} == {"P3"}
    manifest = json.loads((cohort.output / "manifest.json").read_text())
    assert manifest["labels"] == "annotations" and manifest["not_taken"]["annotations of other classes"] == ["fat"]


def test_annotations_count_from_where_the_scanned_part_begins():
    ring = np.array([[10.0, 0.0], [30, 0], [30, 20], [10, 20], [10, 0]])
    mask = drawn([[ring]], (60, 80), 2.0, (40, 60))
    assert mask.sum() == 100 and mask[30:40, 25:35].all()


def test_fewer_tiles_are_drawn_alike_whatever_else_lies_there(cohort):
    assert cohort.run("--max-tiles", "5") == 0
    first = {entry["image"] for entry in cohort.datalist()["training"] if entry["patient"] == "P2"}
    cohort.rows = [cohort.rows[0], *cohort.rows[2:]]
    assert cohort.run("--max-tiles", "5", "--folds", "0") == 0
    again = {entry["image"] for entry in cohort.datalist()["training"] if entry["patient"] == "P2"}
    assert first == again and len(first) == 5


def test_all_that_is_wrong_is_told_at_once_and_nothing_written(cohort, capsys):
    cohort.rows[0]["label"] = "polyp"
    cohort.rows[1]["slide"] = "s1.ome.tif"
    cohort.rows.append(dict(cohort.rows[2]))
    cohort.rows.append({"slide": "s0.png", "patient": "", "label": "HP"})
    assert cohort.run("--classes", "HP", "SSA") == 2
    message = capsys.readouterr().err
    for part in (
        "s0.png: label is 'polyp'",
        "1 of 6 slides are not in",
        "s2.png: appears in slides.csv more than once",
        "row 7 of slides.csv: 'patient' is empty",
    ):
        assert part in message, message
    assert not cohort.output.exists()


def test_slides_of_unknown_size_and_missing_annotations_are_named(cohort, capsys):
    write_png(cohort.folder / "s0.png", stained(512, 640, box=BOX), None)
    assert cohort.run() == 2
    assert "s0.png; give micrometres per pixel of level 0 with --slide-mpp" in capsys.readouterr().err
    cohort.annotate("s2.geojson", ("HP", BOX), ("SSA", (0, 0, 100, 100)))
    (cohort.folder / "more/s1.ome.geojson").write_text("{")
    assert cohort.run("--annotations", "--classes", "HP", "SSA", "--slide-mpp", "1") == 2
    assert "cannot be read as GeoJSON" in capsys.readouterr().err


def test_tiles_do_not_go_among_the_slides(cohort, capsys):
    cohort.output = cohort.folder / "out"
    assert cohort.run() == 2 and "lies in the folder of slides" in capsys.readouterr().err
    assert not cohort.output.exists()


def test_another_run_leaves_its_own_tiles_alone_and_a_failed_one_the_former(cohort, capsys):
    assert cohort.run() == 0
    before = {path.name for path in (cohort.output / "tiles").iterdir()}
    assert cohort.run("--min-tissue", "1", "--tile-um", "300") == 2
    assert "no labelled tile of 300 micrometres is left" in capsys.readouterr().err
    assert {path.name for path in (cohort.output / "tiles").iterdir()} == before
    assert (cohort.output / "datalist.json").exists()
    cohort.rows[3]["slide"] = cohort.rows[2]["slide"].replace("s2", "s3")
    write_png(cohort.folder / "s3.png", stained(512, 640, box=BOX, seed=3), 1.0)
    assert cohort.run("--tile-um", "96") == 0
    listed = {entry["image"].removeprefix("tiles/") for entry in cohort.datalist()["training"]}
    assert {path.name for path in (cohort.output / "tiles").iterdir()} == listed and not listed & before
    with (cohort.output / "tiles.csv").open() as file:
        assert {row["image"].removeprefix("tiles/") for row in csv.DictReader(file)} == listed
    assert not (cohort.output / ".cutting").exists()


def killed_in_the_third_slide(cohort):
    """Run, and die by SIGKILL while the third slide is cut."""
    opened, tiles = [], module.Slides._tiles

    def dying(self, slide, reader):
        opened.append(slide)
        for number, tile in enumerate(tiles(self, slide, reader)):
            if len(opened) == 3 and number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield tile

    module.Slides._tiles = dying
    cohort.run()


def contents(folder):
    files = [*(folder / "tiles").iterdir(), folder / "tiles.csv", folder / "datalist.json"]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture
def read(monkeypatch):
    """Names of the slides that are opened or hashed."""
    names, open_slide, digest = set(), module.open_slide, module.Digests.__call__

    def told(path, then):
        if "tiles" not in path.parts:
            names.add(path.name)
        return then()

    monkeypatch.setattr(module, "open_slide", lambda path: told(path, lambda: open_slide(path)))
    monkeypatch.setattr(module.Digests, "__call__", lambda self, path: told(path, lambda: digest(self, path)))
    return names


def test_a_killed_run_goes_on_after_the_last_whole_slide(cohort, read):
    assert cohort.run() == 0
    whole = contents(cohort.output)
    cohort.output = cohort.output.with_name("again")
    process = multiprocessing.get_context("fork").Process(target=killed_in_the_third_slide, args=(cohort,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (cohort.output / "datalist.json").exists()
    assert len(list((cohort.output / ".cutting/tiles").glob("s2_*.png"))) == 2
    read.clear()
    assert cohort.run() == 0 and read == {"s2.png", "s3.ome.tif"}
    assert contents(cohort.output) == whole and not (cohort.output / ".cutting").exists()
    # as where it was killed while tiles were moved: no manifest says whose they are
    (cohort.output / "manifest.json").unlink()
    assert cohort.run() == 0 and contents(cohort.output) == whole
    (cohort.output / "manifest.json").unlink()
    next((cohort.output / "tiles").iterdir()).write_bytes(b"somebody's")
    assert cohort.run() == 2


def test_every_option_of_the_tiles_belongs_to_what_a_later_run_compares():
    # these are compared as label, size of a pixel and annotations of the slide, or play their part at the end
    others = {"folder", "table", "output", "classes", "annotations", "slide_mpp", "test_fraction", "folds", "name"}
    assert set(vars(module.parse(["folder", "table", "--output", "out"]))) - others == set(module.CUT_BY)


def test_what_changed_since_a_run_that_stopped_is_cut_anew(cohort, read):
    refused = ("--folds", "9")  # at the end: there are four patients
    assert cohort.run(*refused) == 2 and len(read) == 4
    pixels = stained(512, 640, box=BOX, seed=9)
    write_ome(cohort.folder / "more/s1.ome.tif", np.repeat(np.repeat(pixels, 2, 0), 2, 1), 0.5, levels=(2, 4))
    cohort.rows[3]["label"] = "HP"
    cohort.rows.pop(0)
    read.clear()
    assert cohort.run(*refused) == 2 and read == {"s1.ome.tif", "s3.ome.tif"}
    read.clear()
    assert cohort.run("--folds", "0") == 0 and not read
    entries = cohort.datalist()["training"]
    assert {(entry["patient"], entry["label"]) for entry in entries} == {("P1", 0), ("P2", 1), ("P3", 0)}
    for entry in (entry for entry in entries if entry["patient"] == "P1"):
        y, x = (int(part) // 2 for part in entry["image"].removesuffix(".png").rsplit("_y", 1)[1].split("_x"))
        tile = read_patch(cohort.output / entry["image"]).transpose(1, 2, 0)
        assert np.array_equal(tile, pixels[y : y + 64, x : x + 64])
    assert {path.name for path in (cohort.output / "tiles").iterdir()} == {e["image"][6:] for e in entries}
    assert cohort.run(*refused) == 2
    read.clear()
    assert cohort.run("--folds", "0", "--min-tissue", "0.5") == 0 and len(read) == 3
