import numpy as np
import pytest
import torch
from skimage.color import rgb2gray
from torch.nn import functional

from shared.errors import DataError
from shared.explain import (
    centred_box_map,
    centred_gaussian_map,
    darkness_map,
    edge_density_map,
    localisation_scores,
    random_map,
    resize_maps,
    scores_beside_controls,
)


def test_gaussian_in_closed_form():
    cam = centred_gaussian_map((2, 1, 21, 41), sigma=0.2)
    assert cam.dtype == np.float32 and cam[0, 0, 10, 20] == 1 == cam.max() and np.array_equal(cam[0], cam[1])
    # one standard deviation is 0.2 of each side
    assert cam[0, 0, 10, 20 + 8] == pytest.approx(np.exp(-0.5 * (8 / 41 / 0.2) ** 2), abs=1e-6)
    assert cam[0, 0, 10 - 5, 20] == pytest.approx(np.exp(-0.5 * (5 / 21 / 0.2) ** 2), abs=1e-6)
    assert np.array_equal(cam, cam[..., ::-1]) and np.array_equal(cam, cam[:, :, ::-1])


def test_darkness_is_one_minus_scikit_images_luminance():
    images = np.random.default_rng(0).random((3, 3, 7, 9)).astype(np.float32)
    expected = 1 - rgb2gray(np.moveaxis(images, 1, -1))[:, None]
    np.testing.assert_allclose(darkness_map(images), expected, atol=1e-3)
    np.testing.assert_allclose(darkness_map(torch.from_numpy(images)), expected, atol=1e-3)
    eight_bit = (images * 255).round().astype(np.uint8)
    np.testing.assert_allclose(darkness_map(eight_bit), expected, atol=3e-3)
    np.testing.assert_allclose(darkness_map(images[:, :1]), 1 - images[:, :1], atol=1e-6)
    assert darkness_map(np.zeros((1, 3, 2, 2))).min() > 0.999 and darkness_map(np.ones((1, 3, 2, 2))).max() < 1e-6


def test_resizing_averages_areas_and_is_torchs_bilinear_upwards():
    maps = np.random.default_rng(0).random((2, 1, 12, 8))
    down = maps.reshape(2, 1, 4, 3, 2, 4).mean(axis=(3, 5))
    np.testing.assert_allclose(resize_maps(maps, (4, 2)), down, atol=1e-12)
    up = functional.interpolate(torch.from_numpy(maps), (30, 24), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(resize_maps(maps, (30, 24)), up.numpy(), atol=1e-9)
    assert resize_maps(maps, (12, 8)) is maps


def _case():
    """Dark discs on a light ground are the truth; the map knows the first, is zero in the second."""
    y, x = np.mgrid[:32, :32]
    disc = (y - 10) ** 2 + (x - 20) ** 2 < 36
    truth = np.stack([disc, disc.T])[:, None]
    images = np.where(truth, 0.2, 0.9).repeat(3, axis=1).astype(np.float32)
    maps = np.stack([disc.astype(float), np.zeros((32, 32))])[:, None]
    return maps, truth, images


def test_edges_are_dense_where_the_picture_varies_not_where_it_is_dark():
    image = np.full((1, 3, 64, 64), 0.9, dtype=np.float32)
    image[:, :, :, :24] = 0.1  # a dark and even half
    image[:, :, 20:40, 44:60] = np.random.default_rng(0).random((20, 16)) > 0.5
    found = edge_density_map(image)
    assert found.shape == (1, 1, 64, 64) and found.dtype == np.float32 and found.min() >= 0
    assert found[0, 0, 22:38, 46:58].min() > 3 * found[0, 0, :, :16].max()
    np.testing.assert_allclose(found, edge_density_map((image * 255).round().astype(np.uint8)), atol=0.01)


def test_every_map_is_scored_alike_and_zero_maps_are_counted():
    maps, truth, images = _case()
    scores = scores_beside_controls(maps, truth, images=images, grid=(4, 4), seed=3)
    assert list(scores) == [
        "Grad-CAM", "centred box", "centred Gaussian", "random map", "coarse random map", "darkness", "coarse darkness",
        "edge density",
    ]  # fmt: skip
    assert {key: value.tolist() for key, value in scores["Grad-CAM"].items()} == {
        "pointing": [1, 0], "energy_inside": [1, 0], "energy_ratio": [1 / truth[0].mean(), 0], "iou": [1, 0],
        "box_iou": [1, 0], "box_mask_iou": [truth[0].sum() / 11**2, 0], "all_zero": [0, 1],
    }  # fmt: skip
    assert sum(score["all_zero"].sum() for score in scores.values()) == 1
    # the darkness finds these discs; on the network's grid it is blurred
    assert scores["darkness"]["iou"].tolist() == [1, 1] and (scores["darkness"]["pointing"] == 1).all()
    assert (scores["coarse darkness"]["energy_ratio"] < scores["darkness"]["energy_ratio"]).all()
    assert (scores["coarse darkness"]["energy_ratio"] > 2).all()
    expected = localisation_scores(random_map(maps.shape, seed=3), truth, boxes=True)
    assert scores["random map"]["pointing"].tolist() == expected["pointing"].tolist()
    assert "darkness" not in scores_beside_controls(maps, truth)


def test_scale_and_offset_of_a_map_do_not_matter():
    maps, truth, images = _case()
    maps = maps + 0.01 * random_map(maps.shape)
    plain = scores_beside_controls(maps, truth)["Grad-CAM"]
    scaled = scores_beside_controls(40 + 3 * maps, truth)["Grad-CAM"]
    for key, values in plain.items():
        np.testing.assert_allclose(scaled[key], values, atol=1e-9, err_msg=key)
    # images of another size than the mask are resized
    small = scores_beside_controls(maps, truth, images=images[..., ::2, ::2])["darkness"]
    assert (small["energy_ratio"] > 3).all()


def test_errors_say_what_arrived():
    maps, truth, images = _case()
    with pytest.raises(DataError, match="finite and not negative"):
        scores_beside_controls(np.where(maps > 0, np.nan, 0), truth)
    with pytest.raises(DataError, match=r"position \[1\] is empty"):
        scores_beside_controls(maps, truth * np.array([1, 0]).reshape(2, 1, 1, 1))
    with pytest.raises(DataError, match=r"images \[B, 3, H, W\] or \[B, 1, H, W\], got \(2, 4, 8, 8\)"):
        darkness_map(np.zeros((2, 4, 8, 8)))
    with pytest.raises(DataError, match=r"images in \[0, 1\], got 0 ... 230"):
        darkness_map(np.pad(255 * images, ((0, 0), (0, 0), (1, 1), (1, 1))).round(-1))
    with pytest.raises(ValueError, match="sigma must be positive, got 0"):
        centred_gaussian_map((1, 1, 4, 4), sigma=0)


@pytest.mark.parametrize(("share", "side"), [(0.25, 10), (0.09, 6), (1.0, 20)])
def test_the_centred_box_has_the_share_of_the_area(share, side):
    box = centred_box_map((2, 1, 20, 40), share=share)
    assert box.mean() == pytest.approx(share) and set(np.unique(box)) <= {0, 1}
    rows, columns = np.nonzero(box[1, 0])
    assert (rows.min() + rows.max(), columns.min() + columns.max()) == (19, 39) and np.ptp(rows) + 1 == side
