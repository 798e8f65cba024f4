import csv
import json

import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.transforms import Activationsd
from torch.utils.data import DataLoader

from shared.data import collate_cases
from shared.engines import PrepareCases
from shared.handlers import SavePredictions
from shared.networks import IRCLClassifier
from tests.tiny import cohort, lively_images, tiny_classifier


def evaluate(folder, cases, network, **settings):
    saver = SavePredictions(folder, bootstrap=50, **settings)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(cases, batch_size=4, collate_fn=collate_cases),
        network=network,
        prepare_batch=PrepareCases(),
        postprocessing=Activationsd("pred", softmax=True),
        val_handlers=[saver],
    )
    evaluator.run()
    return evaluator


def table(folder):
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_one_row_per_patient_with_the_probability_of_class_1(tmp_path):
    network, images = tiny_classifier(IRCLClassifier, num_covariates=1), lively_images(6)
    cases = cohort(images, [0, 1, 1, 0, 1, 0], [[float(i)] for i in range(6)], names=("age",))
    evaluate(tmp_path, cases, network)
    rows = table(tmp_path)
    assert list(rows[0]) == ["patient", "label", "probability"]
    assert [row["patient"] for row in rows] == [f"P{i}" for i in range(6)]
    assert [row["label"] for row in rows] == ["0", "1", "1", "0", "1", "0"]
    expected = network(images, torch.arange(6.0)[:, None]).softmax(dim=1)[:, 1]
    assert [float(row["probability"]) for row in rows] == pytest.approx(expected.tolist(), abs=1e-5)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    positive, negative = expected[[1, 2, 4]], expected[[0, 3, 5]]
    assert metrics["AUC"]["value"] == pytest.approx(float((positive[:, None] > negative).float().mean()), abs=1e-6)
    assert (tmp_path / "roc.png").exists() and (tmp_path / "calibration.png").exists()


def test_patients_without_a_label_are_predicted_without_metrics(tmp_path):
    cases = cohort(lively_images(3), [None, None, None])
    evaluate(tmp_path, cases, tiny_classifier(IRCLClassifier))
    assert [row["label"] for row in table(tmp_path)] == ["", "", ""]
    assert all(0 < float(row["probability"]) < 1 for row in table(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


def test_one_class_alone_has_no_curves(tmp_path):
    evaluate(tmp_path, cohort(lively_images(3), [1, 1, 1]), tiny_classifier(IRCLClassifier))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["AUC"]["value"] is None and not (tmp_path / "roc.png").exists()


def test_a_second_evaluation_starts_anew(tmp_path):
    cases, network = cohort(lively_images(5), [None] * 5), tiny_classifier(IRCLClassifier)
    evaluator = evaluate(tmp_path, cases, network)
    evaluator.state.epoch = evaluator.state.iteration = 0
    evaluator.run()
    assert len(table(tmp_path)) == 5
