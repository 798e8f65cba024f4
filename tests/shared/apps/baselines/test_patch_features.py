import numpy as np
import pytest
from scipy.stats import skew
from skimage.color import rgb2hed, rgb2hsv

from shared.apps.baselines.patch_features import patch_features
from shared.errors import DataError


def _patch(seed=0, side=40):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (3, side, side), dtype=np.uint8)


def test_colours_against_plain_statistics():
    image = _patch()
    found, rgb = patch_features(image), np.moveaxis(image, 0, -1)
    hed, hsv = rgb2hed(rgb), rgb2hsv(rgb)
    for name, values in (("green", image[1]), ("eosin", hed[..., 1]), ("saturation", hsv[..., 1])):
        values = values.astype(float).ravel()
        assert found[f"{name}_mean"] == pytest.approx(values.mean())
        assert found[f"{name}_sd"] == pytest.approx(values.std())
        assert found[f"{name}_skewness"] == pytest.approx(skew(values))
        assert found[f"{name}_p95"] == pytest.approx(np.percentile(values, 95))
    angle, weight = 2 * np.pi * hsv[..., 0], hsv[..., 1]
    assert found["hue_cos"] == pytest.approx((weight * np.cos(angle)).mean())


def test_co_occurrence_against_a_loop():
    image = np.repeat(_patch(3)[:1], 3, axis=0)  # grey, so that the luminance is the channel
    levels = image[0] // 8
    table = np.zeros((32, 32))
    for y in range(40):
        for x in range(38):
            table[levels[y, x], levels[y, x + 2]] += 1
            table[levels[y, x + 2], levels[y, x]] += 1
    table /= table.sum()
    i, j = np.indices(table.shape)
    horizontal = (table * (i - j) ** 2).sum()
    turned = [(table_of(np.rot90(levels, k), 2) * (i - j) ** 2).sum() for k in (0, 1)]
    assert horizontal == pytest.approx(turned[0])
    from skimage.feature import graycomatrix

    diagonal = graycomatrix(levels, [2], [np.pi / 4, 3 * np.pi / 4], levels=32, symmetric=True, normed=True)
    of_all = [*turned, *((diagonal[:, :, 0, k] * (i - j) ** 2).sum() for k in (0, 1))]
    found = patch_features(image)
    assert found["glcm2_contrast"] == pytest.approx(np.mean(of_all))
    assert found["glcm2_contrast_range"] == pytest.approx(np.ptp(of_all))


def table_of(levels, distance):
    table = np.zeros((32, 32))
    np.add.at(table, (levels[:, :-distance], levels[:, distance:]), 1)
    return (table + table.T) / (table + table.T).sum()


def test_flips_and_right_angles_change_nothing_but_the_borders_patterns():
    image = np.kron(_patch(1, 20), np.ones((1, 3, 3))).astype(np.uint8)
    one = patch_features(image)
    for other in (image[:, ::-1], np.rot90(image, axes=(1, 2))):
        found = patch_features(np.ascontiguousarray(other))
        for name in one:
            tolerance = 0.02 if name.startswith("lbp") else 1e-9
            assert found[name] == pytest.approx(one[name], abs=tolerance, rel=1e-9), name


def test_patterns_are_shares_and_see_texture_not_brightness():
    image = np.repeat(_patch(2)[:1] // 2, 3, axis=0)
    one, brighter = patch_features(image), patch_features(image + 100)
    for radius, points in ((1, 8), (2, 16), (4, 24)):
        shares = [one[f"lbp{radius}_{code}"] for code in range(points + 2)]
        assert sum(shares) == pytest.approx(1)
        assert shares == pytest.approx([brighter[f"lbp{radius}_{code}"] for code in range(points + 2)], abs=0.02)
    assert brighter["red_mean"] == pytest.approx(one["red_mean"] + 100)


def test_plain_patches_have_finite_features():
    for grey in (0, 128, 255):
        assert all(np.isfinite(list(patch_features(np.full((3, 16, 16), grey, np.uint8)).values())))


def test_other_arrays_are_refused():
    for image in (np.zeros((3, 32, 32)), np.zeros((32, 32, 3), np.uint8), np.zeros((3, 8, 8), np.uint8)):
        with pytest.raises(DataError, match=r"uint8 patches \[3, H, W\] of 16 pixels or more; got"):
            patch_features(image)


def test_a_plain_colour_is_told_channel_by_channel():
    found = patch_features(np.broadcast_to(np.array([200, 120, 40], np.uint8)[:, None, None], (3, 32, 32)).copy())
    for name, value in (("red", 200), ("green", 120), ("blue", 40)):
        assert found[f"{name}_mean"] == found[f"{name}_p5"] == found[f"{name}_p95"] == value
        assert found[f"{name}_sd"] == found[f"{name}_skewness"] == 0
    assert found["value_mean"] == pytest.approx(200 / 255) and found["saturation_mean"] == pytest.approx(160 / 200)
    hue = 2 * np.pi * (120 - 40) / 160 / 6  # between red and yellow
    assert np.arctan2(found["hue_sin"], found["hue_cos"]) == pytest.approx(hue)
    assert found["glcm1_energy"] == 1 and found["glcm1_contrast"] == 0
