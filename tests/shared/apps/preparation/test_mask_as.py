"""Masks of ellipses, boxes and other patients against moments in plain loops."""

import numpy as np
import pytest

from shared.apps.preparation.mask_as import by_slice, centred, donors, ellipse
from shared.data.volumes import Volume
from shared.errors import DataError


def moments(mask):
    """Centre and second central moments, pixels as points."""
    places = [(r, c) for r in range(mask.shape[0]) for c in range(mask.shape[1]) if mask[r, c]]
    centre = [sum(place[axis] for place in places) / len(places) for axis in (0, 1)]
    second = np.zeros((2, 2))
    for place in places:
        away = np.subtract(place, centre)
        second += np.outer(away, away) / len(places)
    return np.array(centre), second


def test_the_ellipse_has_the_shapes_centre_and_second_moments():
    rows, columns = np.indices((90, 110))
    lobed = (rows - 40) ** 2 / 400 + (columns - 60) ** 2 / 900 < 1
    lobed |= (np.abs(rows - columns + 10) < 6) & (rows > 20) & (rows < 70)
    found = ellipse(lobed)
    centre, second = moments(lobed)
    of_ellipse, spread = moments(found)
    assert of_ellipse == pytest.approx(centre, abs=0.1)
    assert spread == pytest.approx(second, rel=0.02, abs=0.02 * second.max())
    # of all shapes of these moments the ellipse is the largest
    assert found.sum() == pytest.approx(4 * np.pi * np.sqrt(np.linalg.det(second + np.eye(2) / 12)), rel=0.01)
    assert found.sum() > lobed.sum()


def test_slices_are_drawn_one_by_one_across_the_thick_axis():
    volume = np.zeros((4, 20, 20), np.uint8)
    volume[1, 2:5, 3:9] = volume[1, 4, 9] = volume[2, 10, 10] = 1
    boxes = by_slice(Volume(volume, np.diag([5.0, 1, 1, 1])), "box").array
    assert boxes[1, 2:5, 3:10].all() and boxes.sum() == 3 * 7 + 1 and boxes[2, 10, 10]


@pytest.mark.parametrize("seed", range(5))
def test_everybody_gives_and_gets_once_and_nothing_within_a_group(seed):
    groups = {f"P{number}": f"G{number // 4}" if number < 8 else f"P{number}" for number in range(17)}
    found = donors(groups, seed)
    assert sorted(found) == sorted(found.values()) == sorted(groups)
    assert all(groups[patient] != groups[donor] for patient, donor in found.items())
    assert found == donors(dict(reversed(groups.items())), seed) and found != donors(groups, seed + 5)


def test_a_group_of_more_than_half_cannot_be_shuffled():
    with pytest.raises(DataError, match="among 5 patients of whom 3 belong together"):
        donors({"a": "g", "b": "g", "c": "g", "d": "d", "e": "e"})


def test_another_tumour_lies_on_the_own_ones_centre_in_its_own_size():
    own, other = np.zeros((40, 40, 1), np.uint8), np.zeros((30, 30, 1), np.uint8)
    own[20:25, 30:35] = 1
    other[3:6, 2:9] = 1  # 3 x 7 pixels of 2 mm
    affine = np.diag([-1.0, -1, 1, 1])
    found = centred(Volume(other, np.diag([-2.0, -2, 1, 1])), Volume(own, affine)).array[..., 0]
    rows = np.nonzero(found)[0]
    assert found.shape == (40, 40) and rows.mean() == pytest.approx(22, abs=0.5)
    assert np.ptp(rows) + 1 == pytest.approx(6, abs=1) and found.sum(1).max() == pytest.approx(40 - 25, abs=1)
