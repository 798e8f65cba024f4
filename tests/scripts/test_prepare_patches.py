"""prepare_image_folder.py and prepare_mhist.py: layouts, splits by patient, copies, and every message of theirs."""

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.data import PatchDatalist, PatchInferenceDatalist
from shared.digests import sha256
from tests.support.script_modules import load_script

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "ebhi_seg"


folders = load_script("prepare_image_folder")
mhist = load_script("prepare_mhist")


def save(path, number, size=(9, 9), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(array).save(path, **options)


def read(folder, file="datalist.json"):
    return json.loads((folder / file).read_text())


def patients(entries):
    return {entry["patient"] for entry in entries}


@pytest.mark.parametrize("name", ["prepare_image_folder", "prepare_mhist", "make_phantom_patches"])
def test_help_comes_from_anywhere_and_imports_little(tmp_path, name):
    path = str(ROOT / "scripts" / f"{name}.py")
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{path!r}, '--help']\n"
        f"try: runpy.run_path({path!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'monai', 'sklearn', 'scipy', 'numpy', 'PIL'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "--folds" in done.stdout


# --- a folder per class -----------------------------------------------------------------------------------------------


@pytest.fixture
def ebhi(tmp_path):
    """30 patients of 2 to 4 patches in EBHI-Seg's layout, two of both classes, and a class to take without labels."""
    root, number = tmp_path / "ebhi", 0
    for row in range(30):
        for patch in range(2 + row % 3):
            name = "Polyp" if row % 2 or (row < 4 and patch == 0) else "Low-grade IN"
            save(root / name / "image" / f"GT{row:02d}-1-400-{patch}.png", number)
            mask = root / name / "label" / f"GT{row:02d}-1-400-{patch}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((9, 9), 255, np.uint8)).save(mask)
            number += 1
    for row in (3, 28, 40, 41):
        save(root / "Serrated adenoma" / "image" / f"GT{row:02d}-2-400-1.png", 1000 + row)
    save(root / "Cancer" / "image" / "GT99-1.png", 2000)
    return root


CLASSES = ["--classes", "Polyp", "Low-grade IN"]
OTHER = ["--unlabelled", "Serrated adenoma"]
CASES = ["--group-by", "^[^-]+"]  # of GT03-1-400-0: with other second numbers this is not the only way to read it


def run(folder, output, *arguments):
    return folders.main([str(folder), "--output", str(output), *arguments])


def test_classes_masks_groups_and_splits(ebhi, tmp_path, capsys):
    output = tmp_path / "list"
    assert run(ebhi, output, *CLASSES, *OTHER, *CASES) == 0
    said = capsys.readouterr().out
    assert "left out: Cancer" in said and "Polyp of" in said and "masks" in said
    content = read(output)
    assert content["name"] == "ebhi" and content["classes"] == ["Polyp", "Low-grade IN"]
    assert "modalities" not in content and "validation" not in content
    training, testing, unlabelled = (content[part] for part in ("training", "testing", "unlabelled"))
    assert len(training) + len(testing) == 90 and len(unlabelled) == 4
    entry = next(e for e in training + testing if e["image"].endswith("Polyp/image/GT01-1-400-0.png"))
    assert entry["image"] == "../ebhi/Polyp/image/GT01-1-400-0.png" and entry["patient"] == "GT01"
    assert entry["label"] == 0 and entry["mask"] == "../ebhi/Polyp/label/GT01-1-400-0.png"
    assert all(set(e) == {"image", "patient"} for e in unlabelled)
    assert not patients(training) & patients(testing)
    assert 0.1 < len(testing) / 90 < 0.3 and len({e["label"] for e in testing}) == 2
    folds = {patient: {e["fold"] for e in training if e["patient"] == patient} for patient in patients(training)}
    assert all(len(found) == 1 for found in folds.values()) and set.union(*folds.values()) == set(range(5))
    for fold in range(5):
        assert {e["label"] for e in training if e["fold"] == fold} == {0, 1}
    data = PatchDatalist(output, fold=2)
    assert len(data.training) + len(data.validation) == len(training) and len(data.testing) == len(testing)
    kept_apart = patients(data.validation) | patients(data.testing)
    assert len(data.pretraining) - len(data.training) == sum(e["patient"] not in kept_apart for e in unlabelled)


def test_the_manifest_says_what_was_done_and_holds_no_personal_path(ebhi, tmp_path, monkeypatch):
    output = tmp_path / "list"
    script = str(ROOT / "scripts" / "prepare_image_folder.py")
    monkeypatch.setattr(sys, "argv", [script, str(ebhi), "--output", str(output), "--seed", "4"])
    assert run(ebhi, output, *CLASSES, "--seed", "4") == 0
    manifest = read(output, "manifest.json")
    assert manifest["command"] == "python scripts/prepare_image_folder.py ../ebhi --output . --seed 4"
    assert manifest["images"] == "in place" and manifest["split"] == "drawn by patient, seed 4"
    assert manifest["left_out"] == ["Cancer", "Serrated adenoma"] and not manifest["copies_of_one_image"]
    counts = manifest["counts"]
    assert sum(counts[part][name]["patches"] for part in counts for name in counts[part]) == 90
    name = "Polyp/image/GT01-1-400-0.png"
    assert manifest["sources"][name] == sha256(ebhi / name) and len(manifest["sources"]) == 2 * 90
    assert str(tmp_path) not in (output / "manifest.json").read_text() + (output / "datalist.json").read_text()


def test_the_seed_decides_and_the_same_seed_gives_the_same_files(ebhi, tmp_path):
    parts = []
    for number, seed in enumerate((0, 0, 1, 2)):
        assert run(ebhi, tmp_path / f"list{number}", *CLASSES, *OTHER, *CASES, "--seed", str(seed)) == 0
        parts.append(frozenset(patients(read(tmp_path / f"list{number}")["testing"])))
    assert parts[0] == parts[1] and len(set(parts)) > 1
    assert (tmp_path / "list0/datalist.json").read_bytes() == (tmp_path / "list1/datalist.json").read_bytes()


def test_copies_make_the_output_self_contained(ebhi, tmp_path):
    assert run(ebhi, tmp_path / "deep" / "list", *CLASSES) == 0
    assert Path(read(tmp_path / "deep" / "list")["training"][0]["image"]).is_absolute()
    assert run(ebhi, tmp_path / "deep" / "list", *CLASSES, "--copy", "--name", "mine") == 0
    content = read(tmp_path / "deep" / "list")
    assert content["name"] == "mine" and content["training"][0]["image"].startswith("Polyp/image/")
    (tmp_path / "deep").rename(tmp_path / "moved")
    ebhi.rename(tmp_path / "gone")
    assert len(PatchDatalist(tmp_path / "moved" / "list", fold=-1).training) > 50


def test_the_output_may_be_the_folder_itself_or_a_file(ebhi, tmp_path, capsys):
    assert run(ebhi, ebhi, *CLASSES) == 0
    assert read(ebhi)["training"][0]["image"].startswith("Polyp/image/")
    assert run(ebhi, ebhi / "other.json", *CLASSES, "--folds", "0", "--test-fraction", "0") == 0
    content = read(ebhi, "other.json")
    assert len(content["training"]) == 90 and not content["testing"] and "fold" not in content["training"][0]
    assert (ebhi / "other_manifest.json").is_file() and len(PatchDatalist(ebhi, "other.json", fold=-1).training) == 90
    assert run(ebhi, ebhi / "copy", *CLASSES, "--copy") == 2
    assert "lies in the data set's own folder" in capsys.readouterr().err


def test_two_folders_are_the_classes_and_groups_come_from_a_pattern(tmp_path):
    root = tmp_path / "set"
    for number in range(24):
        save(root / ("HP" if number % 2 else "SSA") / f"slide{number // 4}" / f"{number}.jpg", number)
    assert run(root, tmp_path / "list", "--group-by", r"/(slide\d)/", "--folds", "2", "--test-fraction", "0.3") == 0
    content = read(tmp_path / "list")
    assert content["classes"] == ["HP", "SSA"]
    assert patients(content["training"]) | patients(content["testing"]) == {f"slide{row}" for row in range(6)}
    assert Counter(e["patient"] for e in content["training"] + content["testing"]) == {f"slide{i}": 4 for i in range(6)}
    assert run(root, tmp_path / "folder", "--group-by", "folder", "--folds", "2", "--test-fraction", "0.3") == 0
    assert read(tmp_path / "folder", "datalist.json") == content
    # without it, sub-folders are no reason to take each image for a patient
    assert run(root, tmp_path / "none", "--folds", "2") == 2
    assert not (tmp_path / "none").exists()
    assert run(root, tmp_path / "none", "--folds", "2", "--group-by", "none") == 0
    assert len(patients(read(tmp_path / "none")["training"])) > 15


@pytest.fixture
def official(tmp_path):
    root, number = tmp_path / "set", 0
    for top, count in (("train", 6), ("val", 2), ("test", 2)):
        for name in ("HP", "SSA"):
            for row in range(count):
                save(root / top / name / f"{top}{row}-{name}.png", number)
                number += 1
    for top in ("train/spare", "test/spare", "more"):
        save(root / top / f"{top[:4]}-0.png", number)
        number += 1
    return root


def test_an_official_split_is_kept(official, tmp_path):
    assert run(official, tmp_path / "list", "--unlabelled", "spare", "more") == 0
    content = read(tmp_path / "list")
    assert [len(content[part]) for part in ("training", "validation", "testing", "unlabelled")] == [12, 4, 4, 2]
    assert "fold" not in content["training"][0] and read(tmp_path / "list", "manifest.json")["split"] == "official"
    assert {Path(e["image"]).parts[-2] for e in content["unlabelled"]} == {"spare", "more"}  # none of test/spare
    data = PatchDatalist(tmp_path / "list")
    assert len(data.training) == 12 and len(data.validation) == 4


def test_an_official_split_without_validation_gets_folds_and_can_be_drawn_anew(official, tmp_path):
    (official / "val").rename(tmp_path / "away")
    assert run(official, tmp_path / "list", "--unlabelled", "spare", "more", "--folds", "3") == 0
    assert {e["fold"] for e in read(tmp_path / "list")["training"]} == {0, 1, 2}
    arguments = ("--unlabelled", "spare", "more", "--resplit", "--folds", "2", "--test-fraction", "0.5")
    assert run(official, tmp_path / "list", *arguments) == 0
    tops = {Path(e["image"]).parts[-3] for e in read(tmp_path / "list")["testing"]}
    assert tops == {"train", "test"}


def test_an_official_split_that_patients_straddle_is_refused(official, tmp_path, capsys):
    save(official / "test" / "HP" / "train3-again.png", 500)
    assert run(official, tmp_path / "list", "--unlabelled", "spare", "more") == 2
    error = capsys.readouterr().err
    assert "train3: has patches in training and testing" in error and "--resplit" in error
    assert not (tmp_path / "list").exists()
    assert run(official, tmp_path / "list", "--unlabelled", "spare", "more", "--group-by", "none") == 0


def test_a_copy_in_two_parts_of_an_official_split_is_named(official, tmp_path, capsys):
    copy = Image.open(official / "train" / "HP" / "train3-HP.png")
    copy.save(official / "test" / "HP" / "other-0.png", compress_level=0)
    for arguments in ((), ("--group-by", "none")):
        assert run(official, tmp_path / "list", "--unlabelled", "spare", "more", *arguments) == 2
        message = "train/HP/train3-HP.png = test/HP/other-0.png: the same image is in training and testing"
        assert message in capsys.readouterr().err


def test_copies_of_an_image_make_their_patients_one(ebhi, tmp_path, capsys):
    original = ebhi / "Polyp" / "image" / "GT05-1-400-0.png"
    Image.open(original).save(ebhi / "Polyp" / "image" / "GT07-1-400-9.png", compress_level=0)
    Image.open(original).save(ebhi / "Polyp" / "image" / "GT98-1-400-0.tif")
    assert run(ebhi, tmp_path / "list", *CLASSES) == 0
    said = capsys.readouterr().out
    assert "1 images are there more than once" in said and "GT07, GT98 shares an image with GT05" in said
    content, manifest = read(tmp_path / "list"), read(tmp_path / "list", "manifest.json")
    assert not {"GT07", "GT98"} & patients(content["training"] + content["testing"])
    assert manifest["patients_merged_by_copies"] == {"GT05": ["GT07", "GT98"]}
    assert len(manifest["copies_of_one_image"]) == 1 and len(manifest["copies_of_one_image"][0]) == 3
    PatchDatalist(tmp_path / "list")


def test_chains_of_copies_end_at_one_patient(ebhi, tmp_path):
    for a, b in (("GT05", "GT07"), ("GT07", "GT09"), ("GT09", "GT03")):
        image = Image.open(ebhi / "Polyp" / "image" / f"{a}-1-400-1.png")
        image.save(ebhi / "Polyp" / "image" / f"{b}-{a}.png", compress_level=0)
    assert run(ebhi, tmp_path / "list", *CLASSES, *CASES) == 0
    content = read(tmp_path / "list")
    named = [e["patient"] for e in content["training"] + content["testing"] if e["patient"][:4] in ("GT03", "GT05")]
    assert set(named) == {"GT03"} and len(named) == 2 + 4 + 3 + 2 + 3


def test_every_problem_is_listed_and_nothing_is_written(ebhi, tmp_path, capsys):
    image = ebhi / "Polyp" / "image"
    (image / "GT05-1-400-0.png").write_bytes((image / "GT05-1-400-0.png").read_bytes()[:60])
    save(image / "GT07-1-400-0.png", 1, (20, 9))
    Image.open(image / "GT09-1-400-0.png").save(ebhi / "Low-grade IN" / "image" / "GT70-1.png")
    assert run(ebhi, tmp_path / "list", *CLASSES) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 4 problems:") and not (tmp_path / "list").exists()
    for text in (
        "GT05-1-400-0.png: cannot be read",
        "9 x 20 pixels",
        "its mask has 9 x 9",
        "the same image has labels",
    ):
        assert text in error, text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name two classes, in the order of their labels, with --classes; its classes are Cancer, Low-grade IN"),
        (["--classes", "Polyp"], "name two classes"),
        (["--classes", "Polyp", "Cancer", "Low-grade IN"], "--classes names 3, Polyp, Cancer, Low-grade IN"),
        ([*CLASSES, *OTHER], "'^[^\\-.]+'"),
        (["--classes", "Polyp", "HP"], "no images of class 'HP'; its classes are Cancer, Low-grade IN, Polyp, Serr"),
        ([*CLASSES, "--unlabelled", "SSA"], "no images of class 'SSA'"),
        ([*CLASSES, "--group-by", r"^(P\d+)"], "does not fit 90 of 90 file names"),
        ([*CLASSES, "--group-by", "(GT"], "is no regular expression"),
        ([*CLASSES, "--group-by", "^GT"], "--test-fraction: label Low-grade IN is in 1 groups only"),
        ([*CLASSES, "--folds", "40"], "--folds: label Low-grade IN is in"),
        (["--classes", "Polyp", "Cancer", "--test-fraction", "0", "--folds", "0"], "has one image of class 'Cancer'"),
    ],
)
def test_a_wrong_command_gets_one_clear_answer(ebhi, tmp_path, capsys, arguments, message):
    assert run(ebhi, tmp_path / "list", *arguments) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "list").exists()


def test_no_folder_and_no_images(tmp_path, capsys):
    assert run(tmp_path / "none", tmp_path / "list") == 2
    (tmp_path / "a").mkdir()
    assert run(tmp_path, tmp_path / "list") == 2
    assert run(tmp_path, tmp_path / "list", "--test-fraction", "0.5") == 2
    error = capsys.readouterr().err
    assert "no such folder" in error and "one folder per class is needed" in error
    for wrong in (
        ["--test-share", "0.2"],
        ["--test-fraction", "1"],
        ["--folds", "1"],
        ["--seed", "-1"],
        ["--classes", "a", "a"],
    ):
        with pytest.raises(SystemExit):
            run(tmp_path, tmp_path / "list", *wrong)


# --- what is in the way -----------------------------------------------------------------------------------------------


@pytest.fixture
def polyps(tmp_path):
    """Eight slides of three patches, both classes on each: ``HP/S1-0.png``."""
    for slide in range(8):
        for patch in range(3):
            save(tmp_path / "set" / ("HP", "SSA")[patch % 2] / f"S{slide}-{patch}.png", 10 * slide + patch)
    return tmp_path / "set"


def test_new_patches_become_a_datalist_without_labels(ebhi, tmp_path, capsys):
    assert run(ebhi, tmp_path / "new", "--inference", "--group-by", "none") == 0
    content = json.loads((tmp_path / "new/datalist.json").read_text())
    assert (
        content["training"] == []
        and content["testing"]
        and f"{len(content['testing'])} patches" in capsys.readouterr().out
    )
    assert not [entry for entry in content["testing"] if set(entry) != {"image", "patient"}]


def test_new_patches_that_are_not_square_are_cropped_where_that_is_asked_for(tmp_path, capsys):
    folder, output = tmp_path / "set", tmp_path / "new"
    save(folder / "S1-0.png", 1)
    square = Image.open(folder / "S1-0.png")
    side = square.width
    wide = square.resize((side, side)), Image.new("RGB", (side + 10, side), "red")
    wide[1].paste(wide[0], (5, 0))
    wide[1].save(folder / "S2-0.png")
    given = ["--inference", "--crop-square", "--mpp", "0.5"]
    assert run(folder, output, *given) == 0
    content = json.loads((output / "datalist.json").read_text())
    assert [entry["image"] for entry in content["testing"]] == ["../set/S1-0.png", "square/S2-0.png.png"]
    assert content["mpp"] == 0.5 and np.array_equal(np.asarray(Image.open(output / "square/S2-0.png.png")), wide[0])
    assert len(PatchInferenceDatalist(output).cases) == 2
    (folder / "S3-0.png").write_bytes(b"")
    assert run(folder, tmp_path / "more", *given) == 2 and "S3-0.png: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()
    with pytest.raises(SystemExit):
        run(folder, output, "--inference", "--skip-blank")


FEW = ["--folds", "2", "--test-fraction", "0.3"]


def test_whatever_is_not_taken_is_counted_and_named(polyps, tmp_path, capsys):
    (polyps / "HP" / ".ipynb_checkpoints").mkdir()
    save(polyps / "HP" / ".ipynb_checkpoints" / "S0-0.png", 1)
    save(polyps / "masks" / "HP" / "S9-0.png", 1)
    (polyps / "HP" / "S9-1.gif").touch()
    (polyps / "HP" / "S9-2.png").symlink_to("/nowhere.png")
    save(polyps / "Other" / "S9-3.png", 3)
    assert run(polyps, tmp_path / "list", "--classes", "HP", "SSA", *FEW) == 0
    said = capsys.readouterr().out
    assert "not taken: 1 hidden, or left by a system: HP/.ipynb_checkpoints\n" in said
    manifest = read(tmp_path / "list", "manifest.json")
    assert manifest["not_taken"] == {
        "other files (.gif)": ["HP/S9-1.gif"],
        "links that lead nowhere": ["HP/S9-2.png"],
        "hidden, or left by a system": ["HP/.ipynb_checkpoints"],
        "in Other, which is no class": ["Other/S9-3.png"],
        "masks of no image that is taken": ["masks/HP/S9-0.png"],
    }
    assert all(f"not taken: 1 {reason}: " in said for reason in manifest["not_taken"])
    assert manifest["group_by"] == "file name up to the first '-'"


def test_linked_folders_of_slides_are_taken(tmp_path):
    root, number = tmp_path / "set", 0
    for slide in range(6):
        for name in ("HP", "SSA"):
            place = tmp_path / "disk" if slide % 2 else root
            save(place / name / f"S{slide}" / "1.png", number)
            if slide % 2:
                (root / name).mkdir(parents=True, exist_ok=True)
                (root / name / f"S{slide}").symlink_to(place / name / f"S{slide}")
            number += 1
    assert run(root, tmp_path / "list", "--group-by", "folder", *FEW) == 0
    content = read(tmp_path / "list")
    entries = content["training"] + content["testing"]
    assert Counter(entry["patient"] for entry in entries) == {f"S{slide}": 2 for slide in range(6)}
    assert len(PatchDatalist(tmp_path / "list").testing) == len(content["testing"])


def blank(path, level=245):
    noise = np.random.default_rng(0).integers(-3, 4, (9, 9, 3))
    Image.fromarray((level + noise).astype(np.uint8)).save(path)


def test_blank_tiles_that_join_slides_are_told_and_can_be_left_out(polyps, tmp_path, capsys):
    for slide in range(5):
        blank(polyps / "HP" / f"S{slide}-blank.png")
    assert run(polyps, tmp_path / "joined", "--folds", "0", "--test-fraction", "0.3") == 0
    said = capsys.readouterr().out
    assert "5 patches are blank, of (nearly) one colour and join 5 patients or slides into one: HP/S0-blank" in said
    content = read(tmp_path / "joined")
    assert patients(content["training"] + content["testing"]) == {"S0", "S5", "S6", "S7"}
    assert run(polyps, tmp_path / "list", "--skip-blank", *FEW) == 0
    assert "not taken: 5 blank: HP/S0-blank.png" in capsys.readouterr().out
    content = read(tmp_path / "list")
    assert patients(content["training"] + content["testing"]) == {f"S{slide}" for slide in range(8)}
    assert len(content["training"] + content["testing"]) == 24
    assert read(tmp_path / "list", "manifest.json")["not_taken"]["blank"] == [f"HP/S{s}-blank.png" for s in range(5)]


def test_blank_tiles_of_both_classes_and_of_another_size_need_the_option(polyps, tmp_path, capsys):
    blank(polyps / "HP" / "S0-blank.png")
    blank(polyps / "SSA" / "S0-blank.png")
    Image.new("RGB", (5, 5)).save(polyps / "SSA" / "S0-black.png")
    assert run(polyps, tmp_path / "list", *FEW) == 2
    error = capsys.readouterr().err
    assert "same image has labels 0 and 1; it is a blank tile, --skip-blank leaves those out" in error
    assert "SSA/S0-black.png: 5 x 5 pixels" in error
    assert run(polyps, tmp_path / "list", "--skip-blank", *FEW) == 0


def test_patches_are_square_or_cropped(tmp_path, capsys):
    root = tmp_path / "set"
    for slide in range(8):
        for name in ("HP", "SSA"):
            save(root / name / f"S{slide}-{name}.png", slide + 100 * (name == "HP"), (9, 14))
            inside = np.zeros((9, 14), np.uint8)
            inside[:, 3] = 1
            Image.fromarray(inside).save(root / name / f"S{slide}-{name}_mask.png")
    save(root / "HP" / "S0-square.png", 7, (9, 9))
    assert run(root, tmp_path / "list", *FEW) == 2
    assert "16 patches are not square, 14 x 9 pixels: HP/S0-HP.png" in capsys.readouterr().err
    assert run(root, tmp_path / "list", "--crop-square", *FEW) == 0
    data = PatchDatalist(tmp_path / "list")
    entry = next(case for case in data.training + data.validation if "_mask" in case.get("mask", ""))
    source = root / Path(entry["image"]).relative_to((tmp_path / "list/square").resolve()).with_suffix("")
    np.testing.assert_array_equal(np.asarray(Image.open(entry["image"])), np.asarray(Image.open(source))[:, 2:11])
    mask = np.asarray(Image.open(entry["mask"]))
    assert mask.shape == (9, 9) and (mask[:, 1] == 255).all() and mask.sum() == 9 * 255
    manifest = read(tmp_path / "list", "manifest.json")
    assert len(manifest["cropped"]) == 32 and "HP/S0-square.png" not in manifest["cropped"]
    assert run(root, root, "--crop-square", *FEW) == 2
    assert "--crop-square: " in capsys.readouterr().err


def test_images_turned_by_exif_and_their_masks_are_in_one_frame(polyps, tmp_path, capsys):
    exif = Image.Exif()
    exif[274] = 6
    for name, size in (("S0-7", (9, 9)), ("S1-7", (9, 14))):
        save(polyps / "HP" / f"{name}.png", 70, size, exif=exif)
        Image.fromarray(np.full(size, 9, np.uint8)).save(polyps / "HP" / f"{name}_mask.png")
    assert run(polyps, tmp_path / "list", "--crop-square", *FEW) == 2
    # drawn on the raw pixels: of an oblong image the shape tells
    expected = "HP/S1-7.png: its mask has 14 x 9 pixels, the image 9 x 14 upright (its EXIF tag turns it)"
    assert expected in capsys.readouterr().err
    (polyps / "HP" / "S1-7_mask.png").unlink()
    assert run(polyps, tmp_path / "list", "--crop-square", *FEW) == 0
    said = capsys.readouterr().out
    assert "1 images are turned upright by their EXIF tag and their masks have none: these are taken as drawn" in said
    content = read(tmp_path / "list")
    cropped = next(e for e in content["training"] + content["testing"] if "S1-7" in e["image"])
    upright = np.rot90(np.asarray(Image.open(polyps / "HP" / "S1-7.png")), -1)
    found = np.asarray(Image.open(tmp_path / "list" / cropped["image"]))
    np.testing.assert_array_equal(found, upright[2:11])


@pytest.mark.parametrize("value", [1, 255])
def test_a_class_of_masks_is_asked_about(polyps, tmp_path, capsys, value):
    for path in (polyps / "SSA").iterdir():
        inside = np.asarray(Image.open(path))[..., 0] > 128
        Image.fromarray((inside * value).astype(np.uint8)).save(path)
    assert run(polyps, tmp_path / "list", *FEW) == 2
    assert "SSA: 8 of its 8 images have few colours, as masks have: SSA/S0-1.png" in capsys.readouterr().err
    assert run(polyps, tmp_path / "list", "--classes", "HP", "SSA", *FEW) == 0
    assert "warning: SSA: 8 of its 8 images have few colours" in capsys.readouterr().out


def flat(path, level=255):
    """An image of two colours, as an outline or a mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.eye(9, dtype=np.uint8) * level).save(path)


@pytest.mark.parametrize("name", ["S{n}-0_outline", "maps/S{n}-0"])
def test_masks_among_the_images_of_a_class_are_refused_also_where_classes_are_named(polyps, tmp_path, capsys, name):
    for number in range(8):
        flat(polyps / "HP" / f"{name.format(n=number)}.png", 200 + number)
    options = ("--classes", "HP", "SSA", "--group-by", "^[^-]+")
    assert run(polyps, tmp_path / "list", *options, *FEW) == 2
    said = capsys.readouterr().err
    assert f"HP: 8 of its 24 images have few colours, as masks have: HP/{name.format(n=0)}.png" in said
    assert "lay them into a folder masks" in said and not (tmp_path / "list" / "datalist.json").exists()


def test_of_a_few_flat_images_those_are_refused_that_are_named_for_another(polyps, tmp_path, capsys):
    flat(polyps / "HP" / "S9-9.png")
    assert run(polyps, tmp_path / "list", *FEW) == 0
    flat(polyps / "SSA" / "S0-1 outline.png", 200)
    assert run(polyps, tmp_path / "list", "--group-by", "^[^-]+", *FEW) == 2
    said = capsys.readouterr().err
    assert (
        "SSA: 1 of its 9 images have few colours, as masks have: SSA/S0-1 outline.png;" in said and "S9-9" not in said
    )


def test_patients_that_differ_in_capitals_are_told(polyps, tmp_path, capsys):
    (polyps / "HP" / "S0-0.png").rename(polyps / "HP" / "s0-0.png")
    assert run(polyps, tmp_path / "list", *FEW) == 0
    said = capsys.readouterr().out
    assert "warning: 1 patients are called nearly as another" in said
    assert "looks alike, the difference: capitals" in said and ("s0; 'S0'" in said or "S0; 's0'" in said)


def test_other_kinds_of_files_are_patches_too(polyps, tmp_path):
    for number, ending in enumerate((".bmp", ".webp", ".jp2", ".jfif")):
        source = polyps / "HP" / f"S{number}-0.png"
        Image.open(source).save(source.with_suffix(ending), *(["JPEG"] if ending == ".jfif" else []))
        source.unlink()
    assert run(polyps, tmp_path / "list", *FEW) == 0
    content = read(tmp_path / "list")
    assert len(content["training"] + content["testing"]) == 24


def test_a_test_part_of_one_class_is_told(tmp_path, capsys):
    for number in range(12):
        part = "test" if number > 8 else "train"
        save(tmp_path / "set" / part / ("HP" if number > 8 or number % 2 else "SSA") / f"{number}.png", number)
    assert run(tmp_path / "set", tmp_path / "list", "--folds", "2") == 0
    assert "warning: the testing part has patches of HP only" in capsys.readouterr().out


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason="EBHI-Seg is not there: put it into ../shared/data/ebhi_seg")
def test_real_biopsies_are_split_by_case(tmp_path):
    assert run(REAL, tmp_path, *CLASSES, *OTHER, *CASES) == 0
    content = read(tmp_path)
    training, testing = content["training"], content["testing"]
    assert len(training) + len(testing) == 406 and len(content["unlabelled"]) == 40
    assert not patients(training) & patients(testing) and len(patients(training) | patients(testing)) == 76
    assert all("mask" in entry for entry in training + testing)
    for label, count in ((0, 207), (1, 199)):
        share = sum(entry["label"] == label for entry in testing) / count
        assert 0.1 < share < 0.3
    data = PatchDatalist(tmp_path, check_pixels=False)
    assert data.patch_size == (224, 224) and data.validation


# --- MHIST ------------------------------------------------------------------------------------------------------------

COLUMNS = ("Image Name", "Majority Vote Label", "Number of Annotators who Selected SSA (Out of 7)", "Partition")


@pytest.fixture
def published(tmp_path):
    """60 images, 20 of them SSA, 18 in the test partition, in the publisher's layout."""
    rows = []
    for number in range(60):
        ssa = number % 3 == 0
        votes = 4 + number % 4 if ssa else number % 4
        rows.append([f"MHIST_{number:03d}.png", "SSA" if ssa else "HP", votes, "test" if number % 10 > 6 else "train"])
        save(tmp_path / "mhist" / "images" / f"MHIST_{number:03d}.png", number)
    return tmp_path / "mhist", rows


def write(folder, rows, columns=COLUMNS, delimiter=","):
    with (folder / "annotations.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([columns, *rows])


def run_mhist(published, output, *arguments, **options):
    folder, rows = published
    write(folder, rows, **options)
    return mhist.main([str(folder), "--output", str(output), *arguments])


def test_the_official_partition_and_the_votes(published, tmp_path):
    assert run_mhist(published, tmp_path / "list") == 0
    content = read(tmp_path / "list")
    rows = {row[0]: row for row in published[1]}
    assert content["name"] == "MHIST" and content["classes"] == ["HP", "SSA"]
    assert len(content["training"]) == 42 and len(content["testing"]) == 18
    for part, partition in (("training", "train"), ("testing", "test")):
        for entry in content[part]:
            name, label, votes, there = rows[Path(entry["image"]).name]
            assert entry["image"] == f"../mhist/images/{name}" and entry["patient"] == Path(name).stem
            assert there == partition and entry["label"] == (label == "SSA")
            assert entry["soft_label"] == pytest.approx(votes / 7, abs=1e-4)
    for fold in range(5):
        share = [entry["label"] for entry in content["training"] if entry["fold"] == fold]
        assert 8 <= len(share) <= 9 and 2 <= sum(share) <= 3
    assert len(PatchDatalist(tmp_path / "list", fold=0).validation) in (8, 9)


def test_the_papers_split_is_balanced_and_random(published, tmp_path, capsys):
    parts = []
    for seed in (0, 0, 1):
        assert run_mhist(published, tmp_path / "list", "--split", "paper", "--seed", str(seed)) == 0
        content = read(tmp_path / "list")
        parts.append((patients(content["training"]), patients(content["testing"])))
        assert Counter(entry["label"] for entry in content["training"]) == {0: 18, 1: 18}
        assert Counter(entry["label"] for entry in content["testing"]) == {0: 2, 1: 2}
    assert parts[0] == parts[1] != parts[2] and parts[0][0] | parts[0][1] != parts[2][0] | parts[2][1]
    assert "dropped at random to balance the classes: 20 images" in capsys.readouterr().out
    assert "balanced by dropping 20, 90:10" in read(tmp_path / "list", "manifest.json")["split"]


@pytest.mark.parametrize(
    "columns",
    [
        ("image_name", "majority vote label", "number of annotators who selected ssa", "PARTITION"),
        (" Image Name ", "Label", "Votes", "Split"),
    ],
)
def test_columns_may_be_written_in_other_ways(published, tmp_path, columns):
    published[1][0][1:] = ["ssa", 6, "Training"]
    assert run_mhist(published, tmp_path / "list", columns=columns, delimiter=";") == 0
    assert len(read(tmp_path / "list")["training"]) == 42


def test_columns_that_are_not_needed_may_be_missing(published, tmp_path):
    rows = [row[:2] for row in published[1]]
    assert run_mhist((published[0], rows), tmp_path / "a", "--split", "paper", "--no-votes", columns=COLUMNS[:2]) == 0
    assert "soft_label" not in read(tmp_path / "a")["training"][0]


def test_image_names_are_one_in_both_spellings_and_look_alikes_are_told(published, tmp_path, capsys):
    folder, rows = published
    rows[0][0] = "B\u00fcro.png"
    there = folder / "images" / "Bu\u0308ro.png"
    (folder / "images" / "MHIST_000.png").rename(there)
    (folder / "images" / "._MHIST_001.png").write_bytes(b"mac")
    assert run_mhist(published, tmp_path / "list") == 0
    entries = [entry for part in ("training", "testing") for entry in read(tmp_path / "list")[part]]
    assert ("B\u00fcro", f"../mhist/images/{there.name}") in [(entry["patient"], entry["image"]) for entry in entries]
    rows[1][0] = "MHIST_1.PNG"
    assert run_mhist(published, tmp_path / "other") == 2
    said = capsys.readouterr().err
    assert "1 of 60 images are not in" in said and "'MHIST_001.png' looks alike, the difference: capitals, lea" in said


def change(row, column, value):
    def spoil(folder, rows):
        rows[row][column] = value

    return spoil


BAD = {
    "no table": (None, "no annotations.csv; give the folder"),
    "label": (change(3, 1, "TA"), "MHIST_003.png: label must be HP or SSA, got 'TA'"),
    "votes": (change(3, 2, 8), "MHIST_003.png: votes for SSA must be a number from 0 to 7, got '8'"),
    "votes a word": (change(3, 2, "many"), "got 'many'"),
    "partition": (change(3, 3, "dev"), "MHIST_003.png: partition must be train or test, got 'dev'"),
    "no name": (change(3, 0, ""), "row 5: column 'Image Name' is empty"),
    "image missing": (change(3, 0, "MHIST_999.png"), "1 of 60 images are not in"),
    "twice": (change(3, 0, "MHIST_004.png"), "MHIST_004.png: appears in annotations.csv more than once"),
    "truncated": (
        lambda folder, rows: (folder / "images/MHIST_003.png").write_bytes(b"\x89PNG"),
        "MHIST_003.png: cannot be read",
    ),
    "copy in two parts": (
        lambda folder, rows: save(folder / "images/MHIST_007.png", 1),
        "images/MHIST_001.png = images/MHIST_007.png: the same image is in training and testing",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_mhist_is_told(published, tmp_path, capsys, name):
    spoil, message = BAD[name]
    write(*published)
    if spoil is None:
        (published[0] / "annotations.csv").unlink()
    else:
        spoil(*published)
        write(*published)
    assert mhist.main([str(published[0]), "--output", str(tmp_path / "list")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "list").exists()


def test_what_the_table_does_not_list_is_named(published, tmp_path, capsys):
    save(published[0] / "images" / "other.png", 99)
    assert run_mhist(published, tmp_path / "list") == 0
    assert "not taken: 1 not in annotations.csv: images/other.png" in capsys.readouterr().out
    assert read(tmp_path / "list", "manifest.json")["not_taken"] == {"not in annotations.csv": ["images/other.png"]}


def test_mhist_leaves_blank_tiles_out_and_crops(published, tmp_path, capsys):
    blank(published[0] / "images" / "MHIST_001.png")
    save(published[0] / "images" / "MHIST_002.png", 2, (9, 11))
    assert run_mhist(published, tmp_path / "list") == 2
    assert "1 patches are not square, 11 x 9 pixels: images/MHIST_002.png" in capsys.readouterr().err
    assert run_mhist(published, tmp_path / "list", "--crop-square", "--skip-blank") == 0
    content = read(tmp_path / "list")
    assert len(content["training"]) == 41
    assert (tmp_path / "list/square/images/MHIST_002.png.png").is_file()


def test_all_missing_columns_are_named_at_once(published, tmp_path, capsys):
    assert run_mhist(published, tmp_path / "list", columns=("Image Name", "diagnosis", "a", "b")) == 2
    error = capsys.readouterr().err
    assert "no column 'Majority Vote Label'; its columns are Image Name, diagnosis, a, b" in error
    assert "no column 'Number of Annotators" in error and "no column 'Partition'" in error and "--no-votes" in error
    assert mhist.main([str(tmp_path / "none"), "--output", str(tmp_path / "list")]) == 2
    assert "no such folder" in capsys.readouterr().err
