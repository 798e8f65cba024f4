"""Every bundle packed, downloaded with MONAI's own command, and used where the repository cannot be imported."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shared.apps.preparation.files import save_nifti
from shared.bundle.archive import package_bundle
from shared.bundle.contents import find_bundles, read_metadata
from shared.data.brain.mni import mni_affine
from tests.support.small import small_data, small_settings
from tests.support.tiny_brain import AFFINE, SHAPE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BUNDLES = find_bundles(root=ROOT)
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
QUICK = {"mask#steps": 2, "edge_mask#epochs": 2, "edge_mask#draws": 1, "max_patients": 1}
VERIFY = ["module", ["shared.bundle.verify", "--no-schema"]]


def run_elsewhere(folder, runs, *, fails=()):
    """Run in processes of their own, from another folder; what each reports. Those of ``fails`` may end in an error."""
    (folder / "runs.json").write_text(json.dumps(runs))
    command = [sys.executable, "-P", ROOT / "tests/support/packaged_runs.py", folder / "runs.json"]
    subprocess.run(command, check=True, cwd=folder, env=ENVIRONMENT)
    reports = [json.loads(Path(run["report"]).read_text()) for run in runs]
    for i, report in enumerate(reports):
        assert "error" not in report or i in fails, report["error"]
        assert not report["importable"], "the repository was importable"
    return reports


def write_new(bundle, data, folder):
    """Raw files of new patients; the options that prepare them."""
    testing = json.loads((data / "datalist.json").read_text())
    cases = testing["testing"][:2]
    if bundle == "glioma_idh":
        rng = np.random.default_rng(0)
        for name in ("N1", "N2"):
            brain = np.zeros((91, 109, 91), np.float32)  # an ellipsoid of 1.9 litres
            grid = np.stack(np.indices(brain.shape), -1)
            inside = (((grid - (45, 55, 45)) / (33, 42, 40)) ** 2).sum(-1) < 1
            brain[inside] = rng.uniform(80, 120, inside.sum())
            (folder / name).mkdir(parents=True)
            mask = np.zeros(brain.shape, np.uint8)
            mask[40:48, 56:64, 32:40] = 1
            for number, kind in enumerate(("t1", "t1c", "t2", "flair")):
                image = (brain + number * inside).astype(np.int16)  # no sequence is another's image
                save_nifti(folder / name / f"{kind}.nii.gz", image, mni_affine(), compresslevel=1)
            save_nifti(folder / name / "seg.nii.gz", mask, mni_affine())
        # any image of the grid: the pictures are drawn beside it
        shutil.copy(folder / "N1/t1.nii.gz", folder.parent / "template.nii.gz")
        template = ["--template", str(folder.parent / "template.nii.gz")]
        return [*template, "--already-mni", "--no-n4", "--no-smoothing", "--no-histogram-matching"]
    for case in cases:
        files = case["image"] if isinstance(case["image"], list) else [case["image"]]
        for file in files + ([case["mask"]] if bundle == "ircl_mvi" else []):
            target = folder / case["patient"] / Path(file).name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / file, target)
    return ["--modalities", ",".join(testing["modalities"])] if bundle == "ircl_mvi" else ["--group-by", "none"]


def command_words(values):
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def one_input(bundle):
    return list(read_metadata(bundle)["network_data_format"]["inputs"]) == ["image"]


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def used(request, tmp_path_factory):
    """A bundle downloaded, trained and used from another folder, then from inside its own: folder, reports."""
    bundle, folder = request.param, tmp_path_factory.mktemp(request.param.name)
    archive = package_bundle(bundle, folder / "dist")
    unpacked, elsewhere = folder / "bundles" / bundle.name, folder / "elsewhere"
    elsewhere.mkdir()
    data = str(small_data(bundle.name, folder / "data"))
    overlays = ["cpu"] if (bundle / "configs/cpu.json").is_file() else []
    settings, alone = small_settings(bundle.name), one_input(bundle)
    network = {key: value for key, value in settings.items() if key.startswith("network_def")}
    inference, explain = (
        json.loads((bundle / f"configs/{name}.json").read_text(encoding="utf-8")) for name in ("inference", "explain")
    )
    quick, quickly = (
        {key: value for key, value in QUICK.items() if key.split("#")[0] in config} for config in (inference, explain)
    )

    def steps(root, out, **inside):
        train = [f"{root}/configs/{name}.json" for name in ("train", *overlays)]
        evaluate, infer = [*train, f"{root}/configs/evaluate.json"], f"{root}/configs/inference.json"
        explained = [*train, f"{root}/configs/explain.json"]
        meta, model = f"{root}/configs/metadata.json", f"{root}/models/model.pt"
        described = {"config_file": train, "meta_file": meta}
        common = {"dataset_dir": data, **settings}
        export = {"config_file": infer, "meta_file": meta, "ckpt_file": model, "filepath": str(folder / out)}
        return {
            "train": ["run", {"config_file": train, **common}],
            "evaluate": ["run", {"run_id": "evaluate", "config_file": evaluate, **common}],
            "explain": ["run", {"run_id": "explain", "config_file": explained, **common, **quickly}],
            "inference": ["run", {"config_file": infer, "dataset_dir": data, **quick}],
            "export": ["ckpt_export", {"net_id": "network_def", **export, **inside}],
            # MONAI's command hands the network one tensor; the bundle's own, which runs from inside, handles several
            **(
                {"verify": ["verify_net_in_out", {"net_id": "network_def", **described, **network, **inside}]}
                if alone
                else {}
            ),
        }

    download = ["download", "--name", bundle.name, "--url", archive.as_uri(), "--bundle_dir", str(unpacked.parent)]
    from_outside = steps(str(unpacked), "outside.ts", bundle_root=str(unpacked))
    load = {"name": bundle.name, "bundle_dir": str(unpacked.parent), "workflow_type": "inference"}
    from_inside = steps(".", "inside.ts")
    command = ["run", "--config_file", "configs/inference.json", "--dataset_dir", data]
    command += command_words(quick)
    options = write_new(bundle.name, Path(data), folder / "new")
    preparation = read_metadata(bundle)["preparation"][0]
    new = [preparation, str(folder / "new"), "--inference", "--output", str(folder / "prepared"), *options]
    start = np.round((AFFINE - mni_affine())[:3, 3] / 2).astype(int).tolist()
    tiny = {"folder": str(folder / "prepared"), "start": start, "shape": list(SHAPE)}
    crop = [["crop", tiny]] if bundle.name == "glioma_idh" else []  # its model was trained on the tiny grid
    predict = ["run", "--config_file", "configs/inference.json", "--dataset_dir", str(folder / "prepared")]
    predict += ["--output_dir", str(folder / "predicted"), *command_words(quick)]
    runs = [
        {"cwd": elsewhere, "steps": [["command", download]], "requirements": None},
        {"cwd": elsewhere, "steps": [*from_outside.values(), ["load", load]]},
        {"cwd": unpacked, "steps": [from_inside["evaluate"], ["command", command], from_inside["export"], VERIFY]},
        {"cwd": unpacked, "steps": [["module", new], *crop, ["command", predict]]},
    ]
    for i, run in enumerate(runs):
        run.setdefault("requirements", str(unpacked / "requirements.txt"))
        run |= {"cwd": str(run["cwd"]), "report": str(folder / f"report{i}.json")}
    return bundle, folder, run_elsewhere(folder, runs)


def test_a_downloaded_bundle_runs_on_its_own_code_from_anywhere(used):
    bundle, folder, (_, outside, inside, _) = used
    verified = ["verify_net_in_out"] if one_input(bundle) else []
    assert outside["done"] == ["run", "run", "run", "run", "ckpt_export", *verified, "load"]
    assert inside["done"] == ["run", "command", "ckpt_export", "module"]
    unpacked = folder / "bundles" / bundle.name
    for report in (outside, inside):
        assert Path(report["shared"]).resolve().parent == (unpacked / "shared").resolve()
    assert (unpacked / "models/model.pt").is_file() and (unpacked / "eval/inference/predictions.csv").is_file()
    assert all((folder / f"{place}.ts").stat().st_size > 1000 for place in ("outside", "inside"))
    assert not list((folder / "elsewhere").iterdir()), "a bundle writes into itself only"


def test_a_zip_alone_takes_a_folder_of_new_patients_to_predictions(used):
    bundle, folder, (*_, new) = used
    assert [step for step in new["done"] if step != "crop"] == ["module", "command"]
    assert Path(new["shared"]).resolve().parent == (folder / "bundles" / bundle.name / "shared").resolve()
    predicted = list((folder / "predicted").rglob("predictions.csv"))
    assert len(predicted) == 1 and len(predicted[0].read_text().splitlines()) == 3
    manifest = json.loads((folder / "prepared/manifest.json").read_text())
    assert manifest["command"].startswith(f"python -m {read_metadata(bundle)['preparation'][0]} ")


def test_a_package_holds_no_tests_no_caches_and_no_outputs(used):
    bundle, folder, _ = used
    (archive,) = (folder / "dist").glob("*.zip")
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", archive], capture_output=True, text=True, check=True
    )
    names = [line.split()[0] for line in listed.stdout.splitlines()[1:]]
    assert all(name.startswith(f"{bundle.name}/") for name in names)
    tops = {name.split("/")[1] for name in names}
    assert tops <= {"LICENSE", "configs", "docs", "shared", "requirements.txt", "models"}
    assert not [name for name in names if "__pycache__" in name or "test" in name.rsplit("/", 1)[-1]]


def test_two_bundles_in_one_process_share_one_version_or_are_refused(tmp_path):
    bundles = [bundle for bundle in BUNDLES if one_input(bundle)][:2]
    steps = []
    for bundle in bundles:
        shutil.unpack_archive(package_bundle(bundle, tmp_path / "dist"), tmp_path)
        configs = tmp_path / bundle.name / "configs"
        settings = {key: value for key, value in small_settings(bundle.name).items() if key.startswith("network_def")}
        files = {
            "config_file": [f"{configs}/train.json", f"{configs}/cpu.json"],
            "meta_file": f"{configs}/metadata.json",
        }
        given = {"net_id": "network_def", **files, "bundle_root": str(configs.parent), **settings}
        steps.append(["verify_net_in_out", given])
    first, second = (tmp_path / bundle.name for bundle in bundles)
    shutil.copytree(second, tmp_path / "newer")
    with (tmp_path / "newer/shared/io.py").open("a") as file:
        file.write("\n# another version\n")
    newer = [steps[1][0], json.loads(json.dumps(steps[1][1]).replace(str(second), str(tmp_path / "newer")))]
    runs = [{"cwd": str(tmp_path), "requirements": None, "report": str(tmp_path / f"report{i}.json")} for i in (0, 1)]
    runs[0]["steps"], runs[1]["steps"] = steps, [steps[0], newer]
    same, other = run_elsewhere(tmp_path, runs, fails=[1])
    assert same["done"] == ["verify_net_in_out"] * 2
    assert Path(same["shared"]).resolve().parent == (first / "shared").resolve()
    assert other["done"] == ["verify_net_in_out"] and "another version of it" in other["error"]
