"""Slides' labels alone through the SSCL bundle: trained, evaluated, predicted, with parts of the logit per tile."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest
import tifffile
import torch
from ignite.engine import Events
from sklearn.metrics import roc_auc_score

from shared.engines import slide_features
from tests.support.bundle_runs import bundle_workflow, cause, rows
from tests.support.documented import undocumented_in
from tests.support.tiny_slide_bags import CHOICE, ENCODER, SIZE, write_encoder, write_slides
from tests.support.tiny_slides import glass, write_png

SETTINGS = {f"slide_features#{key}": value for key, value in CHOICE.items()}
SETTINGS |= {"network_def#encoder": ENCODER, "size": SIZE, "bf16": False, "finetune_epochs": 25, "val_interval": 25}
SETTINGS |= {"train#learning_rate": 0.02, "train#batch_size": 4, "datalist#folds": 3}


@pytest.fixture(autouse=True)
def _own_hook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def train(folder, out, encoder, *configs, **given):
    """Run the overlay, or what comes after it."""
    given = {**SETTINGS, "train#pretrained": str(encoder), **given}
    bundle_workflow("sscl_crc", "train", "slide_mil", *configs, data=folder, out=out, **given).run()


def refused(*arguments, **given):
    with pytest.raises(Exception) as raised:
        train(*arguments, **given)
    assert cause(raised.value) is not None, raised.value
    return str(cause(raised.value))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Folder of slides, corners of what is planted, encoder."""
    folder = tmp_path_factory.mktemp("slides")
    planted = write_slides(folder / "slides")
    return folder / "slides", planted, write_encoder(folder / "models")


@pytest.fixture(scope="module")
def trained(cohort, tmp_path_factory):
    folder, _, encoder = cohort
    out, hook = tmp_path_factory.mktemp("mil"), sys.excepthook
    train(folder, out, encoder)
    given = {**SETTINGS, "split": "validation", "run_id": "evaluate"}
    given = {key: value for key, value in given.items() if key not in ("network_def#encoder", "size")}
    bundle_workflow("sscl_crc", "train", "slide_mil", "evaluate", data=folder, out=out, **given).run()
    sys.excepthook = hook
    return out


@pytest.fixture(scope="module")
def predicted(cohort, trained):
    hook = sys.excepthook
    given = {f"slide_stage#{key}": value for key, value in CHOICE.items()}
    given |= {"slides": str(cohort[0]), "slide_labels": str(cohort[0] / "labels.csv"), "bf16": False}
    places = {"data": trained / "none", "out": trained, "output_dir": str(trained / "predicted")}
    bundle_workflow("sscl_crc", "inference", kind="infer", **places, **given).run()
    sys.excepthook = hook
    return trained / "predicted"


def test_evaluation_leaves_the_same_metrics_as_for_patches(trained):
    metrics = json.loads((trained / "eval/metrics.json").read_text())
    table = rows(trained / "eval/predictions.csv")
    assert metrics["n"] == len(table) > 0 and metrics["patients"] == len({row["patient"] for row in table})
    assert {"value", "low", "high"} <= set(metrics["AUC"])
    model = json.loads((trained / "models/model.json").read_text())
    assert model["network"]["class"] == "shared.networks.SlideMIL" and model["classes"] == ["hyperplastic", "serrated"]
    assert model["mpp"] == 2.0 and model["patch_size"] == SIZE and model["tiles"]["overview_mpp"] == 4.0
    assert model["record"]["settings"]["train#pretrained"].startswith("a file of sha256")
    split = json.loads((trained / "models/split.json").read_text())["images"]["train"]
    assert not set(split) & {row["patient"] for row in table}
    assert not undocumented_in(trained / "eval", "sscl_crc") + undocumented_in(trained / "models", "sscl_crc")


def test_inference_says_what_evaluation_said(trained, predicted):
    before = {row["image"]: float(row["probability"]) for row in rows(trained / "eval/predictions.csv")}
    found = {row["slide"]: float(row["probability"]) for row in rows(predicted / "slides.csv")}
    assert len(found) == 12 and set(before) < set(found)
    for name, value in before.items():
        assert found[name] == pytest.approx(value, abs=1e-6)
    assert {"value", "low", "high"} <= set(json.loads((predicted / "slides.json").read_text())["probability"]["AUC"])
    assert not undocumented_in(predicted, "sscl_crc")


def test_contributions_sum_to_the_logit_and_lie_on_the_planted_glands(cohort, predicted):
    scores = []
    for row in rows(predicted / "slides.csv"):
        folder = predicted / "slides" / row["name"]
        tiles, told = rows(folder / "tiles.csv"), json.loads((folder / "slide.json").read_text())["scores"]
        contribution = np.array([float(tile["contribution"]) for tile in tiles])
        assert contribution.sum() + told["bias"] == pytest.approx(told["logit"], abs=1e-6)
        assert 1 / (1 + np.exp(-told["logit"])) == pytest.approx(float(row["probability"]), abs=1e-9)
        assert sum(float(tile["attention"]) for tile in tiles) == pytest.approx(1, abs=1e-5)
        if planted := cohort[1][row["name"]]:
            inside = [(int(tile["x"]), int(tile["y"])) in planted for tile in tiles]
            assert sum(inside) == 3
            scores.append(roc_auc_score(inside, contribution))
    assert len(scores) == 6 and np.mean(scores) > 0.85  # chance: 0.5; the encoder's weights are random


def test_heat_map_and_shapes_hold_contributions(predicted):
    folder = predicted / "slides/s01"
    tiles = rows(folder / "tiles.csv")
    values = tifffile.imread(folder / "heatmap.ome.tiff")
    x, y = int(tiles[4]["x"]), int(tiles[4]["y"])
    assert values[(y + 32) // 2, (x + 32) // 2] == pytest.approx(float(tiles[4]["contribution"]), rel=1e-5)
    features = json.loads((folder / "tiles.geojson").read_text())["features"]
    for feature, tile in zip(features, tiles, strict=True):
        told = feature["properties"]
        assert told["measurements"]["contribution"] == pytest.approx(float(tile["contribution"]), rel=1e-5)
        assert told["measurements"]["attention"] == pytest.approx(float(tile["attention"]), rel=1e-5)
        assert told["classification"]["name"] == ("hyperplastic", "serrated")[float(tile["contribution"]) >= 0]
    regions = json.loads((folder / "regions.geojson").read_text())["features"]
    total = sum(region["properties"]["measurements"]["contribution"] for region in regions)
    assert total == pytest.approx(sum(float(tile["contribution"]) for tile in tiles), rel=1e-4)


def test_features_are_computed_once(cohort, trained, tmp_path, monkeypatch):
    folder, _, encoder = cohort

    def computed(*arguments, **options):
        raise AssertionError("features were computed anew")

    monkeypatch.setattr(slide_features, "tile_outputs", computed)
    train(folder, tmp_path, encoder, finetune_epochs=1)
    # the same training again goes on where it was
    train(folder, tmp_path, encoder, finetune_epochs=1, resume=True)


def test_a_training_that_was_cut_off_goes_on_as_if_it_had_not_been(cohort, trained, tmp_path):
    folder, _, encoder = cohort
    given = {"train#trainer#save_interval": 1, "train#tiles": 5}
    for out, cut, resume in (("whole", False, False), ("parts", True, False), ("parts", False, True)):
        every = SETTINGS | given | {"finetune_epochs": 3, "resume": resume, "train#pretrained": str(encoder)}
        flow = bundle_workflow("sscl_crc", "train", "slide_mil", data=folder, out=tmp_path / out, **every)
        if cut:  # the process ends before the stage does
            trainer = flow.parser.get_parsed_content("train#trainer")
            trainer.checkpoint.completed = lambda engine: None
            trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), trainer.terminate)
        flow.run()
    one, other = (torch.load(tmp_path / out / "models/model.pt", weights_only=True) for out in ("whole", "parts"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def table(folder, out, change):
    """A copy of the folder whose table's rows ``change`` has changed."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns(".cache"))
    with (out / "labels.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    found = change(found) or found
    with (out / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    return out


def test_bad_tables_are_refused_before_any_work(cohort, tmp_path):
    folder, _, encoder = cohort

    def changed(found):
        found[0]["label"], found[1]["slide"], found[2]["patient"] = "", "elsewhere", ""

    message = refused(table(folder, tmp_path / "a", changed), tmp_path, encoder)
    assert "1 rows are of no slide of the folder: elsewhere" in message
    assert "2 of 12 slides have no label in labels.csv: s00.png, s01.png" in message
    assert "2 of 12 slides have no patient in labels.csv: s01.png, s02.png" in message

    def apart(found):
        return [row | {"section": "testing" if row["slide"] in ("s00", "s01") else ""} for row in found]

    message = refused(table(folder, tmp_path / "b", apart), tmp_path, encoder)
    assert "patient P00: has slides in testing and training; all slides of a patient belong to one" in message

    def one_class(found):
        return [row | {"label": 1} for row in found]

    message = refused(table(folder, tmp_path / "c", one_class), tmp_path, encoder)
    assert "training slides are all of class 1; slides of both classes are needed" in message

    bare = table(folder, tmp_path / "d", lambda found: [*found, {"slide": "bare", "label": "serrated", "patient": "Q"}])
    write_png(bare / "bare.png", glass(320, 384), 2.0)
    assert "1 of 13 slides have no tissue: bare.png; move them away" in refused(bare, tmp_path, encoder)
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())


def test_an_encoder_is_needed_of_known_size_and_a_folder_of_its_own(cohort, trained, tmp_path):
    folder, _, encoder = cohort
    assert "give --train#pretrained FILE" in refused(folder, tmp_path, encoder, **{"train#pretrained": None})
    assert "size is 32, the model was trained with 64" in refused(folder, tmp_path, encoder, size=32)
    assert "mpp is 0.5, the model was trained with 2.0" in refused(folder, tmp_path, encoder, mpp=0.5)
    message = refused(folder, tmp_path, encoder, ckpt_dir=str(encoder.parent))
    assert "holds a model of patches: give the model of slides --ckpt_dir" in message
    alone = tmp_path / "pretrain.pt"
    shutil.copy(encoder, alone)
    assert "--mpp (micrometres per pixel) and --patch_size (pixels" in refused(folder, tmp_path, alone)
    given = {"slides": str(folder), "bf16": False, "output_dir": str(tmp_path / "out")}
    with pytest.raises(Exception) as raised:
        bundle_workflow("sscl_crc", "inference", kind="infer", data=tmp_path, out=trained, **given).run()
    assert "give --slide_stage#overview_mpp 4.0 --slide_stage#tissue#pen 60" in str(cause(raised.value))
