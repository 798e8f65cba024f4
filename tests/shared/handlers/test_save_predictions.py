import csv
import json

import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.transforms import Activationsd
from PIL import Image
from torch.utils.data import DataLoader

from shared.data import PatchCache, PatchRows, collate_cases, collate_patches
from shared.engines import PrepareCases, PreparePatches
from shared.handlers import SavePredictions
from shared.metrics import classification_metrics
from shared.networks import AttentionMIL, IRCLClassifier, SSCLClassifier
from tests.support.additive import tiny_additive, tumours
from tests.support.tiny import cohort, lively_images, tiny_classifier


def evaluate(folder, cases, network, *, asked=None, **settings):
    saver = SavePredictions(folder, bootstrap=50, network=asked, **settings)
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


def test_every_predictor_of_a_network_has_a_column(tmp_path):
    network, images = tiny_additive(num_covariates=1), tumours(6)
    cases = cohort(images, [0, 1, 1, 0, 1, 0], [[float(i)] for i in range(6)], names=("age",))
    evaluate(tmp_path, cases, network, asked=network)
    rows = table(tmp_path)
    assert list(rows[0]) == ["patient", "label", "probability", "probability_prototype", "probability_additive"]
    with torch.no_grad():
        answers = network.answers(images, torch.arange(6.0)[:, None])
    for name, column in (("additive", "probability"), *((name, f"probability_{name}") for name in answers)):
        expected = answers[name].softmax(dim=1)[:, 1].tolist()
        assert [float(row[column]) for row in rows] == pytest.approx(expected, abs=1e-5)
    # a network of one predictor has no more columns
    evaluate(tmp_path / "one", cases, network, asked=AttentionMIL(4, channels=(4, 8)))
    assert list(table(tmp_path / "one")[0]) == ["patient", "label", "probability"]


def test_the_intervals_of_grouped_patients_are_over_groups(tmp_path):
    cases = cohort(lively_images(6), [0, 1, 1, 0, 1, 0])
    grouped = [{**case, "group": f"G{row // 2}"} for row, case in enumerate(cases)]
    evaluate(tmp_path, grouped, tiny_classifier(IRCLClassifier))
    rows = table(tmp_path)
    assert list(rows[0]) == ["patient", "group", "label", "probability"]
    assert [row["group"] for row in rows] == ["G0", "G0", "G1", "G1", "G2", "G2"]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    given = [int(row["label"]) for row in rows], [float(row["probability"]) for row in rows]
    expected = classification_metrics(*given, bootstrap=50, groups=[row["group"] for row in rows])
    assert metrics["AUC"] == expected["AUC"] and metrics["ACC"] == expected["ACC"] and metrics["groups"] == 3
    assert "patients" not in metrics and (tmp_path / "calibration.png").exists()


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


@pytest.fixture
def patches(tmp_path):
    """Entries of 12 patches of 4 patients; the last lies outside the dataset's folder."""
    random, entries = np.random.default_rng(0), []
    for i in range(12):
        folder = tmp_path / ("elsewhere" if i == 11 else f"data/{'SSA' if i % 2 else 'HP'}")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        entries.append({"image": str(folder / f"{i}.png"), "patient": f"P{i // 3}", "label": i % 2})
    return entries


def evaluate_patches(tmp_path, entries, name="out"):
    torch.manual_seed(0)
    settings = {"block": "basic", "layers": (1, 1, 1, 1), "channels": (4, 4, 8, 8)}
    network = SSCLClassifier(settings).eval()
    rows = PatchRows(PatchCache(entries, progress=False), names=True)
    options = {"class_names": ["HP", "SSA"], "bootstrap": 50, "dataset_dir": tmp_path / "data"}
    saver = SavePredictions(tmp_path / name, **options)
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(rows, batch_size=5, collate_fn=collate_patches),
        network=network,
        prepare_batch=PreparePatches(),
        postprocessing=Activationsd("pred", softmax=True),
        val_handlers=[saver],
    ).run()
    with torch.no_grad():
        expected = network(rows.images[:] / 255).softmax(dim=1)[:, 1]
    return table(tmp_path / name), expected.tolist()


def test_a_row_per_patch_with_intervals_over_patients(tmp_path, patches):
    rows, expected = evaluate_patches(tmp_path, patches)
    assert list(rows[0]) == ["image", "patient", "label", "probability"]
    names = [f"{'SSA' if i % 2 else 'HP'}/{i}.png" for i in range(11)] + [str(tmp_path / "elsewhere/11.png")]
    assert [row["image"] for row in rows] == names and [row["patient"] for row in rows[:4]] == ["P0"] * 3 + ["P1"]
    assert [float(row["probability"]) for row in rows] == pytest.approx(expected, abs=1e-6)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    labels = [row["label"] for row in patches]
    found = [float(row["probability"]) for row in rows]
    of_cases = classification_metrics(labels, found, bootstrap=50, groups=[row["patient"] for row in patches])
    assert metrics["AUC"] == of_cases["AUC"] and metrics["n"] == 12 and metrics["patients"] == 4
    called = np.array(found) >= 0.5
    assert metrics["classes"]["SSA"]["support"] == 6
    assert metrics["classes"]["HP"]["recall"]["value"] == pytest.approx(1 - called[::2].mean())
    assert metrics["confusion"]["matrix"][1] == [int((~called[1::2]).sum()), int(called[1::2].sum())]
    for picture in ("roc.png", "calibration.png", "confusion.png"):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")


def test_patches_without_labels_are_predicted_without_metrics(tmp_path, patches):
    entries = [{key: entry[key] for key in ("image", "patient")} for entry in patches]
    rows, _ = evaluate_patches(tmp_path, entries)
    assert [row["label"] for row in rows] == [""] * 12 and len({row["probability"] for row in rows}) > 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.csv"]
