"""The set of phantom patches: same command, same files; slides in one part; labels as documented."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.data import PatchDatalist
from tests.support.script_modules import load_script

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_phantom_patches.py"
SMALL = [
    "--patches",
    "24",
    "--test-patches",
    "8",
    "--unlabelled",
    "5",
    "--size",
    "48",
    "--folds",
    "2",
    "--per-slide",
    "4",
]


script = load_script("make_phantom_patches")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    assert script.main(["--output", str(folder), *SMALL]) == 0
    return folder


def test_the_set_is_a_valid_datalist(made):
    data = PatchDatalist(made, fold=1)
    assert len(data.training) + len(data.validation) == 24 and len(data.testing) == 8 and len(data.unlabelled) == 5
    assert data.classes == ["straight crypts", "serrated crypts"] and data.patch_size == (48, 48)
    assert len(data.pretraining) == len(data.training) + 5
    assert len({case["patient"] for case in data.training + data.validation}) == 6
    assert all("mask" in case and "planted" in case and 0 <= case["soft_label"] <= 1 for case in data.testing)
    assert all(set(case) == {"image", "patient"} for case in data.unlabelled)


def test_labels_are_the_majority_of_the_votes_and_maps_show_the_true_class(made):
    datalist = json.loads((made / "datalist.json").read_text())
    entries = {entry["image"]: entry for part in ("training", "testing") for entry in datalist[part]}
    rows = list(csv.DictReader((made / "patches.csv").open()))
    assert len(rows) == 37
    for row in rows:
        if row["section"] == "unlabelled":
            continue
        entry = entries[row["image"]]
        assert entry["label"] == (int(row["votes"]) > 3.5) and entry["soft_label"] == round(int(row["votes"]) / 7, 4)
        assert np.asarray(Image.open(made / entry["planted"])).max() == 1 + int(row["serrated"])
    manifest = json.loads((made / "manifest.json").read_text())
    wrong = sum(int(row["label"]) != int(row["serrated"]) for row in rows if row["section"] == "training")
    assert manifest["labels_wrong"]["training"] == wrong and manifest["pattern_codes"] == {"straight": 1, "serrated": 2}


def test_the_same_command_gives_the_same_bytes_and_a_second_run_does_nothing(made, tmp_path, capsys):
    assert script.main(["--output", str(tmp_path / "again"), *SMALL]) == 0
    first, second = contents(made), contents(tmp_path / "again")
    manifest = Path("manifest.json")
    assert {name for name in first if first[name] != second.get(name)} <= {manifest} and first.keys() == second.keys()
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert script.main(["--output", str(made), *SMALL]) == 0
    assert "are there already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert script.main(["--output", str(tmp_path / "again"), *SMALL, "--seed", "1", "--reader-accuracy", "1"]) == 0
    other = contents(tmp_path / "again")
    assert all(first[name] != other[name] for name in first if name.parts[0] == "image")
    assert json.loads(other[manifest])["labels_wrong"] == {"training": 0, "testing": 0, "unlabelled": 0}


def test_what_cannot_be_made_is_refused(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert script.main(["--output", str(tmp_path), *SMALL]) == 2
    assert "no phantom" in capsys.readouterr().err and (tmp_path / "mine.txt").read_text() == "precious"
    assert script.main(["--output", str(tmp_path / "a"), "--patches", "4", "--per-slide", "2"]) == 2
    assert "fewer than the 5 folds" in capsys.readouterr().err and not (tmp_path / "a").exists()
    for wrong in (["--size", "20"], ["--reader-accuracy", "0.4"], ["--patches", "0"], ["--test-patches", "-1"]):
        with pytest.raises(SystemExit):
            script.main(["--output", str(tmp_path / "a"), *wrong])
