"""The stage that scores masks of biomarkers: each image against what was planted in its own slice and modality."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from shared.explain import ExplainStage

SLICES, SIZE = (2, 4, 5), 16


@pytest.fixture
def case(tmp_path):
    """Two patterns, 1 and 2, each in another place of each of three slices."""
    volume = np.zeros((SIZE, SIZE, 8), np.uint8)
    for place, index in enumerate(SLICES):
        volume[1 : 4 + place, 2:5, index] = 1
        volume[9:13, 8 : 10 + place, index] = 2
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "planted.nii.gz")
    geometry = {"axis": 2, "slices": list(SLICES), "window": (0, SIZE, 0, SIZE), "num_modalities": 2}
    images = torch.zeros(6, SIZE, SIZE)
    return {"planted": tmp_path / "planted.nii.gz", "geometry": geometry, "image": images}, volume


def scores(case, masks, visible, folder):
    modalities = [name for name in ("T1", "T2") for _ in SLICES]
    images = [{"modality": name, "slice": i} for name, i in zip(modalities, SLICES * 2, strict=True)]
    result = {"patient": "P1", "images": images, "places": None}
    result["masks"] = SimpleNamespace(mask=torch.as_tensor(masks).float())
    stage = ExplainStage(None, [], checkpoint=folder / "model.pt", output_dir=folder, planted_visible=visible)
    return [row for row in stage._localise(case, result, 0) if row["map"] == "mask"]


def test_each_image_is_scored_against_its_own_slice_and_what_its_modality_shows(case, tmp_path):
    case, volume = case
    masks = np.stack([volume[..., i] == code for code in (1, 2) for i in SLICES])[:, None]
    rows = scores(case, masks, {"T1": [1], "T2": [2]}, tmp_path)
    assert [(row["modality"], row["slice"]) for row in rows] == [(m, i) for m in ("T1", "T2") for i in SLICES]
    for row in rows:
        assert row["pointing"] == row["energy_inside"] == row["iou"] == 1


def test_the_share_that_lies_inside_is_that_of_the_slice(case, tmp_path):
    case, volume = case
    even = np.ones((6, 1, SIZE, SIZE))
    rows = scores(case, even, {"T1": [1, 2], "T2": [2]}, tmp_path)
    shares = [(volume[..., i] > 0).mean() for i in SLICES] + [(volume[..., i] == 2).mean() for i in SLICES]
    assert [row["energy_inside"] for row in rows] == pytest.approx(shares)
    assert [row["energy_ratio"] for row in rows] == pytest.approx([1.0] * 6)


def test_an_image_that_shows_nothing_planted_is_not_scored(case, tmp_path):
    case, _ = case
    assert [row["modality"] for row in scores(case, np.ones((6, 1, SIZE, SIZE)), {"T2": [1]}, tmp_path)] == ["T2"] * 3
