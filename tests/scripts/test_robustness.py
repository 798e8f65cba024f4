"""scripts/robustness.py with a bundle that predicts from pixels: a model that looks at texture is red, one at colour
is not."""

import csv
import json
import sys

import nibabel as nib
import numpy as np
import pytest

from shared.apps.audit import robustness as script
from shared.apps.audit.robustness import chosen, map_correlations, summarise
from shared.apps.experiments import processes
from shared.digests import sha256
from tests.support.documented import undocumented_in
from tests.support.tiny_patches import write_patch_data

PREDICT = """
import csv, json, os, sys
from pathlib import Path
import numpy as np
from PIL import Image

values = dict(argument[2:].split("=", 1) for argument in sys.argv if argument.startswith("--") and "=" in argument)
root, out = Path(values["dataset_dir"]), Path(values["output_dir"])
cases = json.loads((root / values["datalist_file"]).read_text())[values["split"]]
(out / "cam").mkdir(parents=True)
with (out / "predictions.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["image", "patient", "label", "probability"])
    for case in cases[int(os.environ.get("FAKE_SKIP", 0)):]:
        x = np.asarray(Image.open(root / case["image"]), float)
        margin = x[..., 0].std() - 20 if os.environ["FAKE_MODEL"] == "texture" else x[..., 0].mean() - 170
        Image.fromarray(x[..., 0].astype(np.uint8)).save(out / "cam" / f"{Path(case['image']).stem}.png")
        writer.writerow([case["image"], case["patient"], case["label"], 1 / (1 + np.exp(-margin / 4))])
"""
KEYS = ("dataset_dir", "datalist_file", "split", "ckpt_dir", "output_dir", "mask", "cache_dir")


@pytest.fixture
def place(tmp_path, monkeypatch):
    configs = tmp_path / "bundle/configs"
    configs.mkdir(parents=True)
    for name in ("train", "inference"):
        (configs / f"{name}.json").write_text(json.dumps({**dict.fromkeys(KEYS, ""), "run": "$1"}))
    (tmp_path / "predict.py").write_text(PREDICT)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/model.pt").write_bytes(b"model")
    monkeypatch.setattr(processes, "RUN_BUNDLE", (sys.executable, str(tmp_path / "predict.py")))
    write_patch_data(tmp_path / "data", training=4, testing=8, each=2, side=48)
    return tmp_path


def run(place, *options):
    given = [str(place / "bundle"), "--ckpt_dir", str(place / "models"), "--dataset_dir", str(place / "data")]
    script.main([*given, "--output", str(place / "out"), "--threads", "1", *options])
    with (place / "out/robustness.csv").open(newline="") as file:
        return {row["change"]: row for row in csv.DictReader(file)}


def test_a_model_that_looks_at_texture_is_red_when_blurred(place, monkeypatch):
    monkeypatch.setenv("FAKE_MODEL", "texture")
    found = run(place)
    assert found["blur, 2 pixels"]["status"] == "red" and found["blur, 2 pixels"]["flips"] == "16"
    assert float(found["blur, 2 pixels"]["median"]) < -0.5 and float(found["blur, 2 pixels"]["absolute_95"]) > 0.5
    assert found["noise, 8 of 255"]["status"] == "green"
    assert (
        0.1 < float(found["blur, 2 pixels"]["map_correlation"]) < float(found["noise, 8 of 255"]["map_correlation"]) < 1
    )
    section = json.loads((place / "out/sections/30_robustness.json").read_text())
    assert section["status"] == "red" and any("blur, 2 pixels" in text for text in section["text"])
    assert (place / "out/robustness.png").is_file() and not list((place / "out").glob(".forms*"))
    with (place / "out/robustness_cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert not undocumented_in(place / "out", "Robustness")
    assert len(rows) == 16 * len(found) and {row["case"][-4:] for row in rows} == {".png"}


def test_a_model_that_looks_at_colour_is_green_when_blurred(place, monkeypatch):
    monkeypatch.setenv("FAKE_MODEL", "colour")
    found = run(place, "--most", "5")
    for change in ("blur, 1 pixels", "blur, 2 pixels", "resampled, 1.5 x"):
        assert found[change]["status"] == "green" and float(found[change]["absolute_95"]) < 0.05, change
        assert found[change]["n"] == "5"
    assert float(found["stains weaker"]["median"]) > 0  # lighter


def test_patients_that_trained_the_model_are_told(place, monkeypatch):
    monkeypatch.setenv("FAKE_MODEL", "colour")
    run(place, "--most", "4")
    told = "trained on 1 of these patients"
    section = place / "out/sections/30_robustness.json"
    assert told not in section.read_text()
    with (place / "out/robustness_cases.csv").open(newline="") as file:
        first = next(csv.DictReader(file))["case"]
    split = {"images": {"train": {"then": [sha256(place / "data" / first)]}}}
    (place / "models/split.json").write_text(json.dumps(split))
    run(place, "--most", "4")
    assert told in section.read_text()


def test_bad_input_and_a_run_that_is_not_whole_are_refused(place, monkeypatch):
    monkeypatch.setenv("FAKE_MODEL", "colour")
    with pytest.raises(SystemExit, match="has no training cases of fold 3"):
        run(place, "--fold", "3")
    monkeypatch.setenv("FAKE_SKIP", "2")
    with pytest.raises(SystemExit, match=r"ended well, but .*predictions\.csv has"):
        run(place)
    (place / "models/model.pt").unlink()
    with pytest.raises(SystemExit, match=r"holds no model\.pt"):
        run(place)


def test_cases_are_drawn_of_both_labels_and_the_same_each_time():
    content = {"testing": [{"patient": f"P{k}", "label": int(k > 15)} for k in range(20)]}
    args = script.arguments(["b", "--ckpt_dir", "m", "--dataset_dir", "d", "--most", "6"])
    found = chosen(content, args)
    assert [case["label"] for case in found].count(1) == 3 and found == chosen(content, args)


def test_the_summary_is_that_of_the_rows():
    rows = [{"change": "x", "difference": d, "flipped": int(d > 0.3), "map": m} for d, m in
            ((0.0, 1.0), (-0.1, None), (0.4, 0.5), (0.1, 0.0))]  # fmt: skip
    found = summarise(rows, 6)[0]
    assert (found["n"], found["skipped"], found["flips"], found["flip_share"], found["status"]) == (
        4,
        2,
        1,
        0.25,
        "amber",
    )
    turned = [{**row, "flipped": 1} for row in rows]
    kept = [{**row, "flipped": 0} for row in rows]
    assert [summarise(own, 4)[0]["status"] for own in (turned, kept)] == ["red", "green"]
    assert found["median"] == pytest.approx(0.05) and found["median_absolute"] == pytest.approx(0.1)
    assert found["absolute_95"] == pytest.approx(0.355) and found["map_correlation"] == 0.5
    assert found["flip_low"] == pytest.approx(0.0456, abs=1e-3)  # Wilson, 1 of 4


def test_maps_are_compared_where_either_shows_something(tmp_path):
    forms, maps = {}, {"unchanged": [0, 1, 2, 3.0, 0], "noise": [0, 3, 2, 1.0, 0], "blur": [0, 0, 0, 0, 0]}
    (tmp_path / "out/patients").mkdir(parents=True)
    for form, values in maps.items():
        image = nib.Nifti1Image(np.array(values, float).reshape(-1, 1, 1), np.eye(4))
        nib.save(image, tmp_path / f"out/patients/{form}_contributions.nii.gz")
        forms[form] = {"patient": form, "image": ["a.nii.gz"]}
    found = map_correlations([forms], tmp_path, False)
    assert found == {"unchanged": pytest.approx(1), "noise": pytest.approx(-1), "blur": None}
