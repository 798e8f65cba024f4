"""Helpers of the preparation scripts: tables, deterministic NIfTI files, manifests."""

import gzip
import json
import os
import sys

import nibabel as nib
import numpy as np
import pytest

from shared.apps.preparation.files import begin, place_file, save_nifti, write_datalist, write_manifest
from shared.apps.preparation.matching import files_of_patients, match_files
from shared.data.tables import read_table
from shared.digests import Digests
from shared.errors import DataError


@pytest.mark.parametrize(
    "content",
    [
        b"patient,age\nA,4\nB,5\n",
        b"\xef\xbb\xbfpatient;age\r\n A ; 4\r\nB;5\r\n;\r\n",
        b'patient\tage\r\n"A"\t4\r\nB\t5\r\n\r\n',
        b"patient ,age,\nA,4,\nB,5,\n",
    ],
)
def test_tables_of_any_spreadsheet_read_alike(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    assert read_table(path, ["age"]) == [{"patient": "A", "age": "4"}, {"patient": "B", "age": "5"}]


def test_windows_encoding_and_short_rows(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("patient,ort,age\nMüller,Köln\n".encode("cp1252"))
    assert read_table(path) == [{"patient": "Müller", "ort": "Köln", "age": ""}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the first line must name the columns"),
        (b"patient,age\n", "has column names and no rows"),
        (b"patient,age,age\n1,2,3\n", "column 'age' appears twice"),
        (b"patient\n1\n", "no column 'age'; its columns are patient"),
    ],
)
def test_tables_that_are_none(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_table(path, ["age"])


def test_nifti_files_are_the_same_bytes_at_any_time(tmp_path, monkeypatch):
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    affine = np.diag([-2.0, 1.0, 5.0, 1.0])
    save_nifti(tmp_path / "a" / "x.nii.gz", array, affine, description="d" * 200)
    monkeypatch.setattr("time.time", lambda: 2e9)
    save_nifti(tmp_path / "b" / "y.nii.gz", array, affine, description="d" * 200)
    assert (tmp_path / "a" / "x.nii.gz").read_bytes() == (tmp_path / "b" / "y.nii.gz").read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.nii.gz"]
    image = nib.load(tmp_path / "a" / "x.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), array) and image.get_data_dtype() == np.int16
    assert np.array_equal(image.affine, affine) and image.header.get_xyzt_units()[0] == "mm"
    save_nifti(tmp_path / "z.nii", array, affine)
    assert (tmp_path / "z.nii").read_bytes()[348:] == gzip.decompress((tmp_path / "a/x.nii.gz").read_bytes())[348:]


def test_manifest_and_datalist(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/prepare.py", "a folder", "--seed", "1"])
    begin(tmp_path / "new")
    write_manifest(tmp_path / "new", sources={"a": "00"}, note=1)
    write_datalist(tmp_path / "new", name="n", modalities=("T1",), classes=("a", "b"), training=[{"patient": "P"}])
    manifest = json.loads((tmp_path / "new" / "manifest.json").read_text())
    assert manifest["command"] == "python scripts/prepare.py 'a folder' --seed 1"
    assert manifest["sources"] == {"a": "00"} and manifest["note"] == 1
    assert set(manifest["versions"]) == {"python", "numpy", "nibabel", "scikit-learn"}
    assert json.loads((tmp_path / "new" / "datalist.json").read_text())["testing"] == []
    begin(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_files_are_told_apart_by_whole_words(tmp_path):
    files = [
        "P1/T1/im.nii",
        "P1/T1D_P1.nii.gz",
        "P1/masks/roi.nii.gz",
        "T1_2/T1_2.nii",
        "T1_2/T1_2_t1d.nii",
        "notes.txt",
    ]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = files_of_patients(tmp_path, ["P1", "T1_2"], ["T1", "T1D"])
    assert sorted(found) == ["P1", "T1_2"]
    patterns = dict.fromkeys(["T1", "T1D"])
    images, mask, problems = match_files("P1", found["P1"], tmp_path, patterns, None)
    assert images == {"T1": tmp_path / files[0], "T1D": tmp_path / files[1]}
    assert mask == tmp_path / files[2] and not problems
    # The patient's own name does not count as the modality's word.
    images, mask, problems = match_files("T1_2", found["T1_2"], tmp_path, patterns, None)
    assert list(images) == ["T1D"] and mask is None and "no file matches modality T1 " in problems[0]
    images, _, problems = match_files("P1", found["P1"], tmp_path, {"T1": "T1/*.nii", "T1D": "t1d*"}, "masks/*")
    assert len(images) == 2 and not problems
    _, _, problems = match_files("P1", found["P1"], tmp_path, {"T1": "*t1d*", "T1D": "*t1d*"}, "masks/*")
    assert "matches 2 modalities" in problems[0]


def test_a_file_is_done_by_its_content_not_by_its_size_and_time(tmp_path):
    for name, content in (("a", b"one"), ("b", b"two")):
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, (1e9, 1e9))
    digests = Digests(tmp_path)
    place_file(tmp_path / "a", tmp_path / "out", digests=digests)
    made = (tmp_path / "out").stat().st_ino
    place_file(tmp_path / "a", tmp_path / "out", digests=digests)
    assert (tmp_path / "out").stat().st_ino == made
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    place_file(tmp_path / "a", tmp_path / "out", digests=digests)
    assert (tmp_path / "out").read_bytes() == b"two"
    place_file(tmp_path / "c", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"one"


def test_the_second_run_reads_nothing(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"one")
    digests = Digests(tmp_path)
    place_file(tmp_path / "a", tmp_path / "out", digests=digests)
    digests(tmp_path / "a")
    digests.save()
    monkeypatch.setattr("shared.digests.sha256", None)
    place_file(tmp_path / "a", tmp_path / "out", digests=Digests(tmp_path))
    assert (tmp_path / "out").read_bytes() == b"one"
