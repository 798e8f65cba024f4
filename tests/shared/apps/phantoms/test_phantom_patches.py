"""Synthetic patches: crypts alike but for their shape, planted where the map says; colour and darkness tell nothing."""

import numpy as np
import pytest
from skimage.measure import perimeter
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from shared.apps.phantoms.patch_glands import cross_section, long_section
from shared.apps.phantoms.patches import ANNOTATORS, PLANTED, annotate, draw_slide, label_noise, paint_patch

GRID = np.mgrid[-40:41, -40:41].astype(float)[::-1]


def shapes(kind, draw, count=40):
    """Areas of outline and lumen and the lumen's perimeter over that of a disc of its area, one row a crypt."""
    rows = []
    for seed in range(count):
        gland = draw(np.random.default_rng(seed), *GRID, kind)
        lumen = (gland.lumen > 0) & (gland.depth > 0)
        rows.append(((gland.depth > 0).sum(), lumen.sum(), perimeter(lumen) / np.sqrt(4 * np.pi * max(lumen.sum(), 1))))
    return np.array(rows)


def across(rng, x, y, kind):
    return cross_section(rng, x, y, kind, 30.0)


def along(rng, x, y, kind):
    return long_section(rng, x, y, kind, 70.0, 16.0)


@pytest.mark.parametrize("draw", [across, along])
def test_serrated_and_straight_crypts_have_the_same_areas_and_other_lumina(draw):
    straight, serrated = shapes("straight", draw), shapes("serrated", draw)
    for column in (0, 1):
        assert np.mean(serrated[:, column]) == pytest.approx(np.mean(straight[:, column]), rel=0.06)
    assert np.mean(serrated[:, 2]) > 1.25 * np.mean(straight[:, 2])


def test_neutral_crypts_have_little_lumen_or_none():
    assert shapes("neutral", across)[:, 1].max() < 0.2 * shapes("straight", across)[:, 0].mean()
    assert shapes("neutral", along)[:, 1].max() == 0


def test_a_weak_serration_is_nearly_smooth():
    def draw(strength):
        return shapes("serrated", lambda rng, x, y, kind: cross_section(rng, x, y, kind, 30.0, strength), 15)[
            :, 2
        ].mean()

    assert draw(0.0) < 1.1 < draw(0.5) < draw(1.0)


@pytest.fixture(scope="module")
def sample():
    """96 patches of 16 slides, 64 pixels wide."""
    rng = np.random.default_rng(7)
    rows = []
    for number in range(96):
        if number % 6 == 0:
            slide = draw_slide(rng)
        serrated = bool(number % 2)
        rows.append((serrated, number // 6, paint_patch(slide, serrated, 0.8, rng, size=64)))
    return rows


def test_images_masks_and_planted_maps(sample):
    for serrated, _, drawn in sample:
        assert drawn["image"].shape == (64, 64, 3) and drawn["image"].dtype == np.uint8
        assert set(np.unique(drawn["mask"])) == {0, 255}
        assert set(np.unique(drawn["planted"])) == {0, PLANTED["serrated" if serrated else "straight"]}
        assert (drawn["mask"][drawn["planted"] > 0] == 255).all()
    planted, mask = (np.mean([drawn[key] > 0 for *_, drawn in sample]) for key in ("planted", "mask"))
    assert 0.08 < planted < 0.25 and planted + 0.06 < mask < 0.45  # neutral crypts take a good part of the mask


def test_the_same_generator_paints_the_same_patch():
    slide = draw_slide(np.random.default_rng(0))
    first, second, other = (paint_patch(slide, True, 0.5, np.random.default_rng(seed), size=48) for seed in (1, 1, 2))
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert not np.array_equal(first["image"], other["image"])


def colours(image):
    """Means, spreads, percentiles and histograms of the channels."""
    values = image.reshape(-1, 3).astype(float)
    percentiles = np.percentile(values, [1, 5, 10, 25, 50, 75, 90, 95, 99], axis=0)
    histograms = [np.histogram(values[:, channel], 12, (0, 256))[0] / len(values) for channel in range(3)]
    return np.concatenate([values.mean(0), values.std(0), percentiles.ravel(), *histograms])


def test_neither_colour_nor_darkness_tells_the_classes(sample):
    labels, slides = [int(row[0]) for row in sample], [row[1] for row in sample]
    features = np.array([colours(row[2]["image"]) for row in sample])
    forest = RandomForestClassifier(200, random_state=0)
    options = {"groups": slides, "cv": GroupKFold(4), "method": "predict_proba"}
    assert abs(roc_auc_score(labels, cross_val_predict(forest, features, labels, **options)[:, 1]) - 0.5) < 0.2
    assert abs(roc_auc_score(labels, features[:, :3].mean(1)) - 0.5) < 0.15
    # the same forest sees a class that is a little paler
    pale = [np.minimum(row[2]["image"] + 12.0 * label, 255) for row, label in zip(sample, labels, strict=True)]
    features = np.array([colours(image) for image in pale])
    assert roc_auc_score(labels, cross_val_predict(forest, features, labels, **options)[:, 1]) > 0.72


def test_neither_the_brightest_nor_the_darkest_place_is_planted(sample):
    from scipy.ndimage import gaussian_filter

    smooth = [(gaussian_filter(row[2]["image"].mean(2), 2), row[2]["planted"].ravel() > 0) for row in sample]
    assert np.mean([planted[image.argmax()] for image, planted in smooth]) < 0.6
    assert np.mean([planted[image.argmin()] for image, planted in smooth]) < 0.35


def test_slides_differ_more_than_their_patches(sample):
    means = np.array([row[2]["image"].mean((0, 1)) for row in sample]).reshape(16, 6, 3)
    assert (means.mean(1).std(0) > 1.5 * means.std(1).mean(0)).all()


@pytest.mark.parametrize("accuracy", [0.5, 0.65, 0.9])
def test_readers_err_as_often_as_expected(accuracy):
    rng = np.random.default_rng(0)
    drawn = [(serrated, annotate(serrated, rng.uniform(0.2, 1), accuracy, rng)) for serrated in [True, False] * 4000]
    wrong = np.mean([(votes > ANNOTATORS / 2) != serrated for serrated, votes in drawn])
    assert wrong == pytest.approx(label_noise(accuracy, (0.2, 1.0)), abs=0.008)
    assert min(votes for _, votes in drawn) >= 0 and max(votes for _, votes in drawn) == ANNOTATORS
    assert annotate(True, 1.0, 0.5, rng) == ANNOTATORS and annotate(False, 1.0, 0.5, rng) == 0
