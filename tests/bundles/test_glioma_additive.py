"""The additive answer of the glioma bundle: cross-fitted scores, its sum in the files, the simplest variant."""

import json
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch

from shared.apps.baselines.population_table import read_population
from shared.biomarkers import fit_additive
from shared.data.brain import datalist
from tests.support.bundle_runs import bundle_workflow, cause, rows
from tests.support.documented import undocumented_in
from tests.support.small import small_data, small_settings

BRIEF = {"nodes#epochs": 1, "edges#epochs": 1, "contrast#epochs": 2, "train#epochs": 2, "val_interval": 2}
SMALL = small_settings("glioma_idh") | BRIEF | {"covariates": ["age"]}
workflow = partial(bundle_workflow, "glioma_idh")


def fold_of(name):
    """P00 and P01 in fold 0, P02 and P03 in fold 1, and so on."""
    return int(name[1:]) // 2 % 2


@pytest.fixture(scope="module")
def fixed_folds():
    """Folds that do not depend on labels, so that a label may change and the folds stay."""
    with pytest.MonkeyPatch.context() as patch:
        dealt = lambda cases, folds, seed: [{**case, "fold": fold_of(case["patient"])} for case in cases]  # noqa: E731
        patch.setattr(datalist, "assign_folds", dealt)
        yield


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return small_data("glioma_idh", tmp_path_factory.mktemp("cohort") / "data")


@pytest.fixture(scope="module")
def crossed(cohort, tmp_path_factory, fixed_folds):
    """The folder of a whole training with two folds of cross-fitting."""
    out = tmp_path_factory.mktemp("crossed")
    workflow("train", "cpu", data=cohort, out=out, **SMALL, **{"cross_fit#folds": 2}).run()
    return out


def weights(path):
    return torch.load(path, weights_only=True)


def evaluate(data, out, **given):
    folder = out / f"eval_{given.get('answer', 'own')}"
    given |= {"run_id": "evaluate", "covariates": ["age"], "output_dir": str(folder)}
    workflow("train", "cpu", "evaluate", data=data, out=out, **(SMALL | given)).run()
    return folder


def test_no_patients_score_knows_the_patients_own_label_or_its_folds_images(cohort, crossed, tmp_path):
    other = small_data("glioma_idh", tmp_path / "data")
    content = json.loads((other / "datalist.json").read_text())
    for case in content["training"]:
        if case["patient"] == "P00":
            case["label"] = 1 - case["label"]
    (other / "datalist.json").write_text(json.dumps(content))
    for path in (other / "P04").glob("t*.nii.gz"):  # in P00's fold
        image = nib.load(path)
        changed = image.get_fdata() * (1 + np.linspace(0, 1, image.shape[0])[:, None, None])
        nib.save(nib.Nifti1Image(changed.astype(np.float32), image.affine), path)
    for stage in ("nodes", "edges", "contrast", "cross_fit"):
        settings = SMALL | {"cross_fit#folds": 2}
        workflow("train", "cpu", data=other, out=tmp_path, run_id=f"{stage}_run", **settings).run()
    before, after = (weights(out / "models/cross_fit.pt") for out in (crossed, tmp_path))
    assert before["patients"] == after["patients"] and len(before["patients"]) == 20
    same = torch.eq(before["scores"], after["scores"]).all(dim=1)
    for row, name in enumerate(before["patients"]):
        assert before["fold"][row] == fold_of(name)
        # P04's own image has changed; of the other fold, P00 and P04 taught the encoders
        assert same[row] == (fold_of(name) == 0 and name != "P04"), name


def test_embeddings_of_all_patients_are_the_bank_and_their_scores_what_is_fitted(cohort, crossed):
    found, model = weights(crossed / "models/cross_fit.pt"), weights(crossed / "models/model.pt")
    ages = {case["patient"]: case["covariates"]["age"] for case in _training(cohort)}
    labels = {case["patient"]: case["label"] for case in _training(cohort)}
    order = [list(found["patients"]).index(case["patient"]) for case in _training(cohort)]
    both = torch.cat([found[f"u_{name}"] for name in ("image", "points", "brain")], dim=1)[order]
    torch.testing.assert_close(model["population.bank_nodes"], both)
    x = np.hstack([found["scores"].double().numpy(), [[ages[name]] for name in found["patients"]]])[order]
    expected = fit_additive(x, [labels[case["patient"]] for case in _training(cohort)])
    np.testing.assert_allclose(model["additive.weight"].numpy(), expected.weight, rtol=1e-9)
    np.testing.assert_allclose(model["additive.bias"].numpy(), [expected.bias], rtol=1e-9)


def _training(cohort):
    return json.loads((cohort / "datalist.json").read_text())["training"]


def test_each_fold_was_trained_without_its_patients_and_the_last_encoders_on_all(crossed):
    final = weights(crossed / "models/contrast.pt")["network"]
    folds = [weights(crossed / f"models/fold_{k}/contrast.pt")["network"] for k in (0, 1)]
    for one, other in ((final, folds[0]), (final, folds[1]), folds):
        assert any(not torch.equal(one[key], other[key]) for key in one)
    assert all((crossed / f"models/fold_{k}/{stage}.pt").is_file() for k in (0, 1) for stage in ("nodes", "edges"))
    table = rows(crossed / "eval/additive_terms.csv")
    assert [row["term"] for row in table] == ["image", "points", "brain", "age"]


def test_what_image_surface_brain_and_age_say_adds_up_in_the_files(cohort, crossed):
    folders = {answer: evaluate(cohort, crossed, answer=answer) for answer in ("graph", "additive")}
    tables = {answer: rows(folder / "predictions.csv") for answer, folder in folders.items()}
    for row, other in zip(*tables.values(), strict=True):
        assert row["probability"] != other["probability"]
        for key in ("probability_graph", "probability_additive", "unimodal_image", "mlp"):
            assert float(row[key]) == pytest.approx(float(other[key]), abs=1e-7)
        assert float(row["probability"]) == pytest.approx(float(row["probability_graph"]), abs=1e-6)
        assert float(other["probability"]) == pytest.approx(float(other["probability_additive"]), abs=1e-6)
    names = ["image", "points", "brain", "age"]
    for row, predicted in zip(rows(folders["additive"] / "additive.csv"), tables["additive"], strict=True):
        logit = float(row["logit"])
        assert sum(float(row[f"term_{n}"]) for n in names) + float(row["bias"]) == pytest.approx(logit, abs=1e-6)
        assert sum(float(row[f"shapley_{n}"]) for n in names) + float(row["base"]) == pytest.approx(logit, abs=1e-6)
        assert 1 / (1 + np.exp(-logit)) == pytest.approx(float(predicted["probability_additive"]), abs=1e-6)
        own = float(predicted["unimodal_image"])  # the image's term is its own log odds times its weight
        weight = float(rows(crossed / "eval/additive_terms.csv")[0]["weight"])
        assert float(row["term_image"]) == pytest.approx(weight * np.log(own / (1 - own)), rel=1e-3, abs=1e-5)
    scores = [json.loads((folder / "controls.json").read_text())["all"]["AUC"] for folder in folders.values()]
    sums, graph = "sum of the encoders' scores", "population graph"
    assert list(scores[0])[:2] == [graph, sums] and list(scores[1])[:2] == [sums, graph]
    assert scores[0] == {key: scores[1][key] for key in scores[0]}
    for folder in (crossed / "eval", *folders.values()):
        assert not undocumented_in(folder, "glioma_idh")


def test_a_new_patients_file_holds_its_terms(cohort, crossed, tmp_path):
    given = {"ckpt_dir": str(crossed / "models"), "output_dir": str(tmp_path), "bf16": False, "answer": "additive"}
    workflow("inference", data=cohort, out=crossed, kind="infer", **given).run()
    content = json.loads((tmp_path / "patients/P20.json").read_text())
    terms = content["additive"]
    total = sum(value for key, value in terms.items() if key.startswith("term_"))
    assert total + terms["bias"] == pytest.approx(terms["logit"], abs=1e-6) and "term_age" in terms
    assert content["answer"] == "additive"
    assert content["probability"] == pytest.approx(content["probability_additive"], abs=1e-6)
    assert not undocumented_in(tmp_path, "glioma_idh")


def test_embeddings_are_a_table_that_the_population_graph_reads(cohort, crossed):
    folder = evaluate(cohort, crossed, answer="graph")
    options = {"covariates": {}, "grade_column": None}
    table = read_population(
        folder / "embeddings.csv", folder / "predictions.csv", id_column="patient", label_column="label", **options
    )
    assert table.patients == tuple(f"P{k}" for k in range(20, 26)) and table.labels.tolist() == [0, 1] * 3
    state = weights(crossed / "models/model.pt")
    assert table.named("tumour_").shape[1] + table.named("brain_").shape[1] == state["population.bank_nodes"].shape[1]


def test_a_cross_fit_that_is_done_is_kept(cohort, crossed):
    path = crossed / "models/cross_fit.pt"
    before = path.stat().st_mtime_ns
    settings = SMALL | {"cross_fit#folds": 2, "resume": True, "run_id": "cross_fit_run"}
    workflow("train", "cpu", data=cohort, out=crossed, **settings).run()
    assert path.stat().st_mtime_ns == before


def test_a_part_of_ones_own_is_refused_with_cross_fitting(cohort, tmp_path):
    content = json.loads((cohort / "datalist.json").read_text())
    content["training"][3]["part"] = "population"
    (tmp_path / "named.json").write_text(json.dumps(content))
    given = {"datalist_file": str(tmp_path / "named.json"), "cross_fit#folds": 2}
    with pytest.raises(Exception) as raised:
        workflow("train", "cpu", data=cohort, out=tmp_path, **(SMALL | given)).parser.get_parsed_content("datalist")
    assert "P03 names its part" in str(cause(raised.value))


def test_the_simplest_variant_trains_each_encoder_alone_and_answers_by_their_sum(cohort, tmp_path):
    workflow("train", "simple", "cpu", data=cohort, out=tmp_path, **SMALL).run()
    state = weights(tmp_path / "models/model.pt")
    assert not any(key.startswith(("features.glioma.classifier", "features.glioma.project")) for key in state)
    folder = evaluate(cohort, tmp_path)
    for row in rows(folder / "predictions.csv"):
        assert float(row["probability"]) == pytest.approx(float(row["probability_additive"]), abs=1e-6)
        assert "multitask" not in row
