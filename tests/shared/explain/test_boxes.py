import json

import numpy as np
import pytest
import torch
from skimage.measure import label, regionprops

from shared.errors import DataError
from shared.explain import Box, bounding_box, box_iou, box_mask_iou, box_record, box_scores, mask_box


def test_the_largest_component_not_the_hottest():
    cam = np.zeros((10, 12))
    cam[1:4, 2:7] = 0.6
    cam[8, 10] = 1.0
    assert bounding_box(cam) == (2, 1, 7, 4, pytest.approx(0.6))
    assert bounding_box(cam, threshold=0.7) == (10, 8, 11, 9, 1.0)
    # pixels are counted, not the map's mass
    cam[8, 1:11] = 1.0
    assert bounding_box(cam)[:4] == (2, 1, 7, 4) and cam[8].sum() > cam[1:4].sum()
    # half-open: the box cuts out exactly the component
    x0, y0, x1, y1, _ = bounding_box(cam)
    assert (cam[y0:y1, x0:x1] == 0.6).all() and (cam == 0.6).sum() == (x1 - x0) * (y1 - y0)


def test_the_threshold_is_a_share_of_the_maps_own_maximum_and_scale_does_not_matter():
    cam = np.random.default_rng(0).random((20, 20)) ** 3
    assert bounding_box(cam) == pytest.approx(bounding_box(0.01 * cam))
    assert bounding_box(torch.from_numpy(cam).requires_grad_()) == bounding_box(cam)
    assert bounding_box(np.full((3, 5), 0.2)) == (0, 0, 5, 3, 1.0)


def test_corners_connect_and_ties_go_to_the_hotter():
    assert bounding_box(np.eye(4)) == (0, 0, 4, 4, 1.0)
    cam = np.zeros((5, 9))
    cam[0, :2], cam[4, 6:8] = 0.7, 0.9
    assert bounding_box(cam)[:4] == (6, 4, 8, 5)


@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_images_components(seed):
    cam = np.random.default_rng(seed).random((30, 40))
    largest = max(regionprops(label(cam >= 0.8 * cam.max(), connectivity=2)), key=lambda part: part.num_pixels)
    y0, x0, y1, x1 = largest.bbox
    found = bounding_box(cam, threshold=0.8)
    assert found[:4] == (x0, y0, x1, y1)
    assert found.score == pytest.approx((cam[tuple(largest.coords.T)] / cam.max()).mean())


def test_nothing_has_no_box():
    assert bounding_box(np.zeros((4, 4))) is None and mask_box(np.zeros((4, 4))) is None
    assert box_iou(None, Box(0, 0, 1, 1)) == 0 and box_mask_iou(None, np.ones((2, 2))) == 0
    assert box_record(None, class_name="SSA", probability=0.5) is None


def test_overlap_against_counted_pixels():
    random = np.random.default_rng(0)
    for _ in range(20):
        masks = np.zeros((2, 15, 15), dtype=bool)
        boxes = []
        for mask in masks:
            (x0, x1), (y0, y1) = (sorted(random.choice(16, 2, replace=False).tolist()) for _ in range(2))
            mask[y0:y1, x0:x1] = True
            boxes.append(Box(x0, y0, x1, y1))
        expected = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
        assert box_iou(*boxes) == pytest.approx(expected) == box_iou(*boxes[::-1])
        assert box_mask_iou(boxes[0], masks[1]) == pytest.approx(expected)
        assert mask_box(7 * masks[0]) == boxes[0]


def test_scores_of_a_batch():
    maps, truth = np.zeros((3, 1, 8, 8)), np.zeros((3, 1, 8, 8))
    truth[:, 0, 2:6, 2:6] = np.eye(4)
    maps[0, 0, 2:6, 2:6] = 1
    maps[1, 0, 0, 0] = 1
    scores = box_scores(maps, truth)
    assert scores["box_iou"].tolist() == [1, 0, 0]
    assert scores["box_mask_iou"].tolist() == [4 / 16, 0, 0]


def test_the_record_is_json():
    record = box_record(bounding_box(np.eye(3, dtype=np.float32)), class_name="SSA", probability=torch.tensor(0.75))
    assert json.loads(json.dumps(record)) == {
        "x0": 0, "y0": 0, "x1": 3, "y1": 3, "score": 1.0, "class": "SSA", "probability": 0.75
    }  # fmt: skip


def test_errors_say_what_arrived():
    with pytest.raises(DataError, match=r"one finite map \[H, W\] that is not negative, got \(1, 4, 4\)"):
        bounding_box(np.ones((1, 4, 4)))
    with pytest.raises(DataError, match="not negative"):
        bounding_box(-np.ones((4, 4)))
    with pytest.raises(ValueError, match=r"threshold must lie in \(0, 1\], got 0"):
        bounding_box(np.ones((4, 4)), threshold=0)
