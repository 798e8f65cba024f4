"""The federated demonstration from phantom patches to its table, averaged by NVFlare where that is installed."""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.bundle.abstention import read_cohort
from tests.support.script_modules import load_script
from tests.support.tiny_patches import write_patch_data

ROOT = Path(__file__).parents[2]
TINY = ["cache_size=32", "size=32", "train#size=32", "network_def#encoder#channels=[8,8,8,16]", "pretrain#size=32"]
TINY += ["pretrain#projection=[16,8]", "pretrain#batch_size=16", "train#batch_size=8", "views=1", "bf16=false"]
flare_is_there = importlib.util.find_spec("nvflare") is not None


def demo(output, *options, check=True):
    command = [sys.executable, ROOT / "scripts/federated_demo.py", "sscl_crc", "--output", output, "--rounds", "2"]
    command += ["--local_epochs", "1", "--patches", "16", "--test", "8", "--pretraining_epochs", "1", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run([*command, "--set", *TINY], env=environment, capture_output=True, text=True, check=check)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The folder of a run that averages without NVFlare."""
    folder = tmp_path_factory.mktemp("federated") / "plain"
    # the sites' data are there already: phantoms take longer to paint than such networks to train
    for seed, site in enumerate(("public", "north", "south", "east", "unseen")):
        write_patch_data(folder / "data" / site, training=8, testing=4, each=2, seed=seed)
    demo(folder, "--engine", "plain")
    return folder


@pytest.mark.slow
def test_the_table_has_all_arms_and_one_site_equals_plain_training(plain):
    with (plain / "federated.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [f"{site} alone" for site in ("north", "south", "east")]
    assert [row["training"] for row in rows] == [*names, "alone, mean of the three", "federated", "pooled"]
    assert all(0 <= float(row["AUC"]) <= 1 for row in rows)
    found = json.loads((plain / "federated.json").read_text())
    assert found["one_site_difference"] == 0
    text = (plain / "federated.md").read_text()
    assert "2 rounds of 1 epochs, averaged by plain" in text and "federated_demo.py" in text


@pytest.mark.slow
def test_each_site_has_the_common_model_and_the_distance_to_its_own_patients(plain):
    common = torch.load(plain / "federated/model.pt", weights_only=True)
    means = []
    for site in ("north", "south", "east"):
        own = torch.load(plain / f"federated/{site}/model.pt", weights_only=True)
        assert all(torch.equal(own[key], value) for key, value in common.items())
        cohort, _ = read_cohort(plain / f"federated/{site}")  # of another model's weights it would be refused
        assert cohort.patients == len(json.loads((plain / f"data/{site}/datalist.json").read_text())["training"]) / 2
        means.append(cohort.distances[0].parts["mean"])
    assert not np.allclose(means[0], means[1], rtol=1e-3) and not (plain / "federated/cohort.npz").exists()


@pytest.mark.slow
def test_sites_train_on_their_own_patients_and_are_tested_on_a_site_none_has_seen(plain):
    patients = {}
    for name in ("north", "south", "east", "pooled"):
        content = json.loads((plain / f"data/{name}.json").read_text())
        patients[name] = {case["patient"] for case in content["training"]}
        assert all(case["patient"].startswith("unseen-") for case in content["testing"])
        assert all((plain / "data" / case["image"]).is_file() for case in content["training"])
    assert not patients["north"] & patients["south"] and patients["pooled"] == set.union(
        *(patients[name] for name in ("north", "south", "east"))
    )


@pytest.mark.slow
@pytest.mark.skipif(not flare_is_there, reason="NVFlare is not installed: pip install -r requirements-federated.txt")
def test_nvflare_gives_the_weights_of_the_plain_loop(plain, tmp_path):
    # all other arms are those of the plain run: the demonstration goes on with what is there
    flare = shutil.copytree(plain, tmp_path / "flare", ignore=shutil.ignore_patterns("federated*"))
    experiment = json.loads((flare / "experiment.json").read_text())
    experiment["settings"]["engine"] = "nvflare"
    (flare / "experiment.json").write_text(json.dumps(experiment))
    demo(flare, "--engine", "nvflare")
    one, other = (torch.load(folder / "federated/model.pt", weights_only=True) for folder in (plain, flare))
    assert "averaged by nvflare" in (flare / "federated.md").read_text()
    for key, value in one.items():
        torch.testing.assert_close(other[key].float(), value.float(), atol=1e-5, rtol=1e-4)


def test_without_nvflare_the_script_says_what_to_do(tmp_path):
    code = "import runpy, sys; sys.modules['nvflare'] = None; sys.argv = sys.argv[1:]\n"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, ROOT / "scripts/federated_demo.py", "sscl_crc", "--output"]
    done = subprocess.run([*command, tmp_path / "none"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "requirements-federated.txt" in done.stderr and "--engine plain" in done.stderr
    assert not (tmp_path / "none").exists()


def test_results_of_other_images_are_refused(tmp_path, monkeypatch):
    script, output = load_script("federated_demo"), tmp_path / "out"
    (output / "data").mkdir(parents=True)
    for name in ("a", "b"):
        (output / "data" / f"{name}.nii.gz").write_text(name)
    cases = [{"patient": f"north-{name}", "image": [f"{name}.nii.gz"]} for name in ("a", "b")]
    (output / "pooled.json").write_text(json.dumps({"training": cases[:1], "testing": cases[1:]}))
    runs = []

    def trained(*_):
        runs.append(len(runs))
        (output / "model.pt").write_text("trained")

    monkeypatch.setattr(script, "make_data", lambda *_: {"pooled": str(output / "pooled.json")})
    monkeypatch.setattr(script, "stage_one", trained)
    monkeypatch.setattr(script, "report", lambda *_: "the table")
    given = ["ircl_mvi", "--engine", "plain", "--output", str(output)]
    script.main(given)
    script.main(given)
    (output / "data" / "b.nii.gz").write_text("c")
    with pytest.raises(SystemExit, match=r"other settings \(data was .*pooled north-b"):
        script.main(given)
    assert runs == [0, 1]


def test_help_needs_no_torch():
    code = "import runpy, sys; sys.argv = ['federated_demo.py', '--help']\n"
    code += f"try:\n    runpy.run_path({str(ROOT / 'scripts/federated_demo.py')!r}, run_name='__main__')\n"
    code += "except SystemExit:\n    assert 'torch' not in sys.modules and 'monai' not in sys.modules"
    assert "--rounds" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
