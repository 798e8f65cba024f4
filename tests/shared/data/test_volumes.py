import nibabel as nib
import numpy as np

from shared.data.volumes import Volume, load_volume, resample


def test_a_label_reaches_to_the_edge_of_its_voxel_on_a_finer_grid():
    mask = np.zeros((3, 3, 3), np.uint8)
    mask[0], mask[2, 2, 2] = 1, 1
    finer = np.diag([0.5, 0.5, 0.5, 1.0])
    finer[:3, 3] = -0.25  # eight voxels in the place of each
    found = resample(Volume(mask, np.eye(4)), (6, 6, 6), finer, nearest=True)
    np.testing.assert_array_equal(found.array, mask.repeat(2, 0).repeat(2, 1).repeat(2, 2))


def test_brightness_is_interpolated_at_the_place_in_millimetres():
    ramp = np.indices((4, 5, 6))[1].astype(np.float32)
    affine = np.array([[0.0, -2, 0, 7], [3, 0, 0, -1], [0, 0, 1, 4], [0, 0, 0, 1]])
    target = np.array([[-1.0, 0, 0, 6], [0, 1.5, 0, 0.5], [0, 0, 1, 5], [0, 0, 0, 1]])
    found = resample(Volume(ramp, affine), (4, 3, 2), target).array
    # x = 7 - 2 j and x = 6 - i: j = (1 + i) / 2
    np.testing.assert_allclose(found, np.broadcast_to((1 + np.arange(4))[:, None, None] / 2, (4, 3, 2)), atol=1e-6)


def test_a_volume_is_read_in_ras_order_and_what_is_no_number_is_0(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    nib.Nifti1Image(array[..., None], np.diag([-1.0, -2.0, 3.0, 1.0])).to_filename(tmp_path / "lps.nii")
    found = load_volume(tmp_path / "lps.nii")
    np.testing.assert_array_equal(found.array, np.where(np.isfinite(array), array, 0)[::-1, ::-1])
    np.testing.assert_array_equal(found.affine, [[1, 0, 0, -1], [0, 2, 0, -4], [0, 0, 3, 0], [0, 0, 0, 1]])
    kept = load_volume(tmp_path / "lps.nii", repair=False).array
    np.testing.assert_array_equal(kept, array[::-1, ::-1])
