import math

import numpy as np
import pytest
import torch

from shared.transforms import ViewAugmentation, batched, view_augmentation
from shared.transforms.view_augmentation import ViewDraws
from tests.references import views as naive

OFF = {
    "crop_scale": (1, 1),
    "crop_ratio": (1, 1),
    "horizontal_flip": 0,
    "vertical_flip": 0,
    "affine_probability": 0,
    "jitter_probability": 0,
    "greyscale_probability": 0,
    "blur_probability": 0,
}
SURE = {"affine_probability": 1, "jitter_probability": 1, "blur_probability": 1}
STILL = dict.fromkeys(("rotation", "translation", "shear", "zoom", "brightness", "contrast", "saturation", "hue"), 0)
ALL = {"stain": 0.1, "greyscale_probability": 0.2}
# one operation at a time, drawn for every image
ALONE = {
    "crop": {"crop_scale": (0.2, 1)},
    "ratio": {"crop_scale": (0.4, 0.4), "crop_ratio": (0.5, 2)},
    **{name: SURE | STILL | {name: 0.4, "blur_probability": 0} for name in STILL if name != "rotation"},
    "rotation": SURE | STILL | {"rotation": 90, "blur_probability": 0},
    "stain": SURE | STILL | {"stain": 0.4, "blur_probability": 0},
    "blur": {"blur_probability": 1},
}


def patches(count=6, size=24, *, seed=0):
    return torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(seed)).byte()


def draws_of(count=4000, height=24, width=24, **settings):
    return ViewAugmentation(16, **OFF | settings).draw(count, height, width)


def crops_of(draws):
    """Edges of the crops in coordinates from -1 to 1: left, right, top, bottom (no affine map)."""
    theta = draws.theta
    return torch.stack([theta[:, i, 2] + s * theta[:, i, i].abs() for i in (0, 1) for s in (-1, 1)])


# --- the draws ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALONE)
def test_every_sample_has_its_own_draw_of_every_setting(name):
    same = patches(1).expand(8, -1, -1, -1)
    out = ViewAugmentation(16, **OFF | ALONE[name])(same).flatten(1)
    distance = torch.cdist(out, out, compute_mode="donot_use_mm_for_euclid_dist")
    assert distance[~torch.eye(8, dtype=torch.bool)].min() > 1e-3


def test_a_seed_repeats_the_run_and_calls_differ():
    x = patches()
    first, second = ViewAugmentation(16, **ALL, seed=3), ViewAugmentation(16, **ALL, seed=3)
    assert torch.equal(first(x), second(x))
    here = first(x)
    assert not torch.equal(here, ViewAugmentation(16, **ALL, seed=3)(x))
    assert torch.equal(here, second(x))
    assert not torch.equal(ViewAugmentation(16, **ALL, seed=4)(x), ViewAugmentation(16, **ALL, seed=3)(x))


def test_draws_do_not_touch_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    ViewAugmentation(16, **ALL)(patches())
    assert torch.equal(torch.rand(1), expected)


def test_the_generators_state_brings_a_run_back():
    augmentation, x = ViewAugmentation(16, **ALL), patches()
    augmentation(x)
    state = augmentation.generator.get_state()
    expected = augmentation(x)
    augmentation.generator.set_state(state)
    assert torch.equal(augmentation(x), expected)


def test_crops_lie_within_the_image_with_the_area_and_ratio_asked_for():
    draws = draws_of(crop_scale=(0.2, 0.9), crop_ratio=(3 / 4, 4 / 3))
    left, right, top, bottom = crops_of(draws)
    assert min(left.min(), top.min()) >= -1 - 1e-5 and max(right.max(), bottom.max()) <= 1 + 1e-5
    width, height = (right - left) / 2, (bottom - top) / 2
    area, ratio = width * height, width / height
    assert area.min() >= 0.2 - 1e-5 and area.max() <= 0.9 + 1e-5 and area.mean() == pytest.approx(0.55, abs=0.01)
    assert ratio.min() >= 0.75 - 1e-4 and ratio.max() <= 4 / 3 + 1e-4
    assert ratio.log().mean().abs() < 0.02 and ratio.log().std() > 0.1
    # anywhere
    slack = 2 - (right - left)
    assert ((left + 1) / slack).mean() == pytest.approx(0.5, abs=0.03)
    assert ((left + 1) / slack).std() == pytest.approx(1 / math.sqrt(12), abs=0.02)


def test_crops_of_oblong_images_are_square_in_pixels():
    left, right, top, bottom = crops_of(draws_of(500, 20, 40, crop_scale=(0.1, 0.4), crop_ratio=(1, 1)))
    torch.testing.assert_close((right - left) * 40, (bottom - top) * 20, atol=1e-3, rtol=0)
    # a whole image cannot be square: the nearest ratio that fits
    left, right, top, bottom = crops_of(draws_of(5, 20, 40, crop_scale=(1, 1), crop_ratio=(1, 1)))
    assert (right - left).allclose(torch.tensor(2.0)) and (bottom - top).allclose(torch.tensor(2.0))


def test_flips_come_as_often_as_asked_and_independently():
    theta = draws_of(horizontal_flip=0.25, vertical_flip=0.6).theta
    horizontal, vertical = theta[:, 0, 0] < 0, theta[:, 1, 1] < 0
    for share, expected in ((horizontal, 0.25), (vertical, 0.6), (horizontal & vertical, 0.15)):
        assert share.float().mean() == pytest.approx(expected, abs=0.03)


def test_affine_maps_stay_within_their_limits_and_come_as_often_as_asked():
    theta = draws_of(**STILL | {"affine_probability": 0.3, "rotation": 40}).theta
    angle = torch.rad2deg(torch.atan2(theta[:, 1, 0], theta[:, 0, 0]))
    assert (angle != 0).float().mean() == pytest.approx(0.3, abs=0.03)
    assert 38 < angle.max() <= 40 + 1e-3 and -40 - 1e-3 <= angle.min() < -38
    zoom = draws_of(**STILL | {"affine_probability": 1, "zoom": 0.25}).theta[:, 0, 0]
    assert 0.8 - 1e-5 <= zoom.min() < 0.81 and 1.24 < zoom.max() <= 1.25 + 1e-5
    shift = draws_of(**STILL | {"affine_probability": 1, "translation": 0.1}).theta[:, :, 2]
    assert 0.19 < shift.abs().max() <= 0.2 and shift.mean(0).abs().max() < 0.01
    assert np.corrcoef(shift.T)[0, 1] == pytest.approx(0, abs=0.06)
    shear = draws_of(**STILL | {"affine_probability": 1, "shear": 0.3}).theta
    torch.testing.assert_close(torch.linalg.det(shear[:, :, :2]), torch.ones(4000))
    assert 0.29 < shear[:, 0, 1].abs().max() <= 0.3 + 1e-5 and 0.29 < shear[:, 1, 0].abs().max() <= 0.3 + 1e-5


def test_colours_and_blur_stay_within_their_limits_and_come_as_often_as_asked():
    limits = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "hue": 0.1}
    draws = draws_of(
        jitter_probability=0.8,
        greyscale_probability=0.2,
        blur_probability=0.5,
        blur_sigma=(0.5, 2),
        stain=0.15,
        **limits,
    )
    for name, limit in limits.items():
        values = getattr(draws, name) - float(name != "hue")
        assert 0.95 * limit < values.abs().max() <= limit + 1e-6 and values.mean().abs() < 0.02 * limit / 0.4 + 0.003
        assert (values != 0).float().mean() == pytest.approx(0.8, abs=0.03)
    jittered = draws.hue != 0
    assert (draws.stains[~jittered] == 1).all() and 0.14 < (draws.stains - 1).abs().max() <= 0.15 + 1e-6
    assert draws.greyscale.float().mean() == pytest.approx(0.2, abs=0.03)
    blurred = draws.sigma > 0
    assert blurred.float().mean() == pytest.approx(0.5, abs=0.03)
    assert 0.5 <= draws.sigma[blurred].min() < 0.52 and 1.98 < draws.sigma.max() <= 2


# --- what is made of them -----------------------------------------------------------------------------------------


def test_views_equal_a_naive_reference():
    augmentation = ViewAugmentation(14, greyscale_probability=0.3, seed=2)
    x = patches(12, 40)
    draws = augmentation.draw(12, 40, 40)
    found = augmentation.apply(x, draws)
    assert draws.greyscale.any() and (draws.sigma > 0).any() and (draws.sigma == 0).any()
    for i in range(12):
        expected = naive.view(x[i].permute(1, 2, 0).numpy(), ViewDraws(*(v[i] for v in draws)), 14)
        np.testing.assert_allclose(found[i].permute(1, 2, 0), expected, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 1500, 2**20])
def test_a_batch_equals_each_image_alone_given_the_same_draws(monkeypatch, chunk):
    augmentation, x = ViewAugmentation(16, **ALL), patches(9)
    draws = augmentation.draw(9, 24, 24)
    monkeypatch.setattr(view_augmentation, "CPU_PIXELS", chunk)
    monkeypatch.setattr(batched, "BLUR_CHANNELS", max(1, chunk // 300))
    found = augmentation.apply(x, draws)
    assert found.shape == (9, 3, 16, 16)
    for i in range(9):
        alone = augmentation.apply(x[i : i + 1], ViewDraws(*(values[i : i + 1] for values in draws)))[0]
        torch.testing.assert_close(found[i], alone, atol=2e-6, rtol=0)


def test_everything_off_is_the_image_in_zero_to_one():
    x = patches()
    found = ViewAugmentation(24, **OFF)(x)
    assert found.dtype == torch.float32 and found.is_contiguous()
    torch.testing.assert_close(found, x / 255, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        ViewAugmentation(12, **OFF)(x), batched.sample_affine(x, torch.eye(2, 3)[None].repeat(6, 1, 1), 12) / 255
    )
    # probabilities of one, but nothing to change
    still = ViewAugmentation(24, **OFF | SURE | STILL | {"blur_probability": 0})(x)
    torch.testing.assert_close(still, x / 255, atol=1e-5, rtol=0)


def test_stains_are_scaled_before_the_colours_change():
    augmentation, x = (
        ViewAugmentation(24, **OFF | SURE | {"affine_probability": 0, "blur_probability": 0, "stain": 0.2}),
        patches(),
    )
    draws = augmentation.draw(6, 24, 24)
    stained = batched.scale_stains(x / 255, draws.stains)
    colours = batched.colour_maps(stained.mean((2, 3)), *draws[1:6])
    expected = batched.map_colours(stained, *colours).clamp(0, 1)
    torch.testing.assert_close(augmentation.apply(x, draws), expected, atol=1e-5, rtol=0)


def test_values_stay_in_range_and_the_images_as_they_were():
    x = patches(32)
    before = x.clone()
    out = ViewAugmentation(16, brightness=1, contrast=1, saturation=1, hue=0.5, stain=1)(x)
    assert out.min() == 0 and out.max() == 1 and out.isfinite().all() and torch.equal(x, before)
    real = x / 255
    before = real.clone()
    ViewAugmentation(16)(real)
    assert torch.equal(real, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_goes_in_and_comes_out_and_autocast_changes_nothing(dtype):
    x = patches()
    expected = ViewAugmentation(16, **ALL)(x)
    found = ViewAugmentation(16, **ALL)((x / 255).to(dtype))
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() < {torch.bfloat16: 0.03, torch.float16: 0.005}.get(dtype, 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ViewAugmentation(16, **ALL)(x), expected)


def test_no_gradient_is_kept():
    x = (patches() / 255).requires_grad_()
    assert not ViewAugmentation(16)(x).requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_makes_the_same_views():
    x = patches(16)
    found = ViewAugmentation(16, **ALL)(x.cuda())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), ViewAugmentation(16, **ALL)(x), atol=1e-4, rtol=0)


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size is the side of the views in pixels, got 0"),
        ({"size": 2.5}, "size is the side of the views in pixels, got 2.5"),
        ({"horizontal_flip": 1.5}, "horizontal_flip must lie between 0 and 1, got 1.5"),
        ({"blur_probability": -0.1}, "blur_probability must lie between 0 and 1, got -0.1"),
        ({"brightness": float("nan")}, "brightness must lie between 0 and 1, got nan"),
        ({"hue": 0.6}, "hue must lie between 0 and 0.5, got 0.6"),
        ({"rotation": 360}, "rotation must lie between 0 and 180, got 360"),
        ({"zoom": -0.1}, "zoom must lie between 0 and inf, got -0.1"),
        ({"crop_scale": (0.0, 1.0)}, r"crop_scale must be \(low, high\) with 0 < low <= high <= 1.0, got \(0.0, 1.0\)"),
        ({"crop_scale": (0.5, 1.1)}, "crop_scale must be"),
        ({"crop_ratio": (2, 1)}, r"crop_ratio must be .* got \(2, 1\)"),
        ({"blur_sigma": (1,)}, r"blur_sigma must be .* got \(1,\)"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ViewAugmentation(**{"size": 16} | settings)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 8, 8), (2, 4, 8, 8)])
def test_images_that_are_not_rgb_are_refused(shape):
    with pytest.raises(ValueError, match=r"Views are made of RGB images \[B, 3, H, W\], got \["):
        ViewAugmentation(16)(torch.zeros(shape, dtype=torch.uint8))
