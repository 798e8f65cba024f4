"""Which images of a folder are of which class and part: layouts that are understood, and those that are refused."""

import os

import pytest

from shared.data.patches.layout import Layout
from shared.errors import DataError


@pytest.fixture
def put(tmp_path):
    def put(*names):
        for name in names:
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "set"

    return put


def taken(layout):
    return {image.inner.as_posix(): (part, name) for image, part, name in layout.images}


def refused(folder, *arguments, **options):
    with pytest.raises(DataError) as caught:
        Layout(folder, *arguments, **options)
    return str(caught.value)


# --- understood -------------------------------------------------------------------------------------------------------


def test_images_and_masks_beside_each_other_are_no_classes(put):
    layout = Layout(put("images/HP/a.png", "images/SSA/b.png", "masks/HP/a.png", "masks/SSA/b.png", "masks/SSA/c.png"))
    assert layout.classes == ["HP", "SSA"] and not layout.official and not layout.left_out
    assert taken(layout) == {"images/HP/a.png": ("training", "HP"), "images/SSA/b.png": ("training", "SSA")}
    entries, _ = layout.entries("none")
    assert entries["training"][0] == {
        "image": "images/HP/a.png",
        "patient": "images/HP/a",
        "label": 0,
        "mask": "masks/HP/a.png",
    }
    assert layout.not_taken == {"masks of no image that is taken": ["masks/SSA/c.png"]}


@pytest.mark.parametrize("form", ["{part}/{name}", "{name}/{part}"])
@pytest.mark.parametrize("parts", [("train_data", "val_data", "test_data"), ("Training", "valid", "Test set")])
def test_parts_above_and_below_the_classes_are_a_split(put, form, parts):
    names = [form.format(part=part, name=name) + "/1.png" for part in parts for name in ("HP", "SSA")]
    layout = Layout(put(*names))
    assert layout.classes == ["HP", "SSA"] and layout.official
    expected = [(part, name) for part in ("training", "validation", "testing") for name in ("HP", "SSA")]
    assert taken(layout) == dict(zip(names, expected, strict=True))
    assert set(taken(Layout(put(), resplit=True)).values()) == {("training", "HP"), ("training", "SSA")}


def test_one_magnification_is_chosen(put):
    folder = put("10x/HP/a.png", "10x/SSA/b.png", "x40/HP/c.png", "x40/SSA/d.png", "HP/e.png")
    text = refused(folder)
    assert "10x (2 images), 40x (2 images), none (1 images); choose one with --magnification" in text
    assert "images are not of 20x" in refused(folder, magnification="20x")
    layout = Layout(folder, magnification="40X")
    assert set(taken(layout)) == {"x40/HP/c.png", "x40/SSA/d.png"}
    assert layout.not_taken["of another magnification than 40x"] == ["10x/HP/a.png", "10x/SSA/b.png", "HP/e.png"]
    for image, _, _ in layout.images:
        image.path.unlink()
    put("10x/HP/f.png")
    (folder / "HP/e.png").unlink()
    assert len(Layout(folder).images) == 3  # the only one is no question


def test_classes_state_the_meaning(put):
    folder = put("P1/0/a.png", "P1/1/b.png", "P2/0/c.png", "P2/1/d.png", "P3/1/e.png")
    assert "its classes are P1, P2, P3; folders further down: 0, 1" in refused(folder)
    deep = put("../deep/all/benign/S1/a.png", "../deep/all/malignant/A2/b.png").parent / "deep"
    assert "its classes are all; folders further down: benign, malignant, A2, S1" in refused(deep)
    layout = Layout(folder, ["0", "1"])
    assert [name for _, name in taken(layout).values()] == ["0", "0", "1", "1", "1"]
    entries, how = layout.entries("folder")
    assert [entry["patient"] for entry in entries["training"]] == ["P1", "P2", "P1", "P2", "P3"] and how == "folder"
    folder = put("images/x.png", "masks/y.png")
    assert set(taken(Layout(folder, ["masks", "images"])).values()) == {("training", "masks"), ("training", "images")}


def test_unlabelled_folders_are_taken_but_not_of_what_is_kept_apart(put):
    folder = put("train/A/1.png", "train/B/2.png", "test/A/3.png", "test/B/4.png", "more/5.png", "test/more/6.png")
    layout = Layout(folder, ["A", "B"], ["more"])
    assert taken(layout)["more/5.png"] == ("unlabelled", "more") and "test/more/6.png" not in taken(layout)
    assert layout.not_taken == {"unlabelled, in the testing part": ["test/more/6.png"]}
    assert "label" not in layout.entries("none")[0]["unlabelled"][0]
    left = Layout(folder, ["A", "B"])
    assert left.left_out == ["more"]
    assert left.not_taken == {"in more, which is no class": ["more/5.png", "test/more/6.png"]}


def test_case_and_composed_accents_make_no_other_class(put):
    folder = put("train/Pr\u00e4/1.png", "train/SSA/2.png", "test/pra\u0308/3.png", "test/ssa/4.png")
    assert set(taken(Layout(folder, ["SSA", "Pr\u00e4"])).values()) == {
        ("training", "SSA"),
        ("training", "Pr\u00e4"),
        ("testing", "SSA"),
        ("testing", "Pr\u00e4"),
    }


def test_pictures_beside_a_folder_for_images_are_named_and_not_taken(put):
    layout = Layout(put("HP/image/a.png", "HP/overlay/a.png", "HP/thumb.png", "SSA/b.png", "c.png"))
    assert set(taken(layout)) == {"HP/image/a.png", "SSA/b.png"}
    assert layout.not_taken == {
        "in no class's folder": ["c.png"],
        "outside their class's folder for images": ["HP/overlay/a.png", "HP/thumb.png"],
    }


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("images/1.png", "masks/1.png"), "are images (images): no classes"),
        (("train_data/1.png", "test_data/2.png"), "are test_data (testing), train_data (training): no classes"),
        (("10x/1.png", "40x/2.png"), "are 10x (10x), 40x (40x): no classes"),
    ],
)
def test_folders_without_a_class_are_named(put, names, words):
    text = refused(put(*names))
    assert words in text and "one folder per class is needed" in text and "--classes" in text


def test_two_folders_that_hold_the_same_folders_are_asked_about(put):
    folder = put("raw/HP/1.png", "raw/SSA/2.png", "normalised/HP/1.png", "normalised/SSA/2.png")
    text = refused(folder)
    assert "normalised and raw both hold the folders HP, SSA" in text and "--classes 'HP' 'SSA'" in text
    assert Layout(folder, ["HP", "SSA"]).classes == ["HP", "SSA"]
    assert Layout(folder, ["raw", "normalised"]).classes == ["raw", "normalised"]
    slides = [f"{name}/S{slide}/1.png" for name in ("A", "B") for slide in range(4)]
    assert len(Layout(put(*slides), ["A", "B"]).images) == 8


def test_two_versions_of_every_image_are_asked_about_but_not_counters(put):
    folder = put(*(f"{name}/S{n // 3}-{n}.png" for name in ("original", "normalized") for n in range(12)))
    text = refused(folder)
    assert "12 images of normalized and original have the same names, S0-0, S0-1" in text
    assert "--classes 'normalized' 'original'" in text
    assert Layout(folder, ["original", "normalized"]).classes == ["original", "normalized"]


@pytest.mark.parametrize("form", ["{n}", "patch_{n}", "P{s}/{n}"])
def test_counters_in_both_classes_are_no_question(put, form):
    names = [f"{name}/{form.format(n=n, s=n // 3)}.png" for name in ("HP", "SSA") for n in range(12)]
    assert len(Layout(put(*names)).images) == 24


def test_slides_with_tissue_of_both_classes_are_no_question(put):
    assert len(Layout(put(*(f"{name}/S{slide}/1.png" for name in ("A", "B") for slide in range(4)))).images) == 8


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (("train/A/1.png", "train/B/2.png", "A/3.png"), {}, "A lies beside train and test (train/A, train/B)"),
        (("A/test/1.png", "B/test/2.png"), {}, "has A/test, B/test and no folder train; --resplit"),
        (("train/test/A/1.png", "B/2.png"), {}, "1 images lie in folders of two parts of a split"),
        (("A/B/1.png", "B/2.png"), {"classes": ["A", "B"]}, "1 images lie in the folders of two classes"),
        (("A/1.png", "B/2.png", "C/3.png"), {}, "name two classes, in the order of their labels, with --classes"),
        (("A/1.png", "B/2.png"), {"classes": ["A"]}, "name two classes"),
        (("A/1.png",), {}, "its classes are A"),
        (("A/1.png", "test/2.png"), {}, "its classes are A; folders with another meaning: test (testing)"),
        (("A/1.png", "B/2.png"), {"classes": ["A", "X"]}, "no images of class 'X'; its classes are A, B"),
        (("A/1.png", "B/2.svs"), {}, "1 whole slides are no patches: B/2.svs; cut patches of them first"),
        (("notes.txt",), {}, "has no images that are read; there is other files (.txt)"),
    ],
)
def test_contradictions_are_refused_by_name(put, names, options, words):
    assert words in refused(put(*names), **options)


def test_three_classes_are_refused_with_what_to_do(put):
    text = refused(put("A/1.png", "B/2.png", "C/3.png"), ["B", "C", "A"])
    assert "--classes names 3, B, C, A" in text and "(--classes 'B' 'C')" in text and "--unlabelled" in text


def test_a_name_that_no_table_can_hold_is_refused_before_the_work(put):
    folder = put("A/1.png", "B/2.png")
    try:
        (folder / "A" / os.fsdecode(b"Pr\xe4parat.png")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    text = refused(folder)
    assert r"b'A/Pr\xe4parat.png': the name is not UTF-8 (as Latin-1 it reads 'A/Pr\xe4parat.png')" in text.replace(
        "\u00e4", r"\xe4"
    )


def test_names_in_another_encoding_that_are_not_taken_can_be_printed(put):
    folder = put("A/1.png", "B/2.png")
    try:
        (folder / "A" / os.fsdecode(b"Pr\xe4parat.txt")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert Layout(folder).not_taken == {"other files (.txt)": [r"A/Pr\udce4parat.txt"]}
