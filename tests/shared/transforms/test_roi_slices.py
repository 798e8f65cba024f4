import logging
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from shared.errors import DataError
from shared.transforms import LoadCased, ROISlicesd, labels_to_images, masks_to_volume, source_slices
from shared.transforms.roi_slices import pixel_area, radiological
from tests.support.tiny import affine_of, ball, save, texture, write_case

SHAPE = (24, 20, 7)
STORAGE = ["RAS", "LPS", "SRP", "AIL", "PSL"]


def cut(case, num_slices=3, **settings):
    """A case as the network gets it."""
    return ROISlicesd(num_slices, **settings)(LoadCased()(case))


def one_to_one(case, num_slices=3, size=16, **settings):
    """Cut with windows as many pixels wide as the output and the whole range, so that nothing is interpolated."""
    return cut(case, num_slices, size=size, roi="fixed_mm", extent_mm=size, **{"tails": 0.0, **settings})


def layered(areas, shape=SHAPE):
    """Mask with so many voxels in each slice along the third axis, around one place."""
    mask = np.zeros(shape, dtype=bool)
    order = sorted(np.ndindex(shape[:2]), key=lambda p: ((p[0] - 12) ** 2 + (p[1] - 9) ** 2, p))
    for index, area in enumerate(areas):
        for place in order[:area]:
            mask[(*place, index)] = True
    return mask


# --- what is cut --------------------------------------------------------------------------------------------------


def test_images_are_the_tumours_slices_modality_by_modality(tmp_path):
    mask = ball(centre=(14, 8, 3), radius=7)
    out = one_to_one(write_case(tmp_path, modalities=2, mask=mask))
    assert out["image"].shape == out["mask"].shape == (6, 16, 16) and out["image"].dtype == torch.float32
    for c in range(2):
        # 16 pixels about the tumour's centre: rows 6 to 21, columns 0 to 15, slices 2 to 4
        volume = texture(seed=c)[6:22, 0:16, 2:5]
        expected = (volume - volume.min()) / (volume.max() - volume.min())
        for i in range(3):
            np.testing.assert_allclose(out["image"][3 * c + i], expected[..., i], atol=1e-6)
            np.testing.assert_array_equal(out["mask"][3 * c + i], mask[6:22, 0:16, 2 + i])


@pytest.mark.parametrize("degrees", [0.0, 25.0])
@pytest.mark.parametrize("codes", STORAGE[1:])
def test_storage_order_and_obliqueness_do_not_change_the_images(tmp_path, codes, degrees):
    affine = affine_of(degrees=degrees)
    expected = cut(write_case(tmp_path / "ras", modalities=2), size=16, mask_background=True, mask_margin_mm=2)
    case = write_case(tmp_path / "other", modalities=2, codes=codes, affine=affine)
    assert nib.aff2axcodes(nib.load(case["image"][0]).affine) == tuple(codes)
    found = cut(case, size=16, mask_background=True, mask_margin_mm=2)
    torch.testing.assert_close(found["image"], expected["image"])
    assert torch.equal(found["mask"], expected["mask"])


@pytest.mark.parametrize(
    ("areas", "count", "chosen"),
    [
        ([0, 9, 4, 12, 5, 0, 7], 3, [1, 3, 6]),
        ([3, 30, 2, 1, 29, 28, 0], 4, [0, 1, 4, 5]),
        ([5, 5, 5, 5, 5, 5, 5], 2, [0, 1]),  # equal areas: the first
        ([0, 0, 4, 0, 0, 4, 0], 2, [2, 5]),
    ],
)
def test_slices_are_those_of_largest_area_in_anatomical_order(tmp_path, areas, count, chosen):
    out = cut(write_case(tmp_path, mask=layered(areas)), count, size=8)
    assert out["geometry"]["slices"] == chosen


def test_slices_run_across_the_thickest_voxels_unless_told(tmp_path):
    mask, affine = ball(spacing=(3, 1, 1)), affine_of((3, 1, 1))
    case = write_case(tmp_path, mask=mask, affine=affine)
    assert cut(case, size=8)["geometry"]["axis"] == 0
    assert cut(case, size=8, slice_axis=1)["geometry"]["axis"] == 1
    even = write_case(tmp_path / "even", mask=mask, affine=affine_of((1, 1, 1)))
    assert cut(even, size=8)["geometry"]["axis"] == 2
    assert cut(even, size=8)["image"].shape == (3, 8, 8)


# --- the window ---------------------------------------------------------------------------------------------------


def test_a_fixed_window_keeps_the_tumours_size_and_a_box_does_not(tmp_path):
    areas = {}
    for radius in (3, 6):
        case = write_case(tmp_path / str(radius), mask=ball(radius=radius, centre=(12, 10, 3)))
        for settings in ({"roi": "box"}, {"roi": "fixed_mm", "extent_mm": 20}):
            out = cut(case, 1, size=64, **settings)
            areas[settings["roi"], radius] = float(out["mask"].float().mean())
    assert areas["fixed_mm", 6] / areas["fixed_mm", 3] == pytest.approx(113 / 29, rel=0.05)
    assert areas["fixed_mm", 6] == pytest.approx(113 / 400, rel=0.05)
    assert areas["box", 6] / areas["box", 3] == pytest.approx(1, rel=0.2)


def test_a_box_is_the_longer_side_and_its_margins(tmp_path):
    mask = np.zeros(SHAPE, dtype=bool)
    mask[4:14, 6:10, 2:5] = True  # 10 mm by 4 mm about (9, 8)
    geometry = cut(write_case(tmp_path, mask=mask), size=8, margin=0.1)["geometry"]
    assert geometry["window"] == (3, 15, 2, 14)
    assert cut(write_case(tmp_path, mask=mask), size=8, margin=0.0)["geometry"]["window"] == (4, 14, 3, 13)


@pytest.mark.parametrize("settings", [{"roi": "box", "margin": 0.25}, {"roi": "fixed_mm", "extent_mm": 30}])
def test_anisotropic_pixels_give_a_square_in_mm(tmp_path, settings):
    spacing = (1.0, 0.5, 3.0)
    shape = (40, 80, 5)
    mask = ball(shape, centre=(20, 40, 2), radius=10, spacing=spacing)
    case = {"patient": "P1", "image": save(tmp_path / "i.nii.gz", texture(shape), affine_of(spacing))}
    case["mask"] = save(tmp_path / "m.nii.gz", mask, affine_of(spacing))
    out = cut(case, 1, size=60, **settings)
    r0, r1, c0, c1 = out["geometry"]["window"]
    assert (r1 - r0) * 1.0 == pytest.approx((c1 - c0) * 0.5, abs=0.5)
    # the ball is round again
    rows, columns = out["mask"][0].any(dim=1).sum(), out["mask"][0].any(dim=0).sum()
    assert abs(int(rows) - int(columns)) <= 2 and int(rows) == pytest.approx(60 * 21 / (r1 - r0), abs=2)


def test_a_window_may_reach_outside_the_image(tmp_path):
    mask = ball(centre=(2, 18, 3), radius=4)
    out = one_to_one(write_case(tmp_path, mask=mask), normalise="organ", organ_range=2)
    r0, r1, c0, c1 = out["geometry"]["window"]
    assert r0 < 0 < r1 and c1 > SHAPE[1] > c0
    assert (out["image"][:, :-r0] == 0).all() and (out["image"][:, :, SHAPE[1] - c0 :] == 0).all()
    inside = out["image"][:, -r0:, : SHAPE[1] - c0]
    expected = np.moveaxis(texture()[:r1, c0:, out["geometry"]["slices"]], 2, 0) / (2 * texture().mean())
    np.testing.assert_allclose(inside, expected.clip(0, 1), rtol=1e-5)


def test_what_lies_outside_the_image_does_not_set_the_minimum(tmp_path):
    out = one_to_one(write_case(tmp_path, mask=ball(centre=(2, 18, 3), radius=4)))
    r0, r1, c0, _ = out["geometry"]["window"]
    seen = texture()[:r1, c0:, out["geometry"]["slices"]]
    expected = (np.moveaxis(seen, 2, 0) - seen.min()) / (seen.max() - seen.min())
    np.testing.assert_allclose(out["image"][:, -r0:, : SHAPE[1] - c0], expected, atol=1e-6)


def told(caplog):
    """What this project warns of; MONAI has warnings of its own where pydicom is installed."""
    return [record.message for record in caplog.records if record.name.startswith("shared")]


def test_a_window_smaller_than_the_tumour_is_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        cut(write_case(tmp_path, mask=ball(radius=7)), size=8, roi="fixed_mm", extent_mm=9)
    assert "P1: the tumour measures 15 mm, more than the window of 9 mm" in caplog.text


def two_lesions(*boxes, shape=(48, 40, 9)):
    mask = np.zeros(shape, dtype=bool)
    for box in boxes:
        mask[tuple(slice(*side) for side in box)] = True
    return mask


def far_apart(folder, *boxes):
    mask = two_lesions(*boxes)
    case = {"patient": "P1", "image": save(folder / "i.nii.gz", texture(mask.shape))}
    return {**case, "mask": save(folder / "m.nii.gz", mask)}


@pytest.mark.parametrize("background", [True, False])
def test_of_lesions_further_apart_than_the_window_the_largest_is_seen(tmp_path, caplog, background):
    # 6 x 6 pixels in four slices on the left; 5 x 5 in five slices 36 mm away, whose slices alone would be others
    case = far_apart(tmp_path, [(2, 8), (10, 16), (0, 4)], [(38, 43), (10, 15), (3, 8)])
    with caplog.at_level(logging.WARNING):
        out = one_to_one(case, 3, size=12, mask_background=background)
    assert out["geometry"]["slices"] == [0, 1, 2] and out["geometry"]["window"] == (-1, 11, 7, 19)
    assert out["mask"].sum() == 3 * 36
    told = "P1: 2 lesions do not fit into a window of 12 mm: it is laid on the largest (0.4 ml); of the others (0.4 ml)"
    assert told in caplog.text


def test_lesions_that_fit_into_the_window_are_seen_together(tmp_path, caplog):
    case = far_apart(tmp_path, [(2, 8), (10, 16), (2, 6)], [(14, 18), (10, 15), (2, 6)])
    with caplog.at_level(logging.WARNING):
        out = one_to_one(case, 3, size=20)
    assert out["mask"].sum() == 3 * (36 + 20) and not told(caplog)
    boxed = cut(far_apart(tmp_path, [(2, 8), (10, 16), (2, 6)], [(38, 42), (10, 15), (2, 6)]), 3, size=8)
    assert boxed["geometry"]["window"][:2] == (-2, 46)  # a box holds all of them: 40 pixels and a tenth on each side


def test_the_largest_lesion_needs_its_slices(tmp_path):
    case = far_apart(tmp_path, [(2, 12), (10, 20), (0, 2)], [(38, 42), (10, 14), (3, 8)])
    with pytest.raises(DataError, match=r"P1: 3 slices with tumour are needed, the mask has 2"):
        one_to_one(case, 3, size=12)


# --- grey values --------------------------------------------------------------------------------------------------


def test_roi_range_is_that_of_the_case_not_of_each_slice(tmp_path):
    volume = texture()
    volume[..., 2] *= 0.5
    case = write_case(tmp_path, mask=ball(radius=7))
    save(case["image"][0], volume)
    out = one_to_one(case)
    low, high = out["image"].amin(dim=(1, 2)), out["image"].amax(dim=(1, 2))
    assert low.min() == 0 and high.max() == 1 and high[0] < 0.6 and low[1] > 0.1


@pytest.mark.parametrize(("radius", "background"), [(7, False), (7, True), (2, True)])
@pytest.mark.parametrize("value", [1e5, -1e5])
def test_a_voxel_of_metal_does_not_set_the_range(tmp_path, radius, background, value):
    volume, mask = texture(), ball(radius=radius)
    case = write_case(tmp_path, mask=mask)
    plain = one_to_one(case, 1, mask_background=background, tails=0.005)["image"]
    volume[14, 8, 3] = value
    save(case["image"][0], volume)
    out = one_to_one(case, 1, mask_background=background, tails=0.005)["image"]
    assert out[0, 8, 8] == (1 if value > 0 else 0)
    out[0, 8, 8] = plain[0, 8, 8]
    # the others hardly change: one value fewer is left out at that end
    assert (out - plain).abs().max() < (0.2 if radius == 2 else 0.02)


def test_half_a_percent_of_the_region_lies_beyond_either_end(tmp_path):
    case = write_case(tmp_path, mask=False)
    out = cut(case, 7, size=24, margin=0.0)["image"][:, :, 2:22]
    count = out.numel()
    assert (out == 0).sum() == (out == 1).sum() == round(0.005 * count) + 1  # and the value at the end itself
    values = np.sort(texture().ravel())
    low, high = values[round(0.005 * count)], values[-1 - round(0.005 * count)]
    expected = ((texture() - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(out, np.moveaxis(expected, 2, 0), atol=1e-6)


def test_padding_inside_the_grown_mask_does_not_set_the_minimum(tmp_path):
    mask = ball(centre=(2, 10, 3), radius=4)  # grown by 3 mm it reaches beyond the image's edge
    case = write_case(tmp_path, mask=mask)
    out = one_to_one(case, mask_background=True, mask_margin_mm=3.0)
    r0, r1, c0, c1 = out["geometry"]["window"]
    assert r0 < 0
    grown = np.zeros((3, *SHAPE[:2]), bool)
    for j, index in enumerate(out["geometry"]["slices"]):
        for place in np.ndindex(SHAPE[:2]):
            grown[j][place] = min(math.dist(place, other) for other in np.argwhere(mask[..., index])) <= 3.0
    values = np.moveaxis(texture()[..., out["geometry"]["slices"]], 2, 0)
    low, high = values[grown].min(), values[grown].max()
    expected = np.where(grown, (values - low) / (high - low), 0)[:, :r1, c0:c1]
    np.testing.assert_allclose(out["image"][:, -r0:], expected, atol=1e-6)


def test_organ_normalisation_keeps_contrast_between_patients(tmp_path):
    dim, bright = texture(), texture()
    bright[ball()] *= 1.5
    images = []
    for name, volume in (("dim", dim), ("bright", bright)):
        case = write_case(tmp_path / name)
        save(case["image"][0], volume)
        images.append(one_to_one(case, normalise="organ", organ_range=4, mask_background=True)["image"])
        volume_mean = volume.mean()
        assert images[-1].max() == pytest.approx(
            min(1, volume[..., 2:5][ball()[..., 2:5]].max() / volume_mean / 4), rel=1e-4
        )
    assert images[1].sum() / images[0].sum() == pytest.approx(1.5 * dim.mean() / bright.mean(), rel=1e-4)


def test_the_organ_is_what_is_not_air(tmp_path):
    volume = np.zeros(SHAPE, dtype=np.float32)
    volume[2:22, 2:18] = 100 + texture()[2:22, 2:18]
    case = write_case(tmp_path, mask=ball(radius=4))
    save(case["image"][0], volume)
    out = one_to_one(case, size=8, normalise="organ", organ_range=2)
    expected = np.moveaxis(volume[10:18, 4:12, 2:5], 2, 0) / (2 * volume[volume > 0].mean())
    np.testing.assert_allclose(out["image"], expected.clip(0, 1), rtol=1e-5)


def test_background_is_zero_and_the_range_is_that_of_the_tumour(tmp_path):
    mask = ball(radius=5)
    out = one_to_one(write_case(tmp_path, mask=mask), mask_background=True)
    inside = np.moveaxis(mask[6:22, 0:16, 2:5], 2, 0)
    values = np.moveaxis(texture()[6:22, 0:16, 2:5], 2, 0)
    expected = np.where(inside, (values - values[inside].min()) / np.ptp(values[inside]), 0)
    np.testing.assert_allclose(out["image"], expected, atol=1e-6)


@pytest.mark.parametrize("margin", [1.0, 2.2, 4.0])
def test_the_margin_about_the_tumour_is_in_mm(tmp_path, margin):
    spacing = (1.0, 2.0, 5.0)
    mask = ball(spacing=spacing, radius=3)
    case = write_case(tmp_path, mask=mask, affine=affine_of(spacing))
    settings = {"roi": "fixed_mm", "extent_mm": 12, "normalise": "organ", "mask_background": True}
    out = cut(case, 1, size=12, mask_margin_mm=margin, **settings)
    r0, r1, c0, c1 = out["geometry"]["window"]
    index = out["geometry"]["slices"][0]
    kept = np.zeros(SHAPE[:2], dtype=bool)
    for place in np.ndindex(SHAPE[:2]):
        near = min(math.hypot(place[0] - i, 2 * (place[1] - j)) for i, j in np.argwhere(mask[..., index]))
        kept[place] = near <= margin
    # columns are stretched to twice their number by the square output: compare where both neighbours agree
    shown = (out["image"][0] > 0).numpy()
    expected = np.repeat(kept[r0:r1, c0:c1], 2, axis=1)
    assert expected.shape == shown.shape and kept.sum() > mask[..., index].sum()
    same = expected == shown
    edge = np.zeros_like(same)
    edge[:, 1:-1] = (expected[:, :-2] != expected[:, 1:-1]) | (expected[:, 2:] != expected[:, 1:-1])
    assert same[~edge].all()


# --- no mask ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "chosen"), [(7, [0, 1, 2, 3, 4, 5, 6]), (3, [2, 3, 4]), (4, [1, 2, 3, 4])])
def test_a_case_without_mask_is_taken_whole(tmp_path, count, chosen):
    out = cut(write_case(tmp_path, mask=False), count, size=24, margin=0.0, tails=0.0)
    assert out["geometry"]["slices"] == chosen and out["image"].shape == (count, 24, 24)
    assert out["geometry"]["window"] == (0, 24, -2, 22)  # the square about 24 x 20 pixels
    volume = texture()[..., chosen]
    expected = np.moveaxis((volume - volume.min()) / (volume.max() - volume.min()), 2, 0)
    np.testing.assert_allclose(out["image"][:, :, 2:22], expected, atol=1e-6)
    assert out["mask"][:, :, 2:22].all() and not out["mask"][:, :, :2].any()


def test_a_case_without_mask_needs_k_slices(tmp_path):
    with pytest.raises(DataError, match=r"P1: 8 slices are needed, the image has 7\. Lower num_slices"):
        cut(write_case(tmp_path, mask=False), 8)


# --- modalities on other grids ------------------------------------------------------------------------------------


def ramp(shape, affine):
    """A linear function of the place in space: linear interpolation gives it back exactly."""
    index = np.stack([*np.meshgrid(*map(np.arange, shape), indexing="ij"), np.ones(shape)], axis=-1)
    return ((index @ affine.T)[..., :3] @ np.array([3.0, 2.0, 1.0])).astype(np.float32) + 500


@pytest.mark.parametrize("codes", ["RAS", "PSL"])
def test_a_modality_on_another_grid_is_resampled_and_told(tmp_path, caplog, codes):
    case = write_case(tmp_path, modalities=1)
    other = affine_of((0.7, 0.9, 2.0))
    case["image"].append(save(tmp_path / "t1.nii.gz", ramp((60, 50, 20), other), other, codes=codes))
    with caplog.at_level(logging.WARNING):
        out = LoadCased()(case)
    assert caplog.text.count("is on another grid than the first modality (24, 20, 7)") == 1
    assert "P1: " in caplog.text and "t1.nii.gz" in caplog.text
    np.testing.assert_allclose(out["image"][1], ramp(SHAPE, affine_of()), atol=0.01)
    np.testing.assert_array_equal(out["image"][0], texture())


def test_a_mask_on_another_grid_stays_a_mask(tmp_path, caplog):
    case = write_case(tmp_path)
    shifted = affine_of()
    shifted[:3, 3] += (0.3, -0.3, 0.9)  # less than half a voxel: the nearest one is still the same
    save(case["mask"], ball(), shifted)
    with pytest.raises(DataError, match=r"P1: .*P1_mask.nii.gz has the shape of .*P1_0.nii.gz and lies elsewhere"):
        LoadCased()(case)
    with caplog.at_level(logging.WARNING):
        out = LoadCased()(case | {"trust_affines": True})
    assert "another grid" in caplog.text and out["mask"].dtype == torch.bool
    np.testing.assert_array_equal(out["mask"][0], ball())


def test_a_mask_of_another_shape_is_told_with_its_volumes(tmp_path, caplog):
    case = write_case(tmp_path)
    fine = affine_of((0.5, 1.0, 3.0))
    save(case["mask"], np.repeat(ball(), 2, axis=0), fine)
    with caplog.at_level(logging.WARNING):
        out = LoadCased()(case)
    after = out["mask"].sum() * 3e-3
    assert f"P1: the tumour has {ball().sum() * 3e-3:.1f} ml in its mask, {after:.1f} ml on that grid" in caplog.text
    assert after == pytest.approx(ball().sum() * 3e-3, rel=0.1)


def test_an_image_without_orientation_is_refused(tmp_path):
    case = write_case(tmp_path)
    image = nib.Nifti1Image(texture(), None)
    image.header.set_sform(None, 0)
    image.header.set_qform(None, 0)
    nib.save(image, case["image"][0])
    with pytest.raises(DataError, match=r"P1: .*P1_0.nii.gz has no affine \(sform and qform codes are 0\)"):
        LoadCased()(case)


def test_an_affine_that_was_rounded_is_the_same_grid(tmp_path, caplog):
    case, affine = write_case(tmp_path, modalities=2), affine_of()
    affine[:3] += np.random.default_rng(0).normal(0, 1e-4, (3, 4))
    for path, volume in ((case["image"][1], texture(seed=1)), (case["mask"], ball())):
        save(path, volume, affine)
    with caplog.at_level(logging.WARNING):
        out = LoadCased()(case)
    assert not told(caplog)
    np.testing.assert_array_equal(out["image"][1], texture(seed=1))
    np.testing.assert_array_equal(out["mask"][0], ball())


def test_one_grid_is_not_touched(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        out = LoadCased()(write_case(tmp_path, modalities=3, codes="AIL"))
    assert not told(caplog) and out["image"].shape == (3, *SHAPE)
    np.testing.assert_array_equal(out["image"][2], texture(seed=2))


# --- back to the source -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", STORAGE)
@pytest.mark.parametrize("centre", [(14, 8, 3), (2, 18, 3)])  # the second window reaches outside
@pytest.mark.parametrize("modalities", [1, 2])
def test_masks_return_to_the_grid_of_the_source(tmp_path, codes, centre, modalities):
    affine = affine_of(degrees=10)
    case = write_case(tmp_path, modalities=modalities, mask=ball(centre=centre), codes=codes, affine=affine)
    out = one_to_one(case)
    count, source = len(out["image"]), nib.load(case["image"][0])
    masks = torch.rand(count, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.1
    found = masks_to_volume(masks, out["geometry"])
    assert found.shape == source.shape + ((modalities,) if modalities > 1 else ())
    np.testing.assert_array_equal(found.affine, source.affine)
    r0, _, c0, _ = out["geometry"]["window"]
    expected = np.zeros((*SHAPE, modalities), dtype=np.float32)
    for j in range(count):
        modality, index = j // 3, out["geometry"]["slices"][j % 3]
        for i, k in np.ndindex(16, 16):
            if 0 <= r0 + i < SHAPE[0] and 0 <= c0 + k < SHAPE[1]:
                expected[r0 + i, c0 + k, index, modality] = masks[j, i, k]
    ras = np.asarray(nib.as_closest_canonical(found).dataobj).reshape(expected.shape)
    np.testing.assert_array_equal(ras, expected)


@pytest.mark.parametrize("codes", STORAGE)
def test_the_brightest_pixel_returns_to_the_brightest_voxel(tmp_path, codes):
    volume, mask = texture(), ball(radius=7)
    volume[11, 13, 4] = 1000
    case = write_case(tmp_path, mask=mask, codes=codes)
    save(case["image"][0], volume, codes=codes)
    out = cut(case, size=48, tails=0.0)  # three times as fine as the source, or so
    found = np.asarray(masks_to_volume(out["image"] ** 4, out["geometry"]).dataobj)
    stored = np.asarray(nib.load(case["image"][0]).dataobj)
    assert np.unravel_index(found.argmax(), found.shape) == np.unravel_index(stored.argmax(), stored.shape)


def test_a_case_stored_with_a_fourth_axis_of_one_returns_in_three(tmp_path):
    case = write_case(tmp_path)
    nib.save(nib.Nifti1Image(texture()[..., None], affine_of()), case["image"][0])
    out = one_to_one(case)
    torch.testing.assert_close(out["image"], one_to_one(write_case(tmp_path / "plain"))["image"])
    assert masks_to_volume(out["image"], out["geometry"]).shape == SHAPE


@pytest.mark.parametrize("codes", STORAGE)
def test_source_slices_count_as_a_viewer_of_the_file_does(tmp_path, codes):
    case = write_case(tmp_path, mask=layered([0, 9, 4, 12, 5, 0, 0]), codes=codes)
    out = cut(case, 2, size=8)
    stored = np.asarray(nib.load(case["mask"]).dataobj)
    across = next(i for i, code in enumerate(codes) if code in "SI")
    area = stored.sum(axis=tuple(i for i in range(3) if i != across))
    assert [int(area[index]) for index in source_slices(out["geometry"])] == [9, 12]


@pytest.mark.parametrize("codes", STORAGE)
def test_label_maps_are_cut_as_the_images(tmp_path, codes):
    case = write_case(tmp_path, mask=ball(radius=7, centre=(5, 8, 3)), codes=codes)
    planted = (texture(seed=9) // 40).astype(np.int16)
    path = save(tmp_path / "planted.nii.gz", planted, codes=codes)
    geometry = one_to_one(case)["geometry"]
    r0, r1, c0, c1 = geometry["window"]
    found = labels_to_images(path, geometry, 16)
    assert found.dtype == torch.long and r0 < 0
    np.testing.assert_array_equal(found[:, -r0:], np.moveaxis(planted[:r1, c0:c1, 2:5], 2, 0))
    assert (found[:, :-r0] == 0).all()


def test_a_coarser_label_map_shows_the_commonest_code(tmp_path):
    case = write_case(tmp_path, mask=ball(radius=7))
    geometry = one_to_one(case)["geometry"]
    r0, _, c0, _ = geometry["window"]
    planted = np.zeros(SHAPE, dtype=np.uint8)
    for i, k in np.ndindex(4, 4):  # blocks of 4 x 4, one code each, one pixel of another
        planted[r0 + 4 * i : r0 + 4 * i + 4, c0 + 4 * k : c0 + 4 * k + 4] = (i + 2 * k) % 5
        planted[r0 + 4 * i, c0 + 4 * k] = 4
    found = labels_to_images(save(tmp_path / "p.nii.gz", planted), geometry, 4)
    expected = torch.tensor([[(i + 2 * k) % 5 for k in range(4)] for i in range(4)])
    assert torch.equal(found, expected.expand(3, 4, 4))


# --- bad input ----------------------------------------------------------------------------------------------------


def spoil(path, how):
    path = Path(path)
    values = texture()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "no NIfTI":
        path.write_text("patient,age\n")
    elif how == "empty file":
        path.write_bytes(b"")
    elif how == "2D":
        nib.save(nib.Nifti1Image(values[..., 0], affine_of()), path)
    elif how == "4D":
        nib.save(nib.Nifti1Image(np.stack([values] * 2, 3), affine_of()), path)
    else:
        if how == "NaN":
            values[3, 4, 5] = np.nan
            values[3, 4, 6] = np.inf
        elif how == "constant":
            values[:] = 7
        nib.save(nib.Nifti1Image(values, affine_of()), path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "there is no file"),
        ("truncated", r"cannot be read as NIfTI \(EOFError.*Check that the file is whole"),
        ("no NIfTI", "cannot be read as NIfTI"),
        ("empty file", "cannot be read as NIfTI"),
        ("2D", r"has 2 dimensions \(24, 20\); one 3D volume per modality is needed"),
        ("4D", r"has 4 dimensions \(24, 20, 7, 2\); one 3D volume.*Split time points"),
        ("NaN", r"holds 2 NaN or Inf voxels\. Repair or export it again"),
        ("constant", r"is 7; an image must vary\. Export the series again"),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_an_unusable_image_is_named_with_its_patient(tmp_path, how, message, which):
    case = write_case(tmp_path, "P042", modalities=2)
    spoil(case["image"][which], how)
    with pytest.raises(DataError, match=f"(?s)P042: .*P042_{which}.nii.gz.*{message}|P042: {message}.*P042_{which}"):
        LoadCased()(case)


@pytest.mark.parametrize("how", ["missing", "truncated", "NaN", "2D"])
def test_an_unusable_mask_is_named_with_its_patient(tmp_path, how):
    case = write_case(tmp_path, "P042")
    spoil(case["mask"], how)
    with pytest.raises(DataError, match=r"P042.*P042_mask.nii.gz"):
        LoadCased()(case)


def test_an_empty_mask_is_refused(tmp_path):
    case = write_case(tmp_path, mask=np.zeros(SHAPE, dtype=bool))
    with pytest.raises(DataError, match=r"P1: the tumour mask .*P1_mask.nii.gz is empty on the image's grid\. Draw"):
        LoadCased()(case)


def test_a_mask_beside_the_image_is_empty_on_its_grid(tmp_path):
    case, away = write_case(tmp_path), affine_of()
    away[:3, 3] += 500
    save(case["mask"], ball(), away)
    with pytest.raises(DataError, match="is empty on the image's grid"):
        LoadCased()(case | {"trust_affines": True})


def test_fewer_tumour_slices_than_k_are_refused(tmp_path):
    case = write_case(tmp_path, mask=layered([0, 9, 0, 0, 5, 0, 0]))
    with pytest.raises(DataError, match=r"P1: 3 slices with tumour are needed, the mask has 2\. Lower num_slices"):
        cut(case)
    assert cut(case, 2, size=8)["image"].shape == (2, 8, 8)


def test_a_constant_region_is_refused(tmp_path):
    case = write_case(tmp_path, modalities=2)
    volume = texture()
    volume[ball(radius=6)] = 3
    save(case["image"][1], volume)
    with pytest.raises(DataError, match=r"P1: modality 1 is constant \(3\) in the region of interest"):
        cut(case, mask_background=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"roi": "fixed"}, r"roi must be one of \('box', 'fixed_mm'\), got 'fixed'"),
        ({"normalise": "zscore"}, r"normalise must be one of \('roi', 'organ'\), got 'zscore'"),
        ({"tails": 0.5}, r"tails must lie in \[0, 0.5\), got 0.5"),
        ({"slice_axis": 3}, r"slice_axis must be one of \('auto', 0, 1, 2\), got 3"),
    ],
)
def test_unknown_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ROISlicesd(3, **settings)


@pytest.mark.parametrize("shift", [-125.0, -1000.0])
def test_values_below_zero_are_not_scaled_by_the_organ(tmp_path, shift):
    case = write_case(tmp_path)
    save(case["image"][0], texture() + np.float32(shift))
    with pytest.raises(DataError, match=r"P1: modality 0 has values below 0.*--roi#normalise roi"):
        one_to_one(case, normalise="organ")
    assert one_to_one(case, normalise="roi")["image"].max() == 1


# --- what is averaged, stretched and mirrored ---------------------------------------------------------------------


def test_a_larger_region_is_averaged_and_not_sampled(tmp_path):
    """Every fourth row is bright: each pixel of four rows is so to a quarter, whichever lie at its middle."""
    mask = np.zeros(SHAPE, dtype=bool)
    mask[4:20, 2:18, 2:5] = True
    rows = np.where(np.arange(SHAPE[0]) % 4 == 0, 100.0, 0.0)[:, None, None] * np.ones(SHAPE)
    case = write_case(tmp_path, mask=mask)
    save(case["image"][0], rows.astype(np.float32))
    image = cut(case, 3, size=4, roi="fixed_mm", extent_mm=16)["image"]
    # a triangle of four rows' half width: weights 1 3 5 7 7 5 3 1 of 32, the bright ones 5 and 3
    inner = image[:, 1:-1]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.25), atol=1e-5, rtol=0)


def test_a_pixel_of_the_planted_map_is_what_most_of_it_is(tmp_path):
    case = write_case(tmp_path, mask=ball(radius=8, centre=(12, 10, 3)))
    codes = np.zeros(SHAPE, np.uint8)
    codes[2:22, :, 3] = 2
    codes[3:22:4, :, 3] = 1  # one row of four, near the middle: too little for a pixel of four
    save(tmp_path / "planted.nii.gz", codes)
    geometry = cut(case, 1, size=5, roi="fixed_mm", extent_mm=20)["geometry"]
    assert geometry["slices"] == [3] and geometry["window"] == (2, 22, 0, 20)
    assert labels_to_images(tmp_path / "planted.nii.gz", geometry, 5).unique().tolist() == [2]


def test_a_mask_goes_back_by_the_edges_of_its_pixels(tmp_path):
    """A ramp of 8 pixels on 16 voxels: voxel i has the value of place (i + 1/2) / 2 - 1/2, ends held."""
    case = write_case(tmp_path, mask=ball(radius=7, centre=(12, 10, 3)))
    geometry = cut(case, 1, size=8, roi="fixed_mm", extent_mm=16)["geometry"]
    r0, r1, c0, c1 = geometry["window"]
    assert (r1 - r0, c1 - c0) == (16, 16)
    ramp = torch.arange(8.0)[:, None].expand(8, 8)[None]
    volume = masks_to_volume(ramp, geometry).get_fdata()
    expected = ((np.arange(16) + 0.5) / 2 - 0.5).clip(0, 7)
    np.testing.assert_allclose(volume[r0:r1, c0 + 8, 3], expected, atol=1e-5)
    assert not volume[:r0].any() and not volume[..., :3].any()


@pytest.mark.parametrize("places", [8, 5, 23])  # two voxels a place, a broken number, places finer than voxels
def test_a_sum_is_shared_out_by_area_and_kept(tmp_path, places):
    case = write_case(tmp_path, modalities=2, mask=ball(radius=7, centre=(12, 10, 3)), codes="LPS")
    geometry = cut(case, 2, size=16, roi="fixed_mm", extent_mm=16)["geometry"]
    values = torch.randn(4, places, places, generator=torch.Generator().manual_seed(0))
    volume = masks_to_volume(values, geometry, mode="sum")
    r0, r1, c0, c1 = geometry["window"]
    assert r0 >= 0 and r1 <= SHAPE[0] and c0 >= 0 and c1 <= SHAPE[1] and (r1 - r0, c1 - c0) == (16, 16)
    part = np.zeros((places, 16))  # of a place's side in each voxel
    step = 16 / places  # voxels along it
    for place, voxel in np.ndindex(places, 16):
        part[place, voxel] = max(0.0, min(voxel + 1, (place + 1) * step) - max(voxel, place * step)) / step
    expected = np.zeros((*SHAPE, 2))
    for j in range(4):
        plane = part.T @ values[j].double().numpy() @ part
        expected[r0:r1, c0:c1, geometry["slices"][j % 2], j // 2] = plane
    found = np.asarray(nib.as_closest_canonical(volume).dataobj)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=(0, 1, 2)), values.unflatten(0, (2, 2)).sum(dim=(1, 2, 3)), atol=1e-4)


@pytest.mark.parametrize("places", [8, 5])
def test_codes_return_to_the_voxels_whose_centre_they_hold(tmp_path, places):
    case = write_case(tmp_path, mask=ball(radius=7, centre=(12, 10, 3)))
    geometry = cut(case, 1, size=16, roi="fixed_mm", extent_mm=16)["geometry"]
    codes = torch.randint(1, 30, (1, places, places), generator=torch.Generator().manual_seed(0))
    found = masks_to_volume(codes, geometry, mode="nearest").get_fdata()
    r0, r1, c0, c1 = geometry["window"]
    for row, column in np.ndindex(r1 - r0, c1 - c0):
        place = [math.floor((voxel + 0.5) * places / 16) for voxel in (row, column)]
        assert found[r0 + row, c0 + column, geometry["slices"][0]] == codes[0, place[0], place[1]]
    with pytest.raises(ValueError, match="mode must be"):
        masks_to_volume(codes, geometry, mode="mean")


def test_the_area_of_a_pixel_is_that_of_its_part_of_the_window(tmp_path):
    affine = affine_of((0.5, 2.0, 4.0), degrees=30)
    case = write_case(tmp_path, mask=ball(spacing=(0.5, 2.0, 4.0)), affine=affine)
    geometry = cut(case, 1, size=8, roi="fixed_mm", extent_mm=12)["geometry"]
    r0, r1, c0, c1 = geometry["window"]
    assert (r1 - r0, c1 - c0) == (24, 6)  # 12 mm of 0.5 and of 2 mm
    assert pixel_area(geometry, 8) == pytest.approx(12 * 12 / 64) and pixel_area(geometry, 1) == pytest.approx(144)


def test_pictures_show_the_patients_right_on_the_left_and_the_front_above():
    image = torch.zeros(1, 4, 6)
    image[0, 3, 5] = 1.0  # of RAS: the right end, the front
    image[0, 0, 5] = 0.5  # the left end, the front
    shown = radiological(image)
    assert shown.shape == (1, 6, 4) and shown[0, 0, 0] == 1.0 and shown[0, 0, 3] == 0.5


def test_a_pixel_of_the_mask_is_what_most_of_it_is(tmp_path):
    """Three rows of four are tumour: so is every pixel of four rows, whichever two lie at its middle."""
    mask = np.zeros(SHAPE, dtype=bool)
    mask[4:20, 2:18, 2:5] = True
    mask[6:20:4] = False
    out = cut(write_case(tmp_path, mask=mask), 3, size=4, roi="fixed_mm", extent_mm=16)
    assert out["geometry"]["window"] == (4, 20, 2, 18) and out["mask"].all()


def test_reading_neither_warns_nor_logs(tmp_path, caplog, recwarn):
    """MONAI's LoadImage makes all of its DICOM readers where pydicom is installed, and one of them warns."""
    pytest.importorskip("pydicom")
    LoadCased()(write_case(tmp_path))
    assert not caplog.records and not [w for w in recwarn if "DICOM" in str(w.message) or "Codec" in str(w.message)]
