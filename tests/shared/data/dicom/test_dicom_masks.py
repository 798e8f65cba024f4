"""Masks of DICOM SEG and RTSTRUCT on the image's grid, voxel by voxel."""

import numpy as np
import pytest

pytest.importorskip("highdicom")

from shared.apps.phantoms.dicom import lps_affine, make_series
from shared.data.dicom import masks
from shared.data.dicom.headers import IDENTITY, READ, read_instance
from shared.data.dicom.masks import (
    Regions,
    choose_regions,
    read_regions,
    segmentation_mask,
    structure_mask,
)
from shared.errors import DataError
from tests.references.dicom_stack import enclosed
from tests.support.tiny_dicom import (
    OBLIQUE,
    SAGITTAL,
    make_segmentation,
    make_structures,
    series_affine,
    squares,
    tiny_volume,
)

SHAPE = (12, 10, 5)


def drawn(axes):
    affine = series_affine(spacing=(1.5, 1.25, 3), **axes)
    slices = make_series(tiny_volume(0, SHAPE)[0], affine, seed=str(axes))
    ball = np.zeros(SHAPE, bool)
    ball[3:7, 2:6, 1:4] = True
    ball[3, 2, 1] = False
    return affine, slices, ball


@pytest.mark.parametrize("axes", [{}, OBLIQUE, SAGITTAL], ids=["axial", "oblique", "sagittal"])
def test_segments_are_placed_voxel_by_voxel(tmp_path, axes):
    affine, slices, ball = drawn(axes)
    other = np.roll(ball, 4, axis=0)
    make_segmentation(slices, {"lesion": ball, "vessel": other}).save_as(tmp_path / "s")
    one = read_instance(tmp_path / "s", [*READ, *IDENTITY])
    regions = read_regions(one)
    assert regions.names == {1: "lesion", 2: "vessel"} and slices[0].SeriesInstanceUID in regions.series
    assert np.array_equal(segmentation_mask(tmp_path / "s", [1], SHAPE, affine), ball)
    assert np.array_equal(segmentation_mask(tmp_path / "s", [1, 2], SHAPE, affine), ball | other)
    # the image as NIfTI may be stored in another order
    flipped = affine @ [[1, 0, 0, 0], [0, -1, 0, SHAPE[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert np.array_equal(segmentation_mask(tmp_path / "s", [1], SHAPE, flipped), ball[:, ::-1])


def test_segment_outside_the_image_is_refused(tmp_path):
    affine, slices, ball = drawn({})
    make_segmentation(slices, {"lesion": ball}).save_as(tmp_path / "s")
    with pytest.raises(DataError, match="lies outside the image's grid"):
        segmentation_mask(tmp_path / "s", [1], (12, 10, 3), affine)
    # also where the image has other voxels
    coarse = affine @ np.diag([2.0, 2, 1, 1])
    with pytest.raises(DataError, match="lies outside the image's grid"):
        segmentation_mask(tmp_path / "s", [1], (6, 5, 2), coarse)
    assert segmentation_mask(tmp_path / "s", [1], (6, 5, 5), coarse).any()


def test_segment_without_a_voxel_is_refused(tmp_path, monkeypatch):
    affine, slices, ball = drawn({})
    make_segmentation(slices, {"lesion": ball}).save_as(tmp_path / "s")
    monkeypatch.setattr(masks, "resample", lambda volume, shape, *_, **__: volume._replace(array=np.zeros(shape)))
    with pytest.raises(DataError, match="hold no voxel of the image"):
        segmentation_mask(tmp_path / "s", [1], SHAPE, affine)


def test_fractional_segmentation_is_refused(tmp_path):
    hd = pytest.importorskip("highdicom")
    affine, slices, ball = drawn({})
    one = make_segmentation(slices, {"lesion": ball})
    one.SegmentationType, one.SegmentationFractionalType, one.MaximumFractionalValue = "FRACTIONAL", "PROBABILITY", 1
    one.save_as(tmp_path / "s")
    assert hd
    with pytest.raises(DataError, match="fractional"):
        segmentation_mask(tmp_path / "s", [1], SHAPE, affine)


@pytest.mark.parametrize("axes", [{}, OBLIQUE, SAGITTAL], ids=["axial", "oblique", "sagittal"])
def test_contours_enclose_the_voxels_of_a_naive_reference(tmp_path, axes):
    affine, slices, _ = drawn(axes)
    rng = np.random.default_rng(0)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 9))
    outer = np.stack([5 + 3.7 * np.cos(angle), 4.6 + 3.4 * np.sin(angle)], -1)
    hole = np.stack([5 + 1.2 * np.cos(angle), 4.6 + 1.1 * np.sin(angle)], -1)
    expected = np.zeros(SHAPE, bool)
    line = np.array([[3, 4.3, 1, 1], [5, 4.3, 1, 1], [7, 4.3, 1, 1]])  # flat along two axes: encloses nothing
    contours = [(line @ lps_affine(affine).T)[:, :3]]
    for k, outlines in ((1, [outer]), (2, [outer, hole])):
        for outline in outlines:
            voxels = np.column_stack([outline, np.full(9, k), np.ones(9)])
            contours.append((voxels @ lps_affine(affine).T)[:, :3])
            for x, y in np.ndindex(SHAPE[:2]):
                expected[x, y, k] ^= enclosed(outline.tolist(), (x, y))
    make_structures(slices, {"GTV": contours}).save_as(tmp_path / "r", enforce_file_format=True)
    mask, flags = structure_mask(tmp_path / "r", [1], SHAPE, affine)
    assert np.array_equal(mask, expected) and expected[:, :, 2].sum() < expected[:, :, 1].sum() and not flags
    # the image's slices may lie along any of its axes
    turned = structure_mask(tmp_path / "r", [1], (SHAPE[2], *SHAPE[:2]), affine[:, [2, 0, 1, 3]])[0]
    assert np.array_equal(turned, expected.transpose(2, 0, 1))


def test_contours_off_the_grid_are_refused_and_gaps_told(tmp_path):
    affine, slices, ball = drawn(OBLIQUE)
    outlines = squares(ball, affine)
    normal = lps_affine(affine)[:3, 2]

    def write(contours):
        make_structures(slices, {"GTV": contours}).save_as(tmp_path / "r", enforce_file_format=True)
        return structure_mask(tmp_path / "r", [1], SHAPE, affine)

    assert "1 gaps" in write([outlines[0], outlines[2]])[1][0]
    for moved, message in ((0.4, "between the slices"), (4.0, "outside the image")):
        with pytest.raises(DataError, match=message):
            write([outline + moved * normal for outline in outlines])
    with pytest.raises(DataError, match="enclose no voxel"):
        write([])


def test_regions_are_chosen_by_name_or_alone():
    regions = Regions({1: "Liver", 2: "Lesion Anna", 3: "lesion 2"}, frozenset(), "")
    assert choose_regions(regions, ["lesion*"], ()) == [2, 3]
    assert choose_regions(Regions({4: ""}, frozenset(), ""), [], ()) == [4]
    with pytest.raises(DataError, match=r"3 regions \('Liver', 'Lesion \.\.\.', 'lesion 2'\).*--segments"):
        choose_regions(regions, [], {"anna"})
    with pytest.raises(DataError, match="is named tumour"):
        choose_regions(regions, ["tumour"], ())
