import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from skimage.measure import label

from shared.errors import DataError
from shared.transforms import LoadCased, PointCloudd
from shared.transforms.glioma.point_cloud import surface_points, tumour_centroid
from tests.support.tiny_brains import MNI_LIKE, RADII, blob


def voxels(points, affine=MNI_LIKE):
    """Where points in mm lie in voxels."""
    return nib.affines.apply_affine(np.linalg.inv(affine), np.asarray(points, dtype=np.float64))


def boundary_distance(points, mask):
    """Largest distance in voxels from a point to the nearest unit square between mask and outside."""
    padded, nearest = np.pad(mask, 1), np.full(len(points), np.inf)
    for axis in range(3):
        change = np.diff(padded.astype(np.int8), axis=axis) != 0
        centres = np.argwhere(change) - 1.0
        centres[:, axis] += 0.5
        apart = np.abs(points[:, None] - centres)
        within = np.where(np.arange(3) == axis, apart, np.maximum(apart - 0.5, 0))
        nearest = np.minimum(nearest, np.linalg.norm(within, axis=2).min(axis=1))
    return nearest.max()


def test_points_lie_on_the_masks_surface_in_mm():
    mask = blob()
    points = surface_points(mask, MNI_LIKE, 400)
    assert points.shape == (400, 3) and points.dtype == np.float32
    assert len(np.unique(points, axis=0)) == 400
    assert boundary_distance(voxels(points), mask) < 0.5
    # half-way between a voxel of the tumour and one outside, so that a cube keeps its extent
    cube = np.zeros((12, 12, 12), bool)
    cube[3:9, 2:7, 4:6] = True
    found = voxels(surface_points(cube, MNI_LIKE, 200))
    np.testing.assert_allclose(found.min(axis=0), [2.5, 1.5, 3.5], atol=1e-4)
    np.testing.assert_allclose(found.max(axis=0), [8.5, 6.5, 5.5], atol=1e-4)


def test_points_spread_over_all_components_and_evenly():
    mask = blob()
    parts, count = label(mask, return_num=True)
    assert count == 2
    points = voxels(surface_points(mask, MNI_LIKE, 400))
    nearest = cKDTree(np.argwhere(mask)).query(points)[1]
    of = parts[tuple(np.argwhere(mask)[nearest].T)]
    assert min((of == part).sum() for part in (1, 2)) > 10
    # farthest points: no two are much nearer than the typical gap
    gap = cKDTree(points).query(points, k=2)[0][:, 1]
    assert gap.min() > 0.5 * np.median(gap)


@pytest.mark.parametrize("corner", [(0, 0, 0), (9, 9, 9)])
def test_a_tumour_at_the_images_edge_is_closed(corner):
    mask = np.zeros((12, 12, 12), bool)
    mask[tuple(slice(c, c + 3) for c in corner)] = True
    found = voxels(surface_points(mask, MNI_LIKE, 120))
    np.testing.assert_allclose(found.min(axis=0), np.subtract(corner, 0.5), atol=1e-4)
    np.testing.assert_allclose(found.max(axis=0), np.add(corner, 2.5), atol=1e-4)


def test_a_small_tumour_gives_as_many_points_as_a_large_one():
    mask = np.zeros((12, 12, 12), bool)
    mask[4:6, 4:7, 4:6] = True
    points = surface_points(mask, MNI_LIKE, 1024)
    assert len(np.unique(points, axis=0)) == 1024 and boundary_distance(voxels(points), mask) < 0.5


def test_where_the_image_lies_does_not_change_the_cloud():
    far = MNI_LIKE.copy()
    far[:3, 3] += (1000, -4000, 500)
    transform = PointCloudd(num_points=128, radii=RADII)
    data = [{"mask": torch.from_numpy(blob())[None], "affine": affine} for affine in (MNI_LIKE, far)]
    near, moved = (transform(item) for item in data)
    torch.testing.assert_close(moved["points"], near["points"])
    assert all(torch.equal(a, b) for a, b in zip(near["graph"].neighbours, moved["graph"].neighbours, strict=True))
    np.testing.assert_allclose(moved["centroid"] - near["centroid"], [1000, -4000, 500], atol=1e-2)


def test_a_patient_from_files(tmp_path):
    mask = blob()
    noise = np.random.default_rng(0).uniform(1, 2, mask.shape).astype(np.float32)
    for name, volume in (("image", noise), ("mask", mask.astype(np.uint8))):
        nib.save(nib.Nifti1Image(volume, MNI_LIKE), tmp_path / f"{name}.nii.gz")
    case = {"patient": "P1", "image": str(tmp_path / "image.nii.gz"), "mask": str(tmp_path / "mask.nii.gz")}
    out = PointCloudd(num_points=256, radii=RADII)(LoadCased()(case))
    assert out["points"].shape == (256, 3) and out["points"].dtype == torch.float32
    np.testing.assert_allclose(out["centroid"], tumour_centroid(mask, MNI_LIKE), atol=1e-4)
    np.testing.assert_allclose(
        out["centroid"], nib.affines.apply_affine(MNI_LIKE, np.argwhere(mask).mean(axis=0)), atol=1e-4
    )
    assert boundary_distance(voxels(out["points"] + out["centroid"]), mask) < 0.5
    assert [len(index) for index in out["graph"].survivors] == [128, 64]
    again = PointCloudd(num_points=256, radii=RADII)(LoadCased()(case))
    assert torch.equal(again["points"], out["points"])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(1, 8, 8, 8), "P7: the tumour mask is empty; a surface needs at least 10 voxels"),
        (torch.eye(8)[None, None], r"P7: the tumour mask has 8 voxels"),
        (torch.ones(2, 4, 4, 4), r"P7: a tumour mask has the shape \[1, X, Y, Z\], got \[2, 4, 4, 4\]"),
        (torch.ones(4, 4, 4), r"got \[4, 4, 4\]"),
    ],
)
def test_masks_without_a_surface_are_refused(mask, message):
    with pytest.raises(DataError, match=message):
        PointCloudd()({"mask": mask, "affine": MNI_LIKE, "patient": "P7"})
