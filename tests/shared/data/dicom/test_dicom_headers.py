"""Headers of a folder: any names and depth, DICOMDIR, files without preamble, copies; no identity in what is kept."""

from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from shared.apps.phantoms.dicom import make_series, write_series  # noqa: E402
from shared.data.dicom.headers import find_files, read_folder, scrubbed  # noqa: E402
from shared.data.dicom.library import dicom_library  # noqa: E402
from tests.support.tiny_dicom import make_multiframe, series_affine  # noqa: E402

VOLUME = np.zeros((4, 4, 3), np.int16)


def test_any_depth_and_name_and_what_is_no_dicom(tmp_path):
    slices = make_series(VOLUME, series_affine(), EchoTime=2.5, ContentTime="10")
    paths = write_series(tmp_path / "a" / "b.c", slices)
    (tmp_path / "notes.txt").write_text("DICM")
    (tmp_path / "mask.nii.gz").write_bytes(b"x")
    (tmp_path / "copy").write_bytes(paths[0].read_bytes())  # one instance exported twice
    # without preamble and file meta information, as old archives keep them
    bare = make_series(VOLUME[:, :, :1], series_affine(), number=2)[0]
    del bare.file_meta
    pydicom.dcmwrite(tmp_path / "bare", bare, implicit_vr=True, little_endian=True, enforce_file_format=False)
    scan = read_folder(tmp_path, ["ContentTime"])
    assert len(scan.instances) == 4 and scan.others == 1 and scan.nifti == [tmp_path / "mask.nii.gz"]
    assert not scan.unreadable and not scan.changed
    assert scan.instances[0].values["ContentTime"] == "10" and scan.instances[0].values["EchoTime"] == 2.5
    dicom, nifti, packed = find_files(tmp_path)
    assert len(dicom) == 5 and nifti == scan.nifti and not packed and find_files(tmp_path / "none") == ([], [], [])


def test_copies_that_differ_and_broken_files_are_counted(tmp_path):
    slices = make_series(VOLUME, series_affine())
    paths = write_series(tmp_path, slices)
    slices[0].PixelData = bytes(range(32))
    slices[0].save_as(tmp_path / "z", enforce_file_format=True)
    (tmp_path / "a").write_bytes(paths[0].read_bytes()[:300])
    scan = read_folder(tmp_path)
    assert scan.changed == {"P001": 1} and scan.unreadable == [4]


def test_dicomdir_is_compared_with_the_files(tmp_path):
    fileset = dicom_library("pydicom.fileset").FileSet()
    for one in make_series(VOLUME, series_affine()):
        fileset.add(one)
    fileset.write(tmp_path)
    assert len(find_files(tmp_path)[0]) == 3  # it lists images and is none
    assert read_folder(tmp_path).absent == 0 and len(read_folder(tmp_path).instances) == 3
    next(path for path in tmp_path.rglob("*") if path.is_file() and path.name != "DICOMDIR").unlink()
    scan = read_folder(tmp_path)
    assert scan.absent == 1 and len(scan.instances) == 2


def test_functional_groups_are_read_by_the_plain_names(tmp_path):
    slices = make_series(VOLUME, series_affine(spacing=(1, 2, 3)), slope=2.0, EchoTime=4.0)
    write_series(tmp_path, [make_multiframe(slices)])
    (one,) = read_folder(tmp_path).instances
    assert one.values["EchoTime"] == 4.0 and one.values["RepetitionTime"] == 5.0 and len(one.frames) == 3
    assert one.frames[2].position == (0, 0, 6) and one.frames[0].spacing == (2, 1) and one.frames[0].slope == 2


def test_what_pydicom_says_of_wrong_values_is_not_shown(tmp_path, recwarn, caplog, capfd):
    """Its warnings quote them."""
    series = make_series(VOLUME, series_affine())
    for one in series:
        one[0x00200052] = pydicom.DataElement(0x00200052, "UI", "SECRET", validation_mode=0)
        one[0x00180015] = pydicom.DataElement(0x00180015, "CS", "Secret of Anna", validation_mode=0)
    write_series(tmp_path, series)
    recwarn.clear()
    caplog.clear()
    assert len(read_folder(tmp_path).instances) == 3
    shown = " ".join([*(str(one.message) for one in recwarn), caplog.text, *capfd.readouterr()])
    assert "secret" not in shown.casefold()


def test_no_identity_in_the_values(tmp_path):
    named = dict.fromkeys(
        ("OperatorsName", "ReferringPhysicianName", "PatientComments", "InstitutionAddress"), "SECRET"
    )
    write_series(
        tmp_path, make_series(VOLUME, series_affine(), PatientName="Secret^Anna", PatientBirthDate="19600203", **named)
    )
    (one, *_) = read_folder(Path(tmp_path)).instances
    assert "secret" not in str(dict(one.values)).casefold() and "19600203" not in str(dict(one.values))
    assert scrubbed("Anna T1 secret 19600203 portal", one.hidden) == "... T1 ... ... portal"
