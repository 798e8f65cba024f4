import csv
import json

import numpy as np
import pytest
import torch
from skimage.io import imread

from shared.checkpoint import save_checkpoint
from shared.explain import PatchCases, PatchExplainStage
from tests.support.planted_patches import CLASSES, ColourNetwork, write_planted


def explain(cases, folder, **settings):
    given = {"class_names": CLASSES, "output_dir": folder, "bootstrap": 50, "gallery_size": 4}
    given |= {"explanation": "grad_cam", **settings}
    PatchExplainStage(ColourNetwork(), cases, **given).run()
    return folder


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explained")
    entries, images = write_planted(folder / "data", 12)
    del entries[3]["mask"], entries[5]["label"]
    return explain(PatchCases(entries, images), folder / "out", seed=1), entries


def test_a_row_a_patch(run):
    folder, entries = run
    rows = table(folder / "explanations.csv")
    assert [row["image"] for row in rows] == [entry["image"] for entry in entries]
    assert [row["label"] for row in rows] == [CLASSES[e["label"]] if "label" in e else "" for e in entries]
    for i, row in enumerate(rows):
        assert row["class"] == row["predicted"] == CLASSES[i % 2] and float(row["probability"]) > 0.5
        assert row["all_zero"] == "0" and 0 <= int(row["x0"]) < int(row["x1"]) <= 32
        assert row["patient"] == f"P{i // 2}"


def test_scores_with_intervals_beside_every_control(run):
    folder, entries = run
    rows, summary = table(folder / "localisation.csv"), json.loads((folder / "localisation.json").read_text())
    names = [
        "Grad-CAM", "centred box", "centred Gaussian", "random map", "coarse random map", "darkness", "coarse darkness",
        "edge density",
    ]  # fmt: skip
    assert list(summary["maps"]) == names and len(rows) == 11 * 8
    assert (summary["patches"], summary["scored_patches"], summary["patients"]) == (12, 11, 6)
    assert summary["all_zero_maps"] == 0 and entries[3]["image"] not in {row["image"] for row in rows}
    for name in names:
        values = [float(row["energy_ratio"]) for row in rows if row["map"] == name]
        found = summary["maps"][name]["energy_ratio"]
        assert found["value"] == pytest.approx(np.mean(values)) and found["low"] <= found["value"] <= found["high"]
    grad_cam = summary["maps"]["Grad-CAM"]
    assert grad_cam["pointing"]["value"] == 1 and grad_cam["energy_ratio"]["value"] > 4
    assert grad_cam["iou"]["value"] > 0.4 and grad_cam["box_iou"]["value"] > 0.4
    # the discs are as dark as the rest: only who sees colours finds them
    assert summary["maps"]["darkness"]["energy_ratio"]["value"] < 1.6
    for name in names[1:]:
        difference = summary["Grad-CAM minus control"][name]["energy_ratio"]
        gap = grad_cam["energy_ratio"]["value"] - summary["maps"][name]["energy_ratio"]["value"]
        assert difference["value"] == pytest.approx(gap) and difference["low"] > 0


def test_maps_change_with_the_weights(run):
    folder, _ = run
    content = json.loads((folder / "randomisation.json").read_text())
    stages = {stage["randomised_up_to"]: stage for stage in content["stages"]}
    assert list(stages) == ["original", "head", "encoder.layer4", "encoder.conv1"]
    assert content["images"] == content["compared"] == 12 and content["draws"] == 3
    assert stages["original"]["all_zero_share"] == 0
    assert stages["original"]["spearman"]["value"] == pytest.approx(1) == stages["original"]["ssim"]["value"]
    for name in list(stages)[1:]:
        assert stages[name]["spearman"]["value"] < 0.9 and stages[name]["ssim"]["value"] < 0.95


@pytest.mark.parametrize("name", ["gallery", "randomisation"])
def test_pictures_have_something_in_them(run, name):
    picture = imread(run[0] / f"{name}.png")
    assert picture.shape[0] > 300 and picture.shape[1] > 500 and (picture[..., :3] < 250).any(axis=-1).mean() > 0.05


def test_the_same_seed_writes_the_same_files(run, tmp_path):
    folder, entries = run
    images = torch.stack([torch.from_numpy(imread(entry["image"])).permute(2, 0, 1) for entry in entries])
    explain(PatchCases(entries, images), tmp_path, seed=1, batch_size=5)
    for name in ("localisation.json", "explanations.csv"):
        assert (tmp_path / name).read_text() == (folder / name).read_text()


def test_without_masks_or_maps_there_is_still_an_explanation(tmp_path):
    grey = torch.full((3, 3, 32, 32), 100, dtype=torch.uint8)
    cases = [{"image": image, "patient": f"P{i}"} for i, image in enumerate(grey)]
    folder = explain(cases, tmp_path)
    assert [row["all_zero"] for row in table(folder / "explanations.csv")] == ["1"] * 3
    assert not (folder / "localisation.json").exists() and not (folder / "randomisation.png").exists()
    stages = json.loads((folder / "randomisation.json").read_text())["stages"]
    assert stages == []
    assert (folder / "gallery.png").exists()
    explain(cases, tmp_path / "quick", randomisation_images=0)
    assert not (tmp_path / "quick" / "randomisation.json").exists()


def test_all_zero_maps_are_counted_and_score_nothing(tmp_path):
    entries, images = write_planted(tmp_path / "data", 4)
    images[2] = 100
    folder = explain(PatchCases(entries, images), tmp_path / "out", class_idx=0)
    summary = json.loads((folder / "localisation.json").read_text())
    # the red patches and the grey one hold nothing green
    assert summary["all_zero_maps"] == summary["maps"]["Grad-CAM"]["all_zero"] == 3
    assert summary["maps"]["Grad-CAM"]["pointing"]["value"] == 0.25


def test_additive_maps_are_scored_by_what_speaks_for_the_class(tmp_path):
    entries, images = write_planted(tmp_path / "data", 4)
    # half of the patch is of the other class: it speaks against, and must not count as evidence
    images[0, :, :, :8] = torch.tensor([200, 60, 128])[:, None, None].byte()
    folder = explain(PatchCases(entries, images), tmp_path / "out", explanation="additive", class_idx=0)
    rows = table(folder / "explanations.csv")
    assert [row["all_zero"] for row in rows] == ["0", "1", "0", "1"]
    for row in rows:
        speaks = {key: float(row[key]) for key in ("for", "against", "bias", "margin")}
        assert speaks["for"] + speaks["against"] + speaks["bias"] == pytest.approx(speaks["margin"], abs=1e-5)
        assert speaks["bias"] == pytest.approx(0, abs=1e-5)
    assert float(rows[0]["for"]) > 0 > float(rows[0]["against"]) and float(rows[0]["margin"]) < 0
    scored = {row["image"]: row for row in table(folder / "localisation.csv") if row["map"] == "additive map"}
    assert float(scored[entries[0]["image"]]["energy_ratio"]) > 4 and scored[entries[0]["image"]]["pointing"] == "1.0"
    summary = json.loads((folder / "localisation.json").read_text())
    assert summary["maps"]["additive map"]["all_zero"] == 2 and "additive map minus control" in summary
    stages = json.loads((folder / "randomisation.json").read_text())["stages"]
    assert stages[0]["spearman"]["value"] == pytest.approx(1) and stages[1]["spearman"]["value"] < 0.9
    assert (folder / "gallery.png").exists() and (folder / "randomisation.png").exists()


def test_the_checkpoint_is_loaded(tmp_path):
    entries, images = write_planted(tmp_path / "data", 2)
    network = ColourNetwork()
    with torch.no_grad():
        network.head.weight.copy_(40 * torch.tensor([[0.0, 1], [1, 0]]))  # calls red green
    save_checkpoint(tmp_path / "model.pt", network.state_dict())
    folder = explain(PatchCases(entries, images), tmp_path / "out", checkpoint=tmp_path / "model.pt")
    assert [row["predicted"] for row in table(folder / "explanations.csv")] == ["red", "green"]
