import pytest
import torch
from skimage.transform import SimilarityTransform, rotate, warp

from shared.transforms import BatchedAugmentation

STRONG = {"rotation": 180, "scale": 0.2, "translation": 0.1, "gain": 0.2, "gamma": 1.5, "noise": 0.02}


def blobs(count=6, channels=1, size=32, *, seed=0):
    """Smooth images in [0, 1], zero outside a disc."""
    noise = torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, (size, size), mode="bicubic").clamp(0.1, 0.9)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    return smooth * (x**2 + y**2 < 0.6)


def fixed(value, **settings):
    """An augmentation every draw of which is ``value`` in [-1, 1]; no flips."""
    augmentation = BatchedAugmentation(flip=0, **settings)
    augmentation._uniform = lambda count: torch.full((count,), float(value))
    return augmentation


# --- the draws ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [STRONG, *({name: value} for name, value in STRONG.items())], ids=str)
def test_every_sample_has_its_own_draw_of_every_setting(settings):
    same = blobs(1).expand(8, -1, -1, -1)
    out = BatchedAugmentation(flip=0, **settings)(same)
    distance = torch.cdist(out.flatten(1), out.flatten(1))
    assert distance[~torch.eye(8, dtype=torch.bool)].min() > 0.01


def test_a_seed_repeats_the_run_and_calls_differ():
    x = blobs()
    first, second = BatchedAugmentation(**STRONG, seed=3), BatchedAugmentation(**STRONG, seed=3)
    assert torch.equal(first(x), second(x))
    here = first(x)
    assert not torch.equal(here, BatchedAugmentation(**STRONG, seed=3)(x))
    assert torch.equal(here, second(x))
    assert not torch.equal(BatchedAugmentation(**STRONG, seed=4)(x), BatchedAugmentation(**STRONG, seed=3)(x))


def test_draws_do_not_touch_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    BatchedAugmentation(**STRONG)(blobs())
    assert torch.equal(torch.rand(1), expected)


def test_the_generators_state_brings_a_run_back():
    augmentation, x = BatchedAugmentation(**STRONG), blobs()
    augmentation(x)
    state = augmentation.generator.get_state()
    expected = augmentation(x)
    augmentation.generator.set_state(state)
    assert torch.equal(augmentation(x), expected)


def test_an_image_does_not_see_its_neighbours_in_the_batch():
    x, other = blobs(), blobs(seed=1)
    other[3] = x[3]
    found, expected = BatchedAugmentation(**STRONG)(other), BatchedAugmentation(**STRONG)(x)
    torch.testing.assert_close(found[3], expected[3], atol=0, rtol=0)
    assert not torch.allclose(found[2], expected[2])


def test_channels_of_a_sample_move_together():
    x = blobs(4).expand(-1, 3, -1, -1)
    out = BatchedAugmentation(rotation=180, scale=0.2, translation=0.1, gain=0.2, gamma=1.5)(x)
    torch.testing.assert_close(out[:, 1], out[:, 0])
    torch.testing.assert_close(out[:, 2], out[:, 0])


def test_flips_come_as_often_as_asked_and_independently():
    x = torch.zeros(400, 1, 4, 4)
    x[:, 0, 0, 0] = 0.5
    out = BatchedAugmentation(flip=0.25)(x)[:, 0]
    left_right, up_down = out[:, :, -1].sum(1) > 0.4, out[:, -1].sum(1) > 0.4
    assert out.flatten(1).max(dim=1).values.allclose(torch.tensor(0.5))
    for share, expected in ((left_right, 0.25), (up_down, 0.25), (left_right & up_down, 0.0625)):
        assert share.float().mean() == pytest.approx(expected, abs=0.07)


# --- what each setting does ---------------------------------------------------------------------------------------


def test_identity_settings_leave_images_unchanged():
    x = blobs()
    torch.testing.assert_close(BatchedAugmentation(flip=0)(x), x, atol=1e-6, rtol=0)


def test_zero_background_stays_zero_and_values_stay_in_range():
    x = blobs()
    out = BatchedAugmentation(flip=0.5, gain=0.5, gamma=2, noise=0.3)(x)
    inside = x > 0
    for flips in ((), (3,), (2,), (2, 3)):
        outside = ~inside[0].flip([d - 1 for d in flips]) if flips else ~inside[0]
        assert (out[:, outside] == 0).all()  # the disc is symmetric
    assert out.min() == 0 and out.max() == 1
    turned = BatchedAugmentation(**STRONG)(x)
    assert (turned[..., 0, 0] == 0).all() and (turned == 0).float().mean() > 0.3


@pytest.mark.parametrize("degrees", [90, 37, -20])
def test_rotation_equals_skimage(degrees):
    x = blobs(1)
    found = fixed(1 if degrees > 0 else -1, rotation=abs(degrees))(x)[0, 0].numpy()
    expected = rotate(x[0, 0].numpy(), degrees, order=1)
    # thin rings of the disc's edge aside, which the threshold for background cuts
    assert abs(found - expected).max() < 2e-3
    assert abs(found - rotate(x[0, 0].numpy(), -degrees, order=1)).max() > 0.2


@pytest.mark.parametrize("value", [-1, 1])
def test_scale_equals_skimage(value):
    x = blobs(1)
    found = fixed(value, scale=0.25)(x)[0, 0].numpy()
    factor, centre = 1.25**value, 15.5
    zoom = SimilarityTransform(scale=factor, translation=(centre * (1 - factor),) * 2)
    assert abs(found - warp(x[0, 0].numpy(), zoom.inverse, order=1)).max() < 2e-3
    assert found.sum() == pytest.approx(factor**2 * float(x.sum()), rel=0.01)


@pytest.mark.parametrize("value", [-1, 1])
def test_translation_is_a_share_of_the_side(value):
    x = blobs(1, size=16)
    found = fixed(value, translation=0.25)(x)
    expected = torch.zeros_like(x)
    if value > 0:
        expected[..., :-4, :-4] = x[..., 4:, 4:]
    else:
        expected[..., 4:, 4:] = x[..., :-4, :-4]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("value", "settings", "expected"),
    [
        (1, {"gamma": 2.0}, lambda x: x**2),
        (-1, {"gamma": 2.0}, lambda x: x**0.5),
        (1, {"gain": 0.5}, lambda x: (1.5 * x).clamp(max=1)),
        (-1, {"gain": 0.5}, lambda x: 0.5 * x),
        (0, {"gain": 0.5, "gamma": 2.0}, lambda x: x),
    ],
)
def test_intensity_changes_are_the_stated_ones(value, settings, expected):
    x = blobs()
    torch.testing.assert_close(fixed(value, **settings)(x), expected(x), atol=2e-5, rtol=1e-4)


def test_noise_has_the_stated_spread_inside_only():
    x = torch.full((8, 1, 64, 64), 0.5)
    x[..., :16] = 0
    out = BatchedAugmentation(flip=0, noise=0.05)(x)
    assert (out[..., :16] == 0).all()
    assert (out - x)[..., 16:].std() == pytest.approx(0.05, rel=0.05)


def test_a_gamma_below_one_is_refused():
    with pytest.raises(ValueError, match=r"gamma is the largest exponent and must be at least 1, got 0\.8"):
        BatchedAugmentation(gamma=0.8)
