"""What an evaluation measures by default, in which order it is told, and what a control is compared by."""

import json
import logging

import numpy as np
import pytest

from shared.metrics import decision_curve, delong_test, holm_adjusted, paired_difference
from shared.reports.glioma_controls import write_glioma_controls
from shared.reports.predictions import write_predictions
from shared.reports.tables import bounds_text
from shared.reports.validation import control_differences, development_text, sample_size_text, validation_sections

SECTIONS = ("calibration", "decision", "operating_points", "delong", "sample_size")


def _rows(count=40, seed=0, **columns):
    random = np.random.default_rng(seed)
    rows = []
    for k in range(count):
        label = k % 3 == 0
        odds = 1.5 * label - 0.7 + random.normal()
        row = {"patient": f"P{k:02d}", "label": int(label), "probability": float(1 / (1 + np.exp(-odds)))}
        rows.append(row | {name: float(random.random()) for name in columns})
    return rows


def test_an_evaluation_has_all_sections_and_logs_them_in_their_order(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        metrics = write_predictions(tmp_path, _rows(), thresholds={"Youden": 0.4}, bootstrap=30)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert {"AUC", "ACC", "F1", "BRIER", "n", "positives", *SECTIONS} <= set(metrics)
    assert set(metrics["operating_points"]) == {"0.5", "Youden"}
    text = "\n".join(record.message for record in caplog.records)
    wanted = ["AUC 0.", "AUC, DeLong's", "calibration intercept", "calibration slope", "net benefit at 0.5", "at 0.5:"]
    wanted += ["at Youden (0.400):", "40 patients, 14 positive. For 95 %", "\nF1 ", "\nACC "]
    places = [text.index(each) for each in wanted]
    assert places == sorted(places)
    for name in ("roc", "calibration", "decision"):
        assert (tmp_path / f"{name}.png").exists()


def test_patches_are_drawn_by_patient_in_every_section():
    rows = _rows(60)
    labels, probability = ([row[key] for row in rows] for key in ("label", "probability"))
    alone = validation_sections(labels, probability, bootstrap=60)
    three = [np.tile(x, 3) for x in (labels, probability, [f"P{k:02d}" for k in range(60)])]
    found = validation_sections(three[0], three[1], groups=three[2], bootstrap=60)
    for section, key in (("calibration", "slope"), ("delong", None)):
        one, other = (part[section][key] if key else part[section] for part in (alone, found))
        assert (other["low"], other["high"]) == pytest.approx((one["low"], one["high"]), abs=1e-6)
    assert found["decision"]["low"] == pytest.approx(alone["decision"]["low"])


def test_one_class_alone_is_told_and_not_drawn(tmp_path, caplog):
    rows = [row | {"label": 1} for row in _rows(4)]
    with caplog.at_level(logging.INFO):
        metrics = write_predictions(tmp_path, rows, bootstrap=10)
    assert metrics["delong"]["undefined"] == "all rows are of one class" and not (tmp_path / "decision.png").exists()
    assert "calibration slope: all rows are of one class" in caplog.text
    assert metrics["sample_size"]["validation"] == dict.fromkeys(("observed_expected", "slope", "AUC"))


def test_differences_to_controls_are_corrected_for_their_number():
    rows = _rows(50, a=1, b=1)
    labels, own, a, b = ([row[key] for row in rows] for key in ("label", "probability", "a", "b"))
    found = control_differences(labels, own, {"a": a, "b": b}, bootstrap=200)
    for name, other in (("a", a), ("b", b)):
        expected = paired_difference(labels, own, other, bootstrap=200)
        assert found[name]["value"] == expected["value"] and found[name]["p"] == expected["p"]
        assert found[name]["p_delong"] == delong_test(labels, own, other)["p"]
    for key in ("p", "p_delong"):
        assert [each[f"{key}_holm"] for each in found.values()] == holm_adjusted([each[key] for each in found.values()])


def test_a_glioma_evaluation_compares_the_graph_with_each_control(tmp_path):
    rows = [row | {"out_of_cohort": 0} for row in _rows(30, mlp=1, no_edges=1)]
    metrics = write_predictions(tmp_path, rows, bootstrap=20)
    before = (tmp_path / "decision.png").read_bytes()
    result = write_glioma_controls(tmp_path, rows, metrics, class_names=["wild type", "mutant"], bootstrap=20)
    names = {"trained with edges, predicted without": "no_edges", "MLP on the same embeddings": "mlp"}
    written = json.loads((tmp_path / "metrics.json").read_text())
    labels, own = ([row[key] for row in rows] for key in ("label", "probability"))
    for title, key in names.items():
        other = [row[key] for row in rows]
        expected = decision_curve(labels, own, controls={title: other}, bootstrap=0)["controls"][title]
        assert written["decision"]["controls"][title] == expected
        value = result["all"]["AUC"]["population graph"]["value"] - result["all"]["AUC"][title]["value"]
        assert result["all"]["difference"][title]["value"] == pytest.approx(value)
    assert set(result["all"]["difference"]) == set(names) and (tmp_path / "decision.png").read_bytes() != before
    assert "| p (Holm) |" in (tmp_path / "controls.md").read_text()


def test_sentences():
    section = {
        "validation": {"observed_expected": 300, "slope": 900, "AUC": None},
        "development": {"r_squared": 0.2, "parameters": 3},
    }
    text = sample_size_text(section, 400, 100, 20)
    assert text.startswith("400 rows of 20 patients, 100 positive.") and "about 900, 300 and - independent" in text
    assert "of 3 candidate parameters" in development_text(section)
    assert bounds_text({"value": 2.0, "low": None, "high": 3.0}) == "2.000 [-, 3.000]"


def test_no_figure_of_an_earlier_run_stands_beside_the_predictions_of_a_later_one(tmp_path, monkeypatch):
    write_predictions(tmp_path, _rows(), bootstrap=5, weights="first")
    assert json.loads((tmp_path / "metrics.json").read_text())["weights"] == "first"
    write_predictions(tmp_path, [row | {"label": ""} for row in _rows()], bootstrap=5)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]
    write_predictions(tmp_path, _rows(), bootstrap=5)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shared.reports.predictions.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        write_predictions(tmp_path, _rows(), bootstrap=5)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


def test_a_row_twice_of_its_patient_changes_no_difference_to_a_control():
    random = np.random.default_rng(0)
    labels, names = random.integers(0, 2, 30), [f"P{k:02d}" for k in range(30)]
    model, control = (np.clip(0.3 * labels + 0.7 * random.random(30), 0, 1) for _ in range(2))
    once = control_differences(labels, model, {"age": control}, groups=names, bootstrap=40)["age"]
    twice = (np.repeat(x, 2) for x in (labels, model, control, names))
    labels, model, control, names = twice
    found = control_differences(labels, model, {"age": control}, groups=names, bootstrap=40)["age"]
    assert found == {key: pytest.approx(value, abs=1e-9) for key, value in once.items()}
