import numpy as np
import pytest
import torch

from shared.errors import DataError
from shared.explain import (
    centred_box_map,
    energy_inside,
    energy_ratio,
    intersection_over_union,
    localisation_scores,
    pointing_game,
    random_map,
    scores_beside_controls,
)


def _truth(count=1, side=8):
    truth = np.zeros((count, 1, side, side))
    truth[:, :, 2:4, 2:4] = 1
    return truth


def test_pointing_with_tolerance_and_ties():
    maps = np.zeros((3, 1, 8, 8))
    maps[0, 0, 2, 3] = 1.0
    maps[1, 0, 2, 5] = 1.0  # two pixels to the right of the truth
    maps[2, 0, [2, 7], [2, 7]] = 1.0  # two equal maxima, one inside
    truth = _truth(3)
    assert pointing_game(maps, truth).tolist() == [1.0, 0.0, 0.5]
    assert pointing_game(maps, truth, tolerance=1).tolist() == [1.0, 0.0, 0.5]
    assert pointing_game(maps, truth, tolerance=2).tolist() == [1.0, 1.0, 0.5]


def test_a_random_pointing_hits_at_the_share_of_area():
    truth = _truth(4000)
    assert pointing_game(random_map(truth.shape), truth).mean() == pytest.approx(4 / 64, abs=0.015)
    assert energy_ratio(random_map(truth.shape), truth).mean() == pytest.approx(1, abs=0.02)


def test_an_all_zero_map_hits_nothing():
    maps = np.zeros((1, 1, 8, 8))
    for name, score in localisation_scores(maps, _truth()).items():
        assert score.tolist() == [0.0], name
    assert intersection_over_union(maps, _truth(), threshold=0.0).tolist() == [0.0]


def test_energy_and_overlap_in_closed_form():
    maps = np.full((1, 1, 8, 8), 0.1)
    maps[0, 0, 2:4, 2:6] = 0.9
    inside, outside = 4 * 0.9, 4 * 0.9 + 56 * 0.1
    assert energy_inside(maps, _truth())[0] == pytest.approx(inside / (inside + outside))
    assert energy_ratio(maps, _truth())[0] == pytest.approx(inside / (inside + outside) / (4 / 64))
    assert intersection_over_union(maps, _truth())[0] == 0.5
    assert intersection_over_union(maps, _truth(), threshold=0.95, relative=True)[0] == 0.5
    assert intersection_over_union(maps, _truth(), threshold=0.95)[0] == 0.0


def test_inside_a_region_finding_the_region_earns_nothing():
    region = np.zeros((1, 1, 8, 8))
    region[0, 0, :4, :4] = 1
    assert energy_ratio(region, _truth())[0] == pytest.approx(4)
    assert energy_ratio(region, _truth(), region=region)[0] == pytest.approx(1)
    assert energy_ratio(_truth(), _truth(), region=region)[0] == pytest.approx(4)


def test_a_batch_equals_each_map_alone_and_torch_equals_numpy():
    maps, truth = random_map((5, 1, 8, 8), seed=3), _truth(5)
    truth[2, 0, 6, 6] = 1
    whole = localisation_scores(torch.from_numpy(maps).requires_grad_(), torch.from_numpy(truth) > 0, tolerance=1)
    for i in range(5):
        alone = localisation_scores(maps[i : i + 1], truth[i : i + 1], tolerance=1)
        assert {name: score[i] for name, score in whole.items()} == {name: score[0] for name, score in alone.items()}


def test_controls():
    box = centred_box_map((2, 1, 64, 64), share=0.25)
    assert box.mean() == 0.25 and box[0, 0, 16:48, 16:48].all() and box[1].sum() == box[0].sum()
    assert np.array_equal(random_map((2, 1, 4, 4), seed=1), random_map((2, 1, 4, 4), seed=1))
    assert not np.array_equal(random_map((2, 1, 4, 4), seed=1), random_map((2, 1, 4, 4), seed=2))
    # a box is scored by the share of it that hits, wherever its first pixel lies
    truth = np.zeros((1, 1, 64, 64))
    truth[0, 0, 32:40, 32:40] = 1
    assert pointing_game(centred_box_map(truth.shape), truth)[0] == pytest.approx(64 / 1024)


def test_errors_say_what_arrived():
    truth = _truth(2)
    with pytest.raises(DataError, match=r"one shape \[B, 1, H, W\]; got \(2, 1, 8, 8\) beside maps of \(1, 1, 8, 8\)"):
        energy_inside(np.ones((1, 1, 8, 8)), truth)
    with pytest.raises(DataError, match="finite and not negative"):
        pointing_game(-np.ones((2, 1, 8, 8)), truth)
    truth[1] = 0
    with pytest.raises(DataError, match=r"position \[1\] is empty"):
        localisation_scores(np.ones((2, 1, 8, 8)), truth)
    with pytest.raises(DataError, match=r"position \[0\] has no pixel inside the region"):
        energy_ratio(np.ones((1, 1, 8, 8)), _truth(), region=np.eye(8)[None, None] * np.eye(8)[7])
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\], got 0"):
        centred_box_map((1, 1, 4, 4), share=0)


def test_a_volume_scores_as_its_unrolled_picture():
    rng = np.random.default_rng(0)
    maps, truth = rng.random((3, 1, 4, 5, 6)), rng.random((3, 1, 4, 5, 6)) > 0.7
    region = rng.random((3, 1, 4, 5, 6)) > 0.3
    flat = [x.reshape(3, 1, 4, 30) for x in (maps, truth, region)]
    volume = localisation_scores(maps, truth, region=region)
    for name, expected in localisation_scores(flat[0], flat[1], region=flat[2]).items():
        np.testing.assert_allclose(volume[name], expected, err_msg=name)
    assert pointing_game(maps, truth, tolerance=9.0).tolist() == [1.0, 1.0, 1.0]


def test_maps_and_controls_are_scored_on_one_scale():
    """A map from 0.1 to 0.3 and an image that is dark where the truth is: both find it all at half of their range."""
    truth = np.zeros((1, 1, 12, 12), bool)
    truth[..., 3:8, 4:10] = True
    image = np.where(truth, 0.5, 0.7).repeat(3, axis=1).astype(np.float32)
    found = scores_beside_controls(0.1 + 0.2 * truth, truth, images=image)
    for name in ("Grad-CAM", "darkness"):
        assert found[name]["iou"] == 1 and found[name]["box_iou"] == 1 and found[name]["energy_inside"] == 1, name
        assert found[name]["all_zero"] == 0
    by_seed = [scores_beside_controls(1.0 * truth, truth, grid=(3, 3), seed=seed) for seed in (5, 5, 6)]
    for name in ("random map", "coarse random map"):
        one, again, other = (each[name]["energy_inside"] for each in by_seed)
        assert one == again != other, name
    flat = scores_beside_controls(np.zeros(truth.shape), truth)
    assert flat["Grad-CAM"]["all_zero"] == 1 and flat["Grad-CAM"]["iou"] == 0
