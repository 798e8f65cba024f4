"""A repository's bundles from a folder that knows nothing of it, in processes that cannot import it."""

import json
import shutil
from pathlib import Path

import pytest

from shared.bundle.contents import find_bundles
from tests.bundles.test_packaged import run_elsewhere

ROOT = Path(__file__).parents[2]
BUNDLES = find_bundles(root=ROOT)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What runs report, all but the last by bundle and way."""
    folder = tmp_path_factory.mktemp("anywhere")
    copied = folder / "copied"
    shutil.copytree(BUNDLES[0] / "configs", copied / "configs")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "net.json").write_text(json.dumps({"seed": 5, "rate": "nonsense"}))
    runs = {}
    for bundle in BUNDLES:
        train, infer, meta = (str(bundle / f"configs/{name}.json") for name in ("train", "inference", "metadata"))
        root = ["--bundle_root", str(bundle)]
        small = [train, str(bundle / "configs/cpu.json")]
        # a macro reaches into a file beside the caller
        command = ["run", "--config_file", str(small), "--seed", "%net.json::seed"]
        name = bundle.name
        runs[name, "command"] = [["command", command]]
        runs[name, "root"] = [["command", [*command, *root]]]
        runs[name, "inference"] = [["create_workflow", {"config_file": infer}], ["run", {"config_file": infer}]]
    runs["last", "macro"] = [["command", ["run", "--config_file", train, "--seed", "%net.json::rate"]]]
    runs["last", "export"] = [["verify_net_in_out", {"net_id": "network_def", "config_file": train, "meta_file": meta}]]
    runs["copied", "command"] = [["run", {"config_file": str(copied / "configs/train.json")}]]
    listed = [
        {"cwd": str(elsewhere), "steps": steps, "requirements": None, "report": str(folder / f"{i}.json")}
        for i, steps in enumerate(runs.values())
    ]
    found = run_elsewhere(folder, listed, fails=range(len(listed)))
    assert [path.name for path in elsewhere.iterdir()] == ["net.json"], "something was written beside the caller"
    return dict(zip(runs, found, strict=True))


@pytest.mark.parametrize("way", ["command", "root", "inference"])
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_bundle_finds_itself_and_its_code_from_anywhere(reports, bundle, way):
    report = reports[bundle.name, way]
    assert Path(report["shared"]).parent == ROOT / "shared"
    # it looks for data where the repository has them
    assert report["cause"].startswith(f"{ROOT / 'data' / bundle.name}: no such dataset folder")
    assert report["done"] == (["create_workflow"] if way == "inference" else [])


def test_what_a_macro_brings_is_checked_as_any_value(reports):
    cause = reports["last", "macro"]["cause"]
    assert cause.startswith("--seed nonsense: it must be a whole number of at least 0, and is the text 'nonsense'.")


@pytest.mark.parametrize("key", [("last", "export"), ("copied", "command")])
def test_where_a_bundle_cannot_be_found_one_line_says_what_to_type(reports, key):
    assert reports[key]["cause"] == "no shared/ found: give --bundle_root, the folder that holds configs/"
