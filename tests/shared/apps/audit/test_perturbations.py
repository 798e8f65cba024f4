"""Perturbations: masks by millimetres against a naive distance, images that keep grid and mean, draws that repeat."""

import nibabel as nib
import numpy as np
import pytest

from shared.apps.audit.perturbations import (
    biased,
    coarser,
    grown,
    noisy,
    patch_changes,
    perturbed_patch,
    perturbed_volumes,
    restained,
)
from tests.support.tiny import ball, write_case
from tests.support.tiny_patches import write_patches


@pytest.mark.parametrize("millimetres", [-3.0, -1.0, 1.0, 2.0, 3.0])
def test_a_mask_grows_by_millimetres_whatever_its_voxels(millimetres):
    mask, voxel = ball((12, 10, 5), centre=(6, 5, 2), radius=4, spacing=(1, 1.5, 3)), (1.0, 1.5, 3.0)
    points = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing="ij"), axis=-1).reshape(-1, 3) * voxel
    inside = mask.ravel()
    apart = np.sqrt(((points[:, None] - points[None, ~inside if millimetres < 0 else inside]) ** 2).sum(-1)).min(1)
    naive = apart <= millimetres + 1e-6 if millimetres > 0 else apart > -millimetres + 1e-6
    found = grown(mask, voxel, millimetres)
    assert (found.ravel() == naive).all()
    assert found.sum() > mask.sum() if millimetres >= 1 else found.sum() < mask.sum()


def test_a_single_slice_shrinks_within_itself():
    mask = np.zeros((20, 20, 1), bool)
    mask[5:15, 5:15] = True
    assert grown(mask, (1, 1, 5), -2).sum() == 36  # centres farther than 2 mm from the nearest outside: 6 x 6


def test_noise_has_its_share_of_the_tissue_s_spread():
    random = np.random.default_rng(0)
    array = np.zeros((40, 40, 10))
    array[10:30] = random.normal(100, 20, (20, 40, 10))
    moved = noisy(array, random, 0.1) - array
    assert moved.std() == pytest.approx(2.0, rel=0.03) and abs(moved.mean()) < 0.1


def test_a_bias_field_is_smooth_and_multiplies():
    array = np.full((24, 24, 8), 50.0)
    field = biased(array, np.random.default_rng(1)) / 50
    assert field.std() > 0.01 and (field > 0).all() and np.abs(np.diff(field, axis=0)).max() < 0.3
    assert (biased(np.zeros((8, 8, 8)), np.random.default_rng(1)) == 0).all()


def test_coarser_voxels_keep_the_grid_the_mean_and_thick_slices():
    array = np.random.default_rng(2).random((30, 32, 6))
    found = coarser(array, (1, 1, 5))
    assert found.shape == array.shape and found.mean() == pytest.approx(array.mean(), abs=0.01)
    assert found.std() < 0.8 * array.std()
    planes = np.zeros((30, 30, 8)) + np.arange(8)
    assert np.allclose(coarser(planes, (1, 1, 5)), planes)


def test_stronger_stains_are_darker_and_the_same_strength_is_the_same():
    rgb = np.random.default_rng(3).integers(60, 230, (16, 16, 3)).astype(np.uint8)
    assert np.abs(restained(rgb, 1, 1).astype(int) - rgb).max() <= 1
    assert restained(rgb, 1.15, 1.15).mean() < rgb.mean() < restained(rgb, 0.85, 0.85).mean()


def test_patches_change_alike_each_time_and_keep_their_size():
    rgb = np.random.default_rng(4).integers(60, 230, (32, 32, 3)).astype(np.uint8)
    for name, change in patch_changes().items():
        one, other = (change(rgb, np.random.default_rng(5)) for _ in range(2))
        assert one.shape == rgb.shape and one.dtype == np.uint8 and (one == other).all() and (one != rgb).any(), name


def test_a_patch_s_forms_are_files_with_its_label(tmp_path):
    case = write_patches(tmp_path, 1)[0]
    (tmp_path / "forms").mkdir()
    found = perturbed_patch({**case, "image": str(tmp_path / case["image"])}, tmp_path / "forms", "case0000")
    assert next(iter(found)) == "unchanged" and len(found) == len(patch_changes()) + 1
    assert len({form["image"] for form in found.values()}) == len(found)
    assert all((tmp_path / "forms" / form["image"]).is_file() and form["label"] == 0 for form in found.values())


def test_a_patient_s_forms_change_what_they_say_and_nothing_else(tmp_path):
    case = write_case(tmp_path, mask=ball(radius=4), modalities=2, codes="LPS")
    (tmp_path / "forms").mkdir()
    # a file that lies beside the cohort, and not beside the forms
    known = {"covariates": {"age": 50.0}, "fold": 1, "mni_places": "P1/mni_places.nii.gz"}
    found = perturbed_volumes({**case, **known}, tmp_path / "forms", "case0000")
    names = list(found)
    assert names[0] == "unchanged" and [n for n in names if n.startswith("mask grown")] == [
        f"mask grown, {k} mm" for k in (1, 2, 3)
    ]

    def read(form, key, k=0):
        path = found[form][key]
        return nib.load(tmp_path / "forms" / (path[k] if isinstance(path, list) else path))

    first = [np.asarray(read("unchanged", "image", k).dataobj) for k in range(2)]
    mask = np.asarray(read("unchanged", "mask").dataobj) > 0
    for form in names[1:]:
        own = np.asarray(read(form, "mask").dataobj) > 0
        same = [(np.asarray(read(form, "image", k).dataobj) == first[k]).all() for k in range(2)]
        assert np.allclose(read(form, "image").affine, read("unchanged", "image").affine)
        assert found[form]["covariates"] == {"age": 50.0} and not {"fold", "mni_places"} & set(found[form])
        if form.startswith("mask"):
            assert all(same) and own.sum() != mask.sum() and (own & mask).sum() == min(own.sum(), mask.sum())
        else:
            assert not any(same) and (own == mask).all()


def test_a_mask_that_would_nearly_vanish_is_not_shrunk(tmp_path):
    case = write_case(tmp_path, mask=ball(radius=4))
    (tmp_path / "forms").mkdir()
    found = perturbed_volumes(case, tmp_path / "forms", "case0000")
    shrunk = grown(ball(radius=4), (1, 1, 3), -3)
    assert 0 < shrunk.sum() < 20 and "mask grown, 3 mm" in found and "mask shrunk, 3 mm" not in found
