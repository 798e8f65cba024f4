"""The left-out fold of the audit: green where training does not look at it, red where it does, amber if unknown."""

import json
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from shared.apps.audit import audit as script
from shared.apps.audit.left_out import differing, exchanged, left_out_finding
from shared.apps.experiments import cross_validate
from tests.support.left_out import SMALL, write_data
from tests.support.tiny import write_case

TRAINER = """
import json, os, sys
from pathlib import Path
import torch

values = dict(argument[2:].split("=", 1) for argument in sys.argv if argument.startswith("--") and "=" in argument)
cases = json.loads(Path(values["datalist_file"]).read_text())["training"]
mode = os.environ["FAKE_TRAINING"]
used = [c for c in cases if mode == "leak" or c["fold"] != int(values["fold"])]
weights = {"weight": torch.tensor([float(sum(2**k * c["label"] for k, c in enumerate(used)))])}
if mode == "random":
    weights["weight"] = torch.rand(1)
folder = Path(values["ckpt_dir"])
folder.mkdir(parents=True)
torch.save({"network": weights, "record": {"parents": {"pretrain": os.urandom(4).hex()}}}, folder / "model.pt")
"""
KEYS = ("dataset_dir", "datalist_file", "ckpt_dir", "output_dir")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A bundle that trains in a moment, and volumes of ten patients."""
    configs = tmp_path / "bundle/configs"
    configs.mkdir(parents=True)
    train = {**dict.fromkeys(KEYS, ""), "fold": 0, "seed": 0, "resume": False, "run": "$1"}
    for name, content in (("train", train), ("evaluate", {"evaluate": "$1"})):
        (configs / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "trainer.py").write_text(TRAINER)
    monkeypatch.setattr(cross_validate, "RUN_BUNDLE", (sys.executable, str(tmp_path / "trainer.py")))
    cases = []
    for k in range(10):
        case = write_case(tmp_path / "data", f"P{k}", label=int(k in (1, 2, 4, 7)), seed=k)
        cases.append({**case, "covariates": {"age": 40.0 + k}})
    testing = [{**write_case(tmp_path / "data", "T0", seed=77), "label": 0}]
    (tmp_path / "data/datalist.json").write_text(json.dumps({"training": cases, "testing": testing}))
    return tmp_path


def finding(place, *options):
    given = [str(place / "bundle"), "--dataset_dir", str(place / "data"), "--folds", "3", "--threads", "1", *options]
    return left_out_finding(script.arguments(given), place / "out")


@pytest.mark.parametrize(
    ("mode", "status", "text"),
    [
        ("honest", "green", "bitwise the same: 1 checkpoints"),
        ("leak", "red", r"model.pt (network/weight)"),
        ("random", "amber", "differ here, too"),
    ],
)
def test_the_status_is_that_of_the_training(place, monkeypatch, mode, status, text):
    monkeypatch.setenv("FAKE_TRAINING", mode)
    found = finding(place)
    assert found.status == status and text in found.found and found.item == "fold 0 of 3, trained twice"


def test_who_is_left_out_has_other_data_and_who_trains_the_same(place):
    content = json.loads((place / "data/datalist.json").read_text())
    for k, case in enumerate(content["training"]):
        case["fold"] = k % 3
    new, names = exchanged(content, place / "data", place / "exchanged")
    assert names == ["P0", "P3", "P6", "P9", "T0"]
    for before, after in zip(content["training"] + content["testing"], new["training"] + new["testing"], strict=True):
        if before["patient"] not in names:
            assert before == after
            continue
        assert after["label"] == 1 - before["label"] and after.get("covariates", {"age": 1000.0}) == {"age": 1000.0}
        one, two = (np.asarray(nib.load(case["image"][0]).dataobj) for case in (before, after))
        assert one.shape == two.shape and not (one == two).all() and np.isclose(one + two, one.max() + one.min()).all()
        one, two = (np.asarray(nib.load(case["mask"]).dataobj) for case in (before, after))
        assert (two == one[::-1, ::-1, ::-1]).all()


def test_a_difference_in_the_last_bit_and_a_missing_file_are_found(tmp_path):
    for name, value in (("a", 1.0), ("b", np.nextafter(np.float32(1), np.float32(2)).item())):
        (tmp_path / name).mkdir()
        torch.save({"x": [torch.tensor([2.0, value])], "n": 3}, tmp_path / name / "model.pt")
    assert differing(tmp_path / "a", tmp_path / "a") == []
    assert differing(tmp_path / "a", tmp_path / "b") == ["model.pt (x/0)"]
    for name, value in (("a", 1.0), ("b", 2.0)):
        np.savez(tmp_path / name / "cohort.npz", weights="same", mean=np.full(3, value))
    assert differing(tmp_path / "a", tmp_path / "b") == ["cohort.npz (mean)", "model.pt (x/0)"]
    torch.save({}, tmp_path / "b/pretrain.pt")
    assert "pretrain.pt (one training only)" in differing(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("bundle", SMALL)
def test_every_bundle_is_green(bundle, tmp_path):
    data = write_data(bundle, tmp_path / "data")
    settings = [f"{key}={json.dumps(value)}" for key, value in {**SMALL[bundle], "bf16": False}.items()]
    settings = [text for text in settings if not text.startswith("bf16") or bundle != "ircl_mvi"]
    given = [bundle, "--dataset_dir", str(data), "--folds", "2", "--threads", "1", "--config", "cpu"]
    found = left_out_finding(script.arguments([*given, "--set", *settings]), tmp_path / "out")
    assert found.status == "green", found.found
