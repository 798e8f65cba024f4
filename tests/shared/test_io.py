import csv
import io
import json
import math
import re
import tempfile

import pytest

from shared.apps.preparation.streamlines import read_streamlines
from shared.checkpoint import load_checkpoint
from shared.data import TractAtlas
from shared.data.checks import image_header_problem
from shared.data.patches.reading import read_patch
from shared.errors import CheckpointError, DataError, describe
from shared.io import atomic_path, check_folder, disguise, write_csv, write_json
from shared.losses import PerceptualReconstructionLoss


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_with_its_folder(tmp_path):
    target = tmp_path / "a" / "b" / "table.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.name.endswith(".nii.gz") and not target.exists()
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole" and names(target.parent) == ["table.nii.gz"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_older_file_and_no_temporary(tmp_path, error):
    target = tmp_path / "table.txt"
    target.write_text("older")
    with pytest.raises(type(error)), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "older" and names(tmp_path) == ["table.txt"]


def test_a_full_disk_is_told_with_the_file_that_was_being_written(tmp_path):
    copied = OSError(28, "No space left on device", "source.nii.gz", None, "target.nii.gz")
    with pytest.raises(OSError, match="No space") as caught, atomic_path(tmp_path / "table.txt"):
        raise copied
    assert describe(caught.value).startswith(f"{tmp_path / 'table.txt'}: No space left on device; free some space")
    with pytest.raises(OSError, match="denied") as caught, atomic_path(tmp_path / "table.txt") as temporary:
        raise PermissionError(13, "Permission denied", str(temporary))
    assert caught.value.filename == str(tmp_path / "table.txt")
    with pytest.raises(OSError, match="denied") as caught, atomic_path(tmp_path / "table.txt"):
        raise PermissionError(13, "Permission denied", "read.csv")
    assert caught.value.filename == "read.csv"


def test_a_folder_is_checked_before_it_is_made(tmp_path, monkeypatch):
    check_folder(tmp_path / "new" / "er")
    assert not names(tmp_path)
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        with pytest.raises(DataError, match=rf"{place} cannot be written to: Not a directory; a file stands"):
            check_folder(tmp_path / place)

    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: Full())
    with pytest.raises(DataError, match=r"new cannot be written to: No space left on device; free some space"):
        check_folder(tmp_path / "new")


def test_two_writers_of_one_file_do_not_share_a_temporary(tmp_path):
    with atomic_path(tmp_path / "t.txt") as first, atomic_path(tmp_path / "t.txt") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "t.txt").read_text() == "first" and names(tmp_path) == ["t.txt"]


def test_json_is_readable_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a.json", {"AUC": 0.5, "classes": ["Ü"]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"AUC": 0.5, "classes": ["Ü"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"AUC": math.nan})
    assert json.loads((tmp_path / "a.json").read_text())["AUC"] == 0.5


def test_csv_has_the_columns_asked_for(tmp_path):
    rows = [{"patient": "Doe, J.", "label": 1}, {"patient": "P2", "label": ""}]
    write_csv(tmp_path / "a.csv", rows)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{"patient": "Doe, J.", "label": "1"}, {"patient": "P2", "label": ""}]
    write_csv(tmp_path / "a.csv", rows, ["label", "patient"])
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == "label,patient"
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        write_csv(tmp_path / "a.csv", [*rows, {"patient": "P3", "probability": 0.1}])
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == "label,patient" and names(tmp_path) == ["a.csv"]
    write_csv(tmp_path / "none.csv", [], ["patient"])
    assert (tmp_path / "none.csv").read_text().split() == ["patient"]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><title>Log in</title></html>\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "is a pointer of Git LFS, not the file itself; fetch that with git lfs pull"),
        (b"../.git/annex/objects/Xk/w4/SHA256E-s12--ab.nii.gz", "is a pointer of git-annex, not the file itself"),
        (PAGE, r"is a web page \(HTML\), such as a login or an error, not the file itself; download that again"),
        (b"<HTML><BODY>404</BODY></HTML>", r"is a web page \(HTML\)"),
    ],
)
def test_a_file_that_stands_in_anothers_place_says_what_it_is(tmp_path, content, message):
    paths = {ending: tmp_path / f"file.{ending}" for ending in ("pt", "nii.gz", "npz", "png", "tck")}
    for path in paths.values():
        path.write_bytes(content)
    assert re.match(message, image_header_problem(paths["nii.gz"])[0])
    for error, read in (
        (CheckpointError, lambda: load_checkpoint(paths["pt"])),
        (CheckpointError, lambda: PerceptualReconstructionLoss(paths["pt"])),
        (DataError, lambda: TractAtlas.load(paths["npz"])),
        (DataError, lambda: read_patch(paths["png"])),
        (DataError, lambda: read_streamlines(paths["tck"])),
    ):
        with pytest.raises(error, match=message):
            read()


def test_what_is_the_file_itself_is_not_suspected(tmp_path):
    assert disguise(tmp_path / "none") is None
    for content in (b"", b"PK\x03\x04", b"\x1f\x8b\0/annex/objects/\0", b"version 2", b"patient,label\n<html>,1\n"):
        (tmp_path / "file").write_bytes(content)
        assert disguise(tmp_path / "file") is None


def test_json_says_where_nan_is(tmp_path):
    content = {"training": [{"age": 1.0}, {"age": math.nan}], "AUC": (0.5, math.inf)}
    with pytest.raises(DataError, match=r"a.json cannot hold .*, which training.1.age, AUC.1 are; leave such values"):
        write_json(tmp_path / "a.json", content)
    assert not names(tmp_path)
