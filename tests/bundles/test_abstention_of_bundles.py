"""Every bundle's training leaves cohort.npz, and its evaluation and inference tell distances, flags and sets."""

import json

import pytest

from shared.apps.experiments.calibrate import calibrate
from tests.support.bundle_runs import ROOT, bundle_workflow, rows
from tests.support.documented import undocumented
from tests.support.small import small_data, small_settings

BUNDLES = sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/inference.json"))
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_trained_bundle_abstains(bundle, tmp_path):
    data, settings = small_data(bundle, tmp_path / "data"), small_settings(bundle)
    bundle_workflow(bundle, "train", data=data, out=tmp_path, **settings).run()
    assert (tmp_path / "models/cohort.npz").is_file()
    places = {"data": data, "out": tmp_path, "run_id": "evaluate", "split": "testing", **settings}
    bundle_workflow(bundle, "train", "evaluate", **places).run()
    table = rows(tmp_path / "eval/predictions.csv")
    assert all(float(row["cohort_distance"]) > 0 and row["out_of_cohort"] in "01" for row in table)
    assert {row["set"] for row in table} == {""}
    calibrate(str(tmp_path / "models"), str(tmp_path / "eval"))
    bundle_workflow(bundle, "inference", data=data, out=tmp_path, kind="infer", coverage=0.999).run()
    again = rows(tmp_path / "eval/predictions.csv")
    # so few patients can rule out no class
    classes = "; ".join(json.loads((tmp_path / "models/model.json").read_text())["classes"])
    assert {row["set"] for row in again} == {classes}
    assert all("both classes are plausible at 99.9 %" in row["reason"] for row in again)
    far = {(row.get("image"), row["patient"]): float(row["cohort_distance"]) for row in table}
    for row in again:  # where inference is in bfloat16, they differ by a few per cent
        assert float(row["cohort_distance"]) == pytest.approx(far[row.get("image"), row["patient"]], rel=0.05)
    sets = json.loads((tmp_path / "eval/metrics.json").read_text())["sets"]
    assert [found["value"] for found in sets["classes"].values()] == [1.0, 1.0]
    assert not undocumented("predictions.csv", list(again[0]), bundle)
