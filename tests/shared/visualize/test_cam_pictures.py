import numpy as np
import pytest
import torch
from skimage.io import imread

from shared.errors import DataError
from shared.explain import Box
from shared.visualize import cam_gallery, cam_overlay, cam_picture, randomisation_figure


def _patch(side=224, seed=0):
    return np.random.default_rng(seed).random((3, side, side))


def _corner(side=224):
    cam = np.zeros((side, side))
    cam[: side // 2, side // 2 :] = 1
    return cam


def test_the_map_is_read_back_as_it_was_written(tmp_path):
    cam = np.random.default_rng(0).random((30, 50))
    cam_picture(torch.from_numpy(cam), tmp_path / "new" / "cam.png")
    found = imread(tmp_path / "new" / "cam.png")
    assert found.dtype == np.uint8 and found.shape == (30, 50)
    np.testing.assert_allclose(found / 255, cam, atol=0.5 / 255 + 1e-9)


def test_a_signed_map_is_grey_128_at_zero_and_its_overlay_leaves_zero_uncoloured(tmp_path):
    cam = np.zeros((224, 224))
    cam[:, :60], cam[:, 160:] = -1, 1
    cam_picture(cam, tmp_path / "cam.png", signed=True)
    assert np.unique(imread(tmp_path / "cam.png")).tolist() == [1, 128, 255]
    found = imread(tmp_path / "cam.png").astype(float)
    np.testing.assert_array_equal((found - 128) / 127, cam)
    cam_overlay(_patch(), cam, tmp_path / "a.png", signed=True)
    right = imread(tmp_path / "a.png").astype(int)[:, -224:]
    middle, blue, red = right[:, 70:150], right[:, :60], right[:, 160:]
    assert (middle == middle[..., :1]).all()
    assert (blue[..., 2] - blue[..., 0] > 50).all() and (red[..., 0] - red[..., 2] > 50).all()
    cam_gallery(_patch()[None], cam[None], tmp_path / "g.png", titles=["a"], name="additive map", signed=True)
    assert (np.ptp(imread(tmp_path / "g.png")[..., :3].astype(int), axis=-1) > 60).mean() > 0.1


def test_the_overlay_is_hot_where_the_map_is_beside_the_untouched_patch(tmp_path):
    image = _patch()
    cam_overlay(image, _corner(), tmp_path / "a.png")
    picture = imread(tmp_path / "a.png").astype(int)
    assert picture.shape[0] == 224 and 448 < picture.shape[1] < 460
    left, right = picture[:, :224], picture[:, -224:]
    np.testing.assert_array_equal(left, np.round(np.moveaxis(image, 0, -1) * 255))
    hot = np.abs(right[..., 0] - right[..., 2]) > 30
    np.testing.assert_array_equal(hot, _corner() > 0)
    cold = right[_corner() == 0]
    assert (cold == cold[:, :1]).all()  # grey, so that colours mean the map alone


def test_box_and_outline_lie_where_they_should(tmp_path):
    image, cam, outline = _patch(), np.zeros((224, 224)), np.zeros((224, 224), dtype=bool)
    outline[150:200, 20:60] = True
    box = Box(100, 30, 180, 90)
    cam_overlay(image, cam, tmp_path / "plain.png")
    cam_overlay((255 * image).round().astype(np.uint8), cam, tmp_path / "both.png", box=box, outline=outline)
    before, after = (imread(tmp_path / f"{name}.png").astype(int) for name in ("plain", "both"))
    changed = np.abs(before - after).max(axis=-1) > 3
    rows, columns = np.nonzero(changed[:, -224:][:120])
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == box[:4]
    for half in (changed[:, :224], changed[:, -224:]):
        rows, columns = np.nonzero(half[120:])
        edges = (columns.min(), rows.min() + 120, columns.max() + 1, rows.max() + 121)
        assert edges == pytest.approx((20, 150, 60, 200), abs=1)
        assert not half[155:195, 25:55].any()
    assert not changed[:120, :224].any()


def test_a_small_patch_is_enlarged_in_whole_multiples(tmp_path):
    cam_overlay(_patch(64), _corner(64), tmp_path / "a.png", box=Box(32, 0, 64, 32))
    picture = imread(tmp_path / "a.png")
    assert picture.shape[0] == 256
    assert (picture[0, -1] == picture[0, -2]).all() and picture[0, -1].tolist() == [0, 229, 160]


def test_the_gallery_draws_colour_boxes_and_lesions(tmp_path):
    images, cams = np.stack([_patch(32, i) for i in range(5)]), np.stack([_corner(32)] * 5)
    given = {"titles": list("abcde"), "header": "five"}
    cam_gallery(images, cams, tmp_path / "plain.png", **given)
    boxes = [Box(16, 0, 32, 16), None, Box(2, 2, 9, 30), None, None]
    cam_gallery(images, cams, tmp_path / "boxes.png", boxes=boxes, outline=cams > 0, **given)
    plain, drawn = (imread(tmp_path / f"{name}.png")[..., :3].astype(int) for name in ("plain", "boxes"))
    assert plain.shape == drawn.shape and (plain != drawn).any()
    green = (np.abs(drawn - [0, 229, 160]) < 12).all(axis=-1)
    assert green.sum() > 400
    # two rows of patches; boxes in the first only
    assert np.nonzero(green[:, : int(0.8 * green.shape[1])])[0].max() < 0.6 * green.shape[0]
    # colours beside grey
    assert (np.ptp(plain, axis=-1) > 60).mean() > 0.1


def test_the_randomisation_figure_shows_every_stage(tmp_path):
    maps = np.random.default_rng(0).random((4, 2, 16, 16))
    values = np.array([[1.0, 1, np.nan], [0.5, 0.2, np.nan], [0.1, -0.3, np.nan], [0, 0, np.nan]])
    given = {"stages": ["original", "head", "encoder.layer4", "encoder.layer3"], "spearman": values}
    given |= {"ssim": values.clip(0), "all_zero": np.zeros((4, 3), dtype=bool)}
    images = np.stack([_patch(16, i) for i in range(2)])
    randomisation_figure(images, maps, tmp_path / "a.png", titles=["P1", "P2"], **given)
    randomisation_figure(images[:1], maps[:, :1], tmp_path / "b.png", **given)
    two, one = (imread(tmp_path / f"{name}.png") for name in "ab")
    assert two.shape[0] > one.shape[0] + 100 and two.shape[1] == one.shape[1] > 500
    with pytest.raises(DataError, match=r"maps of \(2, 16, 16\) images at 3 stages.*got maps \(4, 2, 16, 16\)"):
        randomisation_figure(images, maps, tmp_path / "c.png", **{**given, "stages": ["a", "b", "c"]})
    with pytest.raises(DataError, match="some of them finite"):
        randomisation_figure(images, maps, tmp_path / "c.png", **{**given, "spearman": np.nan * values})


def test_errors_say_what_arrived(tmp_path):
    with pytest.raises(DataError, match=r"image \[3, H, W\] and its map \[H, W\], got \(3, 8, 8\) and \(9, 8\)"):
        cam_overlay(_patch(8), np.zeros((9, 8)), tmp_path / "x.png")
    with pytest.raises(DataError, match=r"outline must have the map's shape \(8, 8\), got \(1, 8, 8\)"):
        cam_overlay(_patch(8), np.zeros((8, 8)), tmp_path / "x.png", outline=np.ones((1, 8, 8)))
    with pytest.raises(DataError, match="One box, or None, is needed for each of 1 images, got 2"):
        cam_gallery(_patch(8)[None], np.zeros((1, 8, 8)), tmp_path / "x.png", titles=["a"], boxes=[None, None])
    assert not list(tmp_path.iterdir())
