"""A folder of DICOM through the preparation scripts; no planted name, date or text in what is written or said."""

import csv
import gzip
import json
import re
import sys

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("highdicom")

from shared.apps.phantoms.dicom import make_series, write_series
from shared.apps.preparation import dicom_step, glioma, patients
from shared.data.dicom.library import dicom_library
from shared.errors import DataError
from tests.references.dicom_stack import stacked_series
from tests.support.tiny_dicom import (
    OBLIQUE,
    SAGITTAL,
    make_segmentation,
    series_affine,
    tiny_patient,
    tiny_volume,
)

PLANTED = "QQSECRET"
BIRTH = "19491231"


def prepare(folder, output, *more, labels=None, modalities="T1,T1V"):
    arguments = [str(folder), *([str(labels)] if labels else ["--inference"]), "--output", str(output)]
    return patients.main([*arguments, "--modalities", modalities, *more])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Three patients, whose every field, file and folder of free text holds a planted word."""
    root = tmp_path_factory.mktemp("export") / f"{PLANTED}_root"
    words = dict.fromkeys(
        (
            *("PatientName", "OtherPatientNames", "PatientAddress", "PatientComments", "ReferringPhysicianName"),
            *("OperatorsName", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "ImageComments"),
            *(
                "StationName",
                "StudyDescription",
                "ProtocolName",
                "PerformedProcedureStepDescription",
                "AccessionNumber",
            ),
            *("RequestedProcedureDescription", "PerformingPhysicianName", "DeviceSerialNumber"),
        ),
        PLANTED,
    )
    for k, (axes, mask) in enumerate([({}, "SEG"), (OBLIQUE, "RTSTRUCT"), (SAGITTAL, "none")]):
        folder = root / f"{PLANTED}_{k}"
        header = words | {"PatientName": f"{PLANTED}{k}^A", "PatientBirthDate": BIRTH}
        phases = (f"T1 {PLANTED}", f"{PLANTED} T1 portal")
        made, ball, affine = tiny_patient(folder, f"HOSP{k}", k, phases=phases, axes=axes, mask=mask, **header)
        write_series(
            folder / "scout",
            make_series(
                made[0][0][:, :, :1], affine, patient=f"HOSP{k}", description=f"{PLANTED} localizer", number=9, **header
            ),
        )
        if mask == "none":
            image = nib.Nifti1Image(ball.astype(np.uint8), affine)
            image.header["descrip"] = PLANTED.encode()
            nib.save(image, folder / f"{PLANTED}_mask.nii.gz")
    labels = root.parent / f"{PLANTED}.csv"
    labels.write_text(
        f"patient;label;{PLANTED};person\nHOSP0;0;{PLANTED};{PLANTED}1\nHOSP1;1;x;b\nHOSP2;0;x;c\nHOSP9;1;x;d\n"
    )
    return root, labels


def leaks(folder, words):
    """Files below a folder, or their names, that hold a word, compressed or not."""
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        content += gzip.decompress(content) if path.suffix == ".gz" else b""
        found += [
            f"{path.name}: {word}" for word in words if word.encode().lower() in (content + path.name.encode()).lower()
        ]
    return found


def test_with_pseudonyms_nothing_leads_back(cohort, tmp_path, monkeypatch, capfd):
    root, labels = cohort
    output = tmp_path / "out"
    arguments = [str(root), str(labels), "--output", str(output), "--modalities", "T1,T1V", "--folds", "0"]
    arguments += ["--group-column", "person", "--skip-missing", f"--pseudonyms={tmp_path / 'out_key.csv'}"]
    arguments += ["--series", "T1=SeriesDescription!~portal & SeriesDescription~T1 & StudyDate!=19491231"]
    monkeypatch.setattr(sys, "argv", ["scripts/prepare_patients.py", *arguments])
    assert patients.main(arguments) == 0
    shown = "".join(capfd.readouterr())
    uids = [
        str(one.SeriesInstanceUID) for one in make_series(np.zeros((1, 1, 1), np.int16), np.eye(4), patient="HOSP0")
    ]
    assert not leaks(output, [PLANTED, BIRTH, "HOSP", *uids])
    # the folder that was typed is the user's own, no file in it
    assert not re.findall(PLANTED, shown.replace(str(root), "").replace(str(labels), "")) and "HOSP" not in shown
    key = tmp_path / "out_key.csv"
    assert key.stat().st_mode & 0o777 == 0o600
    names = {row["patient_id"]: row["pseudonym"] for row in csv.DictReader(key.open())}
    assert set(names) == {"HOSP0", "HOSP1", "HOSP2", "HOSP9"}
    datalist = json.loads((output / "datalist.json").read_text())
    assert {case["patient"]: case["label"] for case in datalist["training"]} == {
        names["HOSP0"]: 0,
        names["HOSP1"]: 1,
        names["HOSP2"]: 0,
    }
    assert "dicom" not in datalist and not (output / "dicom_source.json").exists()
    kept = tmp_path / "out_key_dicom_source.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert uids[0] in kept.read_text()
    rows = [*csv.DictReader((output / "acquisition.csv").open())]
    assert [row["site"] for row in rows] == ["1"] * 6 and {row["plane"] for row in rows} == {
        "axial",
        "oblique",
        "sagittal",
    }
    # again: the same names, nothing converted anew
    before = {path: path.stat().st_mtime_ns for path in (output / "converted").rglob("t1*.nii.gz")}
    assert patients.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before and len(before) == 6


def test_without_pseudonyms_patient_ids_are_the_names(cohort, tmp_path, capfd):
    root, _ = cohort
    output = tmp_path / "out"
    assert prepare(root, output) == 0
    shown = "".join(capfd.readouterr())
    assert PLANTED not in shown.replace(str(root), "") and BIRTH not in shown
    source = (output / "dicom_source.json").read_text()
    (output / "dicom_source.json").write_text(source.replace(root.name, ""))  # it names the folder, no file in it
    assert not leaks(output, [PLANTED, BIRTH])
    datalist = json.loads((output / "datalist.json").read_text())
    assert [case["patient"] for case in datalist["testing"]] == ["HOSP0", "HOSP1", "HOSP2"]
    assert datalist["dicom"] == "dicom_source.json"


def test_values_and_masks_are_those_of_the_series(cohort, tmp_path):
    root, _ = cohort
    output = tmp_path / "out"
    assert prepare(root, output) == 0
    for k in range(3):
        image = nib.load(output / f"HOSP{k}" / "t1v.nii.gz")
        values, places = stacked_series([*(root / f"{PLANTED}_{k}" / "s1").iterdir()])
        where = np.round((places - image.affine[:3, 3]) @ np.linalg.inv(image.affine[:3, :3]).T).astype(int)
        assert np.array_equal(np.asarray(image.dataobj)[tuple(np.moveaxis(where, -1, 0))], values)
        mask = nib.load(output / f"HOSP{k}" / "mask.nii.gz")
        _, ball = tiny_volume(0)
        inside = np.asarray(mask.dataobj)
        if k == 1:  # the structure set outlines the ball's bounding boxes
            ball = np.stack([_box(ball[:, :, z]) for z in range(ball.shape[2])], -1)
        if k < 2:
            inside = inside[tuple(np.moveaxis(where, -1, 0))]
        assert np.array_equal(inside > 0, ball)


def _box(plane):
    out, there = np.zeros_like(plane), np.argwhere(plane)
    if len(there):
        (x0, y0), (x1, y1) = there.min(axis=0), there.max(axis=0)
        out[x0 : x1 + 1, y0 : y1 + 1] = True
    return out


def test_problems_of_all_patients_are_told_at_once_and_nothing_is_written(tmp_path, capfd):
    root = tmp_path / "in"
    tiny_patient(root / "a", "A", phases=("T1", "T1 portal"), mask=None)
    tiny_patient(root / "b", "B", phases=("T1", "T1 portal", "portal venous"), mask=None)
    tiny_patient(root / "c", "C", phases=("T1", "T1 late"), mask=None)
    (root / "a" / "s0" / "IM0014_2").unlink()
    tiny_patient(root / "d", "D", mask=None, PatientName="One^A")
    tiny_patient(root / "e", "D", mask=None, PatientName="Two^B", uids={"SeriesInstanceUID": "1.2.8"})
    tiny_patient(root / "f", "", mask=None, uids={"SeriesInstanceUID": "1.2.7"})
    assert prepare(root, tmp_path / "out") == 2
    shown = capfd.readouterr().err
    for line in (
        r"A: T1: series 1 'T1' .*slices are missing",
        r"B: 2 series are T1V by its common names: series 2 .*; series 3",
        r"C: no series is T1V by its common names.*Its series are: series 1 .*; series 2 'T1 late'",
        r"D: 2 names or birth dates share this PatientID",
        r"12 DICOM files have no PatientID",
    ):
        assert re.search(line, shown), line
    assert not (tmp_path / "out" / "datalist.json").exists() and not [*(tmp_path / "out").rglob("*.nii.gz")]


def test_a_folder_without_pseudonyms_gets_none(tmp_path, capfd):
    tiny_patient(tmp_path / "in", "a1", mask=None)
    (tmp_path / "l.csv").write_text("patient,label\nA1,1\n")
    assert prepare(tmp_path / "in", tmp_path / "out", "--folds", "0", labels=tmp_path / "l.csv") == 0
    assert (tmp_path / "out" / "A1").is_dir()  # the table's capitals
    assert prepare(tmp_path / "in", tmp_path / "out", "--pseudonyms") == 2
    assert "was prepared without --pseudonyms" in capfd.readouterr().err


def test_rules_of_the_command_line(tmp_path, capfd):
    root = tmp_path / "in"
    tiny_patient(root / "b", "B", phases=("T1", "T1 portal", "portal venous"), mask=None)
    tiny_patient(root / "c", "C", phases=("T1", "T1 late"), mask=None)
    rule = ["--series", "T1V=SeriesDescription~venous", "--series", "T1V=SeriesDescription~late"]
    assert prepare(root, tmp_path / "out", *rule) == 0
    record = json.loads((tmp_path / "out" / "dicom_source.json").read_text())["patients"]
    series = dicom_library("pydicom").dcmread(next((root / "b" / "s2").iterdir())).SeriesInstanceUID
    assert record["B"]["T1V"]["series"] == series and len(record["B"]["T1V"]["instances"]) == 6
    assert prepare(root, tmp_path / "out2", "--skip-missing") == 2  # B's two candidates are no lacking file
    assert prepare(root, tmp_path / "out3", *rule[:2], "--skip-missing") == 0
    assert "left out: C: no series is T1V by --series" in capfd.readouterr().out
    for more, message in (
        (["--pattern", "T1=*"], "--pattern is of NIfTI"),
        (["--pseudonyms", str(tmp_path / "out" / "k.csv")], "must lie outside"),
        (["--series", "T5=SeriesNumber=1"], "one of T1, T1V, mask"),
    ):
        assert prepare(root, tmp_path / "out", *more) == 2
        assert message in capfd.readouterr().err


def test_masks_are_chosen_never_guessed(tmp_path, capfd):
    root = tmp_path / "in"
    made, ball, _ = tiny_patient(root, "A")
    make_segmentation(made[0][1], {"liver": ~ball, "lesion": ball}, number=95).save_as(root / "seg2")
    assert prepare(root, tmp_path / "out") == 2
    assert "2 files may be the tumour's mask (SEG series 90; SEG series 95)" in capfd.readouterr().err
    assert prepare(root, tmp_path / "out", "--series", "mask=SeriesNumber=95") == 2
    assert "2 regions ('liver', 'lesion')" in capfd.readouterr().err
    assert prepare(root, tmp_path / "out", "--series", "mask=SeriesNumber=95", "--segments", "Lesion") == 0
    mask = np.asarray(nib.load(tmp_path / "out" / "A" / "mask.nii.gz").dataobj)
    assert mask.sum() == ball.sum()
    # the result of an earlier inference in the same export is no mask
    (root / "seg").unlink()
    own = dicom_library("pydicom").dcmread(root / "seg2")
    own.Manufacturer = "Interpretable imaging biomarkers"
    own.save_as(root / "seg2")
    assert prepare(root, tmp_path / "out") == 0
    assert not (tmp_path / "out" / "converted" / "A" / "mask.nii.gz").exists()
    assert prepare(root, tmp_path / "out", "--mask-pattern", "none") == 0
    assert not (tmp_path / "out" / "converted" / "A" / "mask.nii.gz").exists()


def test_a_segmentation_of_another_series_is_refused(tmp_path, capfd):
    root = tmp_path / "in"
    tiny_patient(root, "A", mask=None)
    other = make_series(
        tiny_volume(5)[0],
        series_affine(spacing=(1.5, 1.25, 3)),
        patient="A",
        number=7,
        uids={"FrameOfReferenceUID": "1.2.3"},
    )
    make_segmentation(other, {"tumour": tiny_volume(5)[1]}).save_as(root / "seg")
    assert prepare(root, tmp_path / "out") == 2
    assert "refers to none of the chosen series" in capfd.readouterr().err


def test_a_run_that_fails_leaves_nothing_that_the_next_takes_for_whole(tmp_path, monkeypatch, capfd):
    folder, output = tmp_path / "in", tmp_path / "out"
    tiny_patient(folder, "P1", phases=("T1", "T1 portal", "T1 late"), mask="none")
    assert prepare(folder, output) == 0
    first, convert = (output / "P1" / "t1.nii.gz").read_bytes(), dicom_step.convert_series

    def fails(instances, stack, target, sidecar):
        if target.name.startswith("t1v"):
            raise DataError("planted")
        return convert(instances, stack, target, sidecar)

    monkeypatch.setattr(dicom_step, "convert_series", fails)
    assert prepare(folder, output, "--series", "T1=SeriesNumber=3") == 2
    monkeypatch.undo()
    assert prepare(folder, output) == 0
    assert (output / "P1" / "t1.nii.gz").read_bytes() == first


def test_options_of_dicom_need_dicom(tmp_path, capfd):
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.int16), np.eye(4)), tmp_path / "in" / "P1.nii.gz")
    assert prepare(tmp_path / "in", tmp_path / "out", "--pseudonyms", modalities="image") == 2
    assert "holds no DICOM file" in capfd.readouterr().err


def nifti_patient(folder, seed):
    folder.mkdir(parents=True)
    for k, name in enumerate(("t1", "t1v", "mask")):
        values = tiny_volume(2 * seed + k)[name == "mask"]
        nib.save(nib.Nifti1Image(values.astype(np.int16), np.eye(4)), folder / f"{name}.nii.gz")


def test_stray_dicom_files_do_not_hide_patients_of_nifti(tmp_path, capfd):
    root, out = tmp_path / "in", tmp_path / "out"
    nifti_patient(root / "P1", 1)
    nifti_patient(root / "P2", 2)
    (root / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert prepare(root, out) == 0
    assert "DICOMDIR" in capfd.readouterr().out.split("not read:")[1]
    stray = make_series(tiny_volume(1)[0][:, :, :1], series_affine(), patient="X")
    write_series(root / "P1" / "scout", stray)
    assert prepare(root, out) == 2
    message = capfd.readouterr().err
    assert "holds 1 DICOM files and 4 NIfTI files that are no masks" in message and "P1/scout/" in message
    assert prepare(root, out, "--pattern", "T1=t1.nii.gz", "--pattern", "T1V=t1v.nii.gz") == 0
    listed = json.loads((out / "datalist.json").read_text())
    assert [case["patient"] for case in listed["testing"]] == ["P1", "P2"]


def test_packed_files_are_refused_without_their_names(tmp_path, capfd):
    root, out = tmp_path / "in", tmp_path / "out"
    write_series(root / "P1", make_series(tiny_volume(1)[0], series_affine(), patient="P1"))
    for number, name in enumerate(("Mueller.dcm.gz", "Mueller.ZIP", "Mueller.tgz")):
        (root / name).write_bytes(b"packed")
        assert prepare(root, out) == 2
        message = capfd.readouterr().err
        assert f"holds {number + 1} packed files or archives (" in message and "unpack them" in message
        assert "Mueller" not in message
    assert not out.exists()
    (root / "P1").rename(tmp_path / "P1")
    assert prepare(root, out) == 2 and "(.gz, .tgz, .zip), in which DICOM" in capfd.readouterr().err
    nifti_patient(root / "P2", 1)  # of NIfTI the files that are not read are listed
    assert prepare(root, out) == 0 and "Mueller.ZIP" in capfd.readouterr().out.split("not read:")[1]


def test_stray_nifti_images_do_not_pass_beside_dicom(tmp_path, capfd):
    root, out = tmp_path / "in", tmp_path / "out"
    tiny_patient(root / "A", "A")
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.int16), np.eye(4)), root / "A" / "other.nii.gz")
    assert prepare(root, out) == 2
    assert "A/other.nii.gz is fewer" in capfd.readouterr().err
    assert prepare(root, out, "--series", "T1=SeriesNumber=1", "--series", "T1V=SeriesNumber=2") == 0


def test_ids_that_are_no_file_names_need_pseudonyms(tmp_path, capfd):
    tiny_patient(tmp_path / "in", "A/1", mask=None)
    assert prepare(tmp_path / "in", tmp_path / "out") == 2
    assert "'A/1'; give --pseudonyms" in capfd.readouterr().err
    assert prepare(tmp_path / "in", tmp_path / "out", "--pseudonyms") == 0


def test_glioma_takes_dicom(tmp_path, monkeypatch, capfd):
    """The converted folder is what prepare_glioma takes; its steps are tested elsewhere."""
    phases = ("AX T1 PRE", "AX T1 POST", "AX T2", "AX T2 FLAIR")
    tiny_patient(tmp_path / "in", "G1", phases=phases)
    taken = {}

    def stop(options):
        taken["patients"], *_ = glioma_find(options)
        raise glioma.DataError("stop here")

    glioma_find = glioma.find_patients
    monkeypatch.setattr(glioma, "find_patients", stop)
    arguments = [str(tmp_path / "in"), "--inference", "--no-histogram-matching", "--output", str(tmp_path / "out")]
    assert glioma.main(arguments) == 2 and "stop here" in capfd.readouterr().err
    files = taken["patients"]["G1"]["paths"]
    assert [path.name for path in files.images.values()] == ["t1.nii.gz", "t1c.nii.gz", "t2.nii.gz", "flair.nii.gz"]
    assert files.mask.name == "mask.nii.gz" and files.mask.is_file()
