import json

import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from skimage.io import imread, imsave
from torch.utils.data import DataLoader

from shared.errors import DataError
from shared.explain import PatchCases
from shared.handlers import SaveGradCAM
from tests.support.planted_patches import CLASSES, ColourNetwork, write_planted


def save_all(cases, folder, **settings):
    network = ColourNetwork()
    given = {"explanation": "grad_cam", "class_names": CLASSES, **settings}
    handler = SaveGradCAM(network, cases, folder, **given)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader([{"image": torch.zeros(3, 8, 8), "label": 0}]),
        network=network,
        val_handlers=[handler],
    )
    evaluator.run()
    return json.loads((folder / "boxes.json").read_text())


def test_files_of_every_patch_at_the_sources_size(tmp_path):
    entries, images = write_planted(tmp_path / "data", 6, side=64)
    content = save_all(PatchCases(entries, images, size=32), tmp_path / "out", dataset_dir=tmp_path / "data")
    assert content["threshold"] == 0.5 and content["target_layer"] == "encoder.layer4"
    assert [patch["image"] for patch in content["patches"]] == [entry["image"] for entry in entries]
    names = {f"{CLASSES[i % 2]}-image-p{i // 2}.png" for i in range(6)}
    for folder in ("cam", "overlays"):
        assert {path.name for path in (tmp_path / "out" / folder).iterdir()} == names
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cam", "overlays", "boxes.json"}
    for patch, entry in zip(content["patches"], entries, strict=True):
        assert patch["class"] == patch["label"] == CLASSES[entry["label"]] and patch["probability"] > 0.5
        cam = imread(tmp_path / "out" / patch["cam"])
        assert cam.shape == (64, 64) and cam.dtype == np.uint8 and (cam.min(), cam.max()) == (0, 255)
        # hot where the disc is, and the box around it in the source's pixels
        mask = imread(entry["mask"]) > 0
        assert mask[np.unravel_index(cam.argmax(), cam.shape)] and cam[mask].mean() > 4 * cam[~mask].mean()
        box = patch["box"]
        rows, columns = np.nonzero(mask)
        truth = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert [box[key] for key in ("x0", "y0", "x1", "y1")] == pytest.approx(truth, abs=6)
        assert box["class"] == patch["class"] and box["probability"] == patch["probability"] and 0.5 < box["score"] <= 1
        overlay = imread(tmp_path / "out" / patch["overlay"])
        assert overlay.ndim == 3 and overlay.shape[1] > 2 * overlay.shape[0]


def test_a_signed_map_is_read_back_and_its_box_is_about_what_speaks_for_the_class(tmp_path):
    entries, images = write_planted(tmp_path / "data", 2)
    red = torch.tensor([230, 20, 128]).byte()
    images[0, :, 26:] = red[:, None, None]  # the green patch has a border that speaks against, and more strongly
    imsave(entries[0]["image"], images[0].permute(1, 2, 0).numpy(), check_contrast=False)
    content = save_all(PatchCases(entries, images), tmp_path / "out", explanation="additive", class_idx=0)
    assert content["explanation"] == "additive" and content["target_layer"] is None
    patch = content["patches"][0]
    cam = imread(tmp_path / "out" / patch["cam"]).astype(int)
    assert cam.min() == 1 and 128 < cam.max() < 255 and (cam[28:] < 64).all()
    assert patch["box"]["y1"] <= 26 and patch["for"] > 0 > patch["against"]
    assert patch["for"] + patch["against"] + patch["bias"] == pytest.approx(patch["margin"], abs=1e-5)
    right = imread(tmp_path / "out" / patch["overlay"]).astype(int)[:, -224:]
    blue = right[..., 2] - right[..., 0] > 60
    assert blue[200:].mean() > 0.9 and blue[:160].mean() < 0.05


def test_a_map_of_zeros_has_no_box(tmp_path):
    imsave(tmp_path / "grey.png", np.full((32, 32, 3), 90, np.uint8), check_contrast=False)
    cases = [{"image": torch.full((3, 32, 32), 90, dtype=torch.uint8), "path": tmp_path / "grey.png"}]
    (patch,) = save_all(cases, tmp_path / "out")["patches"]
    assert patch["box"] is None and patch["label"] is None and patch["class"] == "green"
    assert imread(tmp_path / "out" / patch["cam"]).max() == 0 and patch["cam"] == "cam/grey.png"


def test_boxes_are_written_whole_or_not_at_all(tmp_path):
    entries, images = write_planted(tmp_path / "data", 2)
    cases = [dict(case) for case in PatchCases(entries, images)]
    cases[1]["path"] = str(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        SaveGradCAM(ColourNetwork(), cases, tmp_path / "out", class_names=CLASSES)(None)
    assert not (tmp_path / "out" / "boxes.json").exists()
