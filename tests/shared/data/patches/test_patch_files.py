"""Which files of a folder are patches, which masks, and what the folders' names say."""

import os
import unicodedata

import pytest

from shared.data.patches.files import is_utf8, meaning, scan


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root):
    """Images and their masks, or None."""
    files = scan(root)
    return {image.inner.as_posix(): (mask := files.mask_of(image)) and mask.inner.as_posix() for image in files.images}


def test_folders_for_images_and_masks(tmp_path):
    touch(tmp_path, "HP/image/a.png", "HP/image/b.png", "HP/label/a.png", "HP/label/lone.png", "HP/image/.hidden.png")
    assert found(tmp_path) == {"HP/image/a.png": "HP/label/a.png", "HP/image/b.png": None}
    assert all(image.inside and image.name == "HP" for image in scan(tmp_path).images)


def test_images_in_the_class_folder_with_masks_beside(tmp_path):
    touch(tmp_path, "a.png", "a_mask.png", "B.JPG", "B-seg.PNG", "c.tif", "masks/c.png", "d_mask.png", "notes.txt")
    assert found(tmp_path) == {"a.png": "a_mask.png", "B.JPG": "B-seg.PNG", "c.tif": "masks/c.png", "d_mask.png": None}


def test_every_mask_of_an_image_is_one_and_the_first_is_taken(tmp_path):
    touch(tmp_path, "b/benign (4).png", "b/benign (4)_mask.png", "b/benign (4)_mask_1.png", "b/benign (4)_mask_2.png")
    touch(tmp_path, "b/lone_mask_1.png", "b/c.png", "b/c_gt.png", "b/d.png", "b/d_Segmentation.png")
    assert found(tmp_path) == {
        "b/benign (4).png": "b/benign (4)_mask.png",
        "b/lone_mask_1.png": None,
        "b/c.png": "b/c_gt.png",
        "b/d.png": "b/d_Segmentation.png",
    }
    assert scan(tmp_path).not_taken == {
        "further masks of an image that has one": ["b/benign (4)_mask_1.png", "b/benign (4)_mask_2.png"]
    }


def test_masks_are_found_whichever_way_accents_are_composed(tmp_path):
    composed, apart = (unicodedata.normalize(form, "Mü1") for form in ("NFC", "NFD"))
    touch(tmp_path, f"{composed}/images/{composed}.png", f"{apart}/masks/{apart}.png")
    touch(tmp_path, f"x/{composed}.png", f"x/{apart}_mask.png")
    assert found(tmp_path) == {
        f"{composed}/images/{composed}.png": f"{apart}/masks/{apart}.png",
        f"x/{composed}.png": f"x/{apart}_mask.png",
    }


def test_masks_folder_with_endings_and_folders_of_patients(tmp_path):
    touch(tmp_path, "images/P1/x.png", "masks/P1/x_mask.png", "images/P2/x.png", "masks/P2/x.png")
    assert found(tmp_path) == {"images/P1/x.png": "masks/P1/x_mask.png", "images/P2/x.png": "masks/P2/x.png"}


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/HP", "masks/HP"),
        ("HP/images", "HP/masks"),
        ("train_images/HP", "train_masks/HP"),
        ("train/images/HP", "train/ground_truth/HP"),
        ("HP/test/img", "HP/test/annotations"),
        ("40x/HP/S1", "40x/HP/masks/S1"),
    ],
)
def test_masks_are_found_wherever_their_folder_lies(tmp_path, images, masks):
    touch(tmp_path, f"{images}/x.png", f"{masks}/x.png", "images/SSA/x.png")
    assert found(tmp_path) == {f"{images}/x.png": f"{masks}/x.png", "images/SSA/x.png": None}


@pytest.mark.parametrize(
    ("name", "part", "kind", "magnification"),
    [
        ("Train", "training", None, None),
        ("train_data", "training", None, None),
        ("trainset", "training", None, None),
        ("TEST", "testing", None, None),
        ("GT_png", None, "masks", None),
        ("img_png", None, "images", None),
        ("test data set", "testing", None, None),
        ("validation", "validation", None, None),
        ("Val-Images", "validation", "images", None),
        ("training_masks", "training", "masks", None),
        ("image_masks", None, "masks", None),
        ("patches", None, "images", None),
        ("10x", None, None, "10x"),
        ("X40", None, None, "40x"),
        ("2.5 X", None, None, "2.5x"),
        ("HP", None, None, None),
        ("label 0", None, None, None),
        ("tested", None, None, None),
        ("train_test", None, None, None),
        ("0", None, None, None),
    ],
)
def test_what_a_folder_says(name, part, kind, magnification):
    said = meaning(name)
    assert (said.part, said.kind, said.magnification) == (part, kind, magnification)
    assert bool(said) == any((part, kind, magnification))


def test_a_claimed_name_is_a_class_whatever_else_it_means(tmp_path):
    touch(tmp_path, "P1/images/a.png", "P1/masks/a.png", "P2/images/b.png")
    names = [(image.name, image.kind) for image in scan(tmp_path, ["images", "Masks"]).images]
    assert names == [("images", "image"), ("masks", "image"), ("images", "image")]
    assert [image.folders for image in scan(tmp_path, ["images", "masks"]).images] == [("P1",), ("P1",), ("P2",)]


def test_linked_folders_are_followed_and_all_that_is_not_taken_is_named(tmp_path):
    root, elsewhere = tmp_path / "set", tmp_path / "disk"
    touch(elsewhere, "S2/b.png")
    touch(root, "HP/S1/a.bmp", "HP/.ipynb_checkpoints/a.png", "HP/._a.png", "HP/a.gif", "HP/b.xyz", "slide.SVS", "x")
    (root / "HP/S2").symlink_to(elsewhere / "S2")
    (root / "HP/up").symlink_to(root)  # a loop
    (root / "HP/gone.png").symlink_to("/nowhere/a.png")
    files = scan(root)
    assert [image.inner.as_posix() for image in files.images] == ["HP/S1/a.bmp", "HP/S2/b.png"]
    assert files.slides == ["slide.SVS"]
    assert files.not_taken == {
        "other files (.gif)": ["HP/a.gif"],
        "other files (.xyz)": ["HP/b.xyz"],
        "other files (no ending)": ["x"],
        "links that lead nowhere": ["HP/gone.png"],
        "hidden, or left by a system": ["HP/._a.png", "HP/.ipynb_checkpoints"],
    }


def test_a_name_in_another_encoding_is_told_from_utf8():
    assert is_utf8("Präparat.png") and not is_utf8(os.fsdecode(b"Pr\xe4parat.png"))
