"""Checks of a study: learning curve, external validation, failures, audit; each with its section in the study."""

import csv
import json
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from shared.apps.audit import audit, external, learning_curve
from shared.apps.experiments import cross_validate, folder, processes
from shared.apps.study import study as script
from shared.io import write_csv
from tests.support.documented import undocumented_in
from tests.support.fake_patch_bundle import METHOD, TRAIN, write_bundle
from tests.support.tiny_patches import write_patch_data, write_patches

INFER = """
import csv, json, os, sys
from pathlib import Path

if "inference.json" in " ".join(sys.argv):
    values = dict(a[2:].split("=", 1) for a in sys.argv if a.startswith("--") and "=" in a)
    model = json.loads((Path(values["ckpt_dir"]) / "model.pt").read_text())
    root, out = Path(values["dataset_dir"]), Path(values["output_dir"])
    with (out / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "label", "probability"])
        for k, case in enumerate(json.loads((root / "datalist.json").read_text())[values["split"]]):
            # what a model says hangs on how many it was trained on, so that no two folds are alike
            share = (len(model["trained"]) % 7 + 3 * k) % 11 / 11
            share = 0.4 * case["label"] + 0.6 * share if os.environ.get("FAKE_FAR") != "1" else 1 - case["label"]
            writer.writerow([root / case["image"], case["patient"], case["label"], 0.05 + 0.9 * share])
    sys.exit()
"""
STUDY = {
    "citation": "A. Author",
    "paper_data": "data of the paper",
    "rows": {"whole": {"title": "whole"}, "longer": {"title": "longer", "set": {"epochs": 7}}},
    "tables": {"table_2": {"title": "Table 2", "rows": [{"row": "whole"}]}},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A bundle that trains and predicts in a moment, its cohort, and other patients."""
    root = tmp_path_factory.mktemp("checks")
    content = write_patch_data(root / "data", training=16, testing=4, side=24)
    content["testing"] = []
    (root / "data/datalist.json").write_text(json.dumps(content))
    others = write_patches(root / "far", 12, side=24, first=60)
    (root / "far/datalist.json").write_text(json.dumps({"classes": ["HP", "SSA"], "training": [], "testing": others}))
    bundle = write_bundle(root / "bundle")
    (bundle / "fake_method.py").write_text(INFER + METHOD)
    (bundle / "configs/inference.json").write_text(json.dumps({**TRAIN, "mask": 1}))
    (bundle / "configs/study.json").write_text(json.dumps(STUDY))
    with pytest.MonkeyPatch.context() as patch:
        command = (sys.executable, str(bundle / "fake_method.py"))
        patch.setattr(cross_validate, "RUN_BUNDLE", command)
        patch.setattr(processes, "RUN_BUNDLE", command)
        patch.setattr(folder, "_pictures", lambda *_: None)
        yield root


def options(place, name, *more):
    given = [place / "bundle", "--dataset_dir", place / "data", "--output", place / name, "--bootstrap", "40"]
    return [*map(str, given), "--folds", "2", "--threads", "1", *more]


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def curve(place):
    command = options(place, "curve/share_1", "--seeds", "0", "1")
    cross_validate.main(command)
    whole = cross_validate.Experiment(cross_validate.arguments(command))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning_curve, "SHARES", (0.25, 0.5))
        learning_curve.learning_curve(whole, command, place / "curve", place / "curve")
    return place / "curve"


def test_draws_are_nested_stratified_and_of_whole_patients(curve):
    trained = {}
    for share in ("0.25", "0.5"):
        for path in sorted(curve.glob(f"share_{share}/seed*/fold*/datalist.json")):
            content = json.loads(path.read_text())["training"]
            number = int(path.parent.name[4:])
            used = [case for case in content if case["fold"] != number]
            trained[share, path.parent.relative_to(path.parents[2])] = {case["patient"] for case in used}
            assert len(used) == 3 * len({case["patient"] for case in used})  # all patches of each
            counts = [len({c["patient"] for c in used if c["label"] == label}) for label in (0, 1)]
            assert counts == [int(8 * float(share) / 2)] * 2
            # who is left out is tested whole, whatever the share
            assert len({c["patient"] for c in content if c["fold"] == number}) == 8
    for (share, fold), patients in trained.items():
        if share == "0.25":
            assert patients < trained["0.5", fold]


def test_the_curve_is_that_of_the_experiments(curve):
    rows = read(curve / "learning_curve.csv")
    assert [(row["share"], row["patients"]) for row in rows] == [("0.25", "2.0"), ("0.5", "4.0"), ("1.0", "8.0")]
    for row in rows:
        aucs = []
        for seed in (0, 1):
            paths = curve.glob(f"share_{float(row['share']):g}/seed{seed}/fold*/predictions.csv")
            found = [one for path in paths for one in read(path)]
            aucs.append(
                roc_auc_score([int(one["label"]) for one in found], [float(one["probability"]) for one in found])
            )
        assert float(row["AUC_value"]) == pytest.approx(np.mean(aucs))
    assert float(rows[0]["AUC_value"]) < float(rows[2]["AUC_value"])  # the fake method learns from more patients
    assert rows[2]["difference"] == "" and float(rows[0]["difference"]) < 0
    section = json.loads((curve / "sections/50_learning_curve.json").read_text())
    assert len(section["tables"][0]["rows"]) == 3 and (curve / section["pictures"][0]["file"]).is_file()


def test_a_share_goes_without_other_labels(place, capsys):
    with pytest.raises(SystemExit):
        cross_validate.arguments(options(place, "x", "--share", "0.5", "--votes", "3"))
    assert "--share must be above 0" in capsys.readouterr().err


def test_a_study_runs_its_checks_and_takes_them_up(place):
    checks = ["--checks", "audit", "failures", "learning_curve", "--external", str(place / "far")]
    script.main(options(place, "study", "--tables", "table_2", *checks))
    study = place / "study"
    names = {path.stem for path in (study / "sections").glob("*.json")}
    assert {"10_audit", "40_failures", "50_learning_curve", "60_external"} <= names
    for path in (study / "sections").glob("*.json"):
        content = json.loads(path.read_text())
        assert all((study / picture["file"]).is_file() for picture in content["pictures"]), path.name
        assert set(content) == {"title", "status", "text", "tables", "pictures", "patients"}
    for name, of in (("audit", "Audit"), ("failures", "Failures"), ("external", "External validation")):
        found = undocumented_in(study / name, of)
        assert not [path for path in found if not path.startswith("nothing.json")], name
    assert not [path for path in undocumented_in(study / "learning_curve", "Learning curve") if "share_" not in path]
    # all patients were trained on in the row itself: it is not trained again
    assert not (study / "learning_curve/share_1").exists()
    assert len(list((study / "external/models").glob("seed*/predictions.csv"))) == 2
    assert "20_subgroups" not in names
    calls = [path.read_text() for path in study.glob("rows/whole/seed*/fold*/calls.txt")]
    cases = json.loads((place / "data/datalist.json").read_text())["training"]
    patients = dict.fromkeys(case["patient"] for case in cases)
    later = place / "data/subgroups.csv"
    write_csv(later, [{"patient": patient, "site": "AB"[k // 2 % 2]} for k, patient in enumerate(patients)])
    script.main(options(place, "study", "--tables", "table_2", *checks))
    later.unlink()
    assert (study / "sections/20_subgroups.json").is_file()  # for which nothing is trained again
    assert calls == [path.read_text() for path in study.glob("rows/whole/seed*/fold*/calls.txt")]


def test_checks_run_once_and_one_that_fails_takes_no_report_away(place, monkeypatch):
    calls = []
    monkeypatch.setattr(audit, "audit", calls.append)
    given = options(place, "failing", "--tables", "table_2", "--checks", "audit")
    script.main(given)
    assert len(calls) == 1

    def fails(_):
        raise external.DataError("it failed")

    monkeypatch.setattr(audit, "audit", fails)
    (place / "failing/report.html").unlink()
    with pytest.raises(SystemExit, match="it failed"):
        script.main(given)
    assert "Table 2" in (place / "failing/report.html").read_text()


def test_external_patients_are_compared_with_the_development(place, monkeypatch):
    monkeypatch.setenv("FAKE_FAR", "1")
    script.main(options(place, "far_study", "--tables", "table_2", "--external", str(place / "far")))
    result = json.loads((place / "far_study/external/external.json").read_text())
    assert result["external"]["patients"] == 12 and result["external"]["AUC"]["value"] == 0.0
    near = json.loads((place / "far_study/rows/whole/results.json").read_text())["metrics"]["AUC"]["value"]
    assert result["development"]["AUC"]["value"] == pytest.approx(near)
    section = json.loads((place / "far_study/sections/60_external.json").read_text())
    assert section["status"] == "amber" and "12 patients of far" in section["text"][0]


def test_external_data_that_cannot_be_used_are_refused_before_anything_is_predicted(place, tmp_path):
    with pytest.raises(SystemExit, match="External patients must not be those of the development"):
        script.main(options(place, "same", "--tables", "table_2", "--external", str(place / "data")))
    assert not (place / "same").exists()  # before anything is trained
    content = json.loads((place / "far/datalist.json").read_text())
    content["testing"] = [case for case in content["testing"] if case["label"] == 1]
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(external.DataError, match="both labels are needed"):
        external.external_rows(tmp_path)
