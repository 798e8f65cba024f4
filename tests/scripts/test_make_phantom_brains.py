"""A cohort of phantom gliomas: files as the data contract says, the same each time, its truth in its manifest."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from shared.data import Datalist
from shared.data.brain.atlas import TractAtlas
from shared.data.brain.mni import MNI_SHAPE, mni_affine, mni_grid_problem
from tests.scripts.test_prepare_scripts import contents, load_script

ROOT = Path(__file__).resolve().parents[2]
script = load_script("make_phantom_brains")
SMALL = ("--patients", "4", "--test-patients", "2", "--folds", "2", "--anatomy", "ellipsoid", "--fa")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    output = tmp_path_factory.mktemp("cohort") / "a"
    assert script.main(["--output", str(output), *SMALL, "--jobs", "2"]) == 0
    return output


def test_help_comes_without_numpy_or_torch(tmp_path):
    path = str(ROOT / "scripts" / "make_phantom_brains.py")
    code = (
        f"import runpy, sys\nsys.argv = [{path!r}, '--help']\n"
        f"try: runpy.run_path({path!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'monai', 'numpy', 'nilearn'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "--infiltrated-tracts" in done.stdout


def test_the_datalist_is_accepted_and_its_files_lie_on_the_mni_grid(cohort):
    data = Datalist(cohort, fold=0)
    assert len(data.training) == len(data.validation) == len(data.testing) == 2
    content = json.loads((cohort / "datalist.json").read_text())
    assert content["modalities"] == ["T1", "T1c", "T2", "FLAIR"] and content["classes"][1] == "IDH mutant"
    case = data.training[0]
    for path in (*case["image"], case["mask"], cohort / content["training"][0]["planted"]):
        image = nib.load(path)
        assert mni_grid_problem(image.shape, image.affine) is None
    fa = nib.load(cohort / content["training"][0]["fa"]).get_fdata()
    assert fa[fa > 0].mean() > 0.2 and fa.max() < 1
    assert set(case["covariates"]) == {"age", "grade"}
    atlas = TractAtlas.load(cohort / "atlas.npz")
    atlas.check_grid(MNI_SHAPE, mni_affine())


def test_the_manifest_tells_the_truth_that_was_planted(cohort):
    manifest = json.loads((cohort / "manifest.json").read_text())
    assert manifest["auc_best_reader"]["shape"] == 0.9 and manifest["auc_best_reader"]["all"] > 0.99
    rows = {row["patient"]: row for row in csv.DictReader((cohort / "signs.csv").open())}
    content = json.loads((cohort / "datalist.json").read_text())
    for case in content["training"] + content["testing"]:
        row, planted = rows[case["patient"]], np.asarray(nib.load(cohort / case["planted"]).dataobj)
        assert case["label"] == int(row["label"]) and case["covariates"]["age"] == float(row["age"])
        codes = manifest["planted_codes"]
        assert (planted == codes["spicules"]).any() == (row["shape"] == "0")
        assert (planted == codes["mismatch"]).any() == (row["intensity"] == "1")
        assert (planted == codes["infiltrated_tracts"]).any() == bool(row["tracts_infiltrated"])


def test_beside_the_datalist_lies_one_for_each_sign(cohort):
    rows = {row["patient"]: row for row in csv.DictReader((cohort / "signs.csv").open())}
    whole = json.loads((cohort / "datalist.json").read_text())
    for sign in ("shape", "intensity", "tracts"):
        content = json.loads((cohort / f"datalist_{sign}.json").read_text())
        for part in ("training", "testing"):
            assert [case["label"] for case in content[part]] == [int(rows[c["patient"]][sign]) for c in whole[part]]
            assert [{**case, "label": 0} for case in content[part]] == [{**case, "label": 0} for case in whole[part]]
        assert content["classes"] == [f"{sign} as in wild type", f"{sign} as in mutant"]


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(cohort, tmp_path, capsys):
    # however many are painted at a time: the first with two
    assert script.main(["--output", str(tmp_path / "b"), *SMALL, "--jobs", "1"]) == 0
    first, second = contents(cohort), contents(tmp_path / "b")
    different = {str(path) for path in first.keys() | second.keys() if first.get(path) != second.get(path)}
    assert different <= {"manifest.json"}  # it holds the command line
    capsys.readouterr()
    assert script.main(["--output", str(tmp_path / "b"), *SMALL]) == 0
    assert "is there already" in capsys.readouterr().out
    (tmp_path / "b" / "G003" / "t1.nii.gz").unlink()
    small = ["--output", str(tmp_path / "b"), *SMALL, "--seed", "1"]
    assert script.main(small) == 0
    third = contents(tmp_path / "b")
    assert third[Path("G003/t1.nii.gz")] != first[Path("G003/t1.nii.gz")]


def test_a_given_atlas_is_used_and_one_of_another_grid_refused(cohort, tmp_path, capsys):
    from tests.support.tiny_brain import tiny_atlas

    given = ("--patients", "1", "--test-patients", "0", "--folds", "0", "--anatomy", "ellipsoid")
    assert script.main(["--output", str(tmp_path / "c"), *given, "--atlas", str(cohort / "atlas.npz")]) == 0
    assert not (tmp_path / "c" / "atlas.npz").exists() and not (tmp_path / "c" / "G001" / "fa.nii.gz").exists()
    tiny_atlas().save(tmp_path / "tiny.npz")
    assert script.main(["--output", str(tmp_path / "d"), *given, "--atlas", str(tmp_path / "tiny.npz")]) == 2
    assert "must lie on the atlas's grid 14 x 16 x 12" in capsys.readouterr().err


def test_other_peoples_files_are_not_touched(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert script.main(["--output", str(tmp_path), *SMALL]) == 2
    assert "holds files that are no phantom cohort" in capsys.readouterr().err and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("given", [("--shape", "0.4"), ("--tracts", "1.1"), ("--test-patients", "-1")])
def test_impossible_settings_are_refused(tmp_path, given, capsys):
    with pytest.raises(SystemExit):
        script.main(["--output", str(tmp_path / "e"), *given])
    assert "must" in capsys.readouterr().err
