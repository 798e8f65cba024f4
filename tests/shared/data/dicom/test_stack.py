"""Which series are a regular volume; the others are refused by name."""

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from shared.apps.phantoms.dicom import lps_affine, make_series, write_series  # noqa: E402
from shared.data.dicom.headers import read_folder  # noqa: E402
from shared.data.dicom.stack import build_stack  # noqa: E402
from shared.errors import DataError  # noqa: E402
from tests.support.tiny_dicom import OBLIQUE, series_affine  # noqa: E402

AFFINE = series_affine(spacing=(1.5, 1.25, 3), **OBLIQUE)
VOLUME = np.arange(8 * 9 * 6, dtype=np.int16).reshape(8, 9, 6)


def stack_of(folder, slices):
    write_series(folder, slices)
    return build_stack(read_folder(folder).instances)


def test_the_grid_is_the_one_it_was_made_of(tmp_path):
    stack = stack_of(tmp_path, make_series(VOLUME, AFFINE))
    assert stack.shape == (8, 9, 6) and np.allclose(stack.affine, AFFINE, atol=1e-6)


def test_slices_in_the_opposite_order_make_the_same_volume(tmp_path):
    slices = make_series(VOLUME[:, :, ::-1].copy(), AFFINE @ [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 5], [0, 0, 0, 1]])
    for one in slices:
        one.ImageOrientationPatient = make_series(VOLUME, AFFINE)[0].ImageOrientationPatient
    stack = stack_of(tmp_path, slices)
    assert np.allclose(stack.affine, AFFINE, atol=1e-6)


def shifted(offsets):
    """A position for each slice, moved in LPS."""
    positions = [(lps_affine(AFFINE) @ [0, 0, k, 1])[:3] for k in range(6)]
    return [list(place + offset) for place, offset in zip(positions, offsets, strict=True)]


NORMAL = lps_affine(AFFINE)[:3, 2] / 3
STEPS = [-202.5 + 1.25, *(1.25 * k - 3 * k for k in range(1, 6))]  # one slice far away, the others every 1.25 mm
ROW = lps_affine(AFFINE)[:3, 0] / 1.5


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"slices are missing \(1 after slice 3"),
        ("uneven", "steps between its slices vary from"),
        ("one uneven", "steps between its slices vary from 3 to 3.2 mm"),
        ("tilted", r"shifted by up to .* 10\.0 degrees: a tilted gantry"),
        ("double", r"6 of 6 places have several images .*no header field"),
        (
            "acquisitions",
            r"which AcquisitionNumber tells apart \(1, 2\); choose one by --series ...=AcquisitionNumber=VALUE",
        ),
        ("one double", "1 of 6 places have several images"),
        ("time", "lie at one place"),
        ("far", r"slices are missing \(161 after slice 1, .* the step is 1.25 mm"),
        ("no direction", "6 of 6 images lack"),
        ("no spacing", "1 of 6 images lack"),
        ("orientations", "2 orientations"),
        ("spacings", "2 values of PixelSpacing"),
        ("sizes", r"2 sizes \(8 x 9, 9 x 8\)"),
        ("lost", "6 of 6 images lack"),
        ("few", "has 2 images"),
        ("colours", "are RGB"),
        ("inverted", "are MONOCHROME1"),
        ("frames", "says of its frames not where they lie"),
    ],
)
def test_refused(tmp_path, how, message):
    slices = make_series(VOLUME, AFFINE)
    if how == "missing":
        slices = [*slices[:3], *slices[4:]]
    elif how == "uneven":
        slices = make_series(
            VOLUME, AFFINE, ImagePositionPatient_each=shifted(NORMAL * s for s in (0, 0, 0, 0.4, 0, 0))
        )
    elif how == "one uneven":
        last = shifted(NORMAL * s for s in (0, 0, 0, 0, 0, 0.2))
        slices = make_series(VOLUME, AFFINE, ImagePositionPatient_each=last)
    elif how == "tilted":
        step = 3 * np.tan(np.radians(10))
        slices = make_series(VOLUME, AFFINE, ImagePositionPatient_each=shifted(ROW * step * k for k in range(6)))
    elif how in ("double", "acquisitions"):
        again = make_series(VOLUME, AFFINE, seed="again", AcquisitionNumber=1 + (how == "acquisitions"))
        slices += again
        for one in slices:
            one.SeriesInstanceUID = "1.2.3"
    elif how == "one double":
        slices += make_series(VOLUME, AFFINE, seed="again")[2:3]
    elif how == "time":
        slices = make_series(VOLUME, AFFINE, ImagePositionPatient_each=[[0, 0, 0]] * 6)
    elif how == "orientations":
        slices[2].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    elif how == "far":
        slices = make_series(VOLUME, AFFINE, ImagePositionPatient_each=shifted(NORMAL * s for s in STEPS))
    elif how == "no direction":
        slices = make_series(VOLUME, AFFINE, ImageOrientationPatient=[0] * 6)
    elif how == "no spacing":
        slices[2].PixelSpacing = [0, 1.5]
    elif how == "spacings":
        slices[2].PixelSpacing = [1.25, 1.6]
    elif how == "sizes":
        slices[2].Rows, slices[2].Columns = 8, 9
    elif how == "lost":
        slices = make_series(VOLUME, AFFINE, ImagePositionPatient_each=[None] * 6)
        for one in slices:
            one.pop("ImagePositionPatient", None)
    elif how == "frames":
        slices = make_series(VOLUME, AFFINE, NumberOfFrames=2)
    elif how == "few":
        slices = slices[:2]
    else:
        slices = make_series(VOLUME, AFFINE, PhotometricInterpretation="RGB" if how == "colours" else "MONOCHROME1")
    with pytest.raises(DataError, match=message):
        stack_of(tmp_path, [*slices])


def test_rounded_positions_are_a_regular_volume(tmp_path):
    slices = make_series(VOLUME, AFFINE)
    for one in slices:
        one.ImagePositionPatient = [round(float(v), 2) for v in one.ImagePositionPatient]
    assert np.allclose(stack_of(tmp_path, slices).affine, AFFINE, atol=0.02)
