"""Conversion by dcm2niix: values and places against a naive stacking; what dcm2niix would bend is refused."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from shared.apps.phantoms.dicom import make_series, write_series  # noqa: E402
from shared.data.dicom import convert  # noqa: E402
from shared.data.dicom.headers import read_folder  # noqa: E402
from shared.data.dicom.stack import build_stack  # noqa: E402
from shared.errors import DataError  # noqa: E402
from tests.references.dicom_stack import stacked_series  # noqa: E402
from tests.support.tiny_dicom import OBLIQUE, SAGITTAL, make_multiframe, series_affine, tiny_volume  # noqa: E402

SPACING = (1.5, 1.25, 3)


def converted(folder, target):
    instances = read_folder(folder).instances
    stack = build_stack(instances)
    compared = convert.convert_series(instances, stack, target, target.with_name("sidecar.json"))
    return nib.load(target), compared


def check_places(image, values, places):
    """Every voxel of the naive stack has its value at its place."""
    voxels = (places - image.affine[:3, 3]) @ np.linalg.inv(image.affine[:3, :3]).T
    where = np.round(voxels).astype(int)
    assert np.abs(voxels - where).max() < 0.01
    assert np.allclose(np.asarray(image.dataobj)[tuple(np.moveaxis(where, -1, 0))], values, rtol=1e-6)


@pytest.mark.parametrize("axes", [{}, OBLIQUE, SAGITTAL], ids=["axial", "oblique", "sagittal"])
def test_single_frames(tmp_path, axes):
    volume, _ = tiny_volume(0, (10, 12, 5))
    slices = make_series(volume - 230, series_affine(spacing=SPACING, **axes), slope=2.0, intercept=-7.0)
    paths = write_series(tmp_path / "in", slices)
    image, compared = converted(tmp_path / "in", tmp_path / "v.nii.gz")
    assert compared
    check_places(image, *stacked_series(paths))


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLSLossless"])
def test_compressed(tmp_path, syntax):
    if syntax == "JPEGLSLossless":
        pytest.importorskip("jpeg_ls")
    volume, _ = tiny_volume(1, (10, 12, 5))
    slices = make_series(volume.astype(np.uint16), series_affine(spacing=SPACING, **OBLIQUE))
    plain = write_series(tmp_path / "plain", slices)
    naive = stacked_series(plain)
    write_series(tmp_path / "in", slices, syntax=getattr(pydicom.uid, syntax))
    image, _ = converted(tmp_path / "in", tmp_path / "v.nii.gz")
    check_places(image, *naive)


def test_multiframe_with_frames_in_another_order(tmp_path):
    volume, _ = tiny_volume(2, (10, 12, 5))
    slices = make_series(volume, series_affine(spacing=SPACING, **OBLIQUE), slope=2.0, intercept=1.0)
    naive = stacked_series(write_series(tmp_path / "plain", slices))
    write_series(tmp_path / "in", [make_multiframe(slices, order=[3, 0, 4, 1, 2])])
    image, compared = converted(tmp_path / "in", tmp_path / "v.nii.gz")
    assert compared
    check_places(image, *naive)


def test_slopes_that_differ_from_slice_to_slice(tmp_path):
    volume, _ = tiny_volume(6, (8, 8, 4))
    slopes = [1.0, 2.0, 0.5, 3.0]
    slices = make_series(volume, series_affine(spacing=SPACING), RescaleSlope_each=slopes, Modality="PT")
    for one in slices:
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.128"
    paths = write_series(tmp_path / "in", slices)
    image, compared = converted(tmp_path / "in", tmp_path / "v.nii.gz")
    assert compared
    check_places(image, *stacked_series(paths))


def test_nothing_but_numbers_and_codes_is_left(tmp_path):
    volume, _ = tiny_volume(3, (8, 8, 4))
    write_series(tmp_path / "in", make_series(volume, series_affine(), description="SECRET", ImageComments="SECRET"))
    image, _ = converted(tmp_path / "in", tmp_path / "v.nii.gz")
    assert [bytes(image.header[key].item()) for key in ("descrip", "aux_file", "intent_name")] == [b""] * 3
    sidecar = json.loads((tmp_path / "sidecar.json").read_text())
    assert sidecar["RepetitionTime"] == 0.005 and sidecar.keys() <= set(convert.KEPT)
    assert "SECRET" not in (tmp_path / "sidecar.json").read_text()


def test_what_dcm2niix_changes_is_refused(tmp_path, monkeypatch):
    volume, _ = tiny_volume(4, (8, 8, 4))
    write_series(tmp_path / "in", make_series(volume, series_affine(spacing=SPACING)))
    run = subprocess.run

    def spoilt(change):
        def program(command, **options):
            ended = run(command, **options)
            (path,) = Path(command[command.index("-o") + 1]).glob("*.nii")
            image = nib.load(path)
            nib.save(change(np.asarray(image.dataobj).copy(), image.affine), path)
            return ended

        return program

    for change, message in (
        (lambda array, affine: nib.Nifti1Image(array[:, :, ::-1].copy(), affine), "changed"),
        (lambda array, affine: nib.Nifti1Image(array, affine + np.eye(4)[:, ::-1] * 0.9), "not where its headers say"),
        (lambda array, affine: nib.Nifti1Image(array[:, :, :3], affine), "not where its headers say"),
    ):
        monkeypatch.setattr(convert.subprocess, "run", spoilt(change))
        with pytest.raises(DataError, match=message):
            converted(tmp_path / "in", tmp_path / "v.nii.gz")
        assert not (tmp_path / "v.nii.gz").exists()


def test_steps_that_vary_a_little_are_one_volume(tmp_path):
    """dcm2niix writes a copy beside it whose slices it moved to even places."""
    volume, _ = tiny_volume(7, (8, 8, 5))
    places = [[0, 0, z] for z in (0, 2.0, 4.08, 6.08, 8.08)]
    series = make_series(volume, series_affine(spacing=(1.5, 1.25, 2)), ImagePositionPatient_each=places)
    paths = write_series(tmp_path / "in", series)
    image, compared = converted(tmp_path / "in", tmp_path / "v.nii.gz")
    assert compared and np.isclose(image.header.get_zooms()[2], 8.08 / 4)
    values, _ = stacked_series(paths)
    turned = nib.as_closest_canonical(image)
    assert np.array_equal(np.asarray(turned.dataobj), values[::-1, ::-1])


def test_several_volumes_and_cut_files_are_refused(tmp_path):
    volume, _ = tiny_volume(5, (8, 8, 4))
    paths = write_series(tmp_path / "in", make_series(volume, series_affine(spacing=SPACING)))
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[:-40])
    with pytest.raises(DataError, match=r"image \d cannot be read .*cut off or damaged"):
        converted(tmp_path / "in", tmp_path / "v.nii.gz")


def test_unknown_syntax_is_named(tmp_path):
    write_series(tmp_path, make_series(tiny_volume(0, (8, 8, 4))[0], series_affine()))
    instances = [replace(one, syntax="1.2.840.10008.1.2.4.201") for one in read_folder(tmp_path).instances]
    with pytest.raises(DataError, match=r"High-Throughput JPEG 2000.*export it uncompressed"):
        convert.check_syntaxes(instances)
