"""Which files are patches, which masks, and whose."""

from pathlib import PurePath

import pytest

from shared.data.patch_files import by_part, class_images, find_images, group_of, groups_of
from shared.errors import DataError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root):
    return {
        image.relative_to(root).as_posix(): mask and mask.relative_to(root).as_posix()
        for image, mask in class_images(root)
    }


def test_folders_for_images_and_masks(tmp_path):
    touch(tmp_path, "image/a.png", "image/b.png", "label/a.png", "label/lone.png", "thumbnail.png", "image/.hidden.png")
    assert found(tmp_path) == {"image/a.png": "label/a.png", "image/b.png": None}


def test_images_in_the_class_folder_with_masks_beside(tmp_path):
    touch(tmp_path, "a.png", "a_mask.png", "B.JPG", "B-seg.PNG", "c.tif", "masks/c.png", "d_mask.png", "notes.txt")
    assert found(tmp_path) == {"a.png": "a_mask.png", "B.JPG": "B-seg.PNG", "c.tif": "masks/c.png", "d_mask.png": None}


def test_masks_folder_with_endings_and_folders_of_patients(tmp_path):
    touch(tmp_path, "images/P1/x.png", "masks/P1/x_mask.png", "images/P2/x.png", "masks/P2/x.png")
    assert found(tmp_path) == {"images/P1/x.png": "masks/P1/x_mask.png", "images/P2/x.png": "masks/P2/x.png"}
    assert [path.name for path in find_images(tmp_path)] == ["x.png", "x.png"]


@pytest.mark.parametrize(
    ("path", "pattern", "group"),
    [
        ("a/GT1-2-3.png", None, "GT1"),
        ("a/GT1.png", None, "a/GT1"),  # names may start anew in every folder
        ("a/-1.png", None, "a/-1"),
        ("a/GT1-2-3.png", "none", "a/GT1-2-3"),
        ("a/GT1-2-3.png", r"^GT\d", "GT1"),
        ("a/GT1-2-3.png", r"^(\w+)-(\d)", "GT1"),
        ("a/P7_31.png", r"^(.+)_\d+$", "P7"),  # without the ending
        ("a/P7_31.png", r"^(.+)_\d+\.png$", "P7"),
        ("a/P7/x.png", r"([^/]+)/[^/]+$", "P7"),
        ("a/x.png", r"^P\d", None),
        ("a/x.png", r"^(P\d)?", None),
    ],
)
def test_the_group_of_a_file(path, pattern, group):
    assert group_of(PurePath(path), pattern) == group


def test_a_pattern_that_fits_nothing_or_is_none():
    paths = [PurePath("a/P1_1.png"), PurePath("a/x.png")]
    with pytest.raises(DataError, match=r"does not fit 1 of 2 file names, as a/x.png; .* --group-by none"):
        groups_of(paths, r"^P\d")
    with pytest.raises(DataError, match="is no regular expression: missing"):
        groups_of(paths, r"(P\d")


def test_folders_of_an_official_split(tmp_path):
    touch(tmp_path, "Train/a/1.png", "validation/a/1.png", "TEST/a/1.png", "docs/readme.txt")
    parts = by_part(tmp_path)
    assert {part: [path.name for path in paths] for part, paths in parts.items()} == {
        "training": ["Train"],
        "validation": ["validation"],
        "testing": ["TEST"],
    }
    touch(tmp_path, "other/1.png")
    assert by_part(tmp_path, ["other"]) == parts
    with pytest.raises(DataError, match="other lies beside train and test"):
        by_part(tmp_path)


def test_a_split_needs_its_training_part(tmp_path):
    touch(tmp_path, "a/1.png", "b/1.png")
    assert by_part(tmp_path) == {}
    touch(tmp_path, "test/a/1.png")
    with pytest.raises(DataError, match="has test and no folder train"):
        by_part(tmp_path)
