"""scripts/calibrate.py: from predictions of patients left out to conformal.json."""

import csv
import json

import numpy as np
import pytest

from shared.apps.experiments.calibrate import calibrate, main
from shared.errors import DataError
from shared.metrics.cohort_distance import distance_limit
from shared.metrics.conformal import class_scores
from shared.metrics.thresholds import training_thresholds


def write(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "predictions.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def row(k, **others):
    """A patient's row of a fold's table."""
    values = {"patient": f"P{k}", "label": k % 2, "probability": 0.05 * k % 1, "cohort_distance": 1 + 0.1 * k}
    return values | others


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    settings = {"seed": 0, "train#epochs": 3}
    (folder / "model.json").write_text(json.dumps({"weights": "these", "record": {"settings": settings}}))
    return folder


def content(model):
    return json.loads((model / "conformal.json").read_text())


def test_all_folds_and_seeds_are_taken_a_patient_counting_once(model, tmp_path, capsys):
    cv, rows = tmp_path / "cv", []
    for seed in (0, 1):
        for fold in (0, 1):
            part = [row(k, probability=round((0.07 * k + 0.3 * seed) % 1, 3)) for k in range(fold, 16, 2)]
            write(cv / f"seed{seed}/fold{fold}", part)
            rows += part
    main([str(model), "--predictions", str(cv)])
    assert "sets from 8 and 8 patients of class 0 and 1; distance limit" in capsys.readouterr().out
    names = [r["patient"] for r in rows]
    assert content(model)["scores"] == class_scores([r["label"] for r in rows], [r["probability"] for r in rows], names)
    assert content(model)["distance"] == pytest.approx(distance_limit([r["cohort_distance"] for r in rows], names))
    fixed = training_thresholds([r["label"] for r in rows], [r["probability"] for r in rows])
    assert content(model)["thresholds"] == fixed
    assert content(model)["weights"] == "these" and "P1" not in (model / "conformal.json").read_text()


@pytest.mark.parametrize("answer", ["graph", "additive"])
def test_the_answer_that_was_predicted_is_told(model, tmp_path, answer):
    others = {"graph": [0.1 * k for k in range(8)], "additive": [0.9 - 0.1 * k for k in range(8)]}
    rows = [row(k, probability=others[answer][k] + 1e-6) for k in range(8)]
    rows = [r | {f"probability_{name}": values[k] for name, values in others.items()} for k, r in enumerate(rows)]
    write(tmp_path / "eval", rows)
    calibrate(str(model), str(tmp_path / "eval"))
    assert content(model)["answer"] == answer


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"shuffle_labels": True}, "trained with shuffle_labels"), ({"share": 0.5}, "with share"), ({}, "seed0/fold1")],
)
def test_a_cross_validation_of_other_labels_or_not_done_is_refused(model, tmp_path, settings, message):
    write(tmp_path / "seed0/fold0", [row(k) for k in range(8)])
    (tmp_path / "experiment.json").write_text(json.dumps({"settings": {"folds": 2, **settings}}))
    with pytest.raises(DataError, match=message):
        calibrate(str(model), str(tmp_path))
    assert not (model / "conformal.json").exists()


def test_groups_count_once_and_an_older_table_has_no_distance(model, tmp_path):
    rows = [row(k, group=f"G{k // 4}", trained_on=0) for k in range(16)]
    write(tmp_path / "eval", [{key: value for key, value in r.items() if key != "cohort_distance"} for r in rows])
    calibrate(str(model), str(tmp_path / "eval"))
    assert [part["patients"] for part in content(model)["scores"]] == [4, 4] and content(model)["distance"] is None
    assert np.sum(content(model)["scores"][0]["weights"]) == pytest.approx(4)


@pytest.mark.parametrize(
    ("others", "message"),
    [({"trained_on": 1}, "was trained on P0"), ({"label": 0}, "both classes"), ({"probability": "x"}, "no number")],
)
def test_unfit_predictions_are_refused(model, tmp_path, others, message):
    write(tmp_path / "eval", [row(k, **others) for k in range(8)])
    with pytest.raises(DataError, match=message):
        calibrate(str(model), str(tmp_path / "eval"))


def test_a_cross_validation_of_other_settings_is_refused(model, tmp_path):
    fold = tmp_path / "cv/seed0/fold0"
    write(fold, [row(k) for k in range(8)])
    (fold / "models").mkdir()
    settings = {"seed": 5, "train#epochs": 4}
    (fold / "models/model.json").write_text(json.dumps({"record": {"settings": settings}}))
    with pytest.raises(DataError, match=r"other settings than the model \(train#epochs\)"):
        calibrate(str(model), str(tmp_path / "cv"))
    with pytest.raises(DataError, match=r"no model\.json"):
        calibrate(str(tmp_path), str(tmp_path / "cv"))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"split": "training", "weights": "these"}, "evaluates the training part"),
        ({"split": "testing", "weights": "others"}, "evaluates another model than this one"),
        ({"split": "testing", "weights": "these"}, None),
    ],
)
def test_an_evaluation_is_of_this_model_and_of_patients_left_out(model, tmp_path, said, words):
    folder = tmp_path / "eval"
    write(folder, [row(k) for k in range(16)])
    (folder / "metrics.json").write_text(json.dumps({"evaluated": said}))
    if words is None:
        assert "sets from 8 and 8" in calibrate(str(model), str(folder))
        return
    with pytest.raises(DataError, match=words):
        calibrate(str(model), str(folder))
    assert not (model / "conformal.json").exists()
