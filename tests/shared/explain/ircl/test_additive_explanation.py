"""What the additive predictor's explanation says, against enumeration of coalitions and sums of its own maps."""

import csv
import itertools
import json

import nibabel as nib
import numpy as np
import pytest
import torch

from shared.checkpoint import save_checkpoint
from shared.explain import ExplainStage, PatientExplainer, exact_shapley
from shared.explain.ircl.shapley import additive_shapley
from shared.explain.ircl.stage import class_means
from tests.support.additive import tiny_additive, tumours
from tests.support.tiny import affine_of

MODALITIES, CLASSES = ["T1", "T2"], ["low", "high"]


@pytest.fixture(scope="module")
def network():
    return tiny_additive(num_covariates=1, members=2, views=2)


def case_of(image, patient="P1", **more):
    """A case as ROISlicesd leaves it: 16 x 16 pixels of 2 x 1 voxels, of 1 x 1.5 mm each."""
    affine = affine_of((1.0, 1.5, 4.0))
    geometry = {"axis": 2, "slices": [1, 3], "shape": (40, 20, 5), "num_modalities": 2, "window": (4, 36, 2, 18)}
    geometry |= {"affine": affine, "source": {"affine": affine}}
    return {"patient": patient, "image": image, "covariates": torch.tensor([0.4]), "geometry": geometry, **more}


@pytest.mark.parametrize("known", [torch.tensor([[0.4], [-1.2]]), None])
def test_shapley_values_are_those_of_all_coalitions(known):
    predictor, images = tiny_additive(num_biomarkers=3, num_covariates=1, measure="sqrt").additive, tumours(2)
    amounts = predictor.measured(images)
    found = additive_shapley(predictor, amounts, known)
    covariates = predictor.covariate_mean.expand(2, 1) if known is None else known.double()
    weight = torch.cat([predictor.weight[0].flatten(0, 1), predictor.covariate_weight])
    weight, bias = weight[:, 1] - weight[:, 0], predictor.bias[1] - predictor.bias[0]
    average = torch.cat([predictor.mean[0].flatten(), predictor.covariate_mean])
    for i in range(2):
        mine = torch.cat([amounts[i, 0].flatten(), covariates[i]])
        worth = []  # who is absent is as the average patient
        for coalition in range(2**7):
            present = torch.tensor([bool(coalition >> k & 1) for k in range(7)])
            worth.append(float(bias + (weight * torch.where(present, mine, average)).sum()))
        np.testing.assert_allclose(found.values[i], exact_shapley(np.array(worth)), atol=1e-10)
        assert float(found.base[i]) == pytest.approx(worth[0]) and float(found.full[i]) == pytest.approx(worth[-1])
    with torch.no_grad():
        logits = predictor(images, known)
    torch.testing.assert_close(found.full.float(), logits[:, 1] - logits[:, 0], atol=1e-5, rtol=1e-5)


def test_the_explanation_is_the_prediction(network):
    case = case_of(tumours(2)[0])
    explainer = PatientExplainer(network, modalities=MODALITIES, class_names=CLASSES, covariates=["age"])
    result = explainer(case)
    with torch.no_grad():
        logits = network(case["image"][None], case["covariates"][None])[0]
        contributions, biomarkers, amounts = network.additive.explain(case["image"][None])
    odds = float(logits[1] - logits[0])
    assert result["probability"] == pytest.approx(1 / (1 + np.exp(-odds)), abs=1e-6)
    places, predictor = result["places"], network.additive
    assert torch.equal(places["contributions"], contributions[0]) and torch.equal(places["biomarkers"], biomarkers[0])
    total = float(places["contributions"].double().sum() + predictor.log_odds(predictor.bias))
    total += float(0.4 * predictor.log_odds(predictor.covariate_weight)[0])
    assert total == pytest.approx(odds, abs=1e-5)
    # 8 x 8 places of a window of 32 x 24 mm, two slices
    covered = predictor.coverage(case["image"][None], 8)[0]
    for k in range(10):
        area = float(covered[biomarkers[0] == k].sum()) * 32 * 24 / 64 / 2
        assert float(places["area_mm2"][k]) == pytest.approx(area)
    assert [row["modality"] for row in result["images"]] == ["T1", "T1", "T2", "T2"]
    told = [row["contribution"] for row in result["images"]]
    assert told == pytest.approx(contributions[0].sum(dim=(1, 2)).tolist(), abs=1e-6)
    assert result["masks"] is None and len(explainer.names) == 21 and explainer.names[-1] == "age"
    assert explainer.names[:2] == ["T1 0.0", "T1 0.1"] and explainer.names[10] == "T1 1.0"
    assert result["shown"].tolist() == [*(amounts[0] > 0).flatten().tolist(), True]


def test_the_summary_tells_what_speaks_for_and_against(network):
    explainer = PatientExplainer(network, modalities=MODALITIES, class_names=CLASSES, covariates=["age"])
    result = explainer(case_of(tumours(2)[1]))
    told = json.loads(json.dumps(explainer.summary(result)))
    assert told["answer"] == "additive" and told["shapley"]["unit"] == "log odds" and told["positive_class"] == "high"
    values = told["shapley"]["values"]
    assert told["shapley"]["base"] + sum(values.values()) == pytest.approx(told["log_odds"])
    assert told["probability"] == pytest.approx(1 / (1 + np.exp(-told["log_odds"])), abs=1e-6)
    for side, sign in (("for", 1), ("against", -1)):
        expected = sorted((name for name in values if values[name] * sign > 0), key=lambda name: -abs(values[name]))
        assert [row["name"] for row in told[side]] == expected[:5]
        for row in told[side]:
            assert row["log_odds"] == pytest.approx(values[row["name"]], abs=1e-6)
            # areas are of the first member's biomarkers
            assert ("area_mm2" in row) == (row["name"].split(" ")[-1].startswith("0."))
    rows = explainer.rows(result)
    areas = dict(zip(explainer.names, result["places"]["area_mm2"].tolist(), strict=False))
    assert [row["biomarker"] for row in rows] == [name for name in areas if areas[name] > 0]
    for row in rows:
        assert row["area_mm2"] == pytest.approx(areas[row["biomarker"]], abs=1e-4)
        assert row["log_odds"] == pytest.approx(values[row["biomarker"]], abs=1e-6)


def test_files_are_on_the_sources_grid(network, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr("shared.visualize.contribution_grid", lambda *a, **k: asked.update(k, given=a))
    case = case_of(tumours(2)[0], label=1)
    explainer = PatientExplainer(network, modalities=MODALITIES, class_names=CLASSES, covariates=["age"])
    result = explainer(case)
    explainer.write(case, result, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"P1.json", "P1_contributions.nii.gz", "P1_biomarkers.nii.gz"}
    contributions, owners = (nib.load(tmp_path / f"P1_{name}.nii.gz") for name in ("contributions", "biomarkers"))
    assert contributions.shape == owners.shape == (40, 20, 5, 2)
    np.testing.assert_allclose(contributions.affine, case["geometry"]["affine"])
    volume, codes = contributions.get_fdata(), owners.get_fdata()
    found = result["places"]["contributions"]
    assert volume.sum() == pytest.approx(float(found.sum()), abs=1e-5)
    for j, r, c in itertools.product(range(4), range(8), range(8)):
        # a place of 4 x 2 voxels, whose log odds are shared by these
        where = np.s_[4 + 4 * r : 8 + 4 * r, 2 + 2 * c : 4 + 2 * c, (1, 3)[j % 2], j // 2]
        np.testing.assert_allclose(volume[where], float(found[j, r, c]) / 8, atol=1e-6)
        assert (codes[where] == int(result["places"]["biomarkers"][j, r, c]) + 1).all()
    assert not codes[:4].any() and not codes[..., 0, :].any() and codes.max() > 5
    assert asked["columns"] == 2 and asked["header"].endswith("(label: high)") and asked["positive_name"] == "high"
    assert torch.equal(asked["given"][1], found.transpose(-2, -1).flip(-2, -1))


def test_either_answer_can_be_explained(network):
    case = case_of(tumours(2)[0])
    with torch.no_grad():
        answers = network.answers(case["image"][None], case["covariates"][None])
    for name, logits in answers.items():
        explainer = PatientExplainer(network, modalities=MODALITIES, covariates=["age"], answer=name)
        result = explainer(case)
        assert result["probability"] == pytest.approx(float(logits.softmax(dim=1)[0, 1]), abs=1e-6)
        assert explainer.unit == {"prototype": "probability", "additive": "log odds"}[name]
        assert (result["places"] is None) == (name == "prototype")
    assert PatientExplainer(network).answer == "additive"


def test_a_case_without_geometry_has_no_area(network):
    result = PatientExplainer(network, covariates=["age"])(
        {"patient": "P1", "image": tumours(2)[0], "covariates": torch.tensor([0.4])}
    )
    assert torch.isnan(result["places"]["area_mm2"]).all()


@pytest.mark.parametrize("answer", ["additive", "prototype"])
def test_the_cohort_is_explained_by_the_answer_and_then_by_the_other(tmp_path, monkeypatch, answer):
    drawn = {}
    for name in ("shapley_distribution", "shapley_patient_bars", "contribution_grid"):
        monkeypatch.setattr(f"shared.visualize.{name}", lambda *a, name=name, **k: drawn.setdefault(name, []).append(k))
    planted = torch.zeros(2, 16, 16, dtype=torch.long)
    planted[0, :8] = 1
    monkeypatch.setattr("shared.explain.ircl.planted.labels_to_images", lambda *_: planted)
    net = tiny_additive(num_covariates=1, answer=answer)
    save_checkpoint(tmp_path / "model.pt", net.state_dict())
    images, labels = tumours(4), [0, 1, 0, 1]
    cases = [case_of(x, f"P{i}", label=labels[i], planted="planted.nii.gz") for i, x in enumerate(images)]
    explainer = PatientExplainer(net, modalities=MODALITIES, class_names=CLASSES, covariates=["age"])
    settings = {"planted_visible": {"T1": [1]}, "random_maps": 3}
    ExplainStage(explainer, cases, checkpoint=tmp_path / "model.pt", output_dir=tmp_path / "out", **settings).run()
    assert explainer.answer == answer
    folders = {answer: tmp_path / "out", {"additive": "prototype", "prototype": "additive"}[answer]: None}
    folders = {name: folder or tmp_path / "out" / name for name, folder in folders.items()}
    with torch.no_grad():
        answers = net.answers(images, torch.full((4, 1), 0.4))
    for name, folder in folders.items():
        with (folder / "shapley.csv").open() as file:
            rows = list(csv.DictReader(file))
        probability = answers[name].softmax(dim=1)[:, 1]
        assert [float(row["probability"]) for row in rows] == pytest.approx(probability.tolist(), abs=1e-5)
        values = np.array(
            [[float(v) for k, v in row.items() if k not in ("patient", "label", "probability", "base")] for row in rows]
        )
        total = values.sum(axis=1) + [float(row["base"]) for row in rows]
        logits = answers[name][:, 1] - answers[name][:, 0]
        expected = logits if name == "additive" else probability
        np.testing.assert_allclose(total, expected.numpy(), atol=1e-5)
        with (folder / "shapley_by_class.csv").open() as file:
            means = {row["biomarker"]: row for row in csv.DictReader(file)}
        names = [k for k in rows[0] if k not in ("patient", "label", "probability", "base")]
        for k, one in enumerate(names):
            row = means[one if name == "additive" else f"Biomarker {k}"]
            assert float(row["mean_positive"]) == pytest.approx(values[1::2, k].mean(), abs=1e-9)
            assert float(row["mean_negative"]) == pytest.approx(values[::2, k].mean(), abs=1e-9)
        assert len(list((folder / "patients").glob("P?.json"))) == 4
    # contributions are scored image by image and whole; there are no masks without an optimiser
    summary = json.loads((folders["additive"] / "localisation.json").read_text())
    scored = {"contributions", "centred box", "contributions, whole patient", "centred box, whole patient"}
    assert set(summary) == scored | {"random map"}
    assert summary["contributions"]["images"] == summary["contributions, whole patient"]["images"] == 4
    with torch.no_grad():
        positive = net.additive.contributions(images).clamp(min=0)
    positive = torch.nn.functional.interpolate(positive, (16, 16), mode="bilinear")  # as maps are for their scores
    share = positive[:, 0, :8].sum(dim=(1, 2)) / positive.sum(dim=(1, 2, 3))
    energy = summary["contributions, whole patient"]["energy_inside"]
    assert energy == pytest.approx(float(share.mean()), abs=1e-5)
    assert not (folders["prototype"] / "localisation.json").exists()


def test_means_of_a_class_without_patients_are_not_known():
    rows = class_means(np.array([[1.0, -2.0], [3.0, 5.0]]), np.array([1, 1]), ["a", "b"])
    assert all(np.isnan(row["mean_negative"]) and np.isnan(row["difference"]) for row in rows)
    assert rows[1]["mean_positive"] == 1.5 and rows[1]["mean_absolute"] == 3.5
