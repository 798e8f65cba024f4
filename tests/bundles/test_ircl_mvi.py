"""The IRCL bundle from NIfTI files to explained predictions, on a small phantom cohort and tiny networks."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from shared.errors import DataError
from shared.reports.trace import check_trace
from tests.support.bundle_runs import bundle_workflow, cause, rows
from tests.support.documented import undocumented_in
from tests.support.script_modules import load_script
from tests.support.small import small_data, small_settings

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "bundles/ircl_mvi/configs"
SMALL = small_settings("ircl_mvi")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Twenty-four patients to train on, four to test."""
    return small_data("ircl_mvi", tmp_path_factory.mktemp("phantom") / "data")


workflow = partial(bundle_workflow, "ircl_mvi")


@pytest.fixture(scope="module")
def trained(cohort, tmp_path_factory):
    """The folder of a whole training run."""
    out = tmp_path_factory.mktemp("run")
    hook = sys.excepthook
    workflow("train", "cpu", "phantom", data=cohort, out=out, **SMALL).run()
    sys.excepthook = hook
    return out


def modality_names(cohort):
    return json.loads((cohort / "datalist.json").read_text())["modalities"]


def test_training_leaves_checkpoints_tables_and_pictures(trained, cohort):
    assert {path.name for path in (trained / "models").iterdir()} == {
        "pretrain.pt",
        "biomarkers.pt",
        "additive.pt",
        "model.pt",
        "model.json",
        "cohort.npz",
        "split.json",
    }
    expected = {"biomarkers.csv", "biomarkers.json", "biomarkers.png", "pretrain_loss.csv", "train_loss.png"}
    expected |= {"additive_biomarkers.csv", "additive_biomarkers.json"}
    expected |= {f"additive_biomarkers_{name}.png" for name in modality_names(cohort)}
    assert expected <= {path.name for path in (trained / "eval").iterdir()}
    state = torch.load(trained / "models/model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert state["biomarkers"].shape == (6, 128)
    # one member, three modalities, 32 biomarkers of each, the features of the first of three levels
    assert state["additive.biomarkers"].shape == (1, 3, 32, 8) and state["additive.weight"].any()
    assert len(rows(trained / "eval/additive_biomarkers.csv")) == 96


def test_monai_finds_all_properties_it_looks_for(cohort, tmp_path, caplog):
    for configs in (("train", "cpu"), ("train", "cpu", "evaluate")):
        assert workflow(*configs, data=cohort, out=tmp_path, **SMALL).check_properties() == []
    assert workflow("inference", data=cohort, out=tmp_path, kind="infer").check_properties() == []
    assert "wrong ID" not in caplog.text


def test_the_encoder_of_stage_one_is_bitwise_the_one_of_the_model(trained):
    pretrained = torch.load(trained / "models/pretrain.pt", weights_only=True)["network"]
    model = torch.load(trained / "models/model.pt", weights_only=True)
    encoder = {key: value for key, value in pretrained.items() if key.startswith("encoder.")}
    assert encoder and all(torch.equal(model[key], value) for key, value in encoder.items())


def test_evaluation_writes_one_row_a_patient(trained, cohort):
    flow = workflow("train", "cpu", "phantom", "evaluate", data=cohort, out=trained, run_id="evaluate", **SMALL)
    flow.run()
    found = rows(trained / "eval/predictions.csv")
    assert [row["patient"] for row in found] == ["P025", "P026", "P027", "P028"]
    assert all(0 <= float(row["probability"]) <= 1 for row in found)
    assert all(row["probability"] == row["probability_additive"] for row in found)
    assert all(row["probability_prototype"] != row["probability"] for row in found)
    assert json.loads((trained / "eval/metrics.json").read_text())["n"] == 4


def test_inference_needs_no_retyped_number_and_gives_the_same_probabilities(trained, cohort):
    flow = workflow("inference", data=cohort, out=trained, kind="infer", **{"mask#steps": 2})
    assert flow.check_properties() in (None, [])
    flow.run()
    assert check_trace(trained / "eval", cohort, trained / "models") == []
    found = rows(trained / "eval/predictions.csv")
    for row in found:
        patient = row["patient"]
        one = json.loads((trained / f"eval/patients/{patient}.json").read_text())
        assert one["probability"] == pytest.approx(float(row["probability"]), abs=1e-5)
        assert len(one["images"]) == 9
        first = json.loads((cohort / "datalist.json").read_text())["testing"]
        path = next(case["image"][0] for case in first if case["patient"] == patient)
        source = nib.load(cohort / path)
        maps = [
            nib.load(trained / f"eval/patients/{patient}_{name}.nii.gz") for name in ("contributions", "biomarkers")
        ]
        for found_map in maps:
            assert found_map.shape == (*source.shape, 3) and np.allclose(found_map.affine, source.affine)
        # each voxel's log odds, whose sum is that of the images
        total = sum(row["contribution"] for row in one["images"])
        assert maps[0].get_fdata().sum() == pytest.approx(total, abs=1e-4)
        assert (trained / f"eval/patients/{patient}_overlay.png").stat().st_size > 1000
    told = rows(trained / "eval/biomarkers.csv")
    assert {row["patient"] for row in told} == {row["patient"] for row in found}
    assert list(told[0]) == ["patient", "biomarker", "area_mm2", "log_odds"]


def test_the_prototype_transformer_can_be_asked_for_its_answer(trained, cohort, tmp_path):
    options = {"mask#steps": 2, "answer": "prototype", "output_dir": str(tmp_path)}
    workflow("inference", data=cohort, out=trained, kind="infer", **options).run()
    found = rows(tmp_path / "predictions.csv")
    assert all(row["probability"] == row["probability_prototype"] != row["probability_additive"] for row in found)
    patient = found[0]["patient"]
    assert nib.load(tmp_path / f"patients/{patient}_mask.nii.gz").shape[-1] == 3
    assert json.loads((tmp_path / f"patients/{patient}.json").read_text())["answer"] == "prototype"
    assert len(rows(tmp_path / "biomarkers.csv")) == 4 * 9


def test_explanation_draws_the_papers_figures_and_scores_planted_patterns(trained, cohort):
    options = {"mask#steps": 2, "max_masks": 2, **SMALL}
    flow = workflow("train", "cpu", "phantom", "explain", data=cohort, out=trained, run_id="explain", **options)
    flow.run()
    for name in ("shapley_distribution.png", "shapley.csv", "shapley_by_class.csv"):
        for folder in ("eval", "eval/prototype"):
            assert (trained / folder / name).stat().st_size > 300
    scores = json.loads((trained / "eval/localisation.json").read_text())
    controls = {"centred box", "random map"}
    assert set(scores) == {"contributions", "contributions, whole patient", "centred box, whole patient"} | controls
    scores = json.loads((trained / "eval/prototype/localisation.json").read_text())
    assert set(scores) == {"mask"} | controls and len(list((trained / "eval/prototype/patients").glob("*_mask*"))) == 2
    for row in rows(trained / "eval/shapley.csv"):
        total = sum(float(value) for key, value in row.items() if key not in ("patient", "label", "probability"))
        assert 1 / (1 + np.exp(-total)) == pytest.approx(float(row["probability"]), abs=1e-5)
    for row in rows(trained / "eval/prototype/shapley.csv"):
        total = sum(float(value) for key, value in row.items() if key.startswith("biomarker_"))
        assert total == pytest.approx(float(row["probability"]) - float(row["base"]), abs=1e-5)
    assert not undocumented_in(trained / "models", "ircl_mvi") + undocumented_in(trained / "eval", "ircl_mvi")


def test_one_seed_gives_one_result_and_resume_runs_nothing_again(trained, cohort, tmp_path):
    workflow("train", "cpu", "phantom", data=cohort, out=tmp_path, **SMALL).run()
    one, other = (torch.load(out / "models/model.pt", weights_only=True) for out in (trained, tmp_path))
    assert all(torch.equal(one[key], other[key]) for key in one)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "models").iterdir()}
    workflow("train", "cpu", "phantom", data=cohort, out=tmp_path, resume=True, **SMALL).run()
    assert times == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "models").iterdir()}


def test_stage_two_alone_asks_for_the_stages_before_it(cohort, tmp_path):
    with pytest.raises(Exception) as caught:
        workflow("train", "cpu", "phantom", data=cohort, out=tmp_path, run_id="train_run", **SMALL).run()
    assert "Run stage I first: --run_id pretrain_run" in str(cause(caught.value))


def test_a_model_of_other_dimensions_is_refused_by_name(trained, cohort):
    options = {**SMALL, "network_def#dim": 32}
    with pytest.raises(Exception) as caught:
        workflow("train", "cpu", "phantom", "evaluate", data=cohort, out=trained, run_id="evaluate", **options).run()
    message = str(cause(caught.value))
    assert "network_def#dim is 32, the model was trained with 16" in message


def test_a_missing_dataset_names_the_ways_to_get_one(tmp_path):
    with pytest.raises(Exception) as caught:
        workflow("train", data=tmp_path / "nowhere", out=tmp_path).run()
    message = str(cause(caught.value))
    assert "prepare_patients.py" in message and "demo.sh" in message


def test_one_modality_more_than_configured_is_refused_before_training(cohort, tmp_path):
    with pytest.raises(Exception) as caught:
        workflow("train", data=cohort, out=tmp_path, num_modalities=1).run()
    assert "3 modalities" in str(cause(caught.value))
    assert not (tmp_path / "models").exists()


def test_all_bad_cases_are_reported_together_before_training(cohort, tmp_path):
    content = json.loads((cohort / "datalist.json").read_text())
    for i, fill in ((0, np.nan), (1, 0.0)):
        case = content["training"][i]
        source = nib.load(cohort / case["image"][0])
        values = np.full(source.shape, fill, dtype=np.float32)
        nib.save(nib.Nifti1Image(values, source.affine), tmp_path / f"bad{i}.nii.gz")
        case["image"][0] = str(tmp_path / f"bad{i}.nii.gz")
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(Exception) as caught:
        workflow("train", data=cohort, out=tmp_path, datalist_file=str(tmp_path / "datalist.json"), **SMALL).run()
    problems = cause(caught.value).problems
    assert len(problems) == 2 and "P001" in problems[0] and "NaN" in problems[0] and "P002" in problems[1]
    assert not (tmp_path / "models").exists()


def test_evaluation_takes_the_models_own_settings_and_no_overlay_is_needed(trained, cohort, tmp_path):
    found = []
    for name, configs, given in (("with", ("train", "cpu", "phantom"), SMALL), ("bare", ("train",), {})):
        options = given | {"output_dir": str(tmp_path / name), "run_id": "evaluate"}
        workflow(*configs, "evaluate", data=cohort, out=trained, **options).run()
        found.append([row["probability"] for row in rows(tmp_path / name / "predictions.csv")])
    assert found[0] == found[1]


def test_an_overlay_after_evaluate_json_changes_nothing_or_is_refused(trained, cohort, tmp_path):
    options = {"output_dir": str(tmp_path), "run_id": "evaluate"}
    workflow("train", "evaluate", "phantom", data=cohort, out=trained, **options).run()
    with pytest.raises(Exception) as raised:
        workflow("train", "evaluate", "phantom", data=cohort, out=trained, **options, **{"roi#size": 48}).run()
    assert "roi#size is 48, the model was trained with 32" in str(cause(raised.value))


def test_modalities_in_another_order_are_put_right_and_others_refused(trained, cohort, tmp_path, caplog):
    content = json.loads((cohort / "datalist.json").read_text())
    names = content["modalities"]
    content["modalities"] = names[::-1]
    for case in content["testing"]:
        case["image"].reverse()
    (tmp_path / "turned.json").write_text(json.dumps(content))
    (tmp_path / "other.json").write_text(json.dumps({**content, "modalities": ["T1", "DWI", "T2"]}))
    given = {"run_id": "evaluate", "split": "testing"}
    found = []
    for file in ("datalist.json", str(tmp_path / "turned.json")):
        options = given | {"datalist_file": file, "output_dir": str(tmp_path / Path(file).stem)}
        workflow("train", "evaluate", data=cohort, out=trained, **options).run()
        found.append([row["probability"] for row in rows(tmp_path / Path(file).stem / "predictions.csv")])
    assert found[0] == found[1] and "are taken in the model's order" in caplog.text
    for configs, kind in ((("train", "evaluate"), "train"), (("inference",), "infer")):
        run_id = "evaluate" if kind == "train" else "run"
        options = {"datalist_file": str(tmp_path / "other.json"), "output_dir": str(tmp_path), "run_id": run_id}
        with pytest.raises(Exception) as raised:
            workflow(*configs, data=cohort, out=trained, kind=kind, **options).run()
        assert f"the model was trained on {', '.join(names)}" in str(cause(raised.value))


def test_a_model_is_not_scored_on_its_own_patients(trained, cohort, tmp_path):
    options = {"run_id": "evaluate", "output_dir": str(tmp_path), "fold": 1}
    with pytest.raises(Exception) as raised:
        workflow("train", "evaluate", data=cohort, out=trained, **options).run()
    assert "12 of the 12 patients to evaluate trained this model" in str(cause(raised.value))
    workflow("train", "evaluate", data=cohort, out=trained, **(options | {"split": "training"})).run()
    assert len(rows(tmp_path / "predictions.csv")) == 12


@pytest.mark.parametrize(
    ("change", "words"), [({"fold": 0}, "fold was -1, is now 0"), ({"seed": 3}, "seed was 0, is now 3")]
)
def test_a_training_is_not_gone_on_with_by_another(trained, cohort, change, words):
    with pytest.raises(Exception) as raised:
        workflow("train", "cpu", "phantom", data=cohort, out=trained, resume=True, **(SMALL | change)).run()
    assert words in str(cause(raised.value))


def test_a_retraining_that_was_cut_off_delivers_no_older_biomarkers_or_model(trained, cohort, tmp_path):
    shutil.copytree(trained / "models", tmp_path / "models")
    other = SMALL | {"seed": 5}
    workflow("train", "cpu", "phantom", data=cohort, out=tmp_path, run_id="pretrain_run", **other).run()
    assert {path.name for path in (tmp_path / "models").glob("[a-z]*")} == {"pretrain.pt", "split.json"}
    # cut off here, resumed: all four stages are of the new training
    workflow("train", "cpu", "phantom", data=cohort, out=tmp_path, resume=True, **other).run()
    first, again = (torch.load(out / "models/biomarkers.pt", weights_only=True) for out in (trained, tmp_path))
    assert not torch.equal(first["biomarkers"], again["biomarkers"])
    pretrained = torch.load(tmp_path / "models/pretrain.pt", weights_only=True)["network"]
    assert all(torch.equal(pretrained[f"encoder.{key}"], value) for key, value in again["encoder"].items())


def test_a_resnet18_is_evaluated_and_asked_without_its_overlay(cohort, tmp_path):
    given = {"train#epochs": 1, "val_interval": 1, "roi#size": 32}
    workflow("train", "cpu", "resnet18", data=cohort, out=tmp_path, **given).run()
    workflow("train", "evaluate", data=cohort, out=tmp_path, run_id="evaluate", split="testing").run()
    assert len(rows(tmp_path / "eval/predictions.csv")) == 4


@pytest.fixture
def comparison(trained, cohort, tmp_path, monkeypatch):
    """The command that compares explanations, on two patients and two models."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    shutil.copytree(trained / "models", tmp_path / "again")
    models = [str(trained / "models"), str(tmp_path / "again")]
    options = ["--dataset_dir", str(cohort), "--checkpoints", *models, "--output", str(tmp_path / "out")]
    options += ["--config", "cpu", "phantom", "--set", "mask#steps=2", "--steps", "2", "--samples", "12"]
    return [*options, "--pieces", "3", "--bootstrap", "20", "--device", "cpu", "--max_patients"], tmp_path / "out"


def test_explanations_are_compared_and_the_same_command_goes_on(comparison, capsys):
    pytest.importorskip("captum")
    script, (options, out) = load_script("compare_explanations"), comparison
    script.main([*options, "1", "--pictures", "0"])
    first = (out / "patients" / "P025.npz").stat().st_mtime_ns
    script.main([*options, "2"])
    assert (out / "patients" / "P025.npz").stat().st_mtime_ns == first
    content = json.loads((out / "explanation_comparison.json").read_text())
    assert content["patients"] == 2 and content["images"] == 18 and content["checkpoints"] == 2
    # a place is assigned to its nearest biomarker, which is a step
    assert list(content["left out"]) == ["Grad-CAM", "integrated gradients"]
    assert content["reference"] == "contributions"
    named = ["contributions", "biomarker masks", "SHAP", "LIME", "untrained network"]
    named += ["brightness", "centred box", "random map"]
    assert list(content["methods"]) == named
    for name, of in content["methods"].items():
        assert of["control"] == (name in named[4:]) and 0 <= of["scores"]["pointing"]["value"] <= 1
    # the same weights twice; those of the untrained networks are drawn anew
    again = {name: of["scores"].get("repeatability", {}).get("value") for name, of in content["methods"].items()}
    assert all(again[name] == pytest.approx(1, abs=1e-3) for name in named[:4])
    # None: no place of the untrained network speaks for the class
    assert (again["untrained network"] or 0) < 0.99 and again["brightness"] is None
    found = rows(out / "explanation_scores.csv")
    assert len(found) == 2 * 8 * 10
    page = (out / "explanation_comparison.md").read_text()
    assert page in capsys.readouterr().out and page.count("| SHAP |") == 2 and "Left out: Grad-CAM" in page
    assert (out / "explanation_comparison.png").stat().st_size > 10000
    assert not undocumented_in(out, "Explanations compared")
    # other settings: made anew
    script.main([*options, "1", "--methods", "brightness", "--pictures", "0"])
    assert (out / "patients" / "P025.npz").stat().st_mtime_ns != first
    with np.load(out / "patients" / "P025.npz") as known:
        assert known["methods"].tolist() == ["brightness"] and known["maps"].shape == (1, 9, 32, 32)


def test_comparing_explanations_refuses_what_was_trained_on_and_what_is_not_there(comparison):
    script, (options, _) = load_script("compare_explanations"), comparison
    with pytest.raises(DataError, match="trained this model"):
        script.main([*options, "1", "--fold", "0"])
    with pytest.raises(DataError, match="No explanation is called 'CAM'"):
        script.main([*options, "1", "--methods", "CAM"])
