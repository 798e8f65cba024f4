"""The glioma bundle from files to predictions for new patients, on a tiny cohort and tiny networks."""

import json
import logging
import shutil
import sys
from functools import partial
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from shared.bundle import load_model
from shared.networks import GliomaNetwork
from shared.reports.trace import check_trace
from tests.support.bundle_runs import ROOT, bundle_workflow, cause, rows
from tests.support.documented import undocumented_in
from tests.support.small import small_data, small_settings
from tests.support.tiny_brain import AFFINE
from tests.support.tiny_glioma import write_case, write_cohort

SMALL = small_settings("glioma_idh")
workflow = partial(bundle_workflow, "glioma_idh")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Twenty patients to train on, six to test."""
    return small_data("glioma_idh", tmp_path_factory.mktemp("glioma") / "data")


@pytest.fixture(scope="module")
def trained(cohort, tmp_path_factory):
    """The folder of a whole training run."""
    out, hook = tmp_path_factory.mktemp("run"), sys.excepthook
    workflow("train", "cpu", data=cohort, out=out, covariates=["age"], **SMALL).run()
    sys.excepthook = hook
    return out


def weights(path):
    return torch.load(path, weights_only=True)


def predict(trained, data, out, **overrides):
    """Rows of an inference, by patient."""
    places = {"ckpt_dir": str(trained / "models"), "output_dir": str(out)}
    workflow("inference", data=data, out=trained, kind="infer", bf16=False, **places, **overrides).run()
    return {row["patient"]: row for row in rows(out / "predictions.csv")}


def test_training_leaves_checkpoints_atlas_split_and_tables(trained):
    names = {"nodes.pt", "edges.pt", "contrast.pt", "model.pt", "model.json", "atlas.npz", "split.json", "cohort.npz"}
    assert {path.name for path in (trained / "models").iterdir()} == names
    assert json.loads((trained / "models/model.json").read_text())["use_fa"] is True
    tables = {f"{stage}_loss.{kind}" for stage in ("nodes", "edges", "contrast", "train") for kind in ("csv", "png")}
    assert tables <= {path.name for path in (trained / "eval").iterdir()}
    state = weights(trained / "models/model.pt")
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert state["population.bank_nodes"].shape == (10, 24) and state["population.bank_edges"].shape == (10, 8)
    assert state["bank_labels"].tolist().count(1.0) == 5
    # nothing in what is handed on tells a name, not even as a hash
    whole = {key for key, value in state.items() if value.dtype == torch.long and value.numel() > 1}
    assert whole == {"features.glioma.brain_encoder.edge_index"}
    assert "P00" not in (trained / "models/model.json").read_text()


def test_the_first_epochs_shield_the_encoders(cohort, tmp_path, monkeypatch):
    seen, forward = [], GliomaNetwork.forward

    def watched(self, *args, **inputs):
        seen.append(self.shielded and self.training)
        return forward(self, *args, **inputs)

    monkeypatch.setattr(GliomaNetwork, "forward", watched)
    brief = {"contrast#epochs": 5, "nodes#epochs": 1, "edges#epochs": 1}
    for stage in ("nodes_run", "edges_run", "contrast_run"):
        workflow("train", "cpu", data=cohort, out=tmp_path, run_id=stage, **(SMALL | brief)).run()
    # two batches of five patients an epoch; 0.4 of five epochs
    assert seen == [True] * 4 + [False] * 6


def test_no_patient_of_the_contrastive_half_is_in_the_population_half(trained, cohort):
    parts = json.loads((trained / "models/split.json").read_text())
    halves = [set(parts[name]) for name in ("contrastive", "population", "testing")]
    assert [len(part) for part in halves] == [10, 10, 6]
    assert not halves[0] & halves[1] and not (halves[0] | halves[1]) & halves[2]
    labels = {case["patient"]: case["label"] for case in json.loads((cohort / "datalist.json").read_text())["training"]}
    assert [sum(labels[name] for name in part) for part in halves[:2]] == [5, 5]


def test_a_graph_of_patients_whom_the_encoders_saw_is_refused(trained, cohort, tmp_path):
    shutil.copytree(trained / "models", tmp_path / "models")
    flow = workflow("train", "cpu", data=cohort, out=tmp_path, run_id="train_run", seed=1, covariates=["age"], **SMALL)
    with pytest.raises(Exception) as raised:
        flow.run()
    assert "seed was 0, is now 1" in str(cause(raised.value)) and "contrast_run" in str(cause(raised.value))


def test_monai_finds_all_properties_it_looks_for(cohort, trained, tmp_path, caplog):
    assert workflow("train", "cpu", data=cohort, out=tmp_path, **SMALL).check_properties() == []
    assert workflow("train", "evaluate", data=cohort, out=trained).check_properties() == []
    assert workflow("inference", data=cohort, out=trained, kind="infer").check_properties() == []
    assert "wrong ID" not in caplog.text


def test_evaluation_prints_both_recalls_and_what_the_graph_has_to_beat(trained, cohort, caplog):
    with caplog.at_level(logging.INFO):
        flow = workflow(
            "train", "cpu", "evaluate", data=cohort, out=trained, run_id="evaluate", covariates=["age"], **SMALL
        )
        flow.run()
    found = rows(trained / "eval/predictions.csv")
    assert [row["patient"] for row in found] == [f"P{k}" for k in range(20, 26)]
    assert list(found[0])[:3] == ["patient", "label", "probability"]
    alone = [float(found[0][f"unimodal_{name}"]) for name in ("image", "points", "brain")]
    assert all(0 < value < 1 for value in alone) and len(set(alone)) == 3
    metrics = json.loads((trained / "eval/metrics.json").read_text())
    assert metrics["n"] == 6 and set(metrics["classes"]) == {"IDH wild type", "IDH mutant"}
    assert all(0 <= part["recall"]["value"] <= 1 for part in metrics["classes"].values())
    scores = json.loads((trained / "eval/controls.json").read_text())["all"]["AUC"]
    named = ["sum of the encoders' scores", "population graph", "trained with edges, predicted without"]
    assert list(scores)[:4] == [*named, "MLP on the same embeddings"]
    assert {"age + grade (logistic regression)", "MLP trained with the brain encoder"} < set(scores)
    assert scores["sum of the encoders' scores"]["value"] == metrics["AUC"]["value"]
    assert "recall of IDH mutant" in caplog.text and "MLP on the same embeddings" in caplog.text


def test_a_new_patients_prediction_depends_on_nobody_else_and_on_no_order(trained, cohort, tmp_path):
    together = predict(trained, cohort, tmp_path / "all")
    assert len(together) == 6 and (tmp_path / "all/patients/P20.json").is_file()
    content = json.loads((cohort / "datalist.json").read_text())
    content["testing"] = content["testing"][4:2:-1]
    (tmp_path / "two.json").write_text(json.dumps(content))
    some = predict(trained, cohort, tmp_path / "two", datalist_file=str(tmp_path / "two.json"))
    assert list(some) == ["P24", "P23"]
    for name, row in some.items():
        for answer in ("probability", "probability_graph"):
            assert float(row[answer]) == pytest.approx(float(together[name][answer]), abs=1e-5)
        assert row["neighbours"] == together[name]["neighbours"]


def test_a_stranger_is_flagged_and_the_graph_answers_by_the_own_features(trained, cohort, tmp_path):
    # at a threshold that nobody reaches, everybody stands alone
    state = json.loads((trained / "models/model.json").read_text())
    shutil.copytree(trained / "models", tmp_path / "models")
    state["network"]["population"]["theta"] = 1.0
    (tmp_path / "models/model.json").write_text(json.dumps(state))
    found = predict(tmp_path, cohort, tmp_path / "out", answer="graph")
    assert all(row["out_of_cohort"] == "1" and row["neighbours"] == "0" for row in found.values())
    assert all(float(row["probability"]) == pytest.approx(float(row["no_edges"]), abs=1e-6) for row in found.values())
    content = json.loads((tmp_path / "out/patients/P20.json").read_text())
    assert content["out_of_cohort"] is True and content["nearest"] == [] and content["neighbours_mutant"] is None


def test_order_of_points_and_composition_of_a_batch_do_not_matter(trained, cohort):
    from shared.data import collate_glioma, glioma_inputs
    from shared.transforms import build_point_graph

    flow = workflow("inference", data=cohort, out=trained, kind="infer", bf16=False)
    network, items = flow.parser.get_parsed_content("network"), flow.parser.get_parsed_content("dataset").items
    load_model(trained / "models/model.pt", network)
    network.eval()
    with torch.no_grad():
        for k, item in enumerate(items):  # points of a voxel mask lie on a lattice: ties would be broken by order
            moved = item["points"] + 0.05 * torch.rand(32, 3, generator=torch.Generator().manual_seed(k))
            item |= {"points": moved, "graph": build_point_graph(moved, radii=(8.0, 14.0))}
        batch = network(**glioma_inputs(collate_glioma(items)))
        alone = torch.cat([network(**glioma_inputs(collate_glioma([item]))) for item in items])
        torch.testing.assert_close(batch, alone, atol=1e-4, rtol=1e-4)
        shuffled = []
        for item in items:
            order = torch.randperm(len(item["points"]), generator=torch.Generator().manual_seed(3))
            points = item["points"][order]
            graph = build_point_graph(points, radii=(8.0, 14.0))
            shuffled.append({**item, "points": points, "graph": graph, "incidence": item["incidence"][order]})
        again = network(**glioma_inputs(collate_glioma(shuffled)))
    torch.testing.assert_close(batch, again, atol=1e-4, rtol=1e-4)


def test_a_stage_alone_and_resume_skip_what_is_done(trained, cohort, tmp_path):
    shutil.copytree(trained / "models", tmp_path / "models")
    (tmp_path / "models/model.pt").unlink()
    (tmp_path / "models/contrast.pt").unlink()
    before = (tmp_path / "models/nodes.pt").stat().st_mtime_ns
    workflow("train", "cpu", data=cohort, out=tmp_path, resume=True, covariates=["age"], **SMALL).run()
    assert (tmp_path / "models/nodes.pt").stat().st_mtime_ns == before
    first, again = weights(trained / "models/model.pt"), weights(tmp_path / "models/model.pt")
    assert all(torch.equal(first[key], again[key]) for key in first), "a run that goes on gives the same model"
    for stage in ("nodes", "edges", "contrast", "train"):
        # a stage that starts anew has removed what was made from its earlier checkpoint
        (tmp_path / f"models/{'model' if stage == 'train' else stage}.pt").unlink(missing_ok=True)
        options = {"run_id": f"{stage}_run", "covariates": ["age"], **SMALL}
        workflow("train", "cpu", data=cohort, out=tmp_path, **options).run()
    third = weights(tmp_path / "models/model.pt")
    assert all(torch.equal(first[key], third[key]) for key in first), "stage by stage gives the same model"


def test_the_papers_preset_runs_and_literal_settings_arrive(cohort, tmp_path):
    small = {key: value for key, value in SMALL.items() if key != "network_def#image#channels"}
    flow = workflow(
        "train",
        "paper",
        "cpu",
        data=cohort,
        out=tmp_path,
        **{"network_def#image#channels": [4, 8], "network_def#brain#projection": [8, 16]},
        **small,
    )
    get = flow.parser.get_parsed_content
    assert isinstance(get("contrast#optimizer"), torch.optim.SGD)
    assert len(get("network").population.members[0].layers) == 4 and get("network").features.glioma.classifier is None
    assert get("network").settings["unimodal"] is False and get("contrast#contrastive_weight") == 1
    flow.run()
    assert (tmp_path / "models/model.pt").is_file()


@pytest.mark.parametrize(
    "change",
    [
        {"network_def#encoders": ["image"]},
        {"network_def#encoders": ["points", "brain"], "network_def#edge_attention": "literal"},
        {"network_def#encoders": ["brain"], "contrast#contrastive_weight": 0.0},
        {"network_def#graph": "tumour-brain", "network_def#brain#node_attention": "none"},
        {"network_def#population#graph": "none", "network_def#edge_attention": "none", "contrast#rotation": 0.0},
    ],
)
def test_ablations_are_overrides(trained, cohort, tmp_path, change):
    (tmp_path / "models").mkdir()
    for stage in ("nodes", "edges"):
        shutil.copy(trained / f"models/{stage}.pt", tmp_path / "models")
    flow = workflow(
        "train", "cpu", data=cohort, out=tmp_path, **(SMALL | change | {"contrast#epochs": 1, "resume": True})
    )
    flow.run()
    assert (tmp_path / "models/model.pt").is_file()


@pytest.mark.parametrize("weights_of", ["unimodal", "classification"])
def test_classifiers_without_a_weight_are_not_built_reported_or_explained(trained, cohort, tmp_path, weights_of):
    (tmp_path / "models").mkdir()
    for stage in ("nodes", "edges"):
        shutil.copy(trained / f"models/{stage}.pt", tmp_path / "models")
    brief = {"contrast#epochs": 1, "resume": True, f"contrast#{weights_of}_weight": 0, "answer": "graph"}
    workflow("train", "cpu", data=cohort, out=tmp_path, **(SMALL | brief)).run()
    state = weights(tmp_path / "models/model.pt")
    gone = ["classify_"] + ["classifier."] * (weights_of == "classification")
    assert not any(key.startswith(f"features.glioma.{name}") for key in state for name in gone)
    workflow("train", "cpu", "evaluate", data=cohort, out=tmp_path, run_id="evaluate", **(SMALL | brief)).run()
    row = rows(tmp_path / "eval/predictions.csv")[0]
    assert not any(name.startswith("unimodal") for name in row) and ("multitask" in row) == (weights_of == "unimodal")
    said = [line.split("|")[1] for line in (tmp_path / "eval/controls.md").read_text().splitlines() if "not tr" in line]
    assert len(said) == 3 + (weights_of == "classification") and all("MLP trained with the" in line for line in said)
    predict(tmp_path, cohort, tmp_path / "new")
    content = json.loads((tmp_path / "new/patients/P20.json").read_text())
    assert {name for name, value in content.items() if value == "not trained"} == {
        "unimodal_image",
        "unimodal_points",
        "unimodal_brain",
        *(["multitask"] if weights_of == "classification" else []),
    }


def test_a_run_of_the_image_alone_trains_and_stores_nothing_of_the_brain_network(cohort, tmp_path, caplog):
    alone = {"network_def#encoders": ["image"], "contrast#epochs": 1, "train#epochs": 1}
    with caplog.at_level(logging.INFO):
        flow = workflow("train", "cpu", data=cohort, out=tmp_path, **(SMALL | alone))
        flow.run()
    assert "encoders are not built, trained or stored" in caplog.text and "without FA" not in caplog.text
    found = {path.name for path in (tmp_path / "models").iterdir()}
    assert not found & {"nodes.pt", "edges.pt"} and {"contrast.pt", "model.pt"} < found
    get = flow.parser.get_parsed_content
    glioma = get("network").features.glioma
    used = sum(p.numel() for part in (glioma.image_encoder, glioma.classifier) for p in part.parameters())
    trained = sum(p.numel() for group in get("contrast#optimizer").param_groups for p in group["params"])
    stored = weights(tmp_path / "models/contrast.pt")["network"]
    assert trained == used and not any(key.startswith(("features.nodes", "features.edge")) for key in stored)
    for stage in ("nodes", "edges"):
        workflow("train", "cpu", data=cohort, out=tmp_path, run_id=f"{stage}_run", **(SMALL | alone)).run()
        assert not (tmp_path / f"models/{stage}.pt").exists()


def test_without_fa_maps_the_edge_encoder_learns_as_an_autoencoder_and_says_so(tmp_path, caplog):
    data = write_cohort(tmp_path / "data", training=8, testing=2, fa=False)
    with caplog.at_level(logging.WARNING):
        workflow("train", "cpu", data=data, out=tmp_path, run_id="edges_run", **SMALL).run()
    assert "without FA maps" in caplog.text
    assert any(key.startswith("decoder") for key in weights(tmp_path / "models/edges.pt")["network"])


def test_a_fold_is_left_out_of_everything(cohort, tmp_path):
    flow = workflow("train", "cpu", data=cohort, out=tmp_path, fold=1, **SMALL)
    parts = flow.parser.get_parsed_content("datalist").parts()
    assert len(parts["validation"]) == 10 and len(parts["contrastive"]) == len(parts["population"]) == 5
    assert not set(parts["validation"]) & {*parts["contrastive"], *parts["population"], *parts["self_supervised"]}


def test_all_problems_of_files_are_told_at_once_before_training(cohort, tmp_path):
    content = json.loads((cohort / "datalist.json").read_text())
    for case in content["training"] + content["testing"]:
        case["image"] = [str(cohort / path) for path in case["image"]]
        case["mask"], case["fa"] = str(cohort / case["mask"]), str(cohort / case["fa"])
    shifted = AFFINE.copy()
    shifted[0, 3] += 8
    content["training"][2] = {**write_case(tmp_path, "other", 0, 7, affine=shifted), "patient": "P02", "fold": 0}
    mask = nib.load(content["training"][4]["mask"])
    nib.save(nib.Nifti1Image(np.zeros(mask.shape, np.uint8), mask.affine), tmp_path / "empty.nii.gz")
    content["training"][4]["mask"] = "empty.nii.gz"
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    atlas = str(cohort / "atlas.npz")
    with pytest.raises(Exception) as raised:
        workflow("train", "cpu", data=tmp_path, out=tmp_path, atlas_file=atlas, **SMALL).run()
    problems = cause(raised.value).problems
    assert len(problems) == 2
    assert "P02 must lie on the atlas's grid, but its voxels lie elsewhere" in problems[0]
    assert "P04" in problems[1] and "empty" in problems[1]
    assert not (tmp_path / "models").exists()


def test_missing_labels_masks_and_folders_are_named(cohort, tmp_path):
    with pytest.raises(Exception) as raised:
        workflow("train", "cpu", data=tmp_path / "nowhere", out=tmp_path, **SMALL).run()
    assert "prepare_glioma.py" in str(cause(raised.value))
    content = json.loads((cohort / "datalist.json").read_text())
    del content["training"][3]["label"]
    (tmp_path / "nolabel.json").write_text(json.dumps(content))
    with pytest.raises(Exception) as raised:
        workflow("train", "cpu", data=cohort, out=tmp_path, datalist_file=str(tmp_path / "nolabel.json")).run()
    assert "P03: label is missing" in str(cause(raised.value))
    content = json.loads((cohort / "datalist.json").read_text())
    del content["training"][5]["mask"]
    (tmp_path / "nomask.json").write_text(json.dumps(content))
    with pytest.raises(Exception) as raised:
        workflow("train", "cpu", data=cohort, out=tmp_path, datalist_file=str(tmp_path / "nomask.json")).run()
    assert "P05: has no tumour mask" in str(cause(raised.value))


def test_new_patients_without_labels_are_predicted_with_the_atlas_of_the_training(trained, tmp_path):
    case = write_case(tmp_path / "new", "N1", 1, 900, fa=False)
    del case["label"]
    (tmp_path / "new/datalist.json").write_text(json.dumps({"training": [], "testing": [case]}))
    found = predict(trained, tmp_path / "new", tmp_path / "out")
    assert found["N1"]["label"] == "" and 0 <= float(found["N1"]["probability"]) <= 1
    assert check_trace(tmp_path / "out", tmp_path / "new", trained / "models") == []
    assert not (tmp_path / "out/metrics.json").exists()


def test_a_tumour_larger_than_the_crop_is_warned_of_and_centred(cohort, tmp_path, caplog):
    flow = workflow("train", "cpu", data=cohort, out=tmp_path, **(SMALL | {"preparing#size": 4}))
    with caplog.at_level(logging.WARNING):
        item = flow.parser.get_parsed_content("validate#dataset").items[0]
    assert "more than the crop of 8 mm" in caplog.text and item["crop"]["clipped"] > 0
    assert item["mask"].all(dim=0).any() and item["image"].shape == (4, 4, 4, 4)


def test_the_metadata_describe_the_network_of_the_paper_sized_config(tmp_path):
    parser = ConfigParser()
    parser.read_config(ROOT / "bundles/glioma_idh/configs/train.json")
    parser["bundle_root"], parser["dataset_dir"] = str(ROOT / "bundles/glioma_idh"), str(tmp_path)
    metadata = json.loads((ROOT / "bundles/glioma_idh/configs/metadata.json").read_text())
    inputs = metadata["network_data_format"]["inputs"]
    for name, found in parser.get_parsed_content("network_def").data_format().items():
        assert {key: inputs[name][key] for key in found} == found


def test_a_cohort_graph_with_isolated_nodes_trains_predicts_and_says_so(trained, cohort, tmp_path, caplog):
    shutil.copytree(trained / "models", tmp_path / "models")
    (tmp_path / "models/model.pt").unlink()
    given = SMALL | {"network_def#population#theta": 0.999, "covariates": ["age"]}
    with caplog.at_level(logging.INFO):
        workflow("train", "cpu", data=cohort, out=tmp_path, run_id="train_run", **given).run()
    assert "0 edges" in caplog.text and "isolated 100.0%" in caplog.text
    found = predict(tmp_path, cohort, tmp_path / "out")
    assert all(row["out_of_cohort"] == "1" and 0 < float(row["probability"]) < 1 for row in found.values())


def test_explanations_of_a_cohort_and_of_new_patients_are_files(trained, cohort, tmp_path):
    explained = {
        "edge_mask#epochs": 5,
        "max_patients": 1,
        "covariates": ["age"],
        "output_dir": str(tmp_path / "cohort"),
    }
    configs = ("train", "cpu", "explain")
    workflow(*configs, data=cohort, out=trained, run_id="explain", **(SMALL | explained)).run()
    table = rows(tmp_path / "cohort/explanations.csv")
    assert [row["patient"] for row in table] == [f"P{k}" for k in range(20, 26)]
    predicted = rows(trained / "eval/predictions.csv")
    for row, other in zip(table, predicted, strict=True):
        assert float(row["probability"]) == pytest.approx(float(other["probability"]), abs=1e-5)
    names = {path.name.removeprefix("P20_") for path in (tmp_path / "cohort/patients").iterdir()}
    wanted = {"cam.nii.gz", "cam.png", "points_attention.ply", "surface.png", "tracts.csv", "tracts.nii.gz"}
    assert wanted | {"regions.csv"} <= names and not any(name.startswith("P2") and "P20" not in name for name in names)
    cam = nib.load(tmp_path / "cohort/patients/P20_cam.nii.gz")
    assert cam.shape == tuple(nib.load(cohort / "P20/mask.nii.gz").shape) and np.allclose(cam.affine, AFFINE)

    case = write_case(tmp_path / "new", "N1", 1, 900, fa=False)
    del case["label"]
    (tmp_path / "new/datalist.json").write_text(json.dumps({"training": [], "testing": [case]}))
    given = {"edge_mask#epochs": 5, "bf16": False, "run_id": "explain", "kind": "infer"}
    given |= {"ckpt_dir": str(trained / "models"), "output_dir": str(tmp_path / "out")}
    workflow("inference", "explain", "explain_inference", data=tmp_path / "new", out=trained, **given).run()
    (row,) = rows(tmp_path / "out/explanations.csv")
    assert row["patient"] == "N1" and row["label"] == "" and (tmp_path / "out/patients/N1_tracts.csv").is_file()
    assert not (tmp_path / "out/localisation.json").exists()
    for folder in (trained / "models", trained / "eval", tmp_path / "cohort", tmp_path / "out"):
        assert not undocumented_in(folder, "glioma_idh")


def test_patients_whom_the_encoders_saw_are_not_scored(trained, cohort, tmp_path):
    given = SMALL | {"covariates": ["age"], "fold": 0, "output_dir": str(tmp_path)}
    with pytest.raises(Exception) as raised:
        workflow("train", "cpu", "evaluate", data=cohort, out=trained, run_id="evaluate", **given).run()
    assert "10 of the 10 patients to evaluate trained this model (P0" in str(cause(raised.value))
    assert "--fold" in str(cause(raised.value))
    assert not (tmp_path / "metrics.json").exists()


def test_evaluation_takes_the_models_own_settings_and_no_overlay_is_needed(trained, cohort, tmp_path):
    found = []
    for name, configs in (("with", ("train", "cpu", "evaluate")), ("bare", ("train", "evaluate"))):
        given = {"run_id": "evaluate", "output_dir": str(tmp_path / name), "bf16": False}
        workflow(*configs, data=cohort, out=trained, **given).run()
        found.append({row["patient"]: row["probability"] for row in rows(tmp_path / name / "predictions.csv")})
    assert found[0] == found[1]


def test_brightness_is_standardised_as_the_model_was_trained(trained, cohort, tmp_path):
    def margins(models):
        places = {"ckpt_dir": str(models), "output_dir": str(tmp_path / "out")}
        flow = workflow("inference", data=cohort, out=trained, kind="infer", bf16=False, **places)
        other = workflow("train", "evaluate", data=cohort, out=trained, run_id="evaluate", bf16=False, **places)
        return [found.parser.get_parsed_content("load").margin for found in (flow, other)]

    assert margins(trained / "models") == [4.0, 4.0]
    shutil.copytree(trained / "models", tmp_path / "models")
    settings = json.loads((tmp_path / "models/model.json").read_text())
    del settings["preparing"]["margin"]  # trained before there was a margin: over the whole brain
    (tmp_path / "models/model.json").write_text(json.dumps(settings))
    assert margins(tmp_path / "models") == [None, None]


def test_a_cohorts_preparation_goes_along_with_the_model(cohort, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(cohort, data)
    record = {"version": 2, "sequences": ["T1", "T1c", "T2", "FLAIR"], "n4": True, "histogram": True, "smoothing": 1.0}
    record |= {"registration": "syn", "template": None}
    (data / "preparation.json").write_text(json.dumps(record))
    reference = {"percentiles": [1.0], "landmarks": {"T1": [100.0]}}
    (data / "histogram_reference.json").write_text(json.dumps(reference | {"patient": "P00", "fingerprint": "ab"}))
    flow = workflow("train", "cpu", data=data, out=tmp_path, **SMALL)
    flow.parser.get_parsed_content("train#handlers#1")(SimpleNamespace(state=SimpleNamespace(epoch=6)))
    assert json.loads((tmp_path / "models/preparation.json").read_text()) == record
    assert json.loads((tmp_path / "models/histogram_reference.json").read_text()) == reference


def test_sequences_in_another_order_are_put_right_and_others_refused(trained, cohort, tmp_path, caplog):
    def datalist(name, modalities, order):
        content = json.loads((cohort / "datalist.json").read_text())
        for case in content["testing"]:
            case["image"] = [case["image"][k] for k in order]
        (tmp_path / name).write_text(json.dumps({**content, "modalities": modalities, "training": []}))
        return str(tmp_path / name)

    names = json.loads((trained / "models/model.json").read_text())["modalities"]
    right = predict(trained, cohort, tmp_path / "right", datalist_file=datalist("a.json", names, range(4)))
    turned = datalist("b.json", [names[k] for k in (2, 0, 3, 1)], (2, 0, 3, 1))
    found = predict(trained, cohort, tmp_path / "turned", datalist_file=turned)
    assert {k: row["probability"] for k, row in found.items()} == {k: row["probability"] for k, row in right.items()}
    assert "are taken in the model's order" in caplog.text
    with pytest.raises(Exception) as raised:
        other = datalist("c.json", [*names[:3], "DWI"], range(4))
        predict(trained, cohort, tmp_path / "other", datalist_file=other)
    assert f"the model was trained on {', '.join(names)}" in str(cause(raised.value))


def test_another_atlas_with_as_many_tracts_is_refused(trained, cohort, tmp_path):
    from shared.data import TractAtlas

    shutil.copytree(trained / "models", tmp_path / "models")
    atlas = TractAtlas.load(cohort / "atlas.npz")
    atlas.pairs = atlas.pairs[::-1].copy()
    atlas.save(tmp_path / "models/atlas.npz")
    with pytest.raises(Exception) as raised:
        predict(tmp_path, cohort, tmp_path / "out")
    assert "is not the atlas that the model was trained with" in str(cause(raised.value))
    shutil.copytree(cohort, tmp_path / "data")
    atlas.save(tmp_path / "data/atlas.npz")
    given = SMALL | {"covariates": ["age"], "resume": True, "run_id": "contrast_run"}
    with pytest.raises(Exception) as raised:
        workflow("train", "cpu", data=tmp_path / "data", out=tmp_path, **given).run()
    assert "the tract atlas is another one" in str(cause(raised.value))


def test_a_patient_of_the_training_is_told_among_new_ones(trained, cohort, tmp_path):
    content = json.loads((cohort / "datalist.json").read_text())
    known = {**content["training"][0], "patient": "renamed"}
    mixed = {**content, "training": [], "testing": [known, content["testing"][0]]}
    (tmp_path / "mixed.json").write_text(json.dumps(mixed))
    found = predict(trained, cohort, tmp_path / "out", datalist_file=str(tmp_path / "mixed.json"))
    assert [row["trained_on"] for row in found.values()] == ["1", "0"]


def test_the_bank_is_recognised_where_nobody_is_named(trained, cohort, tmp_path):
    shutil.copytree(trained / "models", tmp_path / "models")
    parts = json.loads((tmp_path / "models/split.json").read_text())
    (tmp_path / "models/split.json").unlink()  # as a packaged model comes
    content = json.loads((cohort / "datalist.json").read_text())
    bank = [case for case in content["training"] if case["patient"] in parts["population"]][:2]
    (tmp_path / "bank.json").write_text(
        json.dumps({**content, "training": [], "testing": [*bank, content["testing"][0]]})
    )
    found = predict(tmp_path, cohort, tmp_path / "out", datalist_file=str(tmp_path / "bank.json"))
    assert [row["trained_on"] for row in found.values()] == ["1", "1", ""]
