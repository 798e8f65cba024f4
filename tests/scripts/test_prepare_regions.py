"""scripts/prepare_regions.py: regions of any size become patches of one physical size, with their masks."""

import csv
import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from shared.apps.preparation.regions import places, tissue_share
from shared.data import PatchDatalist
from shared.data.patches.reading import read_patch, read_patch_mask
from tests.support.documented import undocumented_in
from tests.support.script_modules import load_script

script = load_script("prepare_regions")


class Cohort:
    """Eight images of six patients, 100 x 70 pixels of 2 micrometres, with two glands each."""

    def __init__(self, root):
        self.folder, self.table, self.output = root / "regions", root / "regions" / "labels.csv", root / "out"
        self.folder.mkdir()
        self.rows = []
        for number in range(8):
            random = np.random.default_rng(number)
            self.save(f"r{number}.png", random.integers(60, 200, (70, 100, 3)).astype(np.uint8))
            mask = np.zeros((70, 100), np.uint8)
            mask[10:30, 5:25], mask[40:60, 30 + number : 60] = 1, 2
            self.save(f"r{number}_glands.png", mask)
            label = "malignant" if number % 2 else "benign"
            self.rows.append({"image": f"r{number}.png", "patient": f"P{min(number, 5)}", "label": label, "um": "2"})
        self.rows[6]["patient"], self.rows[7]["patient"] = "P0", "P1"

    def save(self, name, values, **options):
        (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(self.folder / name, **options)

    def run(self, *more, size=("--pixel-um", "2")):
        with self.table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        given = [
            str(self.folder),
            str(self.table),
            "--output",
            str(self.output),
            *size,
            "--mpp",
            "2",
            "--tile-um",
            "80",
        ]
        given += ["--folds", "2", "--test-fraction", "0", *more]
        return script.main(given)

    def datalist(self):
        return json.loads((self.output / "datalist.json").read_text())


@pytest.fixture
def cohort(tmp_path):
    return Cohort(tmp_path)


def test_tiles_lie_from_border_to_border_and_share_no_more_than_is_asked():
    for length, side, overlap in ((387, 206.4, 0.5), (261, 206.4, 0.0), (1000, 100.0, 0.3), (300, 100.0, 0.0)):
        found = places(length, side, overlap)
        gaps = np.diff(found)
        assert (gaps >= side * (1 - overlap) - 1).all() and found[-1] + side <= length + 1e-6
        if len(found) > 1:
            # not one more would fit
            assert found[0] == 0 and len(found) * side * (1 - overlap) + side * overlap + side * (1 - overlap) > length
            assert np.ptp(gaps) <= 1
    assert places(99, 100, 0.0) == [] and places(100, 100, 0.9) == [0]
    white, half = np.full((4, 4, 3), 245, np.uint8), np.full((4, 4, 3), 245, np.uint8)
    half[:2, :, 1] = 120  # stained: one dark channel is enough
    assert (tissue_share(white), tissue_share(half)) == (0, 0.5)


def test_pixels_of_the_right_size_are_kept_as_they_are_and_masks_lie_under_them(cohort):
    assert cohort.run("--mask-suffix", "_glands") == 0
    content = cohort.datalist()
    assert content["classes"] == ["benign", "malignant"] and content["testing"] == []
    assert len(content["training"]) == 8 * 2  # 40 of 100 x 70 pixels: two beside each other, one below
    for entry in content["training"]:
        number = int(entry["region"][1])
        place = entry["image"].removesuffix(".png").split("_y")[1].split("_x")
        top, left = map(int, place)
        assert (top, left) in ((15, 0), (15, 60))
        image = read_patch(cohort.folder / entry["region"])
        found = read_patch(cohort.output / entry["image"])
        assert np.array_equal(found, image[:, top : top + 40, left : left + 40])
        mask = read_patch_mask(cohort.folder / f"r{number}_glands.png")
        kept = read_patch_mask(cohort.output / entry["mask"])
        assert np.array_equal(kept, mask[top : top + 40, left : left + 40]) and kept.dtype == bool
        assert entry["label"] == number % 2
    patients = {}
    for entry in content["training"]:
        patients.setdefault(entry["patient"], set()).add(entry["fold"])
    assert len(patients) == 6 and all(len(folds) == 1 for folds in patients.values())
    manifest = json.loads((cohort.output / "manifest.json").read_text())
    assert manifest["regions"]["r0.png"]["pixel_um"] == 2 and manifest["regions"]["r0.png"]["tiles"] == 2
    assert manifest["tiles"]["side"] == 40 and len(manifest["regions"]["r3.png"]["sha256"]) == 64
    # what trains takes it as it is
    assert (
        len(PatchDatalist(cohort.output, fold=0).training) + len(PatchDatalist(cohort.output, fold=0).validation) == 16
    )
    # other keys of the manifest depend on the script
    assert not [
        key for key in undocumented_in(cohort.output, "") if "tiles." in key or "regions." in key or "[]" in key
    ]


def test_images_of_other_pixel_sizes_show_the_same_tissue(cohort):
    # r1 again at twice the resolution: its tiles look like those of r1
    image = Image.open(cohort.folder / "r1.png")
    blocks = Image.fromarray(np.repeat(np.repeat(np.asarray(image), 2, 0), 2, 1))
    cohort.save("r1.png", blocks)
    cohort.save(
        "r1_glands.png", Image.open(cohort.folder / "r1_glands.png").resize((200, 140), Image.Resampling.NEAREST)
    )
    cohort.rows[1]["um"] = "1"
    assert cohort.run("--mask-suffix", "_glands", size=("--pixel-column", "um")) == 0
    entries = [entry for entry in cohort.datalist()["training"] if entry["region"] == "r1.png"]
    assert [entry["image"] for entry in entries] == ["tiles/r1_y30_x0.png", "tiles/r1_y30_x120.png"]
    original = np.asarray(image).transpose(2, 0, 1).astype(float)
    for entry, left in zip(entries, (0, 60), strict=True):
        tile = read_patch(cohort.output / entry["image"]).astype(float)
        expected = original[:, 15:55, left : left + 40]
        assert tile.shape == expected.shape and np.corrcoef(tile.ravel(), expected.ravel())[0, 1] > 0.97
        inside = read_patch_mask(cohort.output / entry["mask"])
        mask = read_patch_mask(cohort.folder / "r1_glands.png")[30:110:2, 2 * left : 2 * left + 80 : 2]
        assert (inside == mask).mean() > 0.98


def test_glass_and_small_images_are_left_out_and_counted(cohort, capsys):
    values = np.asarray(Image.open(cohort.folder / "r2.png")).copy()
    values[:, 45:] = 245
    cohort.save("r2.png", values)
    cohort.save("r4.png", values[:30, :30])
    assert cohort.run() == 0
    out = capsys.readouterr().out
    assert "not taken: 1 tiles with less than 25% tissue: r2_y15_x60.png" in out
    assert "not taken: 1 smaller than a tile: r4.png" in out and "8 not in labels.csv" in out
    assert len(cohort.datalist()["training"]) == 13
    assert not any("mask" in entry for entry in cohort.datalist()["training"])
    for given in (
        ("--tile-um", "20"),
        ("--tile-um", "inf"),
        ("--tile-um", "nan"),
        ("--mpp", "0.0001"),
        ("--mpp", "nan"),
    ):
        with pytest.raises(SystemExit):
            cohort.run(*given)
    assert cohort.run("--tile-um", "400") == 2
    assert "No tile of 400 micrometres is left of 8 images (8 are smaller" in capsys.readouterr().err


def test_grey_and_opaque_images_are_taken_and_overlap_makes_more_tiles(cohort):
    grey = np.random.default_rng(9).integers(60, 200, (70, 100)).astype(np.uint8)
    cohort.save("r0.png", grey)
    opaque = np.dstack([np.asarray(Image.open(cohort.folder / "r3.png")), np.full((70, 100), 255, np.uint8)])
    cohort.save("r3.png", opaque)
    assert cohort.run("--overlap", "0.5") == 0
    entries = cohort.datalist()["training"]
    assert len(entries) == 8 * 4 * 2
    found = read_patch(cohort.output / next(e["image"] for e in entries if e["region"] == "r0.png"))
    assert np.array_equal(found[0], found[2]) and np.array_equal(found[0], grey[:40, :40])


def test_all_problems_are_told_at_once_and_nothing_is_written(cohort, capsys):
    clear = np.full((70, 100, 4), 90, np.uint8)
    cohort.save("r0.png", clear)
    cohort.save("r1_glands.png", np.ones((70, 99), np.uint8))
    cohort.rows[2]["patient"] = ""
    cohort.rows[3]["image"] = "R3.png"
    cohort.rows[4]["um"] = "-"
    cohort.rows[5]["um"] = "200"
    cohort.rows[6]["image"] = "r7.png"
    assert cohort.run("--mask-suffix", "_glands", size=("--pixel-column", "um")) == 2
    told = capsys.readouterr().err
    for line in (
        "100.0% of the pixels are transparent",
        "r1_glands.png: has 99 x 70 pixels, its image 100 x 70",
        "row 4 of labels.csv: 'patient' is empty",
        "1 of 8 images are not in",
        "'r3.png' looks alike, the difference: capitals",
        "r4.png: a pixel must be 0.05 to 20.0 micrometres wide, got '-'",
        "r5.png: a pixel must be 0.05 to 20.0 micrometres wide, got '200'",
        "r7.png: appears in labels.csv more than once",
    ):
        assert line in told, line
    assert not cohort.output.exists()


def test_what_is_unknown_is_asked_for(cohort, capsys):
    with pytest.raises(SystemExit):
        cohort.run(size=("--pixel-um", "2", "--pixel-column", "um"))
    assert "give --pixel-um (micrometres) or --pixel-column, one of them" in capsys.readouterr().err
    assert cohort.run(size=()) == 2
    assert "8 of 8 images do not say how large a pixel is: r0.png" in capsys.readouterr().err
    assert cohort.run("--mask-suffix", "_lumen") == 2
    assert "no image has a mask NAME_lumen.png" in capsys.readouterr().err
    cohort.rows[0]["label"] = "unsure"
    assert cohort.run() == 2
    assert (
        "label must tell two classes, got benign, malignant, unsure; name them with --classes"
        in capsys.readouterr().err
    )
    assert cohort.run("--classes", "benign", "malignant") == 2
    assert "r0.png: label is 'unsure', the classes are ['benign', 'malignant']" in capsys.readouterr().err
    del cohort.rows[0]
    cohort.run("--classes", "malignant", "benign")
    assert cohort.datalist()["classes"] == ["malignant", "benign"]
    assert cohort.run("--folds", "5") == 2
    assert "column 'patient' tells them apart" in capsys.readouterr().err


def test_new_regions_need_no_labels(cohort):
    for row in cohort.rows:
        del row["label"]
    assert cohort.run("--inference") == 0
    content = cohort.datalist()
    assert content["training"] == [] and len(content["testing"]) == 16 and "classes" not in content
    assert all("label" not in entry for entry in content["testing"])
    assert json.loads((cohort.output / "manifest.json").read_text())["regions"]["r7.png"]["tiles"] == 2


def test_the_size_of_a_pixel_is_read_from_the_file_and_what_is_given_wins(cohort, capsys):
    dots = 25400 / 2.0
    for number, row in enumerate(cohort.rows):
        image = Image.open(cohort.folder / row["image"])
        if number == 6:  # an OME-TIFF of another size
            row["image"] = "r6.tif"
            metadata = {"axes": "YXS", "PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0}
            values = np.repeat(np.repeat(np.asarray(image), 2, 0), 2, 1)
            tifffile.imwrite(cohort.folder / "r6.tif", values, ome=True, photometric="rgb", metadata=metadata)
        else:
            row["image"] = f"r{number}.{'tif' if number % 2 else 'png'}"
            cohort.save(row["image"], image, dpi=(dots, dots))
    assert cohort.run(size=()) == 0
    assert "size of a pixel: 1 to 2 micrometres, as 8 files say" in capsys.readouterr().out
    regions = json.loads((cohort.output / "manifest.json").read_text())["regions"]
    assert {name: region["tiles"] for name, region in regions.items()} == dict.fromkeys(regions, 2)
    assert regions["r6.tif"]["pixel_um"] == 1 and regions["r1.tif"]["pixel_um"] == pytest.approx(2)
    assert cohort.run(size=("--pixel-um", "2")) == 0
    told = capsys.readouterr().out
    assert "1 files say another size of a pixel than --pixel-um, which is taken: r6.tif (1, not 2)" in told
    regions = json.loads((cohort.output / "manifest.json").read_text())["regions"]
    assert regions["r6.tif"]["tiles"] > 4 and regions["r6.tif"]["pixel_um"] == 2
    # no size that tissue can have; pixels that are not square
    cohort.save("r0.png", Image.open(cohort.folder / "r0.png"), dpi=(72, 72))
    cohort.save("r2.png", Image.open(cohort.folder / "r2.png"), dpi=(dots, dots / 2))
    before = snapshot(cohort.output)
    assert cohort.run(size=()) == 2
    told = capsys.readouterr().err
    assert "1 of 8 images do not say how large a pixel is: r0.png; give" in told
    assert "r2.png: says that a pixel is 2 micrometres wide and 4 high" in told
    assert snapshot(cohort.output) == before


def snapshot(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("inference", [(), ("--inference",)])
def test_another_run_takes_its_own_tiles_away_and_nothing_else(cohort, inference):
    assert cohort.run("--mask-suffix", "_glands", "--overlap", "0.5", *inference) == 0
    before = snapshot(cohort.output)
    (cohort.output / "tiles/notes.txt").write_text("of the user")
    redrawn = sorted((cohort.output / "masks").iterdir())[3]
    redrawn.write_bytes(b"drawn anew by hand")
    (cohort.output / "tiles/own_y0_x0.png").write_bytes(b"a picture of the user's")
    # one that fails at its end, and one that is stopped, change nothing
    with_own = snapshot(cohort.output)
    assert cohort.run("--tile-um", "400", *inference) == 2
    assert snapshot(cohort.output) == with_own
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script.Regions, "_save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            cohort.run(*inference)
    assert snapshot(cohort.output) == with_own
    assert cohort.run("--tile-um", "140", *inference) == 0
    content, after = cohort.datalist(), snapshot(cohort.output)
    listed = {entry["image"] for entry in content["training"] + content["testing"]}
    kept = {"tiles/notes.txt", "tiles/own_y0_x0.png", redrawn.relative_to(cohort.output).as_posix()}
    assert set(after) == listed | kept | {"datalist.json", "manifest.json"} and len(before) > 50
    # folders that are empty now go
    for name in kept:
        (cohort.output / name).unlink()
    assert cohort.run(*inference) == 0
    assert {path.name for path in cohort.output.iterdir()} == {"tiles", "datalist.json", "manifest.json"}


def test_images_that_lie_among_the_tiles_of_an_earlier_run_stay(cohort):
    assert cohort.run() == 0
    before = snapshot(cohort.output / "tiles")
    cohort.folder, cohort.table = cohort.output / "tiles", cohort.output / "again.csv"
    cohort.rows = [
        {"image": entry["image"].removeprefix("tiles/"), "patient": entry["patient"], "label": str(entry["label"])}
        for entry in cohort.datalist()["training"]
    ]
    assert cohort.run("--tile-um", "64") == 0
    assert before.items() <= snapshot(cohort.output / "tiles").items()


def test_a_tile_changed_by_hand_is_not_written_over(cohort, capsys):
    assert cohort.run() == 0
    tile = sorted((cohort.output / "tiles").iterdir())[2]
    tile.write_bytes(b"retouched by hand")
    before = snapshot(cohort.output)
    assert cohort.run() == 2
    assert f"tiles/{tile.name} would be written" in capsys.readouterr().err and snapshot(cohort.output) == before
    tile.unlink()
    assert cohort.run() == 0
