"""Phantom gliomas: signs agree with the genotype as often as asked, show where the map says, and size says nothing."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, label
from sklearn.metrics import roc_auc_score

from shared.apps.phantoms.brain_anatomy import ellipsoid_anatomy, phantom_tracts
from shared.apps.phantoms.brains import (
    PLANTED,
    SIGNS,
    bayes_auc,
    draw_patients,
    paint_patient,
    tumour_shape,
)

STRENGTHS = {"shape": 0.9, "intensity": 0.8, "tracts": 0.7}


@pytest.fixture(scope="module")
def anatomy():
    return ellipsoid_anatomy()


@pytest.fixture(scope="module")
def atlas(anatomy):
    return phantom_tracts(anatomy, regions=20, streamlines=6)


def paint(anatomy, atlas, seed=3, **signs):
    row = {
        "diameter_mm": 32.0,
        "enhancing": 0,
        "calcified": 1,
        "calcified_instead": 0,
        **dict.fromkeys(SIGNS, 1),
        **signs,
    }
    return paint_patient(row, anatomy, atlas, np.random.default_rng(seed), tracts=3)


def test_signs_agree_with_the_label_as_often_as_asked_and_independently():
    rows = draw_patients(2000, STRENGTHS, 0.8, np.random.default_rng(0))
    table = np.array([[row[key] for key in ("label", *SIGNS, "diameter_mm", "age", "grade")] for row in rows])
    mutant = table[:, 0] == 1
    assert mutant.sum() == 1000
    for column, sign in enumerate(SIGNS, 1):
        agree = table[:, column] == table[:, 0]
        assert agree[mutant].mean() == pytest.approx(STRENGTHS[sign], abs=1e-3)
        assert agree[~mutant].mean() == pytest.approx(STRENGTHS[sign], abs=1e-3)
    # given the genotype they say nothing of each other, and size nothing of the genotype
    for group in (mutant, ~mutant):
        between = np.corrcoef(table[group, 1:4].T)[np.triu_indices(3, 1)]
        assert np.abs(between).max() < 0.08
    assert abs(np.corrcoef(mutant, table[:, 4])[0, 1]) < 0.01
    enhancing = np.array([row["enhancing"] for row in rows])
    assert enhancing[mutant].mean() == enhancing[~mutant].mean() == 0.5
    mismatch, calcified, instead = (
        np.array([row[key] for row in rows]) for key in ("intensity", "calcified", "calcified_instead")
    )
    assert calcified[mutant].mean() == calcified[~mutant].mean() == 0.5
    # neither what is dark on FLAIR nor what is dark on T2 tells the mismatch by itself
    assert roc_auc_score(mismatch, mismatch + calcified + instead) == pytest.approx(0.6875, abs=0.03)
    assert roc_auc_score(mismatch, -calcified - instead) == pytest.approx(0.6875, abs=0.03)
    assert not instead[mismatch == 1].any() and 0.3 < instead[mismatch == 0].mean() < 0.7
    # Cohen's d of age, mutants the younger
    ages = table[:, 5]
    assert (ages[~mutant].mean() - ages[mutant].mean()) / ages[mutant].std() == pytest.approx(0.8, abs=0.1)
    assert set(table[:, 6]) == {2, 3, 4}


def test_without_an_effect_covariates_say_nothing_and_a_half_takes_a_sign_away():
    rows = draw_patients(1000, {**STRENGTHS, "tracts": 0.5}, 0.0, np.random.default_rng(1))
    labels = np.array([row["label"] for row in rows])
    for key in ("age", "grade", "tracts"):
        assert abs(np.corrcoef(labels, [row[key] for row in rows])[0, 1]) < 0.02


def test_the_best_readers_auc_equals_that_of_drawn_patients():
    from sklearn.metrics import roc_auc_score

    rows = draw_patients(6000, STRENGTHS, 0.8, np.random.default_rng(2))
    odds = {sign: np.log(p / (1 - p)) for sign, p in STRENGTHS.items()}
    scores = [sum(odds[sign] * row[sign] for sign in SIGNS) for row in rows]
    assert roc_auc_score([row["label"] for row in rows], scores) == pytest.approx(bayes_auc(STRENGTHS), abs=8e-3)
    assert bayes_auc({"shape": 0.5}) == 0.5 and bayes_auc({"shape": 1.0}) == 1.0


@pytest.mark.parametrize("irregular", [False, True])
def test_a_tumour_is_one_piece_of_the_size_asked_for_inside_the_brain(anatomy, irregular):
    for seed in range(3):
        depth, mask, spicules = tumour_shape(anatomy, 30.0, irregular, np.random.default_rng(seed))
        assert mask.sum() * 8 == pytest.approx(np.pi / 6 * 30**3, rel=0.01)
        assert label(mask)[1] == 1 and not (mask & ~anatomy.brain).any() and np.array_equal(mask, depth > 0)
        assert spicules.any() == irregular and not (spicules & ~mask).any()


def test_an_irregular_tumour_fills_less_of_its_convex_hull(anatomy):
    from skimage.measure import regionprops

    def solidity(irregular, seed):
        mask = tumour_shape(anatomy, 36.0, irregular, np.random.default_rng(seed))[1]
        return regionprops(mask.astype(np.uint8))[0].solidity

    rough, smooth = ([solidity(irregular, seed) for seed in range(4)] for irregular in (True, False))
    assert max(rough) < 0.95 * min(smooth), (rough, smooth)


def test_spicules_are_not_just_what_is_far_from_the_middle(anatomy):
    """Distance to the middle must not be as good as an explanation."""
    found = []
    for seed in range(12):
        _, mask, spicules = tumour_shape(anatomy, 32.0, True, np.random.default_rng(seed))
        surface = np.argwhere(mask & ~binary_erosion(mask))
        away = np.linalg.norm(surface - np.argwhere(mask).mean(0), axis=1)
        found.append(roc_auc_score(spicules[tuple(surface.T)], away))
    assert np.mean(found) < 0.9 and min(found) < 0.75


def test_each_sign_shows_where_it_is_planted_and_nowhere_else(anatomy, atlas):
    always = {0, PLANTED["calcification"]}
    smooth = paint(anatomy, atlas)
    assert set(np.unique(smooth["planted"])) == {*always, PLANTED["mismatch"]} and smooth["tracts"] == []
    rough = paint(anatomy, atlas, shape=0, intensity=0, tracts=0, enhancing=1)
    codes = set(PLANTED.values()) - {PLANTED["mismatch"], PLANTED["calcification_instead"]}
    assert set(np.unique(rough["planted"])) == {*always, *codes} and len(rough["tracts"]) == 3

    images, planted, mask = smooth["images"], smooth["planted"], smooth["mask"] > 0
    mismatch, calcified = (planted == PLANTED[name] for name in ("mismatch", "calcification"))
    rest = mask & ~binary_dilation(mismatch | calcified, iterations=2)
    # the decoy is as dark on FLAIR and as large: only T2 tells them apart
    for part in (mismatch, calcified):
        assert images["FLAIR"][part].mean() < 0.7 * images["FLAIR"][rest].mean()
        off = 2 * (np.argwhere(part).mean(0) - np.argwhere(mask).mean(0))
        assert np.linalg.norm(off) > 0.5 * 16
    assert images["FLAIR"][mismatch].mean() == pytest.approx(images["FLAIR"][calcified].mean(), rel=0.1)
    assert mismatch.sum() == pytest.approx(calcified.sum(), rel=0.3)
    assert images["T2"][mismatch].mean() == pytest.approx(images["T2"][rest].mean(), rel=0.15)
    assert images["T2"][calcified].mean() < 0.7 * images["T2"][rest].mean()
    # without a mismatch there may be a calcification in its place, and none at all
    instead = paint(anatomy, atlas, intensity=0, calcified=0, calcified_instead=1)["planted"]
    assert set(np.unique(instead)) == {0, PLANTED["calcification_instead"]}
    assert ((instead == PLANTED["calcification_instead"]) & mismatch).sum() > 0.9 * mismatch.sum()
    assert set(np.unique(paint(anatomy, atlas, intensity=0, calcified=0)["planted"])) == {0}
    images, mask = rough["images"], rough["mask"] > 0
    rim, spread = (rough["planted"] == PLANTED[name] for name in ("enhancing_rim", "infiltrated_tracts"))
    assert images["T1c"][rim].mean() > 1.2 * images["T1c"][anatomy.brain].mean()
    assert images["T1"][rim].mean() < images["T1"][anatomy.brain].mean()
    # beyond the mask, along the tracts that were chosen
    reach = np.zeros(mask.shape, bool)
    for edge in rough["tracts"]:
        reach.ravel()[atlas.tract(edge)[0]] = True
    # nothing of it in the box that cuts out the tumour's image
    assert not spread[tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero(mask))].any()
    assert not (spread & mask).any() and (spread & binary_dilation(reach)).sum() > 0.99 * spread.sum()


def test_infiltration_is_bright_on_flair_and_takes_fa_away(anatomy, atlas):
    with_spread, without = (paint(anatomy, atlas, tracts=sign) for sign in (0, 1))
    # the same draws up to here: the same tumour
    assert np.array_equal(with_spread["mask"], without["mask"])
    spread = with_spread["planted"] == PLANTED["infiltrated_tracts"]
    spread &= anatomy.white > 0.9
    assert spread.sum() > 50
    elsewhere = anatomy.brain & ~spread & ~(with_spread["mask"] > 0)
    for name in ("FLAIR", "T2"):
        bright, plain = (
            painted["images"][name][spread].mean() / painted["images"][name][elsewhere].mean()  # scanners differ
            for painted in (with_spread, without)
        )
        assert bright > 1.15 * plain
    assert with_spread["fa"][spread].mean() < 0.85 * without["fa"][spread].mean()


def test_volumes_are_small_whole_numbers_and_zero_outside_the_brain(anatomy, atlas):
    painted = paint(anatomy, atlas)
    for array in (*painted["images"].values(), painted["fa"]):
        assert array.dtype == np.uint8 and not array[~anatomy.brain].any()
    assert all((array[anatomy.brain] > 0).all() for array in painted["images"].values())
    centre = np.argwhere(painted["mask"]).mean(0) * 2 + (-90, -126, -72)
    assert np.allclose(painted["centre_mm"], centre, atol=0.06)


def test_phantom_tracts_mirror_their_regions(anatomy, atlas):
    assert atlas.num_regions == 20 and atlas.num_tracts >= 40 and len(np.unique(atlas.pairs)) == 20
    labels = np.asarray(atlas.regions)
    sizes = np.bincount(labels.ravel())[1:]
    assert sizes.min() > 0.2 * sizes.max() and not labels[~anatomy.brain].any()
    left = (labels > 0) & (labels % 2 == 1)
    assert (np.argwhere(left)[:, 0] <= 46).mean() > 0.98


def test_size_and_place_tell_the_genotype_as_much_as_asked_and_nothing_else_changes():
    plain = draw_patients(2000, STRENGTHS, 0.8, np.random.default_rng(0))
    assert "anterior" not in plain[0]
    rows = draw_patients(2000, STRENGTHS, 0.8, np.random.default_rng(0), volume_effect=1.0)
    others = [key for key in plain[0] if key != "diameter_mm"]
    assert [[row[key] for key in others] for row in rows] == [[row[key] for key in others] for row in plain]
    rows = draw_patients(2000, STRENGTHS, 0.8, np.random.default_rng(0), volume_effect=1.0, location_effect=0.5)
    labels = [row["label"] for row in rows]
    # of two normal distributions that lie d standard deviations apart: Phi(d / sqrt 2)
    assert roc_auc_score(labels, [-row["diameter_mm"] for row in rows]) == pytest.approx(0.7602, abs=0.01)
    assert roc_auc_score(labels, [row["anterior"] for row in rows]) == pytest.approx(0.6382, abs=0.01)
    assert min(row["diameter_mm"] for row in rows) >= 24 and max(row["diameter_mm"] for row in rows) <= 42


def test_a_tumour_lies_as_far_in_front_as_asked(anatomy):
    def front(place):
        return np.argwhere(tumour_shape(anatomy, 26.0, False, np.random.default_rng(1), anterior=place)[1])[:, 1].mean()

    assert front(0.02) + 8 < front(0.5) < front(0.98) - 8


def test_signs_that_are_drawn_weaker_lie_where_they_lay(anatomy, atlas):
    row = {"diameter_mm": 32.0, "enhancing": 0, "calcified": 1, "calcified_instead": 0, "shape": 1}
    row |= {"intensity": 1, "tracts": 0}
    strong, weak, gone = (
        paint_patient(row, anatomy, atlas, np.random.default_rng(3), tracts=3, visible=v) for v in (1.0, 0.5, 1e-9)
    )
    assert np.array_equal(strong["planted"], weak["planted"]) and np.array_equal(strong["mask"], weak["mask"])
    flair = [each["images"]["FLAIR"].astype(float) for each in (strong, weak, gone)]
    for sign, sequence in (("mismatch", flair), ("infiltrated_tracts", flair)):
        inside = strong["planted"] == PLANTED[sign]
        values = [image[inside].mean() for image in sequence]
        change = np.array(values[:2]) - values[2]
        assert abs(change[0]) > 10 and change[1] / change[0] == pytest.approx(0.5, abs=0.1)
