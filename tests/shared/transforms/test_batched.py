import math

import numpy as np
import pytest
import torch
from monai.transforms import Affine, Flip, GaussianSmooth
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.measure import block_reduce
from skimage.transform import SimilarityTransform, warp

from shared.data.patches.resizing import resize_images
from shared.transforms import batched
from shared.transforms.batched import (
    affine_maps,
    colour_maps,
    crop_maps,
    gaussian_blur,
    map_colours,
    sample_affine,
    scale_stains,
)
from tests.references import views as naive

IDENTITY = torch.eye(2, 3)[None]
ZERO, ONE = torch.zeros(1), torch.ones(1)


def smooth(count=1, size=32, *, seed=0):
    """Smooth colours ``[B, 3, S, S]`` in [0.1, 0.9]."""
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (size, size), mode="bicubic").clamp(0.1, 0.9)


def noise(count=1, size=32, *, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def random_maps(count, *, seed=0, far=0.3):
    generator = torch.Generator().manual_seed(seed)
    return torch.eye(2, 3) + far * (torch.rand(count, 2, 3, generator=generator) * 2 - 1)


def affine(*, degrees=0.0, shear=(0.0, 0.0), shift=(0.0, 0.0), zoom=1.0):
    turn = torch.tensor([math.radians(degrees)])
    return affine_maps(turn, torch.tensor([shear]), torch.tensor([shift]), torch.tensor([zoom]))


def crop(sides, centre, flips=(False, False), maps=IDENTITY):
    return crop_maps(maps, torch.tensor([sides]), torch.tensor([centre]), torch.tensor([flips]))


# --- geometry -----------------------------------------------------------------------------------------------------


def test_the_identity_gives_the_image_back():
    x = noise(2)
    torch.testing.assert_close(sample_affine(x, IDENTITY.repeat(2, 1, 1), 32), x, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("ours", "monai"),
    [
        ({"degrees": 30.0}, {"rotate_params": -math.radians(30)}),
        ({"degrees": -90.0}, {"rotate_params": math.pi / 2}),
        ({"shear": (0.2, 0.0)}, {"shear_params": (0.0, 0.2)}),
        ({"shear": (0.1, -0.3)}, {"shear_params": (-0.3, 0.1)}),
        ({"shift": (0.25, -0.5)}, {"translate_params": (-8.0, 4.0)}),
        ({"zoom": 1.6}, {"scale_params": (1 / 1.6, 1 / 1.6)}),
        ({"zoom": 0.8}, {"scale_params": (1.25, 1.25)}),
        (
            {"degrees": 40.0, "shear": (0.1, -0.2), "shift": (0.25, -0.125), "zoom": 1.2},
            {
                "rotate_params": -math.radians(40),
                "shear_params": (-0.2, 0.1),
                "translate_params": (-2.0, 4.0),
                "scale_params": (1 / 1.2, 1 / 1.2),
            },
        ),
    ],
    ids=str,
)
def test_affine_maps_equal_monai_affine(ours, monai):
    x = noise()
    expected = Affine(**monai, padding_mode="reflection", mode="bilinear", image_only=True)(x[0])
    found = sample_affine(x, affine(**ours), 32)[0]
    torch.testing.assert_close(found, torch.as_tensor(expected.array), atol=1e-4, rtol=0)
    assert (found - x[0]).abs().max() > 0.2


@pytest.mark.parametrize("degrees", [90.0, 37.0, -20.0])
def test_rotation_and_zoom_equal_skimage_warp(degrees):
    x, centre = smooth(), 15.5
    maps = affine(degrees=degrees, zoom=1.25)
    move = SimilarityTransform(translation=(-centre, -centre))
    back = SimilarityTransform(scale=1 / 1.25, rotation=math.radians(degrees)) + move.inverse
    expected = warp(x[0].numpy().transpose(1, 2, 0), move + back, order=1, mode="symmetric")
    found = sample_affine(x, maps, 32)[0].numpy().transpose(1, 2, 0)
    assert abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)])
def test_flips_equal_monai_flip(flips):
    x = noise()
    axes = [axis for axis, flip in ((1, flips[0]), (0, flips[1])) if flip]
    found = sample_affine(x, crop((1.0, 1.0), (0.0, 0.0), flips), 32)[0]
    torch.testing.assert_close(found, Flip(axes)(x[0]), atol=2e-6, rtol=0)


def test_a_crop_of_whole_pixels_is_a_slice():
    x = noise()
    found = sample_affine(x, crop((0.5, 0.5), (-0.25, 0.5)), 16)
    torch.testing.assert_close(found, x[:, :, 16:32, 4:20], atol=2e-6, rtol=0)
    flipped = sample_affine(x, crop((0.5, 0.5), (-0.25, 0.5), (True, False)), 16)
    torch.testing.assert_close(flipped, x[:, :, 16:32, 4:20].flip(3), atol=2e-6, rtol=0)


def test_a_crop_of_an_oblong_image_is_in_shares_of_its_sides():
    x = noise()[:, :, :16]
    found = sample_affine(x, crop((0.25, 0.5), (0.25, -0.5)), 8)
    torch.testing.assert_close(found, x[:, :, 0:8, 16:24], atol=2e-6, rtol=0)


def test_affine_map_comes_before_flip_before_crop():
    maps = affine(degrees=25.0, shear=(0.1, 0.0), shift=(0.1, 0.2), zoom=1.1)
    point = torch.tensor([0.3, -0.6, 1.0])
    within = maps[0] @ point
    expected = torch.tensor([0.1, -0.2]) + torch.tensor([0.7, 0.5]) * within * torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(crop((0.7, 0.5), (0.1, -0.2), (True, False), maps)[0] @ point, expected)


@pytest.mark.parametrize(("source", "size"), [(24, 24), (24, 10), (40, 9), (20, 30)])
def test_sampling_equals_a_loop_in_float64(source, size):
    x, maps = noise(3, source), random_maps(3)
    maps[2] *= 1.7  # beyond the border
    found = sample_affine(x, maps, size)
    for image, theta, view in zip(x, maps.double().numpy(), found, strict=True):
        step = np.linalg.norm(theta[:, :2] * source / size, axis=0).max()
        block = 2 ** int(np.log2(max(1, step)))
        expected = naive.resample(image[0].double().numpy(), theta, size, block)
        np.testing.assert_allclose(view[0], expected, atol=5e-5)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_shrinking_by_a_power_of_two_averages_areas(factor):
    x = noise(size=64)
    found = sample_affine(x, IDENTITY, 64 // factor)[0]
    expected = block_reduce(x[0].double().numpy(), (1, factor, factor), np.mean)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("source", [64, 65, 75, 90])
def test_fine_stripes_do_not_alias(source):
    x = (torch.arange(source) % 2).float().expand(1, 3, source, source)
    kept = sample_affine(x, IDENTITY, 20)[..., 1:-1]
    naively = torch.nn.functional.grid_sample(
        x, torch.nn.functional.affine_grid(IDENTITY, [1, 3, 20, 20], align_corners=False), align_corners=False
    )[..., 1:-1]
    assert (kept - 0.5).abs().max() <= 0.26
    if source != 64:
        assert (naively - 0.5).abs().max() > (kept - 0.5).abs().max() + 0.1


def test_small_crops_keep_the_full_resolution():
    x = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    found = sample_affine(x, crop((0.25, 0.25), (0.0, 0.0)), 16)
    torch.testing.assert_close(found, x[..., 24:40, 24:40], atol=1e-5, rtol=0)


def test_levels_in_one_batch_do_not_see_each_other():
    x = noise(6, 48)
    maps = random_maps(6) * torch.tensor([0.2, 1.0, 0.5, 0.9, 0.3, 0.7])[:, None, None]
    found = sample_affine(x, maps, 16)
    for i in range(6):
        torch.testing.assert_close(found[i : i + 1], sample_affine(x[i : i + 1], maps[i : i + 1], 16))


def test_uint8_gives_the_same_values():
    x = (noise(3) * 255).byte()
    maps = random_maps(3)
    assert torch.equal(sample_affine(x, maps, 12), sample_affine(x.float(), maps, 12))


@pytest.mark.parametrize("size", [7, 16, 21, 50])
def test_resizing_equals_pillow(size):
    x = (noise(2) * 255).byte()
    found = resize_images(x, size)
    assert found.dtype == torch.uint8 and found.shape == (2, 3, size, size)
    for image, small in zip(x, found, strict=True):
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BILINEAR)
        assert abs(np.asarray(pillow).astype(int) - small.permute(1, 2, 0).numpy()).max() <= 1
    assert resize_images(x, 32) is x and resize_images(x.half(), 9).dtype == torch.float32


# --- colours ------------------------------------------------------------------------------------------------------


def recoloured(x, *, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0, greyscale=False):
    values = [torch.full((len(x),), value) for value in (brightness, contrast, saturation, hue, greyscale)]
    return map_colours(x, *colour_maps(x.mean((2, 3)), *values))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("brightness", v) for v in (0.6, 1.4)),
        *(("contrast", v) for v in (0.0, 0.6, 1.4)),
        *(("saturation", v) for v in (0.0, 0.6, 1.4)),
        *(("hue", v) for v in (-0.1, 0.1, 0.5)),
    ],
)
def test_each_colour_change_equals_its_reference(setting, value):
    x = noise()
    expected = getattr(naive, setting)(x[0].double().permute(1, 2, 0).numpy(), value)
    np.testing.assert_allclose(recoloured(x, **{setting: value})[0].permute(1, 2, 0), expected, atol=2e-6)


def test_greyscale_is_the_luma_in_all_channels():
    x = noise()
    y = recoloured(x, greyscale=True, saturation=1.4, hue=0.3)
    luma = torch.einsum("bchw,c->bhw", x, torch.tensor([0.299, 0.587, 0.114]))
    torch.testing.assert_close(y, luma[:, None].expand(-1, 3, -1, -1), atol=1e-6, rtol=0)


def test_all_together_equal_one_after_the_other():
    x = noise()
    image = x[0].double().permute(1, 2, 0).numpy()
    expected = naive.hue(naive.saturation(naive.contrast(naive.brightness(image, 1.3), 0.7), 1.2), -0.07)
    found = recoloured(x, brightness=1.3, contrast=0.7, saturation=1.2, hue=-0.07)
    np.testing.assert_allclose(found[0].permute(1, 2, 0), expected, atol=2e-6)


def test_hue_saturation_and_contrast_leave_grey_or_its_mean_alone():
    grey = noise()[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(recoloured(grey, saturation=1.7, hue=0.2), grey, atol=1e-6, rtol=0)
    torch.testing.assert_close(recoloured(grey, contrast=0.3).mean(), grey.mean())
    assert torch.equal(recoloured(noise()), noise())


def test_stains_equal_skimage():
    # of stains that are there: scikit-image has no negative amounts
    amounts = torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(0)).double().numpy() * 0.05
    image = naive.hed2rgb(amounts)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    factors = (1.2, 0.7, 1.0)
    found = scale_stains(x, torch.tensor([factors]))[0].permute(1, 2, 0)
    np.testing.assert_allclose(found, naive.stains(image, factors), atol=1e-5)
    torch.testing.assert_close(scale_stains(x, torch.ones(1, 3)), x, atol=1e-6, rtol=0)


# --- blur ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0, 3.3])
def test_blur_equals_scipy(sigma):
    x = noise()
    found = gaussian_blur(x.clone(), torch.tensor([sigma]))[0]
    expected = np.stack([naive.blur(channel, sigma) for channel in x[0].double().numpy()])
    np.testing.assert_allclose(found, expected, atol=2e-6)
    # the cut at 3 sigma changes little
    full = np.stack([gaussian_filter(channel, sigma, mode="mirror") for channel in x[0].double().numpy()])
    assert abs(full - found.numpy()).max() < 0.01


@pytest.mark.parametrize("sigma", [0.8, 2.0])
def test_blur_equals_monai_away_from_the_border(sigma):
    x = noise(size=48)
    monai = GaussianSmooth(sigma, approx="sampled")(x[0])
    found = gaussian_blur(x.clone(), torch.tensor([sigma]))[0]
    inner = (slice(None), slice(10, -10), slice(10, -10))
    torch.testing.assert_close(found[inner], torch.as_tensor(monai)[inner], atol=4e-3, rtol=0)
    assert (found - x[0]).abs().max() > 0.2


def test_every_image_has_its_own_blur_whatever_its_neighbours(monkeypatch):
    x = noise(9, 20)
    sigma = torch.tensor([0.0, 2.0, 0.3, 0.0, 1.1, 0.7, 2.9, 0.0, 1.5])
    found = gaussian_blur(x.clone(), sigma)
    for i in range(9):
        alone = gaussian_blur(x[i : i + 1].clone(), sigma[i : i + 1])[0]
        torch.testing.assert_close(found[i], alone, atol=1e-6, rtol=0)
    assert torch.equal(found[sigma == 0], x[sigma == 0])
    monkeypatch.setattr(batched, "BLUR_CHANNELS", 4)
    torch.testing.assert_close(gaussian_blur(x.clone(), sigma), found, atol=1e-6, rtol=0)


def test_blur_wider_than_the_image_and_of_constants():
    x = torch.full((2, 3, 4, 4), 0.3)
    torch.testing.assert_close(gaussian_blur(x.clone(), torch.tensor([5.0, 0.2])), x)
    assert gaussian_blur(noise(2, 4), torch.tensor([50.0, 0.0])).isfinite().all()
    assert torch.equal(gaussian_blur(x.clone(), torch.zeros(2)), x)
