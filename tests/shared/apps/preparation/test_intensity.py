"""Brightness: landmarks meet the reference's, noise goes, edges stay."""

import json

import numpy as np
import pytest

from shared.apps.preparation.intensity import (
    PERCENTILES,
    check_reference,
    landmarks,
    match_landmarks,
    smooth,
    standard_landmarks,
    write_reference,
)
from shared.errors import DataError


def image(seed=0, shape=(20, 20, 20)):
    rng = np.random.default_rng(seed)
    return rng.gamma(4, 50, shape), rng.random(shape) > 0.3


def test_matched_images_have_the_references_landmarks():
    array, mask = image()
    standard = standard_landmarks(landmarks(*image(1)))
    matched = match_landmarks(array, mask, landmarks(array, mask), standard)
    assert np.allclose(landmarks(matched, mask), standard, rtol=0.01) and not matched[~mask].any()


def test_matching_undoes_another_scanner():
    array, mask = image()
    standard = standard_landmarks(landmarks(array, mask))
    first = match_landmarks(array, mask, landmarks(array, mask), standard)
    other = 3.7 * array + 120
    second = match_landmarks(other, mask, landmarks(other, mask), standard)
    assert np.abs(first - second).max() < 0.01


def test_order_is_kept_also_beyond_the_landmarks():
    array, mask = image()
    array[0, 0, 0], mask[0, 0, 0] = 5000.0, True
    found = landmarks(array, mask)
    matched = match_landmarks(array, mask, found, standard_landmarks(landmarks(*image(2))))
    order = np.argsort(array[mask])
    assert (np.diff(matched[mask][order]) >= -1e-3).all() and matched.argmax() == 0 and matched[0, 0, 0] > 1500
    assert (matched[mask] >= 1).all()


def test_the_darkest_voxel_of_the_brain_stays_apart_from_the_background():
    array, mask = image()
    array[0, 0, 0], mask[0, 0, 0] = -500.0, True
    matched = match_landmarks(array, mask, landmarks(array, mask), standard_landmarks(landmarks(*image(2))))
    assert matched[0, 0, 0] == 1.0 and (matched != 0).tolist() == mask.tolist()


def test_coinciding_landmarks_of_a_coarse_image_do_no_harm():
    array = np.repeat([1.0, 1, 1, 2, 8], 200).reshape(10, 10, 10)
    mask = np.ones(array.shape, bool)
    matched = match_landmarks(array, mask, landmarks(array, mask), standard_landmarks(landmarks(*image(3))))
    assert np.isfinite(matched).all() and matched[0, 0, 0] < matched[-1, -1, -1]
    with pytest.raises(DataError, match="brightness is the same"):
        landmarks(np.ones((4, 4, 4)), np.ones((4, 4, 4), bool))


def test_smoothing_takes_noise_and_leaves_the_edge():
    rng = np.random.default_rng(0)
    clean = np.where(np.arange(24)[:, None, None] < 12, 100.0, 200.0) * np.ones((24, 24, 24))
    noisy, mask = clean + rng.normal(0, 10, clean.shape), np.ones(clean.shape, bool)
    mask[:2] = False
    done = smooth(noisy, mask)
    inside = np.zeros_like(mask)
    inside[3:10, 2:-2, 2:-2] = True
    assert (done - clean)[inside].std() < 0.6 * (noisy - clean)[inside].std()
    assert done[12:14].mean() - done[10:12].mean() > 85 and not done[:2].any()


def test_smoothing_pulls_the_rim_of_the_brain_to_nothing_around_it():
    axis = np.arange(16) - 7.5
    mask = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) < 36
    noisy = 100 + np.random.default_rng(1).normal(0, 10, mask.shape)
    inner = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) < 25
    assert smooth(noisy, mask)[mask & ~inner].mean() == pytest.approx(noisy[mask & ~inner].mean(), abs=1)


def test_a_reference_is_written_and_checked(tmp_path):
    marks = {"T1": landmarks(*image()), "T2": landmarks(*image(1))}
    write_reference(tmp_path / "r.json", "P1", marks)
    content = json.loads((tmp_path / "r.json").read_text())
    read = check_reference(content, ["T1", "T2"], "r.json")
    assert read["T1"][0] == 100 and read["T1"][-1] == 1000 and len(read["T2"]) == len(PERCENTILES)
    with pytest.raises(DataError, match="landmarks of each of T1, FLAIR, it has T1, T2"):
        check_reference(content, ["T1", "FLAIR"], "r.json")
    with pytest.raises(DataError, match="it has none"):
        check_reference([], ["T1"], "r.json")
