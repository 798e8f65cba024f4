import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from shared.errors import DataError
from shared.explain.glioma.scores import surface_scores, tract_overlap, tract_scores, volume_controls, volume_scores
from tests.support.tiny_brain import AFFINE, SHAPE, tiny_atlas


def ball(centre=(8, 8, 8), radius=5, side=16):
    return sum((axis - c) ** 2 for axis, c in zip(np.indices((side,) * 3), centre, strict=True)) <= radius**2


def test_controls_do_what_their_names_say():
    tumour, image = ball(), np.random.default_rng(0).random((2, 16, 16, 16))
    maps = volume_controls(image, tumour, grid=4, sequences=["T1", "FLAIR"], seed=1)
    assert np.unravel_index(maps["tumour centre"].argmax(), tumour.shape) == (8, 8, 8)
    assert np.array_equal(maps["tumour"], tumour) and np.array_equal(maps["bright FLAIR"], image[1])
    assert np.unravel_index(maps["dark T1"].argmax(), tumour.shape) == np.unravel_index(image[0].argmin(), tumour.shape)
    steps = [np.abs(np.diff(maps[name], axis=0)).mean() for name in ("coarse random map", "random map")]
    assert steps[0] < 0.5 * steps[1] and maps["coarse random map"].shape == tumour.shape


def test_the_truth_wins_chance_is_one_and_scale_does_not_matter():
    tumour, support, truth = ball(), ball(radius=7), ball((8, 10, 8), 2)
    rng = np.random.default_rng(0)
    noise = rng.random(tumour.shape)
    maps = {"truth": truth * 1.0, "noise": noise, "scaled": 100 * noise - 7, "even": tumour * 1.0, "zero": 0 * noise}
    scores = volume_scores(maps, truth, tumour, support)
    assert scores["truth"] == {
        "pointing": 1.0,
        "energy_ratio": pytest.approx(support.sum() / truth.sum()),
        "energy_ratio_in_tumour": pytest.approx(tumour.sum() / truth.sum()),
    }
    assert scores["noise"]["energy_ratio"] == pytest.approx(1, abs=0.2)
    assert scores["noise"] == pytest.approx(scores["scaled"])
    # what finds the tumour alone earns nothing within it, and points by chance
    assert scores["even"]["energy_ratio_in_tumour"] == pytest.approx(1)
    assert scores["even"]["pointing"] == pytest.approx(truth.sum() / tumour.sum())
    assert set(scores["zero"].values()) == {0.0}


def test_outside_the_support_nothing_counts():
    tumour = support = ball()
    truth, maps = ball((8, 10, 8), 2), np.where(support, 0.0, 1.0)
    assert set(volume_scores({"outside": maps}, truth, tumour, support)["outside"].values()) == {0.0}
    with pytest.raises(DataError, match="planted"):
        volume_scores({"a": maps}, ~support, tumour, support)


def test_surface_scores():
    planted = np.zeros(SHAPE, bool)
    planted[9:11, 6:9, 5:8] = True
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(400, 3))
    points = (AFFINE[:3, :3] @ (6, 7, 6) + AFFINE[:3, 3]) + 7 * direction / np.linalg.norm(direction, axis=1)[:, None]
    hot = np.exp(points[:, 0])
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    tumour = ((index - (6, 7, 6)) ** 2).sum(axis=-1) <= 3.5**2
    planted &= tumour
    scores = surface_scores({"hot": hot}, points, planted, tumour, AFFINE)
    assert scores["hot"]["pointing"] == 1 and scores["hot"]["energy_ratio"] > 3
    assert scores["random"]["energy_ratio"] == pytest.approx(1, abs=0.25)
    share = scores["hot"]["truth_share"]
    assert 0.05 < share < 0.3 and scores["random"]["average_precision"] == pytest.approx(share, abs=0.15)
    # only the order counts for it
    same = surface_scores({"hot": points[:, 0] - points[:, 0].min()}, points, planted, tumour, AFFINE)
    assert same["hot"]["average_precision"] == scores["hot"]["average_precision"] > 0.9
    assert surface_scores({"hot": hot}, points, np.zeros(SHAPE, bool), tumour, AFFINE) == {}


def test_the_distance_is_also_scored_as_coarse_as_the_attention():
    rng = np.random.default_rng(1)
    planted = np.zeros(SHAPE, bool)
    planted[6:8, 6:9, 5:8] = True
    points = AFFINE[:3, 3] + AFFINE[:3, :3] @ (6, 7, 6) + rng.normal(size=(60, 3)) * 4
    groups = np.arange(60) // 6
    away = np.linalg.norm(points - points.mean(axis=0), axis=1)
    coarse = np.array([away[groups == group].mean() for group in groups])
    given = (points, planted, np.ones(SHAPE, bool), AFFINE)
    scores = surface_scores({"by hand": coarse}, *given, groups=groups)
    assert scores["far from the centre, as coarse"] == pytest.approx(scores["by hand"])
    assert scores["by hand"]["average_precision"] != scores["far from the centre"]["average_precision"]
    assert "far from the centre, as coarse" not in surface_scores({"by hand": coarse}, *given)


def test_overlap_is_the_weighted_share_of_a_tract_within_the_tumour():
    atlas = tiny_atlas()
    tumour = np.zeros(SHAPE, bool)
    tumour[:, :8] = True
    for edge, share in enumerate(tract_overlap(atlas, tumour)):
        voxels, probabilities = atlas.tract(edge)
        inside = tumour.ravel()[voxels]
        assert share == pytest.approx(probabilities[inside].sum() / probabilities.sum())


def test_tract_scores_and_what_chance_would_have():
    rng = np.random.default_rng(0)
    planted, mask = [3, 17, 20], rng.random(40)
    mask[[3, 17]] = (0.95, 0.9)
    mask[20] = 0.0
    mask = np.clip(mask, 0, 0.97)
    kept = mask > 0.5
    found = tract_scores(mask, kept, planted, {"best": np.isin(np.arange(40), planted) * 1.0, "none": np.zeros(40)})
    assert found["GNNExplainer"]["precision_kept"] == pytest.approx(2 / kept.sum())
    assert list(found["best"].values()) == pytest.approx([3 / kept.sum(), 1.0, 1.0])
    assert found["none"]["precision_planted"] == pytest.approx(3 / 40)  # a tie throughout is a random choice
    truth = np.isin(np.arange(40), planted)
    drawn = [average_precision_score(truth, rng.random(40)) for _ in range(600)]
    assert found["random"]["average_precision"] == pytest.approx(np.mean(drawn), abs=0.02)
    assert tract_scores(mask, mask > 2, planted, {})["GNNExplainer"]["precision_kept"] == 0
    with pytest.raises(DataError, match="planted"):
        tract_scores(mask, kept, [], {})
