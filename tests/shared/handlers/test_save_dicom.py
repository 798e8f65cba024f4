"""Results in DICOM: voxel-exact on read back, references and geometry right, without an error of dciodvfy."""

import csv
import json
import logging
import shutil
import subprocess
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

hd = pytest.importorskip("highdicom")

from shared.apps.phantoms.dicom import make_series, write_series  # noqa: E402
from shared.apps.preparation import patients  # noqa: E402
from shared.data.dicom.library import dicom_library  # noqa: E402
from shared.data.dicom.masks import segmentation_mask  # noqa: E402
from shared.errors import DataError  # noqa: E402
from shared.handlers import SaveDicom  # noqa: E402
from shared.reports.dicom.objects import NO_DEVICE  # noqa: E402
from tests.support.tiny_dicom import OBLIQUE, SAGITTAL, make_multiframe, series_affine, tiny_volume  # noqa: E402

SHAPE = (14, 12, 6)
KINDS = {"AX": ({}, False), "OB": (OBLIQUE, False), "SA": (SAGITTAL, False), "MF": (OBLIQUE, True)}
NAMES = [f"{modality} {k}" for modality in ("T1", "T1V") for k in range(3)]


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """Four patients prepared from DICOM, and files as an inference leaves them."""
    root = tmp_path_factory.mktemp("cohort")
    for k, (name, (axes, frames)) in enumerate(KINDS.items()):
        affine = series_affine(spacing=(1.5, 1.25, 3), **axes)
        for number, phase in enumerate(("T1", "T1 portal"), 1):
            slices = make_series(
                tiny_volume(9 * number + k, SHAPE)[0], affine, patient=name, description=phase, number=number
            )
            one = [make_multiframe(slices, order=[2, 0, 5, 1, 4, 3])] if frames else slices
            write_series(root / "dicom" / name / phase, one)
    data, output = root / "data", root / "eval"
    assert patients.main([str(root / "dicom"), "--inference", "--output", str(data), "--modalities", "T1,T1V"]) == 0
    (output / "patients").mkdir(parents=True)
    with (output / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["patient", "label", "probability", "set", "out_of_cohort"])
        writer.writeheader()
        for name in KINDS:
            writer.writerow(
                {"patient": name, "label": "", "probability": 0.8123, "set": "{positive}", "out_of_cohort": 0}
            )
    rng = np.random.default_rng(0)
    for name in KINDS:
        image = nib.load(data / name / "t1.nii.gz")
        codes = rng.integers(0, 4, (*image.shape, 2)) * (rng.random((*image.shape, 2)) < 0.2)
        codes[..., 1] = np.where(codes[..., 1] > 0, codes[..., 1] + 3, 0)  # biomarkers of the second modality: 4 to 6
        contributions = rng.normal(0, 0.1, (*image.shape, 2)).astype(np.float32)
        for kind, values in (("biomarkers", codes.astype(np.int16)), ("contributions", contributions)):
            nib.save(nib.Nifti1Image(values, image.affine), output / "patients" / f"{name}_{kind}.nii.gz")
        told = [{"name": key, "log_odds": 0.5 - k, "area_mm2": 10.0 + k} for k, key in enumerate(NAMES)]
        summary = {"shapley": {"values": dict.fromkeys([*NAMES, "age"], 0.1)}, "for": told[:1], "against": told[1:]}
        (output / "patients" / f"{name}.json").write_text(json.dumps(summary))
    return root, data, output


def handler(answered, out, bundle="ircl_mvi", **options):
    root, data, output = answered
    return SaveDicom(
        out,
        output_dir=output,
        dataset_dir=data,
        bundle_root=f"bundles/{bundle}",
        ckpt_dir=root / "models",
        class_names=["no MVI", "MVI"],
        **{"cases": [{"patient": name} for name in KINDS], "modalities": ["T1", "T1V"], **options},
    )


@pytest.fixture(scope="module")
def written(answered, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    handler(answered, out)(SimpleNamespace())
    return answered, out


@pytest.mark.parametrize("name", KINDS)
def test_maps_are_voxel_exact_on_read_back(written, name):
    (_, _, output), out = written
    image = nib.load(output / "patients" / f"{name}_biomarkers.nii.gz")
    codes = np.asarray(image.dataobj)
    segments = hd.seg.segread(out / name / "biomarkers.dcm")
    assert [segments.get_segment_description(k).segment_label for k in segments.segment_numbers] == NAMES
    for number in segments.segment_numbers:
        mask = segmentation_mask(out / name / "biomarkers.dcm", [number], image.shape[:3], image.affine)
        assert mask.any() and np.array_equal(mask, (codes == number).any(axis=-1))
    contributions = np.asarray(nib.load(output / "patients" / f"{name}_contributions.nii.gz").dataobj)
    for c, modality in enumerate(("T1", "T1V")):
        read = dicom_library("pydicom").dcmread(out / name / f"contributions_{modality}.dcm")
        values = np.frombuffer(read.FloatPixelData, np.float32).reshape(-1, read.Rows, read.Columns)
        assert len(values) == SHAPE[2]
        orientation = np.array(
            read.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient, float
        )
        row, column = orientation[:3], orientation[3:]
        spacing = np.array(read.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing, float)
        inverse = np.linalg.inv(image.affine)
        for frame, plane in zip(read.PerFrameFunctionalGroupsSequence, values, strict=True):
            position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
            for r, k in ((0, 0), (3, 7), (11, 13)):
                place = (position + row * spacing[1] * k + column * spacing[0] * r) * [-1, -1, 1]
                voxel = inverse[:3, :3] @ place + inverse[:3, 3]
                assert np.abs(voxel - np.round(voxel)).max() < 0.01
                assert plane[r, k] == contributions[(*np.round(voxel).astype(int), c)]


@pytest.mark.parametrize("name", KINDS)
def test_study_patient_and_references_are_the_sources(written, name):
    (root, _, _), out = written
    pydicom = dicom_library("pydicom")
    sources = [pydicom.dcmread(path) for path in (root / "dicom" / name / "T1").iterdir()]
    for path in sorted((out / name).iterdir()):
        one = pydicom.dcmread(path)
        assert (one.PatientID, one.StudyInstanceUID) == (name, sources[0].StudyInstanceUID), path
        assert one.SeriesInstanceUID != sources[0].SeriesInstanceUID
        if path.stem in ("biomarkers", "contributions_T1"):
            assert one.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
            (series,) = one.ReferencedSeriesSequence
            assert series.SeriesInstanceUID == sources[0].SeriesInstanceUID
            assert {r.ReferencedSOPInstanceUID for r in series.ReferencedInstanceSequence} == {
                s.SOPInstanceUID for s in sources
            }
    assert {path.name for path in (out / name).iterdir()} == {
        *("biomarkers.dcm", "contributions_T1.dcm", "contributions_T1V.dcm", "report.dcm", "page.dcm")
    }
    seg = pydicom.dcmread(out / name / "biomarkers.dcm")
    if len(sources) > 1:  # every frame's own source image is the one at its place
        positions = {s.SOPInstanceUID: np.array(s.ImagePositionPatient, float) for s in sources}
        for frame in seg.PerFrameFunctionalGroupsSequence:
            (reference,) = frame.DerivationImageSequence[0].SourceImageSequence
            place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
            assert np.allclose(positions[reference.ReferencedSOPInstanceUID], place, atol=1e-4)
    assert seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "ircl_mvi"
    assert len({tuple(s.RecommendedDisplayCIELabValue) for s in seg.SegmentSequence}) == len(NAMES)


def test_report_and_page_say_what_was_predicted(written):
    _, out = written
    report = hd.sr.srread(out / "OB" / "report.dcm")
    (prediction,) = report.content.get_image_measurement_groups(tracking_uid=None)[:1]
    (measure,) = prediction.get_measurements()
    assert measure.name.meaning == "Probability of MVI" and float(measure.value) == 0.8123
    said = {e.name.meaning: e.value.meaning for e in prediction.get_qualitative_evaluations()}
    assert said["Conformal set"] == "{positive}" and said["Intended use"] == "Not a medical device"
    assert said["Unlike the training patients (1: yes)"] == "0"
    regions = report.content.get_volumetric_roi_measurement_groups()
    assert len(regions) == len(NAMES)
    area = regions[1].get_measurements()[0]
    assert float(area.value) == 11.0 and area.unit.value == "mm2"
    assert regions[1].finding_type.meaning == "T1 1"
    items = dicom_library("pydicom").dcmread(out / "OB" / "report.dcm").ContentSequence
    assert NO_DEVICE in [item.get("TextValue") for item in items]
    shown = dicom_library("pydicom").dcmread(out / "OB" / "page.dcm")
    assert shown.pixel_array.shape == (768, 1024, 3) and shown.pixel_array.max() > 200


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy (Debian: dicom3tools)")
@pytest.mark.parametrize("name", KINDS)
def test_dciodvfy_finds_no_error(written, name):
    _, out = written
    for path in sorted((out / name).iterdir()):
        said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        errors = [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]
        assert not errors, (path.name, errors)


def test_refusals(answered, tmp_path):
    root, data, output = answered
    assert handler(answered, None).out is None  # nothing asked, nothing needed
    with pytest.raises(DataError, match="give the folder where they lie: --dicom_source"):
        handler(answered, tmp_path, dicom_source=tmp_path)(SimpleNamespace())
    plain = tmp_path / "nifti"
    plain.mkdir()
    (plain / "datalist.json").write_text(json.dumps({"testing": []}))
    with pytest.raises(DataError, match="prepared from NIfTI"):
        handler((root, plain, output), tmp_path)
    # the record that lies beside a key names the folder
    record = json.loads((data / "dicom_source.json").read_text())
    (tmp_path / "key.json").write_text(json.dumps({**record, "folder": str(root / "dicom")}))
    assert handler((root, plain, output), tmp_path, dicom_source=tmp_path / "key.json").source.folder == root / "dicom"
    del record["patients"]["OB"]
    (tmp_path / "key.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="OB: was not prepared from DICOM"):
        handler(answered, tmp_path, dicom_source=tmp_path / "key.json")


def test_a_map_on_another_grid_is_refused(answered, tmp_path):
    root, data, output = answered
    moved = tmp_path / "eval"
    shutil.copytree(output, moved)
    path = moved / "patients" / "SA_biomarkers.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:, :, 1:], image.affine), path)
    with pytest.raises(DataError, match=r"^SA: the map does not lie on the grid"):
        handler((root, data, moved), tmp_path / "out")(SimpleNamespace())
    assert (tmp_path / "out" / "MF" / "report.dcm").is_file()  # the others are written


def test_glioma_has_report_and_page_only(answered, tmp_path, caplog):
    root, data, output = answered
    plain = tmp_path / "eval"
    (plain / "patients").mkdir(parents=True)
    shutil.copy(output / "predictions.csv", plain)
    with caplog.at_level(logging.INFO):
        handler((root, data, plain), tmp_path / "out", "glioma_idh")(SimpleNamespace())
    assert {path.name for path in (tmp_path / "out" / "AX").iterdir()} == {"report.dcm", "page.dcm"}
    assert "not a medical device" in caplog.text


def test_maps_of_a_glioma_that_was_explained_lie_on_the_series_of_t1c(answered, tmp_path):
    root, data, _ = answered
    record = json.loads((data / "dicom_source.json").read_text())
    record["patients"]["OB"] = dict(zip(("T1", "T1c"), record["patients"]["OB"].values(), strict=True))
    record["folder"] = str(root / "dicom")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dicom_source.json").write_text(json.dumps(record))
    shutil.copy(data / "datalist.json", tmp_path / "data")
    image = nib.load(data / "OB" / "t1v.nii.gz")
    coarse = image.affine @ np.diag([2, 2, 1, 1])
    voxels = np.moveaxis(np.indices((7, 6, SHAPE[2])), 0, -1)
    slope = np.array([0.3, -0.2, 0.5])  # a map that is linear in mm, so that resampling is exact
    places = voxels @ coarse[:3, :3].T + coarse[:3, 3]
    (tmp_path / "patients").mkdir()
    for name in ("contribution", "cam"):
        sign = 1 if name == "cam" else -1
        values = nib.Nifti1Image((sign * places @ slope).astype(np.float32), coarse)
        nib.save(values, tmp_path / f"patients/OB_{name}_native.nii.gz")
    (tmp_path / "patients/OB.json").write_text(json.dumps({"probability": 0.6}))
    given = {"cases": [{"patient": "OB"}], "modalities": ["T1", "T1c"]}
    saver = handler((root, tmp_path / "data", tmp_path), tmp_path / "out", "glioma_idh", **given)
    saver.write("OB", {"patient": "OB", "probability": "0.6"})
    pydicom = dicom_library("pydicom")
    sources = {pydicom.dcmread(path).SOPInstanceUID for path in (root / "dicom/OB/T1 portal").iterdir()}
    for name, sign in (("cam", 1), ("contribution", -1)):
        read = pydicom.dcmread(tmp_path / f"out/OB/{name}.dcm")
        (series,) = read.ReferencedSeriesSequence
        assert {r.ReferencedSOPInstanceUID for r in series.ReferencedInstanceSequence} == sources
        values = np.frombuffer(read.FloatPixelData, np.float32).reshape(-1, read.Rows, read.Columns)
        shared_groups = read.SharedFunctionalGroupsSequence[0]
        row, column = np.array(shared_groups.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
        spacing = np.array(shared_groups.PixelMeasuresSequence[0].PixelSpacing, float)
        frames = list(zip(read.PerFrameFunctionalGroupsSequence, values, strict=True))
        assert len(frames) == SHAPE[2]
        for frame, plane in frames[1:-1]:  # the map ends in the middle of the outermost
            position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
            for r, k in ((2, 2), (3, 7), (8, 10)):
                place = (position + row * spacing[1] * k + column * spacing[0] * r) * [-1, -1, 1]
                assert plane[r, k] == pytest.approx(sign * place @ slope, abs=1e-3)
    with pytest.raises(DataError, match=r"explains a probability of 0\.6, and 0\.7 was predicted: explain with this"):
        saver.write("OB", {"patient": "OB", "probability": "0.7"})


def test_a_patient_who_lacks_the_first_sequence_is_told_and_refers_to_the_next(answered, tmp_path):
    root, data, _ = answered
    row = {"patient": "OB", "probability": "0.5", "lacking": "T1c", "out_of_cohort": "1"}
    cases = [{"patient": "OB", "lacking": {"T1c": 0}}]
    saver = handler((root, data, tmp_path), tmp_path / "out", "glioma_idh", cases=cases, modalities=["T1c", "T1V"])
    saver.write("OB", row)
    pydicom = dicom_library("pydicom")
    sources = {pydicom.dcmread(path).SOPInstanceUID for path in (root / "dicom/OB/T1 portal").iterdir()}
    report = pydicom.dcmread(tmp_path / "out/OB/report.dcm")
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    referred = {one.ReferencedSOPInstanceUID for s in study.ReferencedSeriesSequence for one in s.ReferencedSOPSequence}
    assert referred and referred <= sources
    (prediction,) = hd.sr.srread(tmp_path / "out/OB/report.dcm").content.get_image_measurement_groups(tracking_uid=None)
    said = {e.name.meaning: e.value.meaning for e in prediction.get_qualitative_evaluations()}
    assert said["Predicted without"] == "T1c"
