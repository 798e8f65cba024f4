"""Simple measurements of a tumour, against closed forms."""

import numpy as np
import pytest

from shared.apps.baselines.roi_features import roi_features, size_features

AFFINE = np.diag([2.0, 1.0, 5.0, 1.0])  # the slices lie along the third axis


@pytest.fixture
def patient():
    """An organ of brightness 100, a box of 6 x 8 voxels of 150 in it, bright noise in no slice that is taken."""
    volume = np.zeros((30, 40, 6))
    volume[4:26, 5:35] = 100.0
    mask = np.zeros(volume.shape, bool)
    mask[10:16, 12:20, 2:4] = True
    mask[12, 15, 4] = True  # the smallest slice
    volume[mask] = 150.0
    return np.stack([volume, volume * 3]), mask


def test_size_is_told_in_square_millimetres_and_as_a_share_of_the_organ(patient):
    found = size_features(*patient, AFFINE, 2)
    assert found["log_area_mm2"] == pytest.approx(np.log(2 * 48 * 2.0))
    assert found["log_area_share"] == pytest.approx(np.log(2 * 48 / (2 * 22 * 30)))
    assert size_features(*patient, AFFINE, 3)["log_area_mm2"] == pytest.approx(np.log((2 * 48 + 1) * 2.0))


def test_brightness_is_relative_to_the_organ_and_to_the_ring_around(patient):
    volumes, mask = patient
    found = roi_features(volumes, mask, AFFINE, 2, ["T1", "T2"])
    mean = volumes[0][volumes[0] > 0].mean()
    for name in ("T1", "T2"):  # the unit of a scanner does not matter
        assert found[f"{name}_mean"] == pytest.approx(150 / mean) and found[f"{name}_sd"] == pytest.approx(0)
        assert found[f"{name}_contrast"] == pytest.approx(50 / mean)  # the ring is organ, none of it tumour
        assert found[f"{name}_ring_sd"] == pytest.approx(0, abs=1e-9)
        assert found[f"{name}_p50"] == pytest.approx(150 / mean) and found[f"{name}_entropy"] == 0


def test_the_ring_ends_after_five_millimetres(patient):
    volumes, mask = patient
    distant, near = volumes.copy(), volumes.copy()
    distant[:, 10:16, 26:30, 2:4] *= 7  # 6.5 mm and more beside the tumour
    near[:, 10:16, 22:24, 2:4] *= 7
    contrast = roi_features(volumes, mask, AFFINE, 2, ["a", "b"])["a_contrast"] * volumes[0][volumes[0] > 0].mean()

    def told(changed):
        return roi_features(changed, mask, AFFINE, 2, ["a", "b"])["a_contrast"] * changed[0][changed[0] > 10].mean()

    assert told(distant) == pytest.approx(contrast) and told(near) < contrast - 10


def test_the_outline_is_that_of_the_largest_slice():
    volume, mask = np.full((20, 20, 3), 50.0), np.zeros((20, 20, 3), bool)
    mask[3:13, 5:15, 1] = True
    mask[9, 9, 2] = True
    found = roi_features(volume[None] + np.arange(3.0), mask, np.diag([1.0, 1.0, 4.0, 1.0]), 2)
    assert found["solidity"] == 1 and found["pieces"] == 1 and found["eccentricity"] == pytest.approx(0, abs=1e-6)
    assert 0.7 < found["compactness"] <= 1.1
