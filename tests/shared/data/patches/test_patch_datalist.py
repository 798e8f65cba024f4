"""The datalist of patches: what it hands out, and the message of every rule it checks."""

import copy
import json
import logging
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.data import PatchDatalist, PatchInferenceDatalist
from shared.errors import DataError

ROOT = Path(__file__).resolve().parents[4]
REAL = ROOT.parent / "shared" / "data" / "ebhi_seg"


def pixels(number, size=(12, 12)):
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


class Folder:
    """Eight patients of two patches each, four folds, two test patients, an unlabelled one, to be spoilt by a test."""

    def __init__(self, root):
        self.root = root
        entries = []
        for row in range(22):
            image = f"image/P{row // 2}-{row % 2}.png"
            save(root / image, pixels(row))
            entry = {"image": image, "patient": f"P{row // 2}", "label": row // 2 % 2, "soft_label": row / 21}
            if row < 16:
                entry["fold"] = row // 4
                entry["mask"] = image.replace("image", "mask", 1)
                save(root / entry["mask"], np.full((12, 12), 255, np.uint8))
            entries.append(entry)
        for entry in entries[20:]:
            del entry["label"], entry["soft_label"]
        self.content = {"name": "tiny", "classes": ["smooth", "serrated"]}
        self.content |= {"training": entries[:16], "testing": entries[16:20], "unlabelled": entries[20:]}

    def read(self, **options):
        (self.root / "datalist.json").write_text(json.dumps(self.content))
        return PatchDatalist(self.root, **options)

    def problems(self, **options):
        with pytest.raises(DataError) as caught:
            self.read(**options)
        return caught.value.problems


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def names(cases):
    return [Path(case["image"]).stem for case in cases]


def test_a_fold_validates_and_the_testing_part_never_does(folder):
    data = folder.read(fold=1)
    assert names(data.validation) == ["P2-0", "P2-1", "P3-0", "P3-1"]
    assert len(data.training) == 12 and not set(names(data.training)) & set(names(data.validation))
    assert names(data.testing) == ["P8-0", "P8-1", "P9-0", "P9-1"]
    assert data.classes == ["smooth", "serrated"] and data.name == "tiny" and data.patch_size == (12, 12)
    first = data.training[0]
    assert first["image"] == str(folder.root / "image/P0-0.png") and first["mask"] == str(folder.root / "mask/P0-0.png")
    assert first["label"] == 0 and first["soft_label"] == 0
    everything = folder.read(fold=-1)
    assert len(everything.training) == 16 and everything.validation == []
    assert PatchDatalist(folder.root).validation == folder.read(fold=0).validation


def test_a_validation_section_is_the_validation_part_whatever_the_fold(folder):
    held = folder.content["training"][12:]
    folder.content |= {"training": folder.content["training"][:12], "validation": held}
    for entry in folder.content["training"]:
        del entry["fold"]
    for fold in (-1, 0, 3):
        data = folder.read(fold=fold)
        assert len(data.training) == 12 and names(data.validation) == ["P6-0", "P6-1", "P7-0", "P7-1"]


def test_pretraining_leaves_out_the_patients_and_images_that_are_kept_apart(folder, caplog):
    data = folder.read()
    assert data.pretraining == data.training + data.unlabelled and len(data.unlabelled) == 2
    template = folder.content["unlabelled"][0]
    save(folder.root / "image/copy.png", pixels(16), compress_level=1)  # of a testing image, by another name
    save(folder.root / "image/later.png", pixels(99))
    folder.content["unlabelled"] += [
        {**template, "image": "image/copy.png", "patient": "P77"},
        {**template, "image": "image/later.png", "patient": "P0"},  # fold 0 validates patient P0
    ]
    with caplog.at_level(logging.INFO):
        data = folder.read(fold=0)
    assert names(data.pretraining[12:]) == ["P10-0", "P10-1"]
    assert "2 of 4 unlabelled patches are not pretrained on" in caplog.text
    assert names(folder.read(fold=1).pretraining[12:]) == ["P10-0", "P10-1", "later"]


def test_a_part_to_evaluate_is_there_or_refused(folder):
    data = folder.read()
    assert all(data.part(name) == getattr(data, name) for name in ("training", "validation", "testing"))
    with pytest.raises(DataError, match="split must be one of training, validation, testing, unlabelled, got 'test'"):
        data.part("test")
    with pytest.raises(DataError, match=r"validation part has no patches, there is training, testing, .*--fold 0"):
        folder.read(fold=-1).part("validation")
    folder.content["testing"] = []
    with pytest.raises(DataError, match=r"testing part has no patches, there is training, validation, .*--split"):
        folder.read().part("testing")


def test_absolute_paths_and_a_datalist_elsewhere(folder, tmp_path_factory):
    for entry in folder.content["training"]:
        entry["image"] = str(folder.root / entry["image"])
    file = tmp_path_factory.mktemp("elsewhere") / "other.json"
    file.write_text(json.dumps(folder.content))
    data = PatchDatalist(folder.root, file)
    assert data.training[0]["image"] == str(folder.root / "image/P2-0.png") and len(data.testing) == 4


def test_without_pixels_only_headers_are_read(folder, monkeypatch):
    monkeypatch.setattr("shared.data.patches.reading.read_turned", lambda path, mask: pytest.fail("was decoded"))
    assert len(folder.read(check_pixels=False).training) == 12
    save(folder.root / "image/P0-0.png", pixels(0, (8, 8)))
    assert "8 x 8 pixels, the other 21 patches have 12 x 12" in folder.problems(check_pixels=False)[0]


def test_empty_masks_and_a_test_part_of_one_class_are_only_warned_of(folder, caplog):
    save(folder.root / "mask/P4-1.png", np.zeros((12, 12), np.uint8))
    for entry in folder.content["testing"]:
        entry["label"] = 1
    folder.read()
    assert "1 masks are empty: image/P4-1.png" in caplog.text
    assert "the testing part has patches of one class only" in caplog.text


def spoil(row, section="training", **values):
    def change(folder):
        for key, value in values.items():
            folder.content[section][row].pop(key, None)
            if value is not None:
                folder.content[section][row][key] = value

    return change


def add(row, section, **values):
    """The entry of a row of training once more, elsewhere."""

    def change(folder):
        entry = {**copy.deepcopy(folder.content["training"][row]), **values}
        if not (folder.root / entry["image"]).is_file():
            source = folder.root / folder.content["training"][row]["image"]
            Image.open(source).save(folder.root / entry["image"], compress_level=0)
        folder.content[section].append(entry)

    return change


def file(name, array, **options):
    return lambda folder: save(folder.root / name, array, **options)


def truncate(folder):
    path = folder.root / "image/P1-1.png"
    path.write_bytes(path.read_bytes()[:200])


def relabel(count):
    """All but ``count`` training patches of class 1 become class 0."""

    def change(folder):
        for entry in [entry for entry in folder.content["training"] if entry["label"] == 1][count:]:
            entry["label"] = 0

    return change


def clear(size):
    array = np.full((*size, 4), 255, np.uint8)
    array[0, 0, 3] = 0
    return array


BAD = {
    "missing file": (lambda f: (f.root / "image/P1-0.png").unlink(), {}, r"image/P1-0.png: file not found"),
    "missing mask": (spoil(1, mask="mask/no.png"), {}, r"mask/no.png: file not found"),
    "truncated": (truncate, {}, r"P1-1.png.*truncated or corrupt"),
    "not an image": (lambda f: (f.root / "image/P1-0.png").write_bytes(b"no"), {}, r"P1-0.png.*cannot be read"),
    "16 bit": (file("image/P1-0.png", np.zeros((12, 12), np.uint16)), {}, r"P1-0.png.*16-bit"),
    "transparent": (file("image/P1-0.png", clear((12, 12))), {}, r"P1-0.png.*transparent"),
    "another size": (
        file("image/P8-0.png", pixels(3, (10, 10))),
        {},
        r"image/P8-0.png: 10 x 10 pixels, the other 21 patches have 12 x 12",
    ),
    "mask of another size": (
        file("mask/P1-0.png", np.ones((10, 12), np.uint8)),
        {},
        r"image/P1-0.png: its mask has 12 x 10 pixels, the image 12 x 12",
    ),
    "mask no path": (spoil(1, mask=["mask/P0-1.png"]), {}, r"image/P0-1.png: 'mask' must be one path"),
    "label out of range": (spoil(1, label=2), {}, r"image/P0-1.png: label must be an integer from 0 to 1, got 2"),
    "label a word": (spoil(1, label="SSA"), {}, r"image/P0-1.png: label must be an integer .* 'SSA'"),
    "label a bool": (spoil(1, label=True), {}, r"image/P0-1.png: label must be an integer .* True"),
    "label missing": (spoil(1, label=None), {}, r"image/P0-1.png: label is missing"),
    "testing label missing": (spoil(0, "testing", label=None), {}, r"image/P8-0.png: label is missing"),
    "soft label": (spoil(1, soft_label=4), {}, r"image/P0-1.png: soft_label must be .* from 0 to 1, got 4"),
    "no patient": (spoil(1, "unlabelled", patient=None), {}, r"image/P10-1.png: 'patient' must name"),
    "no image": (spoil(1, "unlabelled", image=None), {}, r"unlabelled\[1\]: a patch is an object with the path"),
    "one class": (relabel(0), {}, r"fold 0 has no image of class 'serrated' \(label 1\)"),
    "class with one image": (relabel(3), {"fold": 0}, r"fold 0 has one image of class 'serrated' .* at least two"),
    "no such fold": (lambda f: None, {"fold": 7}, r"no case has fold 7; the datalist has folds 0, 1, 2, 3"),
    "fold below -1": (lambda f: None, {"fold": -2}, r"fold must be -1 .* got -2"),
    "patient in two folds": (spoil(1, fold=3), {}, r"P0: has patches in fold 0 of training and fold 3 of training"),
    "patient in two parts": (spoil(0, "testing", patient="P1"), {}, r"P1: has patches in fold 0 .* and testing"),
    "patient in two parts, composed or not": (
        lambda f: (spoil(1, patient="Mu\u0308")(f), spoil(0, "testing", patient="M\u00fc")(f)),
        {},
        "M\u00fc: has patches in fold 0 .* and testing",
    ),
    "image in two parts": (
        add(4, "testing", image="image/new.png", patient="P50"),
        {},
        r"image/P2-0.png = image/new.png: the same image is in fold 1 of training and testing",
    ),
    "image in two folds": (
        add(4, "training", image="image/new.png", patient="P50", fold=3),
        {},
        r"image/P2-0.png = image/new.png: the same image is in fold 1 of training and fold 3 of training",
    ),
    "image with two labels": (
        add(4, "training", image="image/new.png", label=1),
        {},
        r"image/P2-0.png = image/new.png: the same image has labels 0 and 1",
    ),
    "classes": (lambda f: f.content.update(classes=["a"]), {}, r"'classes' must name 2 classes .* got \['a'\]"),
    "no training": (lambda f: f.content.update(training=[]), {}, r"the training section is empty"),
    "not a list": (lambda f: f.content.update(testing={"a": 1}), {}, r"'testing' must be a list"),
}


@pytest.mark.parametrize("name", BAD)
def test_each_rule_names_the_patch_and_the_remedy(folder, name):
    change, options, message = BAD[name]
    change(folder)
    problems = folder.problems(**options)
    assert len(problems) == 1, problems
    with pytest.raises(DataError, match=message):
        folder.read(**options)


def test_a_fold_is_an_integer_and_two_images_of_a_class_suffice(folder):
    spoil(1, fold="1")(folder)
    assert any("image/P0-1.png: fold must be an integer, got '1'" in line for line in folder.problems())
    spoil(1, fold=0)(folder)
    relabel(4)(folder)  # two of them in fold 0
    assert sum(case["label"] for case in folder.read(fold=0).training) == 2


def test_folds_that_nobody_has_are_one_problem(folder):
    for entry in folder.content["training"]:
        del entry["fold"]
    assert len(folder.problems()) == 1 and "no training case has a fold" in folder.problems()[0]
    assert len(folder.read(fold=-1).training) == 16


def test_all_problems_are_reported_at_once(folder):
    truncate(folder)
    (folder.root / "image/P2-0.png").unlink()
    for change in (spoil(0, label=7), spoil(6, soft_label=-1), spoil(0, "testing", patient="P5")):
        change(folder)
    save(folder.root / "mask/P6-0.png", np.ones((3, 3), np.uint8))
    save(folder.root / "image/P7-0.png", pixels(3, (20, 10)))
    found = "\n".join(folder.problems())
    for word in ("P1-1", "P2-0", "got 7", "got -1", "P5: has patches", "P6-0.png: its mask", "10 x 20 pixels"):
        assert word in found, word


def test_a_wrong_folder_is_one_line_and_not_a_thousand(folder, tmp_path_factory):
    entries = folder.content["training"]
    entries += [{**entries[0], "image": f"image/gone{row}.png"} for row in range(30)]
    problems = folder.problems()
    assert len(problems) == 1 and "30 of 52 images are not found" in problems[0]


def test_copies_in_one_part_with_one_label_are_only_warned_of(folder, caplog):
    add(4, "training", image="image/new.png")(folder)
    assert len(folder.read().training) == 13 and "1 patches repeat the image of another" in caplog.text


@pytest.mark.parametrize("missing", ["folder", "datalist"])
def test_no_data_names_the_preparation_scripts(tmp_path, missing):
    with pytest.raises(DataError) as caught:
        PatchDatalist(tmp_path / "none" if missing == "folder" else tmp_path)
    for name in ("scripts/prepare_mhist.py", "scripts/prepare_image_folder.py", "bash scripts/demo.sh sscl_crc"):
        assert name in str(caught.value)


# --- inference --------------------------------------------------------------------------------------------------------


def test_inference_takes_a_section_and_needs_no_labels(folder):
    for entry in folder.content["testing"]:
        del entry["label"]
    folder.content["training"] = []
    (folder.root / "datalist.json").write_text(json.dumps(folder.content))
    data = PatchInferenceDatalist(folder.root)
    assert names(data.cases) == ["P8-0", "P8-1", "P9-0", "P9-1"] and data.classes == ["smooth", "serrated"]
    assert names(PatchInferenceDatalist(folder.root, split="unlabelled").cases) == ["P10-0", "P10-1"]
    with pytest.raises(DataError, match="split 'training' is empty; there is testing, unlabelled"):
        PatchInferenceDatalist(folder.root, split="training")
    with pytest.raises(DataError, match="split must be one of training, validation, testing, unlabelled"):
        PatchInferenceDatalist(folder.root, split="test")
    (folder.root / "image/P8-1.png").unlink()
    save(folder.root / "image/P9-0.png", pixels(0, (5, 5)))
    with pytest.raises(DataError) as caught:
        PatchInferenceDatalist(folder.root)
    assert len(caught.value.problems) == 2


def test_the_datalists_classes_are_the_models_or_refused(folder):
    (folder.root / "datalist.json").write_text(json.dumps(folder.content))
    for known in (["smooth", "serrated"], ["0", "1"], ["class 0", "class 1"], None):
        assert PatchInferenceDatalist(folder.root, classes=known).classes == ["smooth", "serrated"]
    message = "its classes are smooth, serrated, those of the model serrated, smooth; .*model's order"
    with pytest.raises(DataError, match=message):
        PatchInferenceDatalist(folder.root, classes=["serrated", "smooth"])
    del folder.content["classes"]
    (folder.root / "datalist.json").write_text(json.dumps(folder.content))
    assert PatchInferenceDatalist(folder.root, classes=["HP", "SSA"]).classes == ["HP", "SSA"]


def test_inference_takes_a_plain_folder(tmp_path):
    for row, name in enumerate(
        ("b/S2-1.png", "b/S2-2.jpg", "a/S1-1.TIF", "label/S1-1.png", "a/S1-1_mask.png", "x.png")
    ):
        save(tmp_path / name, pixels(row))
    (tmp_path / "notes.txt").write_text("no image")
    data = PatchInferenceDatalist(tmp_path, classes=["HP", "SSA"])
    assert [case["image"] for case in data.cases] == [
        str(tmp_path / name) for name in ("a/S1-1.TIF", "b/S2-1.png", "b/S2-2.jpg", "x.png")
    ]
    assert [case["patient"] for case in data.cases] == ["S1", "S2", "S2", "x"] and data.classes == ["HP", "SSA"]
    assert [c["patient"] for c in PatchInferenceDatalist(tmp_path, group_by=r"^(\w)").cases] == ["S", "S", "S", "x"]
    assert PatchInferenceDatalist(tmp_path, group_by="none").cases[0]["patient"] == "a/S1-1"
    with pytest.raises(DataError, match=r"--group-by 'S\(\\\\d\)' does not fit 1 of 4 file names, as x.png"):
        PatchInferenceDatalist(tmp_path, group_by=r"S(\d)")
    with pytest.raises(DataError, match="where its pictures would be taken for patches; give another"):
        PatchInferenceDatalist(tmp_path, output_dir=tmp_path / "b/out")
    assert PatchInferenceDatalist(tmp_path, output_dir=tmp_path.with_name("out")).patch_size == data.patch_size
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds neither datalist.json nor .*prepare_image_folder"):
        PatchInferenceDatalist(tmp_path / "empty")
    with pytest.raises(DataError, match="no such datalist"):
        PatchInferenceDatalist(tmp_path, "mine.json")


def test_inference_takes_a_list(tmp_path):
    for row, name in enumerate(("one/a-1.png", "one/a-2.png", "two/b.png")):
        save(tmp_path / name, pixels(row))
    (tmp_path / "list.txt").write_text(f"# patches\none/a-2.png\n\n{tmp_path / 'two/b.png'}\n")
    data = PatchInferenceDatalist(tmp_path, "list.txt")
    assert names(data.cases) == ["a-2", "b"] and [case["patient"] for case in data.cases] == ["a", "b"]
    assert PatchInferenceDatalist(tmp_path / "list.txt").cases == data.cases
    (tmp_path / "list.csv").write_text("image;patient\none/a-1.png;P7\ntwo/b.png;\n")
    data = PatchInferenceDatalist(tmp_path, "list.csv")
    assert names(data.cases) == ["a-1", "b"] and [case["patient"] for case in data.cases] == ["P7", "b"]
    (tmp_path / "list.txt").write_text("one/a-3.png\none/a-4.png\n")
    with pytest.raises(DataError, match=r"2 problems:\n.*a-3.png: file not found\n.*a-4.png: file not found"):
        PatchInferenceDatalist(tmp_path, "list.txt")
    (tmp_path / "list.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="lists no patch"):
        PatchInferenceDatalist(tmp_path, "list.txt")
    (tmp_path / "list.csv").write_text("file\none/a-1.png\n")
    with pytest.raises(DataError, match="no column 'image'; its columns are file"):
        PatchInferenceDatalist(tmp_path, "list.csv")


def test_a_list_may_come_from_windows(tmp_path):
    save(tmp_path / "Präparat-1.png", pixels(1))
    for encoding in ("cp1252", "utf-8-sig", "utf-16"):
        (tmp_path / "list.txt").write_text("Präparat-1.png\r\n", encoding=encoding)
        cases = PatchInferenceDatalist(tmp_path, "list.txt").cases
        assert [(Path(case["image"]).name, case["patient"]) for case in cases] == [("Präparat-1.png", "Präparat")]


@pytest.mark.parametrize(
    "line",
    ["{c}/x-1.png", '"{d}/x-1.png"', "'{c}/x-1.png'", r".\{d}\x-1.png", r"Q:{root}\{c}\x-1.png", r'".\{c}\x-1.png"'],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_paths_of_a_list_are_found_in_quotation_marks_of_windows_and_composed_or_not(tmp_path, line, form):
    composed, apart = (unicodedata.normalize(name, "Präparat") for name in ("NFC", "NFD"))
    image = tmp_path / unicodedata.normalize(form, "Präparat") / "x-1.png"
    save(image, pixels(1))
    line = line.format(c=composed, d=apart, root=str(tmp_path).replace("/", "\\"))
    (tmp_path / "list.txt").write_text(f"{line}\n")
    case = PatchInferenceDatalist(tmp_path, "list.txt").cases[0]
    assert Path(case["image"]) == image and case["patient"] == "x"
    (tmp_path / "list.csv").write_text("image;patient\n{};P1\n".format(line.replace('"', "")))
    assert Path(PatchInferenceDatalist(tmp_path, "list.csv").cases[0]["image"]) == image


def test_inference_asks_nothing_but_says_what_it_took(tmp_path, caplog):
    for row, name in enumerate(("HP/S1/a.png", "HP/S1/b.png", "SSA/S2/c.png", "SSA/S2/d.png")):
        save(tmp_path / name, pixels(row))
    (tmp_path / "HP/S1/c.gif").touch()
    (tmp_path / "HP/S1/.hidden.png").touch()
    save(tmp_path / "masks/HP/S1/a.png", pixels(0))
    data = PatchInferenceDatalist(tmp_path, classes=["HP", "SSA"])
    assert [case["patient"] for case in data.cases] == ["HP/S1/a", "HP/S1/b", "SSA/S2/c", "SSA/S2/d"]
    assert "Every patch is taken for a patient of its own; give --datalist#group_by" in caplog.text
    assert "2 groups of patches, as S1 (2), S2 (2)" in caplog.text
    for line in ("1 other files (.gif): HP/S1/c.gif", "1 hidden, or left by a system", "1 masks: masks/HP/S1/a.png"):
        assert f"not taken: {line}" in caplog.text
    data = PatchInferenceDatalist(tmp_path, classes=["HP", "SSA"], group_by="folder")
    assert [case["patient"] for case in data.cases] == ["S1", "S1", "S2", "S2"]


def test_inference_refuses_slides_magnifications_and_oblong_patches(tmp_path):
    for row, name in enumerate(("10x/a.png", "40x/b.png", "slide.svs")):
        save(tmp_path / name, pixels(row), **({"format": "TIFF"} if row == 2 else {}))
    with pytest.raises(DataError, match=r"1 whole slides are no patches: slide.svs(.|\n)*10x \(1\), 40x \(1\)"):
        PatchInferenceDatalist(tmp_path)
    save(tmp_path / "one/a.png", pixels(1, (12, 9)))
    with pytest.raises(DataError, match=r"1 patches are not square, 9 x 12 pixels: a\.png; cut squares"):
        PatchInferenceDatalist(tmp_path / "one")


def test_oblong_patches_and_three_classes_are_refused(folder):
    save(folder.root / "image/P1-1.png", pixels(3, (12, 10)))
    assert "1 patches are not square, 10 x 12 pixels: image/P1-1.png" in folder.problems()[0]
    save(folder.root / "image/P1-1.png", pixels(3))
    folder.content["classes"] = ["a", "b", "c"]
    assert "num_classes must be 2, got 3" in folder.problems(num_classes=3)[0]


def test_a_name_in_another_encoding_is_refused(folder):
    spoil(0, image="image/Pr\udce4-0.png")(folder)
    assert any(line.startswith("training[0]: ") and "is not UTF-8" in line for line in folder.problems())


def test_neither_torch_nor_monai_is_imported(folder):
    folder.read()
    code = (
        "import sys; from shared.data import PatchDatalist, PatchInferenceDatalist;"
        f"PatchDatalist({str(folder.root)!r}); PatchInferenceDatalist({str(folder.root)!r});"
        "assert not {'torch', 'monai', 'pandas', 'nibabel'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason="EBHI-Seg is not there: put it into ../shared/data/ebhi_seg")
def test_a_real_folder_is_read_whole_and_a_damaged_copy_is_found(tmp_path):
    data = PatchInferenceDatalist(REAL / "Serrated adenoma", group_by="^[^-]+")
    assert len(data.cases) == 40 and len({case["patient"] for case in data.cases}) == 7
    assert not any("label" in Path(case["image"]).parts for case in data.cases)
    for case in data.cases[:3]:
        shutil.copy(case["image"], tmp_path)
    path = tmp_path / Path(data.cases[1]["image"]).name
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DataError, match=path.name):
        PatchInferenceDatalist(tmp_path)
