"""scripts/prepare_patients.py on 2D images: PNG, JPEG, TIFF and BMP with masks, groups and pixel sizes."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from shared.apps.preparation.mask_as import KINDS
from shared.apps.preparation.patients import MASKS_AS
from shared.data import Datalist, cases_for_inference
from shared.digests import CACHE
from shared.transforms import LoadCased, ROISlicesd
from shared.transforms.roi_slices import radiological
from tests.support.documented import json_keys, undocumented
from tests.support.script_modules import load_script

script = load_script("prepare_patients")
SIZE = (20, 30)  # rows, columns


def picture(number):
    """A bright corner at the top left, a disc of its own place and size."""
    values = np.random.default_rng(number).integers(60, 120, SIZE).astype(np.uint8)
    values[:3, :3] = 250
    rows, columns = np.indices(SIZE)
    mask = (rows - 10) ** 2 + (columns - 14) ** 2 <= (3 + number % 4) ** 2
    return values, mask


class Scans:
    """Twelve images in two folders; 0 and 1 are near-duplicates, as are 2 and 3, which lie in different folders."""

    formats = ("png", "tif", "bmp", "jpg")

    def __init__(self, root):
        self.folder, self.table, self.output = root / "scans", root / "scans" / "labels.csv", root / "out"
        self.rows = []
        for number in range(12):
            place = f"{'malignant' if number % 2 else 'benign'}/{number}.{self.formats[number % 4]}"
            values, mask = picture(number)
            self.save(place, values)
            self.save(place.partition(".")[0] + "_mask.png", 255 * mask.astype(np.uint8))
            group = f"G{min(number // 2, 2)}" if number < 4 else f"S{number}"
            self.rows.append(
                {"image": place, "label": place.partition("/")[0], "group": group, "mm": f"0.{1 + number % 3}"}
            )

    def save(self, place, array, **options):
        path = self.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **options)
        return path

    def run(self, *more, labels=True):
        with self.table.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.rows[0])
            writer.writeheader()
            writer.writerows(self.rows)
        arguments = [str(self.folder), *([str(self.table)] if labels else []), "--output", str(self.output)]
        arguments += ["--positive", "malignant", "--folds", "3"] if labels else []
        return script.main([*arguments, *more])

    def content(self, file="datalist.json"):
        return json.loads((self.output / file).read_text())


@pytest.fixture
def scans(tmp_path):
    return Scans(tmp_path)


GROUPS = ("--group-column", "group")


def test_images_become_one_slice_that_hangs_upright(scans, capsys):
    before = {path: path.read_bytes() for path in scans.folder.rglob("*.*") if path != scans.table}
    assert scans.run(*GROUPS, "--classes", "benign,malignant") == 0
    said = capsys.readouterr().out
    assert "pixels: 1 mm, as no size is known" in said and "groups: 12 patients in 10" in said
    assert "12 training patients (6 benign, 6 malignant)" in said
    assert {path: path.read_bytes() for path in before} == before
    data = Datalist(scans.output, fold=0, num_modalities=1)
    cases = {case["patient"]: case for case in data.training + data.validation}
    assert set(cases) == {str(number) for number in range(12)} and data.modalities == ["image"]
    for number in (0, 1, 2):
        values, mask = picture(number)
        case = cases[str(number)]
        image, stored = nib.load(case["image"][0]), nib.load(case["mask"])
        assert image.get_data_dtype() == np.uint8 and np.array_equal(np.asarray(image.dataobj)[..., 0].T, values)
        assert np.array_equal(np.asarray(stored.dataobj)[..., 0].T, mask) and np.array_equal(
            image.affine, stored.affine
        )
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S") and case["label"] == number % 2
        loaded = LoadCased()(case)
        assert np.array_equal(radiological(loaded["image"][0, :, :, 0]).numpy(), values)
        cut = ROISlicesd(1, size=16, roi="box")(loaded)
        assert cut["image"].shape == (1, 16, 16) and cut["geometry"]["slices"] == [0]
    assert not undocumented("datalist.json", json_keys(scans.content()), "ircl_mvi")


def test_a_group_shares_a_fold_and_a_section(scans, capsys):
    for seed in range(6):
        assert scans.run(*GROUPS, "--seed", str(seed), "--test-fraction", "0.25") == 0
        content = scans.content()
        place = {}
        for section in ("training", "testing"):
            for case in content[section]:
                place.setdefault(case["group"], set()).add((section, case.get("fold")))
        assert all(len(places) == 1 for places in place.values()) and content["testing"]
        assert sorted({case["label"] for case in content["testing"]}) == [0, 1]
    for number, row in enumerate(scans.rows):
        row["test"] = int(number in (0, 5))
    capsys.readouterr()
    shutil.rmtree(scans.output)
    assert scans.run(*GROUPS, "--test-column", "test") == 2
    assert "group G0: 0 is of the testing section and 1 of the training section" in capsys.readouterr().err
    scans.rows[7]["group"] = ""
    assert scans.run(*GROUPS) == 2
    assert "7: column 'group' is empty; name its group" in capsys.readouterr().err and not scans.output.exists()


def test_names_are_those_of_patients_files_or_paths(scans, capsys):
    for number, row in enumerate(scans.rows):
        row["patient"] = f"P{number // 2}"
    assert scans.run() == 2
    assert "P0: appears twice in the label table" in capsys.readouterr().err
    assert scans.run("--group-column", "patient") == 0
    cases = scans.content()["training"]
    assert [(case["patient"], case["group"]) for case in cases[:3]] == [("0", "P0"), ("1", "P0"), ("2", "P1")]
    for number, row in enumerate(scans.rows):
        row["patient"] = f"P{number}"
    assert scans.run() == 0 and scans.content()["training"][0]["patient"] == "P0"
    del row
    for kind, number in (("benign", 0), ("malignant", 1)):  # benign/x.png and malignant/x.png
        for ending in (f".{scans.formats[number]}", "_mask.png"):
            (scans.folder / kind / f"{number}{ending}").rename(scans.folder / kind / f"x{ending}")
        scans.rows[number]["image"] = f"{kind}\\x.{scans.formats[number]}"
    for row in scans.rows:
        del row["patient"]
    assert scans.run() == 0
    assert [case["patient"] for case in scans.content()["training"][:3]] == ["benign_x", "malignant_x", "benign_2"]


def test_pixel_sizes_of_the_table_or_of_all(scans):
    assert scans.run("--pixel-size-column", "mm") == 0
    manifest = scans.content("manifest.json")
    assert [manifest["pixel_mm"][str(number)] for number in range(3)] == [0.1, 0.2, 0.3]
    zooms = nib.load(scans.output / "1" / "image.nii.gz").header.get_zooms()
    assert np.allclose(zooms, (0.2, 0.2, 1)) and manifest["tumour_mm2"]["1"] == pytest.approx(
        picture(1)[1].sum() * 0.04, abs=1e-3
    )
    assert scans.run("--pixel-size", "0.25") == 0
    assert scans.content("manifest.json")["tumour_mm2"]["1"] == pytest.approx(picture(1)[1].sum() / 16, abs=1e-3)


def test_new_images_need_no_table(scans, capsys):
    assert scans.run("--inference", labels=False) == 0
    cases = cases_for_inference(scans.output, num_modalities=1)
    assert len(cases) == 12 and all("label" not in case and "mask" in case for case in cases)
    for path in scans.folder.rglob("*_mask.png"):
        path.unlink()
    assert scans.run("--inference", labels=False) == 2
    assert "no image has a mask (NAME_mask.png beside NAME.png" in capsys.readouterr().err
    assert scans.run("--inference", "--mask-pattern", "none", labels=False) == 0
    assert "no masks: the whole image" in capsys.readouterr().out


def test_masks_in_a_folder_of_their_own_and_sixteen_bits(scans):
    shutil.rmtree(scans.folder)
    for number in range(3):
        values, mask = picture(number)
        scans.save(f"images/{number}.png", 200 * values.astype(np.uint16))
        scans.save(f"masks/{number}.png", mask)
    assert scans.run("--inference", labels=False) == 0
    image = nib.load(scans.output / "2" / "image.nii.gz")
    assert image.get_data_dtype() == np.uint16
    assert np.array_equal(np.asarray(image.dataobj)[..., 0].T, 200 * picture(2)[0].astype(np.uint16))
    assert np.array_equal(np.asarray(nib.load(scans.output / "2" / "mask.nii.gz").dataobj)[..., 0].T, picture(2)[1])


def test_an_image_turned_by_its_tag_and_a_mask_drawn_upright(scans, capsys):
    values, mask = picture(1)
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    scans.save("malignant/1.tif", Image.fromarray(np.rot90(values).copy()), exif=exif)
    assert scans.run() == 0
    stored = np.asarray(nib.load(scans.output / "1" / "image.nii.gz").dataobj)[..., 0].T
    assert np.array_equal(stored, values)
    assert "look at 1: an EXIF tag turns the image; its mask has none and is taken as drawn upright" in (
        capsys.readouterr().out
    )
    scans.save("malignant/1_mask.png", np.rot90(mask).copy())
    assert scans.run() == 2
    assert "has 20 x 30 pixels, its image 30 x 20 upright (its EXIF tag turns it)" in capsys.readouterr().err


def test_all_problems_are_listed_at_once_and_nothing_is_written(scans, capsys):
    values, mask = picture(0)
    colour = np.repeat(values[..., None], 3, axis=-1)
    colour[5, 5] = (250, 250, 0)
    scans.save("benign/0.png", colour)
    path = scans.folder / "malignant/1.tif"
    path.write_bytes(path.read_bytes()[:150])
    scans.save("benign/2_mask.png", np.zeros(SIZE, np.uint8))
    scans.save("malignant/3_mask.png", mask[:10].astype(np.uint8))
    scans.save("benign/4_mask.png", (mask * 1 + (np.indices(SIZE)[0] > 9)).astype(np.uint8))
    (scans.folder / "malignant/5_mask.png").unlink()
    scans.save("malignant/5_mask.jpg", mask)
    scans.save("benign/6_mask.png", ~mask)
    (scans.folder / "malignant/7_mask.png").unlink()
    scans.rows[8]["image"] = "benign/08.png"
    scans.rows[9]["mm"] = "0"
    scans.rows[10]["label"] = ""
    scans.rows[11]["image"] = scans.rows[9]["image"]
    scans.rows[11]["mm"] = "small"
    scans.rows[11]["group"] = "x"
    for number, row in enumerate(scans.rows):
        row["patient"] = f"P{number}"
    assert scans.run("--pixel-size-column", "mm") == 2
    text = capsys.readouterr().err
    for message in (
        "0.png: 0.2% of the pixels are coloured, one grey channel is needed",
        "1.tif: cannot be read as PNG, JPEG, TIFF, BMP, WebP or JPEG 2000, it may be truncated",
        "2_mask.png: the mask is empty",
        "3_mask.png has 30 x 10 pixels, its image 30 x 20; save the two at one size",
        "4_mask.png: has 3 values: 0 (",
        "mm2), 1 (",
        "5_mask.jpg: a mask must be stored without loss, this is a JPEG",
        "6_mask.png: is inverted, or no tumour's",
        "P7: has no mask, other patients have one",
        "P8: 'benign/08.png' is in",
        "'benign/8.png' looks alike, the difference: leading zeros",
        "P9: pixel size 'mm' must be above 0, got '0'",
        "P10: column 'label' is empty",
        "P11: malignant/9.tif is the image of P9, too",
        "P11: pixel size 'mm' must be a number, got 'small'",
        "have no row in",
        "--skip-missing leaves such patients out",
    ):
        assert message in text, text
    assert not scans.output.exists()


def test_the_same_picture_in_two_groups_is_refused(scans, capsys):
    for number in (5, 9):
        scans.save(scans.rows[number]["image"], picture(1)[0])
    assert scans.run(*GROUPS) == 2
    text = capsys.readouterr().err
    assert "1 and 5 and 9 have the same image; give them one group" in text and not scans.output.exists()
    for number in (5, 9):
        scans.rows[number]["group"] = "G0"
    assert scans.run(*GROUPS) == 0
    assert scans.run("--inference", labels=False) == 0
    assert "look at 1 and 5 and 9 have the same image" in capsys.readouterr().out


def test_coloured_images_give_their_luminance_when_asked(scans):
    values = picture(0)[0]
    colour = np.repeat(values[..., None], 3, axis=-1)
    colour[5, 5] = (250, 250, 0)
    scans.save("benign/0.png", colour)
    assert scans.run("--luminance") == 0
    stored = np.asarray(nib.load(scans.output / "0" / "image.nii.gz").dataobj)[..., 0].T
    assert stored[5, 5] == round(0.299 * 250 + 0.587 * 250) and stored[7, 7] == values[7, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--modalities", "B,E"), "--modalities B,E: 2D images have one modality"),
        (("--link",), "--link is of volumes,"),
        (("--mask-pattern", "*seg*"), "--mask-pattern is of volumes"),
        (("--image-column", "file"), "no column 'file'; its columns are image, label"),
    ],
)
def test_options_that_do_not_fit_2d_images(scans, capsys, arguments, message):
    assert scans.run(*arguments) == 2
    assert message in capsys.readouterr().err and not scans.output.exists()


def test_options_of_2d_images_do_not_fit_volumes(tmp_path, capsys):
    for name in "ab":
        (tmp_path / "in").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "in" / f"{name}.nii.gz")
    Image.new("L", (4, 4)).save(tmp_path / "in" / "screenshot.png")
    arguments = [str(tmp_path / "in"), "--inference", "--output", str(tmp_path / "out"), "--pixel-size", "0.1"]
    assert script.main(arguments) == 2
    assert "--pixel-size is of 2D images" in capsys.readouterr().err
    for wrong in ("0", "nan"):
        with pytest.raises(SystemExit):
            script.main([*arguments[:-1], wrong])
        assert f"must be above 0, got {wrong}" in capsys.readouterr().err


def test_running_again_gives_the_same_bytes(scans):
    def contents():
        return {p: p.read_bytes() for p in scans.output.rglob("*") if p.is_file() and p.name != CACHE}

    assert scans.run(*GROUPS) == 0
    first = contents()
    assert scans.run(*GROUPS) == 0 and contents() == first


# --- masks in another's stead, shape as covariates --------------------------------------------------------------------


def masks_of(output, cases):
    stored = {case["patient"]: nib.load(output / case["mask"]) for case in cases}
    return {name: np.asarray(image.dataobj)[..., 0].T.astype(bool) for name, image in stored.items()}


def test_masks_as_ellipse_box_or_another_patients(scans, capsys):
    assert MASKS_AS == KINDS
    found = {}
    for how in KINDS:
        assert scans.run(*GROUPS, "--mask-as", how, "--seed", "3") == 0
        assert f"masks: {how}, not as drawn (a control)" in capsys.readouterr().out
        found[how] = masks_of(scans.output, scans.content()["training"])
        written = scans.content("manifest.json")["mask_as"]
        assert written["how"] == how and scans.content("manifest.json")["tumour_mm2"]["1"] == picture(1)[1].sum()
    assert not undocumented("datalist.json", json_keys(scans.content()), "ircl_mvi")
    drawn = {str(number): picture(number)[1] for number in range(12)}
    rows, columns = (slice(line.min(), line.max() + 1) for line in np.nonzero(drawn["3"]))
    box = np.zeros(SIZE, bool)
    box[rows, columns] = True
    assert np.array_equal(found["box"]["3"], box)
    # a disc is its own ellipse but for what the grid leaves
    assert np.mean(found["ellipse"]["3"] != drawn["3"]) < 0.02 and not np.array_equal(found["ellipse"]["3"], box)
    group = {case["patient"]: case["group"] for case in scans.content()["training"]}
    assert written["seed"] == 3 and sorted(written["from"]) == sorted(written["from"].values()) == sorted(drawn)
    for name, donor in written["from"].items():  # all discs have one centre
        assert group[name] != group[donor] and np.array_equal(found["shuffled"][name], drawn[donor])


def test_shape_covariates_are_of_the_mask_as_drawn(scans, capsys):
    assert scans.run("--shape-covariates", "--mask-as", "box", "--pixel-size", "0.5") == 0
    kinds = ("area", "perimeter", "circularity", "solidity", "eccentricity", "extent", "aspect_ratio")
    names = [f"shape_{kind}" for kind in kinds]
    data = Datalist(scans.output, fold=0, covariates=names)
    case = next(case for case in data.training + data.validation if case["patient"] == "3")
    drawn = picture(3)[1]
    assert case["covariates"]["shape_area"] == pytest.approx(drawn.sum() / 4)
    assert case["covariates"]["shape_extent"] == pytest.approx(drawn.sum() / 13**2)
    assert case["covariates"]["shape_eccentricity"] == pytest.approx(0, abs=1e-6)
    assert scans.run("--inference", "--shape-covariates", labels=False) == 0
    assert len(cases_for_inference(scans.output, covariates=names)) == 12
    assert scans.run("--mask-pattern", "none", "--shape-covariates") == 2
    assert "--shape-covariates needs masks" in capsys.readouterr().err


def test_volumes_take_groups_and_other_masks_too(tmp_path):
    grid = np.indices((24, 24, 5)) - np.array([12, 12, 2]).reshape(3, 1, 1, 1)
    lines = ["patient,label,person"]
    for number in range(8):
        folder = tmp_path / "in" / f"scan{number}"
        folder.mkdir(parents=True)
        x, y, z = grid
        tumour = ((x / (3 + number % 3)) ** 2 + (y / 6) ** 2 <= 1) & (np.abs(z) < 2)
        affine = np.diag([1.0, 1, 5, 1])
        noise = np.random.default_rng(number).random(tumour.shape).astype(np.float32) + 100
        nib.save(nib.Nifti1Image(noise, affine), folder / "t1.nii.gz")
        nib.save(nib.Nifti1Image((2 * tumour).astype(np.uint8), affine), folder / "mask.nii")
        lines.append(f"scan{number},{number // 2 % 2},person{number // 2}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    arguments = [str(tmp_path / "in"), str(tmp_path / "labels.csv"), "--output", str(tmp_path / "out"), "--folds", "2"]
    arguments += ["--modalities", "T1", "--group-column", "person", "--mask-labels", "2"]
    assert script.main([*arguments, "--mask-as", "shuffled", "--shape-covariates"]) == 0
    cases = {case["patient"]: case for case in json.loads((tmp_path / "out/datalist.json").read_text())["training"]}
    assert all(cases[f"scan{n}"]["fold"] == cases[f"scan{n + 1}"]["fold"] for n in range(0, 8, 2))
    given = json.loads((tmp_path / "out/manifest.json").read_text())["mask_as"]["from"]
    for name, case in cases.items():
        assert case["group"] == f"person{int(name[4:]) // 2}" != cases[given[name]]["group"]
        assert case["mask"].endswith("/mask.nii.gz") and "tumour_labels" not in case
        mask = LoadCased()(
            {**case, "image": [str(tmp_path / "out" / case["image"][0])], "mask": str(tmp_path / "out" / case["mask"])}
        )
        drawn = np.asarray(nib.load(tmp_path / "in" / given[name] / "mask.nii").dataobj) > 0
        assert np.array_equal(mask["mask"][0].numpy(), drawn)
        axes = (6, 3 + int(name[4:]) % 3)
        assert case["covariates"]["shape_area"] == pytest.approx(np.pi * axes[0] * axes[1], rel=0.06)
    assert Path(tmp_path / "out" / "scan0" / "t1.nii.gz").read_bytes() == (tmp_path / "in/scan0/t1.nii.gz").read_bytes()
