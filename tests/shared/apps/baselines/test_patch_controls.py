"""Controls of patches, cross-validated, on small patches whose class shows in their colour."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.apps.baselines import patches
from shared.apps.baselines.given import Given
from shared.apps.baselines.patch_probes import fit_forest
from shared.data.splits import grouped_folds
from shared.errors import CheckpointError, DataError
from shared.networks import ContrastiveNetwork, PatchEncoder
from tests.support.tiny_patches import write_patch_data

SETTINGS = {"block": "basic", "layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8], "stages": [4]}
CONFIG = {"network_def": {"encoder": {"_desc_": "small", **SETTINGS}}, "size": 32, "cache_size": None}
CONTROLS = ("forest", "random", "imagenet")


def read(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "TREES", 30)
        patch.setattr(patches, "IMAGENET_SIZE", 32)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    write_patch_data(folder, training=12, testing=6)
    return folder


@pytest.fixture(scope="module")
def given(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("controls")
    torch.save(PatchEncoder(**{**SETTINGS, "channels": [4, 6, 6, 8]}).state_dict(), folder / "imagenet.pt")
    common = {"folds": 3, "seeds": (0, 1), "config": CONFIG, "command": "study", "bootstrap": 30}
    return Given(data, data / "datalist.json", folder / "out", weights=folder / "imagenet.pt", **common)


@pytest.fixture(scope="module")
def output(given):
    patches.run(CONTROLS, given)
    return given.output


def test_folds_are_those_of_cross_validation_and_nothing_is_fitted_outside(output, data):
    training = json.loads((data / "datalist.json").read_text())["training"]
    labels = np.array([entry["label"] for entry in training])
    fold_of = grouped_folds([entry["patient"] for entry in training], labels.tolist(), 3, 1)
    table = {row["image"]: row for row in read(output / "features" / "colour_texture.csv")}
    features = np.array([[float(v) for v in list(table[entry["image"]].values())[2:]] for entry in training])
    fold = np.array([fold_of[entry["patient"]] for entry in training])
    expected = {}
    for k in range(3):
        model = fit_forest(features[fold != k], labels[fold != k], seed=1, trees=30)
        probability = model.predict_proba(features[fold == k])[:, 1]
        expected |= dict(zip([training[i]["image"] for i in np.flatnonzero(fold == k)], probability, strict=True))
    rows = [row for row in read(output / "forest" / "predictions.csv") if row["seed"] == "1"]
    assert len(rows) == 36
    for row in rows:
        assert int(row["fold"]) == fold_of[row["patient"]]
        assert float(row["probability"]) == pytest.approx(expected[row["image"]], abs=1e-12)
    assert "Fold-wise AUC" in (output / "forest" / "results.md").read_text()


def test_seeds_and_weights_matter(output):
    for name in CONTROLS:
        rows = read(output / name / "predictions.csv")
        one, other = ([row["probability"] for row in rows if row["seed"] == seed] for seed in "01")
        assert len(one) == len(other) == 36 and one != other, name
        results = json.loads((output / name / "results.json").read_text())
        assert results["title"] == patches.TITLES[name] and results["seeds"] == [0, 1]
    files = {path.name for path in (output / "features").iterdir()}
    assert files == {"colour_texture.csv", *(f"{name}.npz" for name in ("random0", "random1", "imagenet"))}


def test_other_settings_do_not_mix_with_what_is_there(given, output, monkeypatch):
    before = (output / "forest/predictions.csv").read_bytes()
    monkeypatch.setattr(patches, "TREES", 31)
    with pytest.raises(DataError, match=r"holds results of other settings.*trees was 30, is now 31"):
        patches.run(["forest"], given)
    assert (output / "forest/predictions.csv").read_bytes() == before
    beside = given.weights.with_suffix(".json")
    beside.write_text('{"encoder": {}}')
    with pytest.raises(DataError, match=r"settings was null, is now"):
        patches.run(["imagenet"], given)
    beside.unlink()


def test_results_on_other_pixels_do_not_mix_with_what_is_there(given, data, output, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    case = json.loads((data / "datalist.json").read_text())["training"][0]
    with Image.open(data / case["image"]) as image:
        image.rotate(90).save(tmp_path / "data" / case["image"])
    changed = replace(given, dataset_dir=tmp_path / "data", datalist_file=tmp_path / "data/datalist.json")
    with pytest.raises(DataError, match=rf"data was different for {case['patient']}\)"):
        patches.run(["forest"], changed)


def test_a_pretrained_encoder_is_another_one(data, tmp_path):
    torch.manual_seed(10)
    for name in ("one", "other"):
        torch.save({"network": ContrastiveNetwork(SETTINGS, projection=(6,)).state_dict()}, tmp_path / f"{name}.pt")
    cases = json.loads((data / "datalist.json").read_text())["training"]
    entries = [{**case, "image": str(data / case["image"])} for case in cases]
    found = patches.Patches(entries, data, tmp_path / "features", CONFIG)
    one = found.features("pretrained", 0, tmp_path / "one.pt")
    assert one.shape == (36, 8) and not np.allclose(one, found.features("pretrained", 0, tmp_path / "other.pt"))
    assert np.array_equal(one, found.features("pretrained", 1, tmp_path / "one.pt"))


def test_errors_say_what_to_do(given, tmp_path):
    given = replace(given, output=tmp_path / "out")
    with pytest.raises(CheckpointError, match="There is no file"):
        patches.run(["imagenet"], replace(given, weights=tmp_path / "none.pt"))
    with pytest.raises(DataError, match=r"are expressions.*--config FILE"):
        patches.run(["random"], replace(given, config={**CONFIG, "size": "$2 * 16"}))
    with pytest.raises(DataError, match="no encoder for patches"):
        patches.run(["random"], replace(given, config={}))
