"""One command from a small cohort to a study's report, in every bundle: real trainings, explanation, audit."""

import csv
import json
import subprocess
import sys

import pytest
from sklearn.metrics import roc_auc_score

from tests.support.bundle_runs import ROOT, rows
from tests.support.small import small_data, small_settings

METHOD = {"sscl_crc": "sscl", "ircl_mvi": "ircl", "glioma_idh": "whole"}  # the row that is trained
SLOW = [pytest.param(bundle, "summary", marks=pytest.mark.slow) for bundle in METHOD]  # explained to the end


@pytest.mark.parametrize(("bundle", "table"), [("sscl_crc", "table_2"), *SLOW])
def test_a_study_ends_with_a_report_of_its_own_predictions(bundle, table, tmp_path):
    data, out = small_data(bundle, tmp_path / "data"), tmp_path / "study"
    settings = [f"{key}={value}" for key, value in small_settings(bundle).items()]
    command = [sys.executable, ROOT / "scripts/study.py", bundle, "--dataset_dir", data, "--output", out]
    command += ["--tables", table, "--folds", "2", "--threads", "1", "--bootstrap", "50", "--checks", "audit"]
    ended = subprocess.run([*command, "--set", *settings], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    predictions = rows(out / "rows" / METHOD[bundle] / "predictions.csv")
    known = [int(row["label"]) for row in predictions], [float(row["probability"]) for row in predictions]
    with (out / f"tables/{table}.csv").open(newline="", encoding="utf-8") as file:
        first = next(csv.DictReader(file))
    assert first["metric"] == "AUC" and float(first["value"]) == pytest.approx(roc_auc_score(*known))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Leakage audit" in page and f"{float(first['value']):.3f}" in page and len(page) < 15e6
    assert json.loads((out / "audit/audit.json").read_text())
