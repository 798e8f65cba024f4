"""scripts/patch_baselines.py on small patches whose class shows in their colour."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.apps.baselines.patch_probes import fit_forest
from shared.apps.experiments.comparison import comparison_table
from shared.data.splits import grouped_folds
from shared.networks import ContrastiveNetwork, PatchEncoder
from tests.support.script_modules import load_script
from tests.support.tiny_patches import CLASSES, write_patch_data

SCRIPT = Path(__file__).parents[2] / "scripts" / "patch_baselines.py"
SETTINGS = {"block": "basic", "layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8], "stages": [4]}


def read(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    write_patch_data(folder, training=12, testing=6)
    return folder


@pytest.fixture(scope="module")
def options(data, tmp_path_factory):
    """Options of all four controls, with weights for those that need some."""
    folder = tmp_path_factory.mktemp("weights")
    for seed in (0, 1):
        torch.manual_seed(10 + seed)
        torch.save({"network": ContrastiveNetwork(SETTINGS, projection=(6,)).state_dict()}, folder / f"{seed}.pt")
    torch.save(PatchEncoder(**{**SETTINGS, "channels": [4, 6, 6, 8]}).state_dict(), folder / "imagenet.pt")
    found = ["--dataset_dir", str(data), "--settings", json.dumps(SETTINGS), "--size", "32", "--trees", "30"]
    found += ["--config", "cpu", "--bootstrap", "30", "--imagenet_size", "32", "--threads", "1"]
    return [*found, "--checkpoint", str(folder / "{seed}.pt"), "--imagenet", str(folder / "imagenet.pt")]


@pytest.fixture(scope="module")
def tested(options, tmp_path_factory):
    """All controls with one seed, two of them with another."""
    output = tmp_path_factory.mktemp("tested")
    load_script("patch_baselines").main([*options, "--output", str(output)])
    load_script("patch_baselines").main(
        [*options, "--output", str(output), "--seeds", "1", "--methods", "pretrained", "random"]
    )
    return output


def test_every_control_is_tested_as_a_bundle_is(tested, data):
    names = {"forest", "random", "pretrained", "imagenet"}
    assert {path.parents[1].name for path in tested.glob("*/seed*/predictions.csv")} == names
    testing = json.loads((data / "datalist.json").read_text())["testing"]
    for name in names:
        rows = read(tested / name / "seed0" / "predictions.csv")
        assert list(rows[0]) == ["image", "patient", "label", "probability"]
        assert [row["image"] for row in rows] == [entry["image"] for entry in testing]
        metrics = json.loads((tested / name / "seed0" / "metrics.json").read_text())
        assert metrics["n"] == 18 and metrics["patients"] == 6 and set(metrics["classes"]) == set(CLASSES)
        assert (tested / name / "seed0" / "confusion.png").exists()
    assert json.loads((tested / "forest/seed0/metrics.json").read_text())["AUC"]["value"] == 1.0
    lines = comparison_table([tested / name for name in ("forest", "random")], bootstrap=30).splitlines()
    assert lines[2].startswith("| colour and texture, random forest | 1.000") and lines[2].endswith("| 1 |")
    assert lines[3].startswith("| random encoder, linear probe |") and lines[3].endswith("| 2 |")
    assert "18 patches of 6 patients" in lines[5]
    assert (tested / "comparison.md").read_text().count("\n| ") == 2  # of the last call


def test_seeds_and_weights_matter(tested):
    for name in ("random", "pretrained"):
        one, other = (read(tested / name / f"seed{seed}" / "predictions.csv") for seed in (0, 1))
        assert [row["probability"] for row in one] != [row["probability"] for row in other], name
    files = {path.name for path in (tested / "features").iterdir()}
    expected = {"random0", "random1", "pretrained0", "pretrained1", "imagenet"}
    assert files == {"colour_texture.csv", *(f"{name}.npz" for name in expected)}


def test_other_settings_do_not_mix_with_what_is_there(options, tested):
    before = (tested / "forest/seed0/predictions.csv").read_bytes()
    with pytest.raises(SystemExit, match=r"holds results of other settings.*trees was 30, is now 31"):
        load_script("patch_baselines").main([*options, "--output", str(tested), "--trees", "31"])
    assert (tested / "forest/seed0/predictions.csv").read_bytes() == before
    weights = Path(options[options.index("--imagenet") + 1])
    beside = weights.with_suffix(".json")
    beside.write_text('{"encoder": {}}')
    with pytest.raises(SystemExit, match=r"data was different for weights' settings"):
        load_script("patch_baselines").main([*options, "--output", str(tested), "--methods", "imagenet"])
    beside.unlink()


def test_results_on_other_pixels_do_not_mix_with_what_is_there(options, data, tested, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    case = json.loads((data / "datalist.json").read_text())["testing"][0]
    with Image.open(data / case["image"]) as image:
        image.rotate(90).save(tmp_path / "data" / case["image"])
    given = [str(tmp_path / "data") if word == str(data) else word for word in options]
    with pytest.raises(SystemExit, match=rf"data was different for {case['patient']}\)"):
        load_script("patch_baselines").main([*given, "--output", str(tested), "--methods", "forest"])


def test_folds_are_those_of_cross_validation_and_nothing_is_fitted_outside(options, data, tmp_path):
    load_script("patch_baselines").main(
        [*options, "--output", str(tmp_path), "--folds", "3", "--seeds", "1", "--methods", "forest"]
    )
    rows = read(tmp_path / "forest" / "predictions.csv")
    training = json.loads((data / "datalist.json").read_text())["training"]
    labels = np.array([entry["label"] for entry in training])
    fold_of = grouped_folds([entry["patient"] for entry in training], labels.tolist(), 3, 1)
    table = {row["image"]: row for row in read(tmp_path / "features" / "colour_texture.csv")}
    features = np.array([[float(v) for v in list(table[entry["image"]].values())[2:]] for entry in training])
    fold = np.array([fold_of[entry["patient"]] for entry in training])
    expected = {}
    for k in range(3):
        model = fit_forest(features[fold != k], labels[fold != k], seed=1, trees=30)
        probability = model.predict_proba(features[fold == k])[:, 1]
        expected |= dict(zip([training[i]["image"] for i in np.flatnonzero(fold == k)], probability, strict=True))
    assert len(rows) == 36 and {row["seed"] for row in rows} == {"1"}
    for row in rows:
        assert int(row["fold"]) == fold_of[row["patient"]]
        assert float(row["probability"]) == pytest.approx(expected[row["image"]], abs=1e-12)
    assert "Fold-wise AUC" in (tmp_path / "forest" / "results.md").read_text()


def test_the_validation_part_of_a_fold(options, data, tmp_path):
    content = json.loads((data / "datalist.json").read_text())
    for entry in content["training"]:
        entry["fold"] = int(entry["patient"][1:]) // 2 % 2
    (tmp_path / "list.json").write_text(json.dumps(content))
    given = ["--datalist_file", str(tmp_path / "list.json"), "--split", "validation", "--fold", "1"]
    load_script("patch_baselines").main(
        [*options, *given, "--output", str(tmp_path), "--methods", "random", "--views", "2"]
    )
    rows = read(tmp_path / "random/seed0/predictions.csv")
    assert {row["patient"] for row in rows} == {e["patient"] for e in content["training"] if e["fold"] == 1}


def test_errors_say_what_to_do(options, data, tmp_path):
    def message(*more, given=options):
        with pytest.raises(SystemExit) as error:
            load_script("patch_baselines").main([*given, "--output", str(tmp_path / "out"), *more])
        return str(error.value)

    assert "There is no file" in message("--methods", "imagenet", "--imagenet", str(tmp_path / "none.pt"))
    assert "no bundle 'nothing'" in message("--methods", "random", "--bundle", "nothing")
    assert "cannot be read" in message("--methods", "random", "--settings", "{")
    (tmp_path / "list.json").write_text((data / "datalist.json").read_text().replace('"testing": [', '"_": ['))
    assert "the testing split is empty" in message("--datalist_file", str(tmp_path / "list.json"))
    assert "no such dataset folder" in message("--dataset_dir", str(tmp_path / "nowhere"))


def test_help_needs_no_torch():
    code = (
        "import sys, runpy; sys.modules['torch'] = None; sys.argv = ['x', '--help']\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and "--imagenet" in ended.stdout
