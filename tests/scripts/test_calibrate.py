"""scripts/calibrate.py: from predictions of patients left out to conformal.json."""

import csv
import json

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize("of_folds", [False, True])
def test_probabilities_of_other_views_or_another_average_are_refused(model, tmp_path, of_folds):
    (model / "model.json").write_text(json.dumps({"views": 8, "average": "logits"}))
    place = tmp_path / "new" / ("seed0/fold0" if of_folds else "")
    write(place, [row(k) for k in range(8)])
    (place / "metrics.json").write_text(json.dumps({"AUC": {}}))
    calibrate(str(model), str(tmp_path / "new"))
    (model / "conformal.json").unlink()
    if of_folds:
        (place / "models").mkdir()
        (place / "models/model.json").write_text(json.dumps({"views": 8}))  # of a version that averaged probabilities
    else:
        (place / "metrics.json").write_text(json.dumps({"switched": {"views": 1}}))
    told = r"average probabilities \(the model's own: logits\)" if of_folds else r"views 1 \(the model's own: 8\)"
    with pytest.raises(DataError, match=f"{place} was predicted with {told}"):
        calibrate(str(model), str(tmp_path / "new"))
    assert not (model / "conformal.json").exists()


def test_groups_count_once_and_an_older_table_has_no_distance(model, tmp_path):
    rows = [row(k, group=f"G{k // 4}", trained_on=0) for k in range(16)]
    write(tmp_path / "eval", [{key: value for key, value in r.items() if key != "cohort_distance"} for r in rows])
    calibrate(str(model), str(tmp_path / "eval"))
    assert [part["patients"] for part in content(model)["scores"]] == [4, 4] and content(model)["distance"] is None
    assert np.sum(content(model)["scores"][0]["weights"]) == pytest.approx(4)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"trained_on": 1}, "was trained on P0"),
        ({"label": 0}, "both classes"),
        ({"probability": "x"}, "no number"),
        ({"probability": "nan"}, r"P0 needs a label 0 or 1 and a probability in \[0, 1\]"),
        ({"label": 2}, "P0 needs a label 0 or 1"),
    ],
)
def test_unfit_predictions_are_refused(model, tmp_path, others, message):
    write(tmp_path / "eval", [row(k, **others) for k in range(8)])
    with pytest.raises(DataError, match=message):
        calibrate(str(model), str(tmp_path / "eval"))


def record(**others):
    """What a last stage's model.json holds of its training."""
    settings = {"seed": 0, "fold": -1, "train#rate": 0.1}
    content = {"stage": "train", "settings": settings, "epochs": {"train#epochs": 3}, "classes": ["a", "b"]}
    return content | {"modalities": ["T1", "T2"], "data": {"training": "x"}, "parents": {"pretrain": "x"}} | others


def trained(folder, names, images="image", **others):
    """Files that a training of these patients leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps({"weights": "these", "record": record(**others)}))
    stages = {"train": {name: [f"{images} of {name}"] for name in names}}
    (folder / "split.json").write_text(json.dumps({"cohort": "c", "images": stages}))
    return folder


@pytest.fixture
def cv(tmp_path):
    """Two folds of P0 to P15, trained as the model that is calibrated."""
    everybody = [f"P{k}" for k in range(16)]
    trained(tmp_path / "mine", everybody)
    for fold in (0, 1):
        write(tmp_path / f"cv/seed0/fold{fold}", [row(k) for k in range(fold, 16, 2)])
        settings = record()["settings"] | {"seed": 5, "fold": fold}
        others = {"data": {"training": "y"}, "parents": {"pretrain": "z"}, "settings": settings}
        trained(tmp_path / f"cv/seed0/fold{fold}/models", everybody[1 - fold :: 2], **others)
    return tmp_path / "cv"


def test_a_cross_validation_of_the_model_s_own_settings_and_patients_is_taken(cv, tmp_path):
    assert "\n" not in calibrate(str(tmp_path / "mine"), str(cv))
    assert content(tmp_path / "mine")["weights"] == "these"


def test_a_cross_validation_of_another_pretraining_is_refused(cv, tmp_path):
    for place, epochs in ((tmp_path / "mine", 100), (cv / "seed0/fold0/models", 100), (cv / "seed0/fold1/models", 1)):
        made = record(stage="pretrain", epochs={"pretrain#epochs": epochs})
        torch.save({"network": {}, "record": made}, place / "pretrain.pt")
    with pytest.raises(DataError, match=r"fold1/models/pretrain.pt was trained otherwise .*pretrain#epochs was 100"):
        calibrate(str(tmp_path / "mine"), str(cv))
    (cv / "seed0/fold1/models/pretrain.pt").unlink()
    assert "not checked: the settings of pretrain.pt" in calibrate(str(tmp_path / "mine"), str(cv))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"settings": {"seed": 5, "train#rate": 0.2}}, r"seed0/fold1 was trained otherwise than the model: "),
        ({"epochs": {"train#epochs": 4}}, r"train#epochs was 3, is now 4"),
        ({"modalities": ["T2", "T1"]}, r"the modalities were T1, T2, are now T2, T1"),
        ({"classes": ["b", "a"]}, r"the classes were a, b, are now b, a"),
    ],
)
def test_a_cross_validation_of_other_settings_is_refused(cv, tmp_path, others, message):
    settings = {"settings": record()["settings"] | {"fold": 1}}
    trained(cv / "seed0/fold1/models", [], **settings | others)
    with pytest.raises(DataError, match=message):
        calibrate(str(tmp_path / "mine"), str(cv))
    assert not (tmp_path / "mine/conformal.json").exists()


def test_a_cross_validation_of_other_patients_is_refused(cv, tmp_path):
    mine = str(trained(tmp_path / "others", [f"P{k}" for k in range(14, 18)]))
    with pytest.raises(DataError, match=r"another cohort.* 2 of the 4 patients .* not in it.*\(P16, P17\)"):
        calibrate(mine, str(cv))
    renamed = str(trained(tmp_path / "renamed", ["P1", "P2"], images="another hospital's"))
    with pytest.raises(DataError, match=r"2 of the 2 patients .* with other images \(P1, P2\)"):
        calibrate(renamed, str(cv))
    fewer = str(trained(tmp_path / "fewer", ["P1", "P2"]))
    assert "14 of the 16 patients are none that the model was trained on" in calibrate(fewer, str(cv))


def test_what_is_not_recorded_is_told(cv, tmp_path):
    for path in cv.glob("seed0/fold*/models/*"):
        path.unlink()
    assert "not checked: the settings of" in calibrate(str(tmp_path / "mine"), str(cv))
    (tmp_path / "mine/split.json").unlink()
    assert "not checked: whose images the model was trained on" in calibrate(str(tmp_path / "mine"), str(cv))
    write(tmp_path / "eval", [row(k) for k in range(8)])
    assert "not checked: whether this model predicted" in calibrate(str(tmp_path / "mine"), str(tmp_path / "eval"))


def test_an_evaluation_of_another_model_is_refused(model, tmp_path):
    write(tmp_path / "eval", [row(k) for k in range(8)])
    (tmp_path / "eval/metrics.json").write_text('{"weights": "those"}')
    with pytest.raises(DataError, match="predicted by another model"):
        calibrate(str(model), str(tmp_path / "eval"))
    (tmp_path / "eval/metrics.json").write_text('{"weights": "these"}')
    assert "not checked" not in calibrate(str(model), str(tmp_path / "eval"))
    (tmp_path / "eval/experiment.json").write_text('{"settings": {}}')
    with pytest.raises(DataError, match="lacks the predictions of its folds"):
        calibrate(str(model), str(tmp_path / "eval"))


def test_a_folder_without_a_model_or_predictions_is_refused(model, tmp_path):
    for place in ("empty", "models/model.json"):
        with pytest.raises(DataError, match=r"holds no predictions\.csv: give the folder"):
            calibrate(str(model), str(tmp_path / place))
    with pytest.raises(DataError, match=r"no model\.json"):
        calibrate(str(tmp_path), str(tmp_path))
