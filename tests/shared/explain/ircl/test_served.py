"""Requests as MONAI Label makes them, answered by the bundle's own config in one process, without MONAI Label."""

import asyncio
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from shared.bundle.abstention import write_cohort
from shared.bundle.settings import save_settings
from shared.checkpoint import save_checkpoint
from shared.data import CaseDataset, InferenceDatalist
from shared.errors import CheckpointError, DataError
from shared.explain import BiomarkerAnswerd, PatientExplainer, RequestedCased, TellClient
from shared.handlers import Abstention
from shared.io import write_json
from shared.metrics.cohort_distance import Cohort, fit_cohort
from shared.networks import AttentionMIL, IRCLClassifier, LayerStatistics
from shared.transforms import LoadCased, ROISlicesd, masks_to_volume
from tests.support.additive import tiny_additive
from tests.support.tiny import affine_of, ball, save, texture, tiny_classifier, write_case

BUNDLE = Path(__file__).parents[4] / "bundles/ircl_mvi"
ROI = {"num_slices": 2, "size": 16, "roi": "fixed_mm", "extent_mm": 16, "normalise": "roi"}
MODALITIES = ["T1", "T2"]


def save_model(folder, seed=None, net=None):
    """Weights and settings of a small classifier with a covariate."""
    net = net or tiny_classifier(IRCLClassifier, num_modalities=2, per_modality=True, num_covariates=1)
    if seed is not None:
        torch.manual_seed(seed)
        torch.nn.init.normal_(next(net.predictor.parameters()))
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / "model.pt", net.state_dict())
    sections = {"roi": ROI, "covariates": ["age"], "num_modalities": 2, "num_classes": 2}
    save_settings(folder, network=net.settings, modalities=MODALITIES, classes=["low", "high"], **sections)
    return net


def prepared(folder, cases):
    """Cases of ``write_case`` as a prepared folder."""
    listed = [case | {"covariates": {"age": 0.5 + i}} for i, case in enumerate(cases)]
    for case in listed:
        case["image"] = [os.path.relpath(path, folder) for path in case["image"]]
        case |= {"mask": os.path.relpath(case["mask"], folder)} if "mask" in case else {}
    content = {"modalities": MODALITIES, "classes": ["low", "high"], "training": [], "testing": listed}
    (folder / "datalist.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


class Server:
    """What MONAI Label does with inference.json: its ids, its order, its network without gradients."""

    def __init__(self, models, **overrides):
        self.parser = ConfigParser()
        self.parser.read_config(str(BUNDLE / "configs/inference.json"))
        self.parser.config.update({"bundle_root": str(BUNDLE)})
        self.parser.update({"ckpt_dir": str(models), "mask#steps": 3, **overrides})
        self.network = self.parser.get_parsed_content("network_def", instantiate=True)

    def __call__(self, image, **request):
        data = {"image": str(image), "image_path": str(image), "model": "ircl_mvi", "device": "cpu", **request}
        with torch.no_grad():
            for transform in self.parser.get_parsed_content("pre_transforms", instantiate=True).transforms:
                data = transform(data)
            assert isinstance(data["image"], torch.Tensor)
            inferer = self.parser.get_parsed_content("inferer", instantiate=True)
            data["pred"] = inferer(data["image"][None], self.network)[0]
            for transform in self.parser.get_parsed_content("post_transforms", instantiate=True).transforms:
                data = transform(data)
        return data


@pytest.fixture
def cohort(tmp_path):
    """Two patients of two modalities, the second patient stored otherwise."""
    data = tmp_path / "data"
    cases = [
        write_case(data, "P1", modalities=2),
        write_case(data, "P2", modalities=2, codes="PSL", affine=affine_of(degrees=20), seed=5),
    ]
    return prepared(data, cases)


def test_the_answer_is_on_the_files_grid_and_says_what_inference_says(cohort, tmp_path):
    net = save_model(tmp_path / "models")
    server = Server(tmp_path / "models", threshold=0.5)
    datalist = InferenceDatalist(cohort, num_modalities=2, covariates=["age"])
    transforms = [LoadCased(), ROISlicesd(**ROI)]
    cases = CaseDataset(datalist.cases, transforms, covariates=["age"], progress=False)
    for case in cases:
        expected = PatientExplainer(net, modalities=MODALITIES, class_names=["low", "high"])(case)
        for modality, name in enumerate(MODALITIES):
            path = cohort / f"{case['patient']}_{modality}.nii.gz"
            out = server(path)
            source, labels = nib.load(path), out["pred"]
            assert labels.shape == source.shape and labels.dtype == torch.uint8
            np.testing.assert_allclose(labels.affine, source.affine, atol=1e-6)
            assert out["biomarkers"] is labels
            result = json.loads(json.dumps(out["result"]))
            assert result["probability"] == pytest.approx(expected["probability"], abs=1e-6)
            assert 0.01 < result["probability"] < 0.99
            keys = ("modality", "slice", "biomarker", "similarity")
            assert [[row[key] for key in keys] for row in result["images"]] == [
                [row[key] for key in keys] for row in expected["images"]
            ]
            total = result["shapley"]["base"] + sum(result["shapley"]["values"].values())
            assert total == pytest.approx(result["probability"], abs=1e-6)
            assert result["requested"] == {"file": path.name, "modality": name}
            own = {row["biomarker"] + 1 for row in result["images"] if row["modality"] == name}
            assert {int(value) for value in result["regions"]} == own
            counted = {int(v): int(n) for v, n in zip(*np.unique(labels, return_counts=True), strict=True) if v}
            assert {int(v): region["voxels"] for v, region in result["regions"].items() if region["voxels"]} == counted
            # per modality three biomarkers: T1 has the values 1 to 3, T2 4 to 6
            assert set(counted) <= set(range(3 * modality + 1, 3 * modality + 4))


def test_the_additive_predictor_answers_with_the_biomarker_of_every_place(cohort, tmp_path):
    net = tiny_additive(num_covariates=1, views=2)
    save_model(tmp_path / "models", net=net)
    server = Server(tmp_path / "models")
    datalist = InferenceDatalist(cohort, num_modalities=2, covariates=["age"])
    cases = CaseDataset(datalist.cases, [LoadCased(), ROISlicesd(**ROI)], covariates=["age"], progress=False)
    for case in cases:
        expected = PatientExplainer(net, modalities=MODALITIES, class_names=["low", "high"], covariates=["age"])
        summary = json.loads(json.dumps(expected.summary(expected(case))))
        owners = net.additive.biomarker_map(case["image"][None])[0]
        for modality, name in enumerate(MODALITIES):
            path = cohort / f"{case['patient']}_{modality}.nii.gz"
            out = server(path)
            result = json.loads(json.dumps(out["result"]))
            assert result["answer"] == "additive" and result["for"] == summary["for"]
            assert result["probability"] == pytest.approx(summary["probability"], abs=1e-6)
            # 8 x 8 places on 16 x 16 voxels, their code counted in the modality
            codes = (owners[2 * modality : 2 * modality + 2] + 1 - 5 * modality).clamp(min=0)
            volume = masks_to_volume(codes, {**case["geometry"], "num_modalities": 1}, mode="nearest")
            assert np.array_equal(out["pred"].numpy(), np.asarray(volume.dataobj))
            labels = out["pred"].numpy()
            present = sorted(int(value) for value in np.unique(labels) if value)
            assert present and max(present) <= 5 and result["requested"] == {"file": path.name, "modality": name}
            assert result["regions"] == {
                str(code): {"biomarker": code - 1, "voxels": int((labels == code).sum())} for code in present
            }


@pytest.mark.parametrize("additive", [False, True])
def test_the_answer_says_when_not_to_believe_it_as_inference_does(cohort, tmp_path, additive):
    models = tmp_path / "models"
    net = save_model(models, net=tiny_additive(num_covariates=1, views=2) if additive else None)
    datalist = InferenceDatalist(cohort, num_modalities=2, covariates=["age"])
    cases = [*CaseDataset(datalist.cases, [LoadCased(), ROISlicesd(**ROI)], covariates=["age"], progress=False)]
    path = cohort / "P1_0.nii.gz"
    assert [Server(models)(path)["result"][key] for key in ("set", "out_of_cohort")] == [None, None]

    image, known = torch.stack([case["image"] for case in cases]), torch.stack([case["covariates"] for case in cases])
    with LayerStatistics(net) as seen, torch.no_grad():
        probability = net(image, known).softmax(dim=1)[:, 1]
        features = seen.features(2)
    noise = np.random.default_rng(0)  # a cohort of patients like the first
    fitted = [fit_cohort(x[0] + 0.02 * noise.normal(size=(8, x.shape[1])), range(8))[0] for x in features]
    near = Cohort(fitted, np.ones(len(fitted)), 60)
    write_cohort(models, near, seen.layers)
    scores = [{"patients": 99, "scores": [k / 99 for k in range(99)], "weights": [1.0] * 99}] * 2
    write_json(models / "conformal.json", {"scores": scores, "distance": {"limit": float(near(features).mean())}})

    abstention = Abstention(models, net)
    with abstention.watching(), torch.no_grad():
        net(image, known)  # both together, as an inference has them
        expected = abstention.columns(probability.tolist(), ["low", "high"])
    assert [row["out_of_cohort"] for row in expected] == [0, 1] and all(row["set"] for row in expected)
    for case, row in zip(cases, expected, strict=True):
        result = json.loads(json.dumps(Server(models)(cohort / f"{case['patient']}_1.nii.gz")["result"]))
        assert result["cohort_distance"] == pytest.approx(row["cohort_distance"], rel=1e-4)
        assert {key: result[key] for key in ("set", "out_of_cohort")} == {k: row[k] for k in ("set", "out_of_cohort")}
        assert (result["reason"] or "") == row["reason"]


class Fixed:
    """In place of an explainer: masks and biomarkers given, nothing computed."""

    modalities, device, answer = MODALITIES, torch.device("cpu"), "prototype"

    def __init__(self, network, masks, biomarkers):
        self.network, self.masks, self.biomarkers, self.seen = network, masks, biomarkers, []

    def __call__(self, case):
        self.seen.append((case["image"], torch.is_grad_enabled()))
        rows = [{"modality": MODALITIES[i // 2], "slice": i, "biomarker": b} for i, b in enumerate(self.biomarkers)]
        return {"images": rows, "masks": SimpleNamespace(mask=self.masks), "places": None}

    def summary(self, found):
        return {"images": found["images"]}


@pytest.fixture
def fixed(tmp_path):
    """Masks of four images and the transform that answers with them."""
    net = save_model(tmp_path / "models")
    masks = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    explainer = Fixed(net, masks, [2, 0, 4, 5])
    return SimpleNamespace(explainer=explainer, answer=BiomarkerAnswerd(explainer, ckpt_dir=tmp_path / "models"))


def ask(path, answer, **request):
    """Before and after the network, without it."""
    data = RequestedCased(2, covariates=["age"])({"image": str(path), **request})
    with torch.no_grad():
        return answer(ROISlicesd(**ROI)(LoadCased()(data)))


@pytest.mark.parametrize("modality", [0, 1])
def test_every_voxel_against_a_loop(cohort, fixed, modality):
    path = cohort / f"P1_{modality}.nii.gz"
    out = ask(path, fixed.answer)
    masks, codes = fixed.explainer.masks.double().numpy()[:, 0], [3, 1, 5, 6]
    geometry = out["geometry"]
    r0, _, c0, _ = geometry["window"]
    expected = np.zeros(nib.load(path).shape, dtype=int)
    for i, index in enumerate(geometry["slices"]):
        for r in range(16):
            for c in range(16):
                row, column, image = r0 + r, c0 + c, 2 * modality + i
                inside = 0 <= row < expected.shape[0] and 0 <= column < expected.shape[1]
                if inside and masks[image, r, c] >= 0.5:
                    expected[row, column, index] = codes[image]
    assert expected.any()
    np.testing.assert_array_equal(out["pred"].numpy(), expected)
    # the server asks without gradients; masks are found by them
    assert [grad for _, grad in fixed.explainer.seen] == [True]


@pytest.mark.parametrize("codes", ["LPS", "SRP", "PSL"])
def test_storage_order_moves_no_region(tmp_path, fixed, codes):
    answers = []
    for name in ("RAS", codes):
        folder = tmp_path / name
        prepared(folder, [write_case(folder, "P1", modalities=2, codes=name)])
        labels = ask(folder / "P1_1.nii.gz", fixed.answer)["pred"]
        image = nib.Nifti1Image(labels.numpy(), np.asarray(labels.affine))
        assert nib.aff2axcodes(image.affine) == tuple(name)
        answers.append(np.asarray(nib.as_closest_canonical(image).dataobj))
    assert answers[0].any()
    np.testing.assert_array_equal(*answers)


def test_a_modality_on_another_grid_is_answered_on_its_own(tmp_path, fixed):
    case = write_case(tmp_path / "data", "P1", modalities=2)
    # the second modality again, cropped: four rows and two slices less at the low ends
    affine = affine_of()
    affine[:3, 3] += affine[:3, :3] @ [4, 0, 2]
    whole = ask(prepared(tmp_path / "data", [case]) / "P1_1.nii.gz", fixed.answer)["pred"].numpy()
    save(tmp_path / "data/P1_1.nii.gz", texture(seed=1)[4:, :, 2:], affine)
    cropped = ask(tmp_path / "data/P1_1.nii.gz", fixed.answer)["pred"]
    np.testing.assert_allclose(cropped.affine, affine)
    assert cropped.numpy().any()
    np.testing.assert_array_equal(cropped.numpy(), whole[4:, :, 2:])


def test_what_the_request_gives_wins(cohort, tmp_path):
    save_model(tmp_path / "models")
    server = Server(tmp_path / "models")
    listed, older = server(cohort / "P1_0.nii.gz"), server(cohort / "P1_0.nii.gz", covariates={"age": -1})
    assert listed["covariates"].tolist() == [0.5] and older["covariates"].tolist() == [-1.0]
    assert abs(listed["result"]["probability"] - older["result"]["probability"]) > 1e-4
    drawn = save(tmp_path / "drawn.nii.gz", ball(centre=(8, 12, 1), radius=4))
    again = server(cohort / "P1_0.nii.gz", label=drawn)
    assert listed["geometry"]["slices"] != again["geometry"]["slices"] and max(again["geometry"]["slices"]) <= 2


def test_links_lead_to_the_patient(cohort, tmp_path):
    (tmp_path / "studies").mkdir()
    link = tmp_path / "studies/anything.nii.gz"
    link.symlink_to(cohort / "P2_1.nii.gz")
    case = RequestedCased(2, covariates=["age"])({"image": str(link)})
    assert (case["patient"], case["requested"]["modality"], case["covariates"].tolist()) == ("P2", 1, [1.5])
    assert case["image"] == [str(cohort.resolve() / f"P2_{i}.nii.gz") for i in (0, 1)]


def test_a_single_modality_needs_no_datalist(tmp_path):
    path = save(tmp_path / "alone.nii.gz", texture())
    case = RequestedCased(1, covariates=["age"])({"image": path, "covariates": {"age": 61}})
    assert (case["patient"], case["image"], case["mask"]) == ("alone", [path], None)
    assert case["covariates"].tolist() == [61.0]


def test_of_a_case_with_more_modalities_the_models_are_taken(cohort):
    second = RequestedCased(1, covariates=["age"], modalities=MODALITIES[1:])
    case = second({"image": str(cohort / "P1_1.nii.gz")})
    assert case["image"] == [str(cohort.resolve() / "P1_1.nii.gz")] and case["requested"]["modality"] == 0
    with pytest.raises(DataError, match=rf"P1_0.nii.gz: the model takes {MODALITIES[1]} only; ask for one of these"):
        second({"image": str(cohort / "P1_0.nii.gz")})


def test_a_network_without_biomarkers_is_not_served(tmp_path):
    explainer = PatientExplainer(AttentionMIL(2, channels=(4, 8)))
    with pytest.raises(DataError, match="answered with biomarkers; the network AttentionMIL has no biomarkers"):
        BiomarkerAnswerd(explainer, ckpt_dir=tmp_path)


@pytest.mark.parametrize(
    ("request_of", "message"),
    [
        (lambda folder: {"image": ""}, "is not in the studies folder"),
        (lambda folder: {"image": str(folder / "none.nii.gz")}, "file not found"),
        (lambda folder: {"image": [str(folder / "P1_0.nii.gz")]}, "names one image file"),
        (lambda folder: {"image": str(folder / "P1_mask.nii.gz")}, "is a mask of P1"),
        (lambda folder: {"image": str(folder.parent / "other.nii.gz")}, "takes 2 images of a patient"),
        (lambda folder: {"image": str(folder / "P1_0.nii.gz"), "label": "liver"}, "the file of a tumour mask"),
        (lambda folder: {"image": str(folder / "P1_0.nii.gz"), "covariates": [61]}, "object of names and numbers"),
        (lambda folder: {"image": str(folder / "P1_0.nii.gz"), "covariates": {"age": "old"}}, "finite number"),
    ],
)
def test_what_cannot_be_answered_is_said(cohort, tmp_path, request_of, message):
    save(tmp_path / "other.nii.gz", texture())
    with pytest.raises(DataError, match=message):
        RequestedCased(2, covariates=["age"])(request_of(cohort))


def test_another_patients_fault_stops_nobody(cohort):
    (cohort / "P2_1.nii.gz").unlink()
    assert RequestedCased(2, covariates=["age"])({"image": str(cohort / "P1_0.nii.gz")})["patient"] == "P1"
    with pytest.raises(DataError, match=r"P2: .*P2_1.nii.gz: file not found"):
        RequestedCased(2, covariates=["age"])({"image": str(cohort / "P2_0.nii.gz")})


def test_a_single_image_without_the_covariate_is_refused(tmp_path):
    with pytest.raises(DataError, match="needs a number for age"):
        RequestedCased(1, covariates=["age"])({"image": save(tmp_path / "alone.nii.gz", texture())})


def test_a_retrained_model_answers_next_and_one_that_does_not_fit_is_refused(cohort, tmp_path):
    save_model(tmp_path / "models")
    server = Server(tmp_path / "models")
    first = server(cohort / "P1_0.nii.gz")["result"]["probability"]
    save_model(tmp_path / "models", seed=9)
    assert abs(server(cohort / "P1_0.nii.gz")["result"]["probability"] - first) > 1e-4
    torch.save({"encoder": torch.zeros(1)}, tmp_path / "models/pretrain.pt")
    with pytest.raises(CheckpointError, match=r"pretrain\.pt"):
        server(cohort / "P1_0.nii.gz", model_filename="pretrain.pt")
    # the name alone counts: a request reaches no other folder
    save_checkpoint(tmp_path / "model_2.pt", {})
    with pytest.raises(CheckpointError, match=str(tmp_path / "models/model_2.pt")):
        server(cohort / "P1_0.nii.gz", model_filename="../model_2.pt")


def test_a_label_map_holds_255_biomarkers():
    network = SimpleNamespace(biomarkers=torch.zeros(256, 4), additive=SimpleNamespace(num_biomarkers=3))
    with pytest.raises(DataError, match="holds 255 biomarkers, the model has 256"):
        BiomarkerAnswerd(SimpleNamespace(network=network, answer="prototype"), ckpt_dir="models")
    BiomarkerAnswerd(SimpleNamespace(network=network, answer="additive"), ckpt_dir="models")
    network = SimpleNamespace(biomarkers=torch.zeros(4, 4), additive=SimpleNamespace(num_biomarkers=256))
    with pytest.raises(DataError, match="holds 255 biomarkers, the model has 256 of a modality"):
        BiomarkerAnswerd(SimpleNamespace(network=network, answer="additive"), ckpt_dir="models")


def test_a_refusal_reaches_the_client_of_a_server_as_a_message(cohort, tmp_path):
    """By the framework of MONAI Label's server, asked without a network."""
    applications = pytest.importorskip("starlette.applications")
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    save_model(tmp_path / "models")
    server, sent = Server(tmp_path / "models"), []

    def infer(request):
        return JSONResponse(server(request.query_params["image"])["result"])

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    def ask(image):
        sent.clear()
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": f"image={image}".encode()}
        asyncio.run(applications.Starlette(routes=[Route("/", infer)])(scope, receive, send))
        return sent[0]["status"], b"".join(one.get("body", b"") for one in sent[1:]).decode()

    status, text = ask(cohort / "P1_0.nii.gz")
    assert status == 200 and 0 < json.loads(text)["probability"] < 1
    status, text = ask(cohort / "P9_0.nii.gz")
    assert status == 422 and text.endswith("P9_0.nii.gz: file not found")
    (tmp_path / "models/model.pt").write_bytes(b"nothing")
    status, text = ask(cohort / "P1_0.nii.gz")
    assert status == 422 and "model.pt" in text


def test_without_starlette_an_error_stays_as_it_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette.exceptions", None)
    with pytest.raises(DataError) as caught:
        TellClient([RequestedCased(1)])({"image": "no_such.nii.gz"})
    assert type(caught.value) is DataError
