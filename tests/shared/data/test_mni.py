"""The MNI152 grid, its template, and images put onto a grid."""

import importlib.util
import sys

import nibabel as nib
import numpy as np
import pytest

from shared.data.brain.mni import MNI_SHAPE, load_template, mni_affine, mni_grid_problem, mni_shape
from shared.data.grids import same_grid
from shared.data.volumes import Volume, load_volume, resample
from shared.errors import DataError
from tests.support.tiny_heads import native_affine, stripped, write_template


def test_the_2_mm_grid_is_the_usual_one():
    corner = mni_affine() @ [*np.subtract(MNI_SHAPE, 1), 1]
    assert mni_affine()[:3, 3].tolist() == [-90, -126, -72] and corner[:3].tolist() == [90, 90, 108]
    fine = mni_affine(1.0) @ [*np.subtract(mni_shape(1.0), 1), 1]
    assert np.allclose(fine, corner)


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "SPL"])
def test_the_grid_is_recognised_whichever_way_it_is_stored(codes):
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    shape = nib.orientations.apply_orientation(np.zeros(MNI_SHAPE, np.uint8), turn).shape
    affine = mni_affine() @ nib.orientations.inv_ornt_aff(turn, MNI_SHAPE)
    assert mni_grid_problem(shape, affine) is None
    affine[:3, 3] += 1
    assert "must lie on the MNI152 2 mm grid" in mni_grid_problem(shape, affine)


def test_another_grid_is_told_with_what_arrived():
    problem = mni_grid_problem((240, 240, 155), np.diag([-1.0, -1, 1, 1]))
    assert "240 x 240 x 155 voxels of 1 x 1 x 1 mm" in problem and "--already-mni" in problem


def test_a_volume_is_read_upright_and_finite(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    array[0, 0, 1] = np.nan
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1, 1, 1])), tmp_path / "a.nii.gz")
    volume = load_volume(tmp_path / "a.nii.gz")
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S") and volume.array[1, 2, 1] == 0
    assert volume.array[1, 2, 2] == 2 and volume.array.dtype == np.float32
    with pytest.raises(DataError, match="file not found"):
        load_volume(tmp_path / "b.nii.gz")


def test_resampling_keeps_places_and_labels():
    ramp = np.broadcast_to(np.arange(10.0), (10, 10, 10)).transpose(2, 1, 0).astype(np.float32)
    volume = Volume(ramp, np.eye(4))
    affine = np.diag([0.5, 1, 1, 1.0])
    affine[0, 3] = 2
    fine = resample(volume, (8, 10, 10), affine)
    assert np.allclose(fine.array[:, 4, 4], 2 + 0.5 * np.arange(8)) and not same_grid(fine, volume)
    labels = resample(Volume((ramp > 4).astype(np.uint8) * 4, np.eye(4)), (8, 10, 10), affine, nearest=True)
    assert set(np.unique(labels.array)) <= {0, 4}


def test_a_template_file_is_masked_and_brought_to_the_grid(tmp_path):
    template = load_template(write_template(tmp_path / "t.nii.gz"))
    assert template.image.array.shape == MNI_SHAPE and np.array_equal(template.image.affine, mni_affine())
    assert not template.image.array[template.mask.array == 0].any() and template.image.array.min() == 0
    assert 1.4e6 < template.mask.array.sum() * 8 < 1.6e6 and template.grey is None
    shifted = native_affine()
    shifted[:3, 3] += 300
    nib.save(nib.Nifti1Image(stripped(), shifted), tmp_path / "away.nii.gz")
    with pytest.raises(DataError, match="a template is a skull-stripped brain in MNI152 space"):
        load_template(tmp_path / "away.nii.gz")


def test_without_nilearn_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(DataError, match=r"pip install nilearn, or give .* --template FILE"):
        load_template()


@pytest.mark.skipif(not importlib.util.find_spec("nilearn"), reason="needs nilearn: pip install nilearn")
def test_nilearns_template_does_not_ring_and_sits_upright():
    template = load_template()
    brain = template.mask.array > 0
    assert template.image.array.shape == MNI_SHAPE and template.image.array.min() >= 0
    assert 1.85e6 < brain.sum() * 8 < 1.92e6 and not template.image.array[~brain].any()
    # white matter is the brighter tissue of T1; left and right mirror each other about x = 0, voxel 45
    assert (
        template.image.array[template.white.array > 0.9].mean() > template.image.array[template.grey.array > 0.9].mean()
    )
    assert np.corrcoef(template.image.array.ravel(), template.image.array[::-1].ravel())[0, 1] > 0.97
