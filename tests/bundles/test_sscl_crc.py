"""The SSCL bundle from PNG files to explained predictions, on a few phantom patches and tiny networks."""

import json
import math
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from shared.errors import DataError
from shared.reports.trace import check_trace
from tests.support.bundle_runs import bundle_workflow, cause, rows
from tests.support.documented import undocumented_in
from tests.support.script_modules import load_script
from tests.support.small import small_data, small_settings

ROOT = Path(__file__).parents[2]
SMALL = small_settings("sscl_crc")


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """Forty patches to train on, twelve to test, eight without labels."""
    return small_data("sscl_crc", tmp_path_factory.mktemp("patches") / "data")


workflow = partial(bundle_workflow, "sscl_crc")


def weights(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def trained(patches, tmp_path_factory):
    """The folder of a whole training run."""
    out = tmp_path_factory.mktemp("run")
    hook = sys.excepthook
    workflow("train", "cpu", data=patches, out=out, **SMALL).run()
    sys.excepthook = hook
    return out


def test_training_leaves_checkpoints_tables_and_pictures(trained):
    assert {path.name for path in (trained / "models").iterdir()} == {
        "pretrain.pt",
        "model.pt",
        "model.json",
        "cohort.npz",
        "split.json",
    }
    expected = {"pretrain_loss.csv", "pretrain_loss.png", "train_loss.csv"}
    assert expected <= {path.name for path in (trained / "eval").iterdir()}
    state = weights(trained / "models/model.pt")
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert state["head.weight"].shape == (2, 24)


def test_monai_finds_all_properties_it_looks_for(patches, trained, tmp_path, caplog):
    for configs in (("train", "cpu"), ("train", "cpu", "evaluate")):
        assert workflow(*configs, data=patches, out=tmp_path, **SMALL).check_properties() == []
    assert workflow("inference", data=patches, out=trained, kind="infer").check_properties() == []
    assert "wrong ID" not in caplog.text


def test_evaluation_predicts_the_test_part_once_and_by_case(trained, patches):
    workflow("train", "cpu", "evaluate", data=patches, out=trained, run_id="evaluate", **SMALL).run()
    found = rows(trained / "eval/predictions.csv")
    listed = json.loads((patches / "datalist.json").read_text())["testing"]
    assert [row["image"] for row in found] == [entry["image"] for entry in listed]
    assert [row["patient"] for row in found] == [entry["patient"] for entry in listed]
    assert all(0 <= float(row["probability"]) <= 1 for row in found)
    metrics = json.loads((trained / "eval/metrics.json").read_text())
    model = json.loads((trained / "models/model.json").read_text())
    assert metrics["weights"] == model["weights"] and model["patch_size"] == 96
    assert metrics["n"] == 12 and 0 <= metrics["AUC"]["value"] <= 1
    assert all((trained / f"eval/{name}.png").is_file() for name in ("confusion", "roc", "calibration"))


def test_inference_of_a_plain_folder_needs_no_retyped_number_and_agrees(trained, patches, tmp_path):
    listed = json.loads((patches / "datalist.json").read_text())["testing"][:4]
    (tmp_path / "new").mkdir()
    for entry in listed:
        shutil.copy(patches / entry["image"], tmp_path / "new" / Path(entry["image"]).name)
    out = tmp_path / "out"
    workflow("train", "cpu", "evaluate", data=patches, out=trained, run_id="evaluate", **SMALL).run()
    places = {"output_dir": str(out), "ckpt_dir": str(trained / "models")}
    workflow("inference", data=tmp_path / "new", out=trained, kind="infer", bf16=False, **places).run()
    expected = {Path(row["image"]).name: row["probability"] for row in rows(trained / "eval/predictions.csv")}
    found = rows(out / "predictions.csv")
    assert len(found) == 4
    for row in found:
        assert float(row["probability"]) == pytest.approx(float(expected[Path(row["image"]).name]), abs=1e-4)
    assert check_trace(out, tmp_path / "new", trained / "models") == []
    boxes = json.loads((out / "boxes.json").read_text())["patches"]
    assert len(boxes) == 4
    with Image.open(next((out / "cam").iterdir())) as picture:
        assert picture.size == (96, 96) and picture.mode == "L"
    assert len(list((out / "overlays").iterdir())) == 4
    assert not undocumented_in(out, "sscl_crc")


def test_explanation_is_scored_beside_its_controls(trained, patches):
    flow = workflow("train", "cpu", "explain", data=patches, out=trained, run_id="explain", truth="planted", **SMALL)
    flow.run()
    summary = json.loads((trained / "eval/localisation.json").read_text())
    assert "additive map minus control" in summary and "darkness" in summary["maps"]
    assert (trained / "eval/gallery.png").is_file() and (trained / "eval/randomisation.json").is_file()
    assert not undocumented_in(trained / "models", "sscl_crc") + undocumented_in(trained / "eval", "sscl_crc")


def test_the_sum_of_the_additive_map_is_the_answer_and_an_older_model_keeps_its_own(trained, patches, tmp_path):
    assert json.loads((trained / "models/model.json").read_text())["average"] == "logits"
    workflow("train", "cpu", "evaluate", data=patches, out=trained, run_id="evaluate", **SMALL).run()
    workflow("train", "cpu", "explain", data=patches, out=trained, run_id="explain", truth="planted", **SMALL).run()
    predicted = {row["image"]: float(row["probability"]) for row in rows(trained / "eval/predictions.csv")}
    explained = rows(trained / "eval/explanations.csv")
    for row in explained:
        margin = sum(float(row[key]) for key in ("for", "against", "bias"))
        assert margin == pytest.approx(float(row["margin"]), abs=1e-5)
        sign = 1 if row["class"] == json.loads((patches / "datalist.json").read_text())["classes"][1] else -1
        name = Path(row["image"]).relative_to(patches).as_posix() if Path(row["image"]).is_absolute() else row["image"]
        assert 1 / (1 + math.exp(-sign * margin)) == pytest.approx(predicted[name], abs=1e-4)
    # a model.json without the key is of a version that averaged probabilities
    shutil.copytree(trained / "models", tmp_path / "models")
    content = json.loads((tmp_path / "models/model.json").read_text())
    del content["average"]
    (tmp_path / "models/model.json").write_text(json.dumps(content))
    parsed = workflow("train", "cpu", "evaluate", data=patches, out=tmp_path, run_id="evaluate", **SMALL)
    parsed.initialize()
    assert parsed.parser.get_parsed_content("validate#inferer").average == "probabilities"


def test_views_of_a_trained_model_are_a_key_of_evaluation_inference_and_explanation(trained, patches, tmp_path):
    given = {"views": 1, "bf16": False, "ckpt_dir": str(trained / "models")}
    for run_id, configs, kind in (
        ("evaluate", ("train", "evaluate"), "train"),
        ("explain", ("train", "explain"), "train"),
        ("run", ("inference",), "infer"),
    ):
        places = {"data": patches, "out": tmp_path, "output_dir": str(tmp_path / run_id)}
        workflow(*configs, **places, kind=kind, run_id=run_id, **given).run()
    parsed = workflow("inference", data=patches, out=tmp_path, kind="infer", **given)
    parsed.initialize()
    network = parsed.parser.get_parsed_content("network").eval()
    network.load_state_dict(weights(trained / "models/model.pt"))
    batches = parsed.parser.get_parsed_content("evaluator").data_loader
    prepare = parsed.parser.get_parsed_content("evaluator#prepare_batch")
    with torch.no_grad():
        expected = [network(prepare(batch, torch.device("cpu"), True)[0]).softmax(1)[:, 1] for batch in batches]
    expected = torch.cat(expected).tolist()
    for run_id in ("evaluate", "run"):
        found = [float(row["probability"]) for row in rows(tmp_path / run_id / "predictions.csv")]
        assert found == pytest.approx(expected, abs=1e-5)
    explained = {row["image"]: float(row["margin"]) for row in rows(tmp_path / "explain/explanations.csv")}
    assert [max(1 / (1 + math.exp(-m)), 0.5) for m in explained.values()] == pytest.approx(
        [max(p, 1 - p) for p in expected], abs=1e-5
    )
    workflow("train", "evaluate", data=patches, out=trained, run_id="evaluate", bf16=False).run()
    own = [float(row["probability"]) for row in rows(trained / "eval/predictions.csv")]
    assert max(abs(a - b) for a, b in zip(own, expected, strict=True)) > 1e-4


def test_grad_cam_stays_a_key(trained, patches, tmp_path):
    shutil.copytree(trained / "models", tmp_path / "models")
    given = {"explanation": "grad_cam", "truth": "planted", "run_id": "explain", **SMALL}
    workflow("train", "cpu", "explain", data=patches, out=tmp_path, **given).run()
    assert "Grad-CAM" in json.loads((tmp_path / "eval/localisation.json").read_text())["maps"]
    assert "margin" not in rows(tmp_path / "eval/explanations.csv")[0]


def test_explanations_of_patches_are_compared(trained, patches, tmp_path, capsys, monkeypatch):
    pytest.importorskip("captum")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    script, models = load_script("compare_explanations"), str(trained / "models")
    options = ["--bundle", "sscl_crc", "--dataset_dir", str(patches), "--output", str(tmp_path), "--device", "cpu"]
    options += ["--config", "cpu", "--set", "truth=planted", "bf16=False", "--steps", "2", "--cell", "16"]
    options += ["--bootstrap", "20", "--max_patients", "2", "--pictures", "1"]
    script.main([*options, "--checkpoints", models])
    content = json.loads((tmp_path / "explanation_comparison.json").read_text())
    assert content["patients"] == 2 and content["images"] == 8 and content["reference"] == "additive map"
    named = ["additive map", "Grad-CAM", "Grad-CAM, stage 3", "LayerCAM", "LayerCAM, stage 3", "integrated gradients"]
    named += ["untrained network", "darkness", "edge density", "centred Gaussian", "random map"]
    assert list(content["methods"]) == named
    assert [of["control"] for of in content["methods"].values()] == [False] * 6 + [True] * 5
    found = rows(tmp_path / "explanation_scores.csv")
    assert len(found) == 8 * 11
    chance = [float(row["energy_ratio"]) for row in found if row["method"] == "random map" and row["energy_ratio"]]
    assert chance and all(0.8 < value < 1.2 for value in chance)
    # every method explains the same class of a patch
    for image in {row["image"] for row in found}:
        assert len({(row["class"], row["probability"]) for row in found if row["image"] == image}) == 1
    page = (tmp_path / "explanation_comparison.md").read_text()
    assert page in capsys.readouterr().out and page.count("| LayerCAM |") == 2 + len(content["by label"])
    assert (tmp_path / "explanation_comparison.png").stat().st_size > 10000
    assert not undocumented_in(tmp_path, "Explanations compared")
    with pytest.raises(DataError, match="trained this model"):
        script.main([*options, "--checkpoints", models, "--fold", "1"])
    with pytest.raises(SystemExit):
        script.main([*options, "--checkpoints", models, models])
    with pytest.raises(DataError, match="No explanation is called 'CAM'"):
        script.main([*options, "--checkpoints", models, "--methods", "CAM"])


def test_a_stage_alone_and_resume_skip_what_is_done(trained, patches, tmp_path):
    shutil.copytree(trained / "models", tmp_path / "models")
    (tmp_path / "models/model.pt").unlink()
    before = (tmp_path / "models/pretrain.pt").stat().st_mtime_ns
    workflow("train", "cpu", data=patches, out=tmp_path, resume=True, **SMALL).run()
    assert (tmp_path / "models/pretrain.pt").stat().st_mtime_ns == before
    first, again = weights(trained / "models/model.pt"), weights(tmp_path / "models/model.pt")
    assert all(torch.equal(first[key], again[key]) for key in first), "a run that goes on gives the same model"


def test_from_scratch_no_pretraining_is_run_and_its_budget_is_spent(patches, tmp_path):
    flow = workflow("train", "cpu", "scratch", data=patches, out=tmp_path, **SMALL)
    # forty-eight patches, two views, two epochs of (48 / 64)^2 the pixels; epochs of 32 draws
    content = flow.parser
    share = len(content.get_parsed_content("pretrain#dataset")) / content.get_parsed_content("train#dataloader").count
    assert content.get_parsed_content("train#epochs") == round(2 + 2 * 2 * (48 / 64) ** 2 * share)
    flow.run()
    assert not (tmp_path / "models/pretrain.pt").exists() and (tmp_path / "models/model.pt").is_file()


def test_a_linear_probe_leaves_the_encoder_as_pretrained(trained, patches, tmp_path):
    (tmp_path / "models").mkdir()
    shutil.copy(trained / "models/pretrain.pt", tmp_path / "models")
    workflow("train", "cpu", "probe", data=patches, out=tmp_path, run_id="train_run", **SMALL).run()
    pretrained = weights(tmp_path / "models/pretrain.pt")["network"]
    model = weights(tmp_path / "models/model.pt")
    encoder = {key: value for key, value in model.items() if key.startswith("encoder.")}
    assert encoder and all(torch.equal(pretrained[key], value) for key, value in encoder.items())


def test_the_papers_preset_runs(patches, tmp_path):
    flow = workflow("train", "paper", "cpu", data=patches, out=tmp_path, **SMALL)
    assert flow.parser.get_parsed_content("pretrain#loss").loss.temperature == 0.7
    flow.run()
    assert (tmp_path / "models/model.pt").is_file()


@pytest.mark.parametrize("stage", ["evaluate", "explain"])
def test_a_part_that_is_not_there_is_no_training_part(trained, patches, tmp_path, stage):
    options = SMALL | {"fold": -1, "split": "validation", "ckpt_dir": str(trained / "models")}
    flow = workflow("train", "cpu", stage, data=patches, out=tmp_path, run_id=stage, **options)
    with pytest.raises(Exception) as caught:
        flow.run()
    assert "the validation part has no patches" in str(cause(caught.value))
    assert not list(tmp_path.iterdir())


def test_fold_minus_one_trains_on_everybody_without_validation(patches, tmp_path):
    flow = workflow("train", "cpu", data=patches, out=tmp_path, fold=-1, **SMALL)
    assert len(flow.parser.get_parsed_content("train#dataset")) == 40
    flow.run()
    assert (tmp_path / "models/model.pt").is_file()


def test_a_missing_dataset_is_one_clear_error(tmp_path):
    flow = workflow("train", "cpu", data=tmp_path / "nowhere", out=tmp_path, **SMALL)
    with pytest.raises(Exception) as raised:
        flow.run()
    assert "prepare_image_folder.py" in str(cause(raised.value))


def test_a_checkpoint_of_another_size_is_refused_by_name(trained, patches, tmp_path):
    shutil.copytree(trained / "models", tmp_path / "models")
    other = SMALL | {"network_def#encoder#channels": [8, 8, 8, 24]}
    flow = workflow("train", "cpu", "evaluate", data=patches, out=tmp_path, run_id="evaluate", **other)
    with pytest.raises(Exception) as raised:
        flow.run()
    message = str(cause(raised.value))
    assert "network_def#encoder#channels is [8, 8, 8, 24], the model was trained with [8, 8, 8, 16]" in message


def test_evaluation_takes_the_models_own_settings_and_no_overlay_is_needed(trained, patches, tmp_path):
    found = []
    for name, configs, given in (("with", ("train", "cpu", "evaluate"), SMALL), ("bare", ("train", "evaluate"), {})):
        options = given | {"output_dir": str(tmp_path / name), "run_id": "evaluate", "bf16": False}
        workflow(*configs, data=patches, out=trained, **options).run()
        found.append([row["probability"] for row in rows(tmp_path / name / "predictions.csv")])
    assert found[0] == found[1]


def test_evaluation_with_other_settings_is_refused(trained, patches, tmp_path):
    given = SMALL | {"size": 32, "output_dir": str(tmp_path), "run_id": "evaluate"}
    with pytest.raises(Exception) as raised:
        workflow("train", "cpu", "evaluate", data=patches, out=trained, **given).run()
    assert "size is 32" in str(cause(raised.value)) and "the model was trained with" in str(cause(raised.value))
    assert not (tmp_path / "predictions.csv").exists()


def test_reversed_classes_and_patients_of_the_training_are_not_evaluated(trained, patches, tmp_path):
    content = json.loads((patches / "datalist.json").read_text())
    content["classes"].reverse()
    (tmp_path / "reversed.json").write_text(json.dumps(content))
    given = SMALL | {"output_dir": str(tmp_path), "run_id": "evaluate"}
    for change, words in (
        ({"datalist_file": str(tmp_path / "reversed.json")}, "labels are numbers"),
        ({"fold": 1, "split": "validation"}, "to evaluate trained this model"),
    ):
        with pytest.raises(Exception) as raised:
            workflow("train", "cpu", "evaluate", data=patches, out=trained, **(given | change)).run()
        assert words in str(cause(raised.value))


def test_fewer_labels_are_trained_on_from_the_same_pretraining(trained, patches, tmp_path):
    shutil.copytree(trained / "models", tmp_path / "models")
    content = json.loads((patches / "datalist.json").read_text())
    by_class = ([e for e in content["training"] if e["fold"] != 0 and e["label"] == label] for label in (0, 1))
    half = [entry for entries in by_class for entry in entries[2:]]
    content["training"] = [entry for entry in content["training"] if entry not in half]
    content["unlabelled"] = [
        *content.get("unlabelled", []),
        *({k: v for k, v in e.items() if k not in ("label", "fold")} for e in half),
    ]
    (tmp_path / "fewer.json").write_text(json.dumps(content))
    options = SMALL | {"datalist_file": str(tmp_path / "fewer.json"), "run_id": "train_run"}
    workflow("train", "cpu", data=patches, out=tmp_path, **options).run()
    first, again = (json.loads((out / "models/model.json").read_text()) for out in (trained, tmp_path))
    assert first["weights"] != again["weights"] and first["record"]["parents"] == again["record"]["parents"]


def test_patches_of_another_magnification_are_neither_evaluated_nor_predicted(trained, patches, tmp_path):
    for name in ("image", "mask", "planted"):
        (tmp_path / name).symlink_to(patches / name)
    content = json.loads((patches / "datalist.json").read_text())
    (tmp_path / "datalist.json").write_text(json.dumps(content | {"mpp": content["mpp"] / 2}))
    for configs, given in (
        (("train", "cpu", "evaluate"), {"run_id": "evaluate", **SMALL}),
        (("train", "cpu", "explain"), {"run_id": "explain", **SMALL}),
        (("inference",), {"kind": "infer"}),
    ):
        with pytest.raises(Exception) as raised:
            workflow(*configs, data=tmp_path, out=trained, output_dir=str(tmp_path / "out"), **given).run()
        assert "the patches are 128 micrometres wide (96 pixels of 1.33333), the model was trained on 256" in str(
            cause(raised.value)
        )
    assert not (tmp_path / "out/predictions.csv").exists()
