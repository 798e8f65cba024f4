"""One rule for one grid, and what is said of a mask that has an image's shape and lies elsewhere."""

import nibabel as nib
import numpy as np
import pytest

from shared.data import Datalist
from shared.data.checks import DatalistCheck
from shared.data.grids import canonical, place_problem, same_grid
from shared.errors import DataError
from shared.io import write_json
from tests.support.tiny import affine_of, ball, save, write_case

SHAPE = (24, 20, 7)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (0.0, True),
        (np.random.default_rng(0).normal(0, 1e-4, (3, 4)), True),  # what ITK rounds off
        ([[0, 0, 0, 0.005]] * 3, True),
        ([[0, 0, 0, 0.3], [0] * 4, [0] * 4], False),  # three tenths of a voxel
        ([[0.01, 0, 0, 0], [0] * 4, [0] * 4], False),  # 0.23 voxels at the far corner
    ],
)
def test_a_grid_is_the_same_up_to_a_tenth_of_a_voxel_at_its_corners(change, same):
    affine, other = affine_of(), affine_of()
    other[:3] += change
    assert same_grid((SHAPE, affine), (SHAPE, other)) is same
    assert (place_problem("a.nii", (SHAPE, affine), "b.nii", (SHAPE, other)) is None) is same


def test_a_large_oblique_grid_is_the_same_once_its_affine_is_rounded():
    shape, affine = (512, 512, 24), affine_of(degrees=11.5)
    affine[:3, :3] = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) * [0.39, 0.39, 4]
    signs = np.sign(np.random.default_rng(0).normal(size=(3, 4)))
    for change in (1e-4 * signs, affine[:3].round(3) - affine[:3]):
        other = affine.copy()
        other[:3] += change
        assert same_grid((shape, affine), (shape, other))
        assert place_problem("a.nii", (shape, affine), "b.nii", (shape, other)) is None
        turned, other = (matrix @ np.diag([-1.0, -1, 1, 1]) for matrix in (affine, other))  # stored as LPS
        assert place_problem("a.nii", (shape, turned), "b.nii", (shape, other)) is None
    for voxels in ([1, 0, 0], [0, 0, -1]):
        other = affine.copy()
        other[:3, 3] += affine[:3, :3] @ voxels
        assert not same_grid((shape, affine), (shape, other))
    # voxels of 2 micrometres, 256 of them: a thousandth is no rounding there
    small = np.diag([0.002, 0.002, 0.002, 1])
    other = small + 5e-4 * np.eye(4, k=1)
    other[3] = (0, 0, 0, 1)
    assert not same_grid(((256, 256, 9), small), ((256, 256, 9), other))


def test_axes_that_were_exchanged_with_another_affine_are_elsewhere():
    grid = ((48, 48, 16), np.diag([1.5, 1.5, 4, 1]))
    found = place_problem("t1.nii", grid, "mask.nii", ((16, 48, 48), np.eye(4)))
    assert found.startswith(
        "mask.nii has the shape of t1.nii with its axes exchanged (16 x 48 x 48) and lies elsewhere"
    )
    assert "fslcpgeom" not in found and "--trust-affines" in found
    assert place_problem("t1.nii", grid, "mask.nii", ((16, 48, 40), np.eye(4))) is None
    # exchanged in the file, and told so by the affine
    exchanged = grid[1][:, [2, 1, 0, 3]]
    assert place_problem("t1.nii", grid, "mask.nii", ((16, 48, 48), exchanged)) is None


@pytest.mark.parametrize("codes", ["LPS", "SRP", "PSL"])
def test_storage_order_is_no_place(tmp_path, codes):
    image = nib.load(save(tmp_path / "a.nii", ball(), affine_of(degrees=10), codes=codes))
    grid = (image.shape, image.affine)
    assert same_grid(canonical(*grid), (SHAPE, affine_of(degrees=10)))
    assert place_problem("a", (SHAPE, affine_of(degrees=10)), "b", grid) is None
    # voxel by voxel they are two, whatever their shapes
    assert not same_grid(grid, (SHAPE, affine_of(degrees=10)))


def wrong_affines():
    affine = affine_of()
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ [12, 0, 0]
    return {"identity": np.eye(4), "LPS sign": np.diag([-1.0, -1, 1, 1]) @ affine, "moved sform": moved}


@pytest.mark.parametrize("how", wrong_affines())
@pytest.mark.parametrize("which", ["mask", "image"])
def test_a_datalist_with_one_shape_at_two_places_is_refused_with_both_affines(tmp_path, how, which):
    case = write_case(tmp_path, modalities=2)
    path = case["mask"] if which == "mask" else case["image"][1]
    save(path, nib.load(path).get_fdata(dtype=np.float32), wrong_affines()[how])
    entry = {"patient": "P1", "image": [f"P1_{c}.nii.gz" for c in range(2)], "mask": "P1_mask.nii.gz", "label": 0}
    write_json(tmp_path / "datalist.json", {"training": [entry], "testing": []})
    check = DatalistCheck(tmp_path, "datalist.json", 2, 2, ())
    check.section("training")
    assert len(check.problems) == 1
    found = check.problems[0]
    assert found.startswith(f"P1: {path} has the shape of {case['image'][0]} and lies elsewhere: its affine is [")
    assert "[1 0 0 -20; 0 1 0 13; 0 0 3 41]" in found and "--trust-affines" in found
    write_json(tmp_path / "datalist.json", {"training": [{**entry, "trust_affines": True}], "testing": []})
    check = DatalistCheck(tmp_path, "datalist.json", 2, 2, ())
    check.section("training")
    assert check.problems == [] and check.resampled == ["P1"]


def test_an_image_without_orientation_is_refused_by_the_datalist(tmp_path):
    image = nib.Nifti1Image(ball().astype(np.int16), None)
    image.header.set_sform(None, 0)
    image.header.set_qform(None, 0)
    nib.save(image, tmp_path / "a.nii.gz")
    save(tmp_path / "b.nii.gz", ball().astype(np.int16))
    cases = [{"patient": name, "image": [f"{name}.nii.gz"], "label": row} for row, name in enumerate("ab")]
    write_json(tmp_path / "datalist.json", {"training": cases, "testing": []})
    with pytest.raises(DataError, match=r"^a: .*a.nii.gz: has no affine \(sform and qform codes are 0\)") as error:
        Datalist(tmp_path)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize("labels", [2, [], ["2"], [0], [True], [-1]])
def test_labels_of_a_case_are_positive_whole_numbers(tmp_path, labels):
    write_case(tmp_path)
    case = {"patient": "P1", "image": ["P1_0.nii.gz"], "mask": "P1_mask.nii.gz", "label": 0}
    write_json(tmp_path / "datalist.json", {"training": [case | {"tumour_labels": labels}]})
    check = DatalistCheck(tmp_path, "datalist.json", 2, 1, ())
    check.section("training")
    assert [line.partition(" the mask")[0] for line in check.problems] == ["P1: 'tumour_labels' must list"]
