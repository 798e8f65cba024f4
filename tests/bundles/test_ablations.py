"""The paper's ablations (Table 3) and comparisons (Tables 1, 2): each key and overlay, from images to predictions."""

import json

import pytest
import torch

from tests.support.bundle_runs import bundle_workflow, cause, rows
from tests.support.documented import undocumented_in
from tests.support.left_out import settings, write_data

WITHOUT = {
    "pretrain#intra_positives": "none",
    "pretrain#num_positives": 0,
    "mixup_ratio": 0,
    "network_def#attention": "self",
    "use_modalities": ["T2"],
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_data("ircl_mvi", tmp_path_factory.mktemp("cohort") / "data")


def trained(cohort, out, given, *overlays):
    """A training's folder, its evaluation's predictions, and those of inference, which need no overlay."""
    bundle_workflow("ircl_mvi", "train", *overlays, data=cohort, out=out, **given).run()
    found = []
    for name, configs, kind in (("evaluate", ("train", "evaluate"), "train"), ("inference", ("inference",), "infer")):
        options = {"run_id": "evaluate", "split": "testing"} if kind == "train" else {"mask#steps": 1}
        options["output_dir"] = str(out / name)
        bundle_workflow("ircl_mvi", *configs, data=cohort, out=out, kind=kind, **options).run()
        found.append([float(row["probability"]) for row in rows(out / name / "predictions.csv")])
    assert len(found[0]) == 3 and found[1] == pytest.approx(found[0], abs=1e-6)
    return json.loads((out / "models/model.json").read_text())


@pytest.mark.parametrize("left", ["reconstruction", "contrastive"])
def test_stage_one_runs_on_either_term_alone(cohort, tmp_path, left):
    gone = "contrastive" if left == "reconstruction" else "reconstruction"
    given = settings("ircl_mvi") | {f"pretrain#{gone}_weight": 0.0, "run_id": "pretrain_run"}
    bundle_workflow("ircl_mvi", "train", data=cohort, out=tmp_path, **given).run()
    for row in rows(tmp_path / "eval/pretrain_loss.csv"):
        assert float(row["loss"]) == pytest.approx(float(row[left]), rel=1e-6) and float(row[gone]) > 0


def test_all_other_ablations_run_in_one_modality(cohort, tmp_path, caplog):
    given = settings("ircl_mvi") | WITHOUT | {"network_def#channels": [8, 16]}
    del given["num_modalities"]  # as many as are named
    model = trained(cohort, tmp_path, given)
    assert model["modalities"] == ["T2"] and model["num_modalities"] == 1 and model["network"]["num_images"] == 2
    assert model["record"]["settings"]["network_def#attention"] == "self"
    assert len(torch.load(tmp_path / "models/model.pt", weights_only=True)["biomarkers"]) == 2
    # explained as far as it goes, and the log says how far
    explained = bundle_workflow(
        "ircl_mvi",
        "train",
        "explain",
        data=cohort,
        out=tmp_path,
        run_id="explain",
        split="testing",
        **{"mask#steps": 1},
    )
    explained.run()
    assert 'There are no Shapley values of biomarkers: network_def#attention is "self"' in caplog.text
    assert (tmp_path / "eval/shapley.csv").exists() and not (tmp_path / "eval/prototype/shapley.csv").exists()
    assert json.loads((tmp_path / "eval/prototype/patients/P10.json").read_text())["shapley"] is None
    # a covariate's column has its own name, which no page can know
    assert undocumented_in(tmp_path / "eval", "ircl_mvi") == ["shapley.csv: age"]
    assert not undocumented_in(tmp_path / "models", "ircl_mvi")


def small_control():
    own = {key: value for key, value in settings("ircl_mvi").items() if not key.startswith(("network_def", "pretrain"))}
    return own | {"network_def#channels": [4, 8], "train#batch_size": 5}


@pytest.mark.parametrize(("overlay", "network"), [("mil", "AttentionMIL"), ("ha_csl", "HierarchicalAttentionNetwork")])
def test_a_comparison_runs(cohort, tmp_path, overlay, network, caplog):
    model = trained(cohort, tmp_path, small_control(), overlay)
    assert model["network"]["class"] == f"shared.networks.{network}" and model["network"]["channels"] == [4, 8]
    assert model["modalities"] == ["T1", "T2"] and model["record"]["stage"] == "train"
    assert "Nothing is explained: the network" in caplog.text
    assert not undocumented_in(tmp_path / "eval", "ircl_mvi") + undocumented_in(tmp_path / "models", "ircl_mvi")
    with pytest.raises(Exception) as caught:
        bundle_workflow(
            "ircl_mvi", "train", "explain", data=cohort, out=tmp_path, run_id="explain", split="testing"
        ).run()
    assert "has no biomarkers: it can be evaluated and asked" in str(cause(caught.value))


def test_a_comparison_that_was_cut_off_goes_on_as_if_it_had_not_been(cohort, tmp_path):
    given = small_control() | {"train#trainer#save_interval": 1}
    for epochs, out, resume in ((4, "whole", False), (2, "parts", False), (4, "parts", True)):
        flow = bundle_workflow(
            "ircl_mvi",
            "train",
            "mil",
            data=cohort,
            out=tmp_path / out,
            **given | {"train#epochs": epochs, "resume": resume},
        )
        if epochs == 2:  # the process ends before the stage does
            flow.parser.get_parsed_content("train#trainer").checkpoint.completed = lambda engine: None
        flow.run()
    one, other = (torch.load(tmp_path / out / "models/model.pt", weights_only=True) for out in ("whole", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)
