"""Files of real scanners, which pydicom and nibabel install: exact, or refused by one error; never a traceback."""

import copy
import csv
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("dcm2niix")

from shared.apps.preparation import glioma, patients  # noqa: E402
from shared.data.dicom.headers import IDENTITY  # noqa: E402
from tests.references.dicom_stack import stacked_series  # noqa: E402

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
SETS = FILES / "dicomdirtests"
SIEMENS = Path(nib.__file__).parent / "nicom" / "tests" / "data"
pytestmark = [
    pytest.mark.skipif(not FILES.is_dir(), reason="this pydicom brings no test files"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of what the test reads itself
]


def prepare(folder, output, rule="ImageType~."):
    return patients.main(
        [str(folder), "--inference", "--output", str(output), "--series", f"image={rule}", "--mask-pattern", "none"]
    )


def stack(path, folder, **header):
    """Copies of one image at three places, as a series: the real header, and voxels that differ (if not compressed)."""
    one = pydicom.dcmread(path, force=True)
    orientation = np.array(one.ImageOrientationPatient, float)
    normal, first = np.cross(orientation[:3], orientation[3:]), np.array(one.ImagePositionPatient, float)
    folder.mkdir()
    for k in range(3):
        copied = copy.deepcopy(one)
        for key, value in header.items():
            setattr(copied, key, value)
        copied.SOPInstanceUID, copied.InstanceNumber, copied.SliceLocation = f"1.2.3.{k}", k + 1, 2.5 * k
        copied.ImagePositionPatient = [f"{value:.7f}"[:16] for value in first + 2.5 * k * normal]
        if not one.file_meta.TransferSyntaxUID.is_compressed:
            words = np.frombuffer(one.PixelData, np.uint16)
            copied.PixelData = (
                (np.roll(words, 7 * k) if words.any() else np.arange(k, k + words.size) % 4000)
                .astype(np.uint16)
                .tobytes()
            )
        copied.save_as(folder / f"{k}", enforce_file_format=False)
    return folder


def check(image, paths):
    """Every voxel of an independent stacking lies at its place."""
    values, places = stacked_series(paths)
    voxels = (places - image.affine[:3, 3]) @ np.linalg.inv(image.affine[:3, :3]).T
    assert np.abs(voxels - np.round(voxels)).max() < 0.01 and image.shape == _shape(voxels)
    assert np.allclose(np.asarray(image.dataobj)[tuple(np.moveaxis(np.round(voxels).astype(int), -1, 0))], values)


def _shape(voxels):
    return tuple(int(n) + 1 for n in np.round(voxels).reshape(-1, 3).max(axis=0))


@pytest.mark.parametrize(
    "path",
    [
        FILES / "CT_small.dcm",  # GE
        *(FILES / f"MR_small{syntax}.dcm" for syntax in ("", "_RLE", "_bigendian", "_expb", "_implicit", "_padded")),
        *(FILES / f"MR_small_{syntax}.dcm" for syntax in ("jp2klossless", "jpeg_ls_lossless")),  # Toshiba
        FILES / "examples_overlay.dcm",  # Siemens; dcm2niix writes the overlay as a volume beside it
        SETS / "98892003" / "MR700" / "4467",  # Philips, oblique
        SETS / "98892001" / "CT2N" / "6293",  # GE, sagittal
        SIEMENS / "decimal_rescale.dcm",
    ],
    ids=lambda path: path.stem,
)
def test_values_and_places_of_real_headers(tmp_path, path):
    if not path.is_file():
        pytest.skip(f"{path.name} is not installed")
    lacking = {} if "SOPClassUID" in pydicom.dcmread(path) else {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}
    folder = stack(path, tmp_path / "in", **lacking)
    if "jpeg_ls" in path.stem:
        pytest.importorskip("jpeg_ls")
    assert prepare(folder, tmp_path / "out") == 0
    (made,) = (tmp_path / "out" / "converted").glob("*/image.nii.gz")
    check(nib.load(made), sorted(folder.iterdir()))


def test_a_real_series_as_it_is(tmp_path):
    """Five slices of a patient with eight series in three studies, and what acquisition.csv says of them."""
    rule = "Modality=CT & SeriesNumber=5 & SeriesDescription~gated & ImageType~."
    assert prepare(SETS / "98892001", tmp_path / "out", rule) == 0
    check(nib.load(tmp_path / "out" / "98890234" / "image.nii.gz"), sorted((SETS / "98892001" / "CT5N").iterdir()))
    (row,) = csv.DictReader((tmp_path / "out" / "acquisition.csv").open())
    shown = ("manufacturer", "kind", "plane", "slice_step_mm", "pixel_row_mm", "rows", "slices", "compressed", "kvp")
    assert [row[key] for key in shown] == [
        *("GE MEDICAL SYSTEMS", "CT", "axial", "2.5", "0.4883", "16", "5", "0"),
        str(float(pydicom.dcmread(SETS / "98892001" / "CT5N" / "2062").KVP)),
    ]


@pytest.mark.parametrize("path", sorted([*FILES.glob("*.dcm"), *SIEMENS.glob("*.dcm")]), ids=lambda path: path.name)
def test_one_file_alone_is_refused_in_words(tmp_path, capfd, path):
    """Reports, plans, colours, mosaics, files cut off, single images: each names its patient, and nobody's name."""
    (tmp_path / "in").mkdir()
    shutil.copy(path, tmp_path / "in")
    assert prepare(tmp_path / "in", tmp_path / "out") == 2
    shown = capfd.readouterr().err
    header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    patient = str(header.get("PatientID") or "").strip()
    reasons = (
        *(r"no PatientID", "cannot be read", "holds no DICOM file"),
        rf"{re.escape(patient)}: (no series is image|image: series)",
    )
    assert "error:" in shown and any(re.search(reason, shown) for reason in reasons)
    assert "Traceback" not in shown and "Warning" not in shown
    told = {word for key in IDENTITY for word in re.findall(r"[^\W\d_]{4,}", str(header.get(key) or ""))}
    assert not [word for word in told if re.search(rf"\b{word}\b", shown.replace(patient, ""))]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (FILES / "MR_truncated.dcm", r"4MR1: image: series 1 .*image 1 cannot be read .*cut off"),
        (
            FILES / "J2K_pixelrep_mismatch.dcm",
            r"JXD191021006: image: .*(changed .* of its voxels; export it uncompressed|not where its)",
        ),
        (SIEMENS / "0.dcm", r"1234: image: .*MOSAIC.*not where its headers say"),
    ],
    ids=["cut off", "signs that do not fit", "mosaic"],
)
def test_series_that_cannot_be_right_are_refused(tmp_path, capfd, path, message):
    if not path.is_file():
        pytest.skip(f"{path.name} is not installed")
    assert prepare(stack(path, tmp_path / "in"), tmp_path / "out") == 2
    assert re.search(message, capfd.readouterr().err)


def test_a_folder_of_several_patients_and_studies(tmp_path, capfd):
    """What is wrong with each is told at once; glioma's preparation says the same."""
    assert prepare(SETS, tmp_path / "out") == 2
    shown = capfd.readouterr().err
    for line in (
        r"- 12345678: no series is image by --series.* series 1 '' \(50 images, no ImageType\)",
        r"- 77654033: image: series 2 'Routine Brain' .*slices are missing \(161 after slice 1",
        r"- 98890234: 9 series are image by --series: series 1 .*; series 5 'SmartScore.*Choose one",
    ):
        assert re.search(line, shown), line
    arguments = [str(SETS), "--inference", "--no-histogram-matching", "--output", str(tmp_path / "glioma")]
    assert glioma.main(arguments) == 2
    assert re.search(r"- 77654033: no series is FLAIR .*\(and CR: no CT, MR or PET images\)", capfd.readouterr().err)
