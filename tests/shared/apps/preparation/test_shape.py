"""Shape features against closed forms of discs, ellipses and rectangles."""

import numpy as np
import pytest

from shared.apps.preparation.shape import SHAPE, outline_features, shape_features


def ellipse(long, short, angle=0.0, size=241, step=(1.0, 1.0)):
    """Pixels whose centre lies in an ellipse of these semi-axes, in mm."""
    rows, columns = ((np.indices((size, size)) - size // 2).T * step).T
    turn = np.deg2rad(angle)
    along, across = rows * np.cos(turn) + columns * np.sin(turn), columns * np.cos(turn) - rows * np.sin(turn)
    return (along / long) ** 2 + (across / short) ** 2 <= 1


def perimeter(long, short):
    """Ramanujan's second formula, off by less than 1e-5 here."""
    h = ((long - short) / (long + short)) ** 2
    return np.pi * (long + short) * (1 + 3 * h / (10 + np.sqrt(4 - 3 * h)))


@pytest.mark.parametrize("step", [1.0, 0.25])
@pytest.mark.parametrize(("long", "short", "angle"), [(60, 60, 0), (90, 45, 0), (90, 45, 30), (100, 30, 75)])
def test_ellipses(long, short, angle, step):
    found = outline_features(ellipse(long, short, angle), (step, step))
    assert found["area"] == pytest.approx(np.pi * long * short * step**2, rel=0.005)
    assert found["eccentricity"] == pytest.approx(np.sqrt(1 - (short / long) ** 2), abs=0.01)
    assert found["aspect_ratio"] == pytest.approx(long / short, rel=0.01)
    assert 0.97 < found["solidity"] <= 1
    # regionprops measures the perimeter of slanted outlines up to 5 % too long
    assert found["perimeter"] == pytest.approx(perimeter(long, short) * step, rel=0.06)
    assert found["circularity"] == pytest.approx(4 * np.pi * found["area"] / found["perimeter"] ** 2)
    turn = np.deg2rad(angle)
    sides = [2 * np.hypot(long * f(turn), short * g(turn)) for f, g in ((np.cos, np.sin), (np.sin, np.cos))]
    assert found["extent"] == pytest.approx(np.pi * long * short / np.prod(sides), rel=0.03)


def test_rectangles():
    mask = np.zeros((60, 80), bool)
    mask[10:30, 5:65] = True
    found = outline_features(mask, (0.5, 0.5))
    assert found["area"] == 20 * 60 / 4 and found["solidity"] == pytest.approx(1) and found["extent"] == 1
    assert found["perimeter"] == pytest.approx((19 + 59) * 2 * 0.5)  # between the centres of the corners' pixels
    short, long = ((n**2 - 1) / 12 for n in (20, 60))  # variances of the pixels' centres
    assert found["aspect_ratio"] == pytest.approx(np.sqrt(long / short))
    assert found["eccentricity"] == pytest.approx(np.sqrt(1 - short / long))


def test_half_of_a_disc_is_less_solid_with_a_bite():
    whole = ellipse(60, 60)
    bitten = whole.copy()
    bitten[:120, 110:131] = False
    found, before = outline_features(bitten, (1, 1)), outline_features(whole, (1, 1))
    assert found["solidity"] < 0.9 < before["solidity"] and found["circularity"] < 0.6 < before["circularity"]


def test_pixels_that_are_not_square():
    step = (1.0, 0.5)
    found = outline_features(ellipse(80, 40, 30, step=step), step)
    alike = outline_features(ellipse(80, 40, 30, size=401, step=(0.5, 0.5)), (0.5, 0.5))
    for name, value in alike.items():
        steps = {"perimeter": 0.08, "circularity": 0.15}  # of the longer pixels
        assert found[name] == pytest.approx(value, rel=steps.get(name, 0.01)), name


def test_what_does_not_exist_is_nan():
    mask = np.zeros((5, 5), bool)
    mask[2, 2] = True
    found = outline_features(mask, (1, 1))
    assert np.isnan([found["circularity"], found["aspect_ratio"]]).all() and found["area"] == 1


def test_the_largest_slice_of_a_volume_counts():
    volume = np.zeros((241, 241, 4), bool)
    volume[..., 1], volume[..., 2] = ellipse(40, 20), ellipse(80, 20)
    affine = np.diag([0.5, 0.5, 4, 1])
    found = shape_features(volume, affine)
    assert tuple(found) == SHAPE and found["shape_aspect_ratio"] == pytest.approx(4, rel=0.01)
    other = shape_features(np.moveaxis(volume, 2, 0), np.diag([4, 0.5, 0.5, 1]))
    assert other == pytest.approx(found)
