"""Which values of a mask are tumour: what is understood, and what is refused with the volumes of its labels."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter

from shared.data.masks import millilitres, read_mask, share_of_body, size_flags, tumour_of
from shared.errors import DataError
from shared.transforms import LoadCased
from tests.support.tiny import affine_of, ball, save, write_case

TUMOUR = ball(radius=5.0)
LIVER = ball(radius=9.0) & ~TUMOUR
AFFINE = affine_of()  # voxels of 3 mm3
ML = TUMOUR.sum() * 3 / 1e3


def distance(steps=(1, 1, 1)):
    return distance_transform_edt(TUMOUR, steps) - distance_transform_edt(~TUMOUR, steps)


UNDERSTOOD = {
    "0 and 1": TUMOUR,
    "0 and 255": TUMOUR * 255,
    "0 and 0.9999": TUMOUR * np.float32(0.9999),
    "-1 outside": np.where(TUMOUR, 1, -1),
    "signed distance in voxels": distance(),
    "signed distance in mm": distance((1, 1, 3)),
}


@pytest.mark.parametrize("how", UNDERSTOOD)
def test_what_is_understood_without_labels(tmp_path, how):
    values = np.asarray(UNDERSTOOD[how], np.float32)
    case = write_case(tmp_path)
    save(case["mask"], values)
    np.testing.assert_array_equal(tumour_of(values, AFFINE), TUMOUR)
    np.testing.assert_array_equal(read_mask(case["mask"], joined=False).array, TUMOUR)
    np.testing.assert_array_equal(LoadCased()(case)["mask"][0], TUMOUR)


def test_of_several_labels_the_named_ones_are_tumour(tmp_path):
    case = write_case(tmp_path)
    save(case["mask"], np.where(TUMOUR, 2, LIVER * 1).astype(np.uint8))
    told = (
        rf"P1: .*P1_mask.nii.gz: has 3 values: 0 \(.* ml\), 1 \({LIVER.sum() * 3e-3:.1f} ml\), 2 \({ML:.1f} ml\); name "
        "those that are tumour with --mask-labels, as --mask-labels 2"
    )
    with pytest.raises(DataError, match=told):
        LoadCased()(case)
    np.testing.assert_array_equal(LoadCased()(case | {"tumour_labels": [2]})["mask"][0], TUMOUR)
    np.testing.assert_array_equal(LoadCased()(case | {"tumour_labels": [1, 2]})["mask"][0], TUMOUR | LIVER)
    with pytest.raises(DataError, match=r"none of the labels 4 in it\); it holds 0 \(.*\), 1 \(.*\), 2 \("):
        LoadCased()(case | {"tumour_labels": [4]})
    # a slope that does not divide evenly leaves whole numbers all but whole
    thirds = (np.where(TUMOUR, 2, LIVER * 1) * 3).astype(np.float32) * np.float32(1 / 3)
    np.testing.assert_array_equal(tumour_of(thirds, AFFINE, [2]), TUMOUR)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.clip(gaussian_filter(TUMOUR.astype(float), 2), 1e-6, 1), "is no mask: .* threshold of your choice"),
        (gaussian_filter(TUMOUR.astype(float), 1), "is no mask"),
        (np.where(TUMOUR, 1, LIVER * 0.5), "is no mask"),
        (np.random.default_rng(0).normal(0, 1, TUMOUR.shape) + TUMOUR, "is no mask"),
        (np.where(TUMOUR, 2, 1), r"no voxel of it is background: it holds 1 \(.* ml\), 2 \("),
        (np.ones(TUMOUR.shape), "no voxel of it is background"),
        (~TUMOUR, "is inverted, or no tumour's: it marks the edges of the image's box"),
        (np.where(TUMOUR, np.nan, 0), "holds .* NaN or Inf voxels"),
        (np.zeros(TUMOUR.shape), r"the mask is empty \(no voxel in it\)"),
        (-1.0 * TUMOUR, r"the mask is empty \(no voxel in it\)"),
    ],
)
def test_what_is_no_mask_is_refused(values, message):
    with pytest.raises(DataError, match=message):
        tumour_of(np.asarray(values, np.float32), AFFINE)


def test_a_label_of_what_lies_outside_is_seen_as_such():
    with pytest.raises(DataError, match="is inverted"):
        tumour_of(np.where(TUMOUR, 2, 1), AFFINE, [1])


def test_volumes_and_their_share_of_the_body(tmp_path):
    assert millilitres(TUMOUR, AFFINE) == pytest.approx(ML)
    body = ball(radius=9.0)
    path = save(tmp_path / "i.nii.gz", np.where(body, 900, -1000).astype(np.int16))
    assert share_of_body(ML, path) == pytest.approx(TUMOUR.sum() / body.sum())
    volumes = {f"P{n}": 20.0 + n for n in range(5)}
    assert size_flags(volumes) == [] and size_flags({"A": 1.0, "B": 100.0}) == []
    assert size_flags(volumes | {"P9": 838.0}) == [
        "P9: the mask has 838.0 ml, 37 times the median of 22.5 ml; is it an organ?"
    ]
