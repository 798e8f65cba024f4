"""Both libraries put a head back where it was; without them the message says what to install."""

import importlib.util
import sys

import numpy as np
import pytest

from shared.apps.preparation.registration import INSTALL, choose_registration, dice, lifted_n4
from shared.data.volumes import Volume, resample
from shared.errors import DataError
from tests.support.tiny_heads import SHAPE, brain, native_affine, stripped, tumour

HAVE = {"ants": importlib.util.find_spec("ants"), "SimpleITK": importlib.util.find_spec("SimpleITK")}
LIBRARIES = [
    pytest.param(method, marks=pytest.mark.skipif(not HAVE[package], reason=f"needs {package}: {INSTALL}"))
    for method, package in (("syn", "ants"), ("ants-affine", "ants"), ("sitk-affine", "SimpleITK"))
]
LIBRARY = [LIBRARIES[1], LIBRARIES[2]]


def lumpy(affine=None):
    """A brain whose front, side and height look different, as a registration needs them."""
    image = stripped(0, affine)
    rng = np.random.default_rng(4)
    from scipy.ndimage import gaussian_filter

    image = image + (image > 0) * 2000 * gaussian_filter(rng.standard_normal(SHAPE), 2.5)
    return Volume(np.maximum(image, 0).astype(np.float32), native_affine() if affine is None else affine)


def shifted(volume, millimetres):
    """The same voxels, said to lie elsewhere."""
    affine = volume.affine.copy()
    affine[:3, 3] += millimetres
    return Volume(volume.array, affine)


@pytest.mark.parametrize("method", LIBRARY)
def test_a_shifted_head_is_put_back(method):
    tools, fixed = choose_registration(method), lumpy()
    moving = shifted(fixed, (9.0, -6.0, 5.0))
    back = tools.apply([tools.rigid(fixed, moving)], moving, fixed)
    inside = brain()
    before = resample(moving, SHAPE, fixed.affine).array
    assert np.corrcoef(before[inside], fixed.array[inside])[0, 1] < 0.7
    assert np.corrcoef(back.array[inside], fixed.array[inside])[0, 1] > 0.97
    assert back.array.shape == SHAPE and np.array_equal(back.affine, fixed.affine)


@pytest.mark.parametrize("method", LIBRARIES)
def test_a_larger_head_is_fitted_and_the_lesion_moves_with_it(method):
    tools, fixed = choose_registration(method), lumpy()
    affine = np.diag([1.12, 1.12, 1.12, 1.0]) @ fixed.affine
    moving = Volume(fixed.array, affine)
    warp = tools.to_template(fixed, moving, brain() & ~tumour())
    mask = tools.apply([warp], Volume(tumour().astype(np.float32), affine), fixed, nearest=True)
    assert set(np.unique(mask.array)) == {0, 1} and dice(mask.array, tumour()) > 0.85
    back = tools.apply([warp], Volume(tumour().astype(np.float32), fixed.affine), moving, nearest=True, inverse=True)
    assert dice(back.array, tumour()) > 0.85
    found = tools.apply([warp], Volume(brain().astype(np.float32), affine), fixed, nearest=True)
    assert dice(found.array, brain()) > 0.97
    assert ("affine" in tools.method) == ("affine" in method)


@pytest.mark.parametrize("method", LIBRARY)
def test_of_two_warps_the_first_made_is_the_first_applied(method):
    tools, fixed = choose_registration(method), lumpy()
    middle = shifted(fixed, (12.0, 0.0, 0.0))
    far = shifted(fixed, (12.0, 10.0, 0.0))
    one, two = tools.rigid(middle, far), tools.rigid(fixed, middle)
    back = tools.apply([one, two], far, fixed)
    assert np.corrcoef(back.array[brain()], fixed.array[brain()])[0, 1] > 0.95
    again = tools.apply([one, two], fixed, far, inverse=True)
    assert np.corrcoef(again.array[brain()], far.array[brain()])[0, 1] > 0.95


@pytest.mark.parametrize("method", LIBRARY)
def test_n4_takes_a_bias_field_away(method):
    tools, flat = choose_registration(method), np.where(brain(), 400.0, 0)
    field = np.linspace(0.7, 1.3, SHAPE[0])[:, None, None]
    noise = np.random.default_rng(0).normal(0, 4, SHAPE)
    given = Volume(np.where(brain(), flat * field + noise, 0).astype(np.float32), native_affine())
    done = tools.n4(given, brain()).array[brain()]
    assert done.std() / done.mean() < 0.5 * given.array[brain()].std() / given.array[brain()].mean()


@pytest.mark.parametrize("method", LIBRARY)
@pytest.mark.parametrize("outlier", [0.0, -40.0])
def test_n4_takes_a_bias_field_from_standardised_images_away(method, outlier):
    from scipy.ndimage import gaussian_filter

    tools, inside, rng = choose_registration(method), brain(), np.random.default_rng(0)
    tissues = np.where(gaussian_filter(rng.standard_normal(SHAPE), 2) > 0, 500, 300) + rng.normal(0, 8, SHAPE)
    image = tissues * np.exp(np.linspace(-0.4, 0.4, SHAPE[0]))[:, None, None]
    z = np.where(inside, (image - image[inside].mean()) / image[inside].std(), 0).astype(np.float32)
    if outlier:
        z[tuple(np.argwhere(inside)[0])] = outlier

    def tilt(array):
        """How much brighter the right half of the brain is, in standard deviations."""
        halves = [array[part][inside[part]].mean() for part in (np.s_[: SHAPE[0] // 2], np.s_[SHAPE[0] // 2 :])]
        return (halves[1] - halves[0]) / array[inside].std()

    done = tools.n4(Volume(z, native_affine()), inside).array
    assert abs(tilt(done) - tilt(tissues)) < 0.3 * (tilt(z) - tilt(tissues))
    assert not done[~inside].any() and done.dtype == np.float32
    assert done[inside].min() < 0  # it is lowered again


def test_what_is_lifted_for_n4_is_lowered_again_by_as_much():
    array = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    volume, inside = Volume(array, native_affine()), brain()
    seen = []
    left = lifted_n4(lambda self, volume, mask: seen.append(volume) or volume)(None, volume, inside).array
    np.testing.assert_allclose(left, array, atol=1e-5)  # of a field of 1
    assert seen[0].array[inside].min() > 0
    lift = np.median((seen[0].array - array)[inside])
    halved = lifted_n4(lambda self, volume, mask: Volume(volume.array / 2, volume.affine))(None, volume, inside).array
    np.testing.assert_allclose(halved[inside], (array[inside] + lift) / 2 - lift, atol=1e-4)


def test_an_image_without_negative_values_goes_through_as_it_is():
    seen = []
    volume = Volume(stripped(), native_affine())
    assert lifted_n4(lambda self, volume, mask: seen.append(volume) or volume)(None, volume, brain()) is volume
    assert seen == [volume]


@pytest.mark.parametrize("method", LIBRARY)
def test_the_same_seed_gives_the_same_warp(method):
    fixed = lumpy()
    moving = shifted(fixed, (4.0, 3.0, 0.0))
    first, second = (
        (tools := choose_registration(method, seed=3)).apply([tools.rigid(fixed, moving)], moving, fixed).array
        for _ in range(2)
    )
    # threads add in any order: 0.012 of the largest value was seen on a busy machine
    assert np.abs(first - second).max() < 3e-2 * first.max()


@pytest.mark.parametrize("method", LIBRARY)
def test_the_default_seed_does_not_draw_by_the_clock(method):
    assert 0 < choose_registration(method)._seed != choose_registration(method, seed=1)._seed > 0


def test_an_unknown_method_is_refused():
    with pytest.raises(DataError, match="registration must be one of auto, syn, ants-affine, sitk-affine, got 'fast'"):
        choose_registration("fast")


def test_without_either_library_the_message_names_both(monkeypatch):
    for package in ("ants", "SimpleITK"):
        monkeypatch.setitem(sys.modules, package, None)
    message = r"pip install antspyx .* or pip install SimpleITK .*--already-mni --no-n4"
    for method in ("syn", "sitk-affine"):
        with pytest.raises(DataError, match=message):
            choose_registration(method)


@pytest.mark.skipif(not HAVE["SimpleITK"], reason="needs SimpleITK: pip install SimpleITK")
def test_without_antspyx_simpleitk_stands_in_and_says_so(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ants" else real(name, *more))
    tools = choose_registration("auto")
    assert tools.method == "SimpleITK affine" and "affine only" in tools.note


@pytest.mark.skipif(not HAVE["SimpleITK"], reason="needs SimpleITK: pip install SimpleITK")
def test_a_sheared_affine_is_refused():
    affine = native_affine()
    affine[0, 1] = 1.0
    tools = choose_registration("sitk-affine")
    with pytest.raises(DataError, match="not at right angles"):
        tools.n4(Volume(stripped(), affine), brain())


def turn_and_shift(method, tools, folder):
    """A quarter turn about the vertical axis and a shift: unlike two shifts, their order matters."""
    turn, shift = [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [16.0, 0.0, 0.0]
    if method == "sitk-affine":
        one, two = tools.sitk.AffineTransform(3), tools.sitk.TranslationTransform(3, shift)
        one.SetMatrix(np.ravel(turn).tolist())
        return one, two
    files = []
    for name, matrix, offset in (("one", turn, [0.0] * 3), ("two", np.eye(3).tolist(), shift)):
        made = tools.ants.new_ants_transform(transform_type="AffineTransform", dimension=3, precision="float")
        made.set_parameters([*np.ravel(matrix).tolist(), *offset])
        files.append([str(folder / f"{name}.mat")])
        tools.ants.write_transform(made, files[-1][0])
    return files


@pytest.mark.parametrize("method", LIBRARY)
def test_a_turn_and_a_shift_are_applied_in_the_order_they_were_made(method, tmp_path):
    tools, fixed = choose_registration(method), lumpy()
    one, two = turn_and_shift(method, tools, tmp_path)
    step_by_step = tools.apply([two], tools.apply([one], fixed, fixed), fixed).array
    together = tools.apply([one, two], fixed, fixed).array
    other_way = tools.apply([one], tools.apply([two], fixed, fixed), fixed).array
    assert np.corrcoef(together.ravel(), step_by_step.ravel())[0, 1] > 0.98
    assert np.corrcoef(together.ravel(), other_way.ravel())[0, 1] < 0.9
