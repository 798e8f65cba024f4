import logging

import numpy as np
import pytest
import torch
from skimage.measure import label

from shared.errors import DataError
from shared.transforms import PointCloudd, TumourCropd, TumourRotation
from shared.transforms.glioma.tumour_crop import BoxedImage, crop_volume, rotate_image, rotation_matrices
from tests.shared.transforms.glioma.test_point_cloud import boundary_distance
from tests.support.tiny_brains import MNI_LIKE, RADII, blob


def case(mask=None, *, affine=MNI_LIKE, sequences=2):
    mask = blob() if mask is None else mask
    noise = torch.rand(sequences, *mask.shape, generator=torch.Generator().manual_seed(0)) + 1
    return {"image": noise, "mask": torch.from_numpy(mask)[None], "affine": affine, "patient": "P1"}


def box_of(mask):
    inside = np.argwhere(mask)
    return tuple(slice(a, b) for a, b in zip(inside.min(axis=0), inside.max(axis=0) + 1, strict=True))


# --- the crop -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outside", ["box", "mask", "keep"])
def test_the_crop_is_centred_on_the_box_and_zero_outside(outside):
    data = case()
    mask = data["mask"][0].numpy()
    out = TumourCropd(28, outside=outside)(data)
    crop, start = out["tumour"], out["crop"]["start"]
    assert crop.shape == (2, 28, 28, 28) and crop.dtype == torch.float32 and out["crop"]["clipped"] == 0
    assert out["image"] is data["image"]
    kept = {"box": np.zeros_like(mask), "mask": mask, "keep": np.ones_like(mask)}[outside]
    kept[box_of(mask) if outside == "box" else ()] |= outside == "box"
    expected = torch.zeros(2, 28, 28, 28)
    for place in np.ndindex(28, 28, 28):
        source = tuple(np.add(place, start))
        if all(0 <= s < n for s, n in zip(source, mask.shape, strict=True)) and kept[source]:
            expected[(slice(None), *place)] = data["image"][(slice(None), *source)]
    assert torch.equal(crop, expected)
    for part, first in zip(box_of(mask), start, strict=True):
        before, after = part.start - first, first + 28 - part.stop
        assert after - before in (0, 1) or before - after in (0, 1)


@pytest.mark.parametrize("box", [((2, 5), (0, 1), (3, 6)), ((0, 6), (0, 6), (0, 6)), ((5, 6), (5, 6), (5, 6)), None])
def test_a_boxed_crop_is_the_crop_and_keeps_the_box_alone(box):
    image, part = torch.zeros(2, 6, 6, 6), tuple(slice(*ends) for ends in box or ())
    if box is not None:
        noise = torch.randn(2, 6, 6, 6, generator=torch.Generator().manual_seed(0))
        image[0][part] = noise[0][part]
        image[1][tuple(ends[0] for ends in box)] = 3.0  # the other sequence is 0 but for a corner
    boxed = BoxedImage.of(image)
    assert torch.equal(torch.as_tensor(boxed), image) and boxed.shape == (2, 6, 6, 6)
    voxels = 0 if box is None else int(np.prod([b - a for a, b in box]))
    assert boxed.values.untyped_storage().nbytes() == 2 * 4 * voxels
    torch.as_tensor(boxed).fill_(9)  # made anew each time
    assert torch.equal(torch.as_tensor(boxed), image)


def test_centre_and_affine_bring_points_and_crop_together():
    data = PointCloudd(num_points=200, radii=RADII)(case())
    out = TumourCropd(28)(data)
    mask = crop_volume(data["mask"].float(), out["crop"]["start"], 28)[0].numpy() > 0
    places = out["centre"].numpy() + out["points"].numpy() / 2
    assert boundary_distance(places, mask) < 0.75
    # the crop's affine brings the same places to the same mm
    affine = out["crop"]["affine"]
    np.testing.assert_allclose(
        places @ affine[:3, :3].T + affine[:3, 3], out["points"].numpy() + out["centroid"].numpy(), atol=1e-4
    )


def test_a_tumour_larger_than_the_crop_is_counted_and_said(caplog):
    crop = TumourCropd(12)
    mask = blob()
    with caplog.at_level(logging.WARNING):
        out = crop(case(mask))
        crop({**case(mask), "patient": "P2"})
    start = out["crop"]["start"]
    lost = mask.sum() - crop_volume(torch.from_numpy(mask)[None].float(), start, 12).sum().item()
    assert lost > 0 and out["crop"]["clipped"] == lost and out["crop"]["voxels"] == mask.sum()
    assert crop.clipped == {"P1", "P2"} and len(caplog.messages) == 2
    assert caplog.messages[0].startswith("P1: the tumour measures ")
    assert f"the crop of 24 mm; {int(lost)} of its {mask.sum()} voxels" in caplog.messages[0]
    assert caplog.messages[1].endswith("patients so far: 2. Raise the crop where memory allows.")
    caplog.clear()
    TumourCropd(28)(case(mask))
    assert not caplog.messages


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"affine": np.diag([1.0, 1, 1, 1])}, "P1: .* voxels of 2 mm along right.* these have 1, 1, 1 mm"),
        ({"affine": np.diag([-2.0, 2, 2, 1])}, "other axes"),
        ({"image": torch.rand(2, 8, 8, 8)}, r"must lie on one grid, got \[2, 8, 8, 8\] and \[32, 36, 30\]"),
        ({"mask": torch.zeros(1, 32, 36, 30)}, "P1: the tumour mask is empty"),
    ],
)
def test_what_cannot_be_cropped_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        TumourCropd(28)({**case(), **change})
    with pytest.raises(ValueError, match="outside must be one of"):
        TumourCropd(outside="brain")


# --- the rotation -------------------------------------------------------------------------------------------------


def test_rotation_matrices_are_rotations():
    generator = torch.Generator().manual_seed(0)
    turns = rotation_matrices(torch.randn(5, 3, generator=generator), torch.rand(5, generator=generator) * 3)
    torch.testing.assert_close(turns @ turns.transpose(1, 2), torch.eye(3).expand(5, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(turns), torch.ones(5))
    # a right-handed quarter turn about the third axis takes the first to the second
    quarter = rotation_matrices(torch.tensor([[0.0, 0, 1]]), torch.tensor([torch.pi / 2]))[0]
    torch.testing.assert_close(quarter @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)


def test_a_quarter_turn_about_the_middle_moves_voxels_exactly():
    image = torch.rand(1, 2, 6, 6, 6)
    quarter = rotation_matrices(torch.tensor([[0.0, 0, 1]]), torch.tensor([torch.pi / 2]))
    turned = rotate_image(image, quarter, torch.full((1, 3), 2.5))
    # what lay along the first axis lies along the second: out[i, j] = in[j, 5 - i]
    torch.testing.assert_close(turned, torch.rot90(image, 1, (2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned[0, :, 4, 1], image[0, :, 1, 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_rotated_points_stay_within_a_voxel_of_the_rotated_masks_surface(seed):
    """One rotation for image and points: also about a centroid that is not the crop's middle."""
    data = TumourCropd(40)(PointCloudd(num_points=300, radii=RADII)(case()))
    start, centre = data["crop"]["start"], data["centre"][None]
    assert (centre - 19.5).abs().max() > 0.5
    mask = crop_volume(data["mask"].float(), start, 40)[None]
    rotated, points = TumourRotation(seed=seed)(mask, data["points"][None], centre)
    rotated = rotated[0, 0].numpy() > 0.5
    places = (centre + points / 2)[0].numpy()
    assert boundary_distance(places, rotated) < 1
    assert label(rotated, return_num=True)[1] == 2 and abs(rotated.sum() / mask.sum().item() - 1) < 0.05
    # the centroid stays, and without the rotation they would not fit
    np.testing.assert_allclose(np.argwhere(rotated).mean(axis=0), centre[0].numpy(), atol=0.3)
    assert boundary_distance((centre + data["points"] / 2).numpy(), rotated) > 1.5


def test_every_patient_has_a_rotation_of_its_own_and_a_seed_repeats_it():
    points, image = torch.rand(4, 8, 3), torch.rand(4, 1, 8, 8, 8)
    centre = torch.full((4, 3), 3.5)
    once, again, other = (TumourRotation(seed=seed)(image, points, centre) for seed in (0, 0, 1))
    assert torch.equal(once[0], again[0]) and torch.equal(once[1], again[1]) and not torch.equal(once[1], other[1])
    same = TumourRotation(seed=0)(None, points[:1].expand(4, -1, -1))
    assert same[0] is None and (same[1][0] - same[1][1]).abs().max() > 0.05
    torch.testing.assert_close(once[1].norm(dim=2), points.norm(dim=2))
    # a patient's draw does not depend on whether there is an image
    torch.testing.assert_close(TumourRotation(seed=0)(None, points)[1], once[1])


def test_how_much_is_rotated_is_a_setting():
    points = torch.rand(200, 1, 3)
    still = TumourRotation(probability=0.25, seed=0)(None, points)[1]
    share = ((still - points).abs().amax(dim=(1, 2)) > 1e-6).float().mean().item()
    assert 0.15 < share < 0.35
    turns = TumourRotation(10, seed=0).draw(500)
    angle = torch.rad2deg(((torch.diagonal(turns, dim1=1, dim2=2).sum(dim=1) - 1) / 2).clamp(-1, 1).acos())
    assert 8 < angle.max() < 10.1
    with pytest.raises(ValueError, match=r"degrees must lie in \[0, 180\]"):
        TumourRotation(200)
    with pytest.raises(ValueError, match="nothing to rotate"):
        TumourRotation()(torch.rand(1, 1, 4, 4, 4), None)
