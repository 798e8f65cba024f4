"""The additive predictor's stage: biomarkers of the places and weights of training patients, members, files."""

import csv
import json
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from torch.nn.functional import normalize

from shared.biomarkers import bootstrap_weights, calibrate_members, fit_additive, fit_biomarkers
from shared.checkpoint import load_checkpoint, save_checkpoint
from shared.engines import AdditiveStage, Members
from shared.errors import CheckpointError, DataError
from shared.handlers import LoadBiomarkers
from shared.networks import IRCLAutoencoder, IRCLClassifier
from tests.support.additive import tumours
from tests.support.tiny import cohort, tiny_classifier

LABELS = [0, 1, 1, 0, 1, 0, 0, 1, 0, 0]
GEOMETRY = {"window": (0, 16, 0, 16), "affine": np.diag([2.0, 3.0, 5.0, 1.0]), "axis": 2}


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Galleries take longer than the stage: look at what they are asked to draw instead."""
    asked = []
    monkeypatch.setattr("shared.visualize.place_gallery", lambda *arguments, **named: asked.append((arguments, named)))
    return asked


def patients(count=10, *, seed=1, groups=False):
    ages = np.random.default_rng(0).integers(40, 80, (count, 1)).astype(float)
    cases = cohort(tumours(count, seed=seed), LABELS[:count], ages, names=("age",))
    for i, case in enumerate(cases._cache):
        case |= {"geometry": GEOMETRY} | ({"group": f"G{i // 2}"} if groups else {})
    return cases


def stage_of(folder, cases=None, network=None, *, members=1, common=None, additive=(), **settings):
    """The stage after stages I whose encoders are lively, and each other's unlike."""
    for i in range(members):
        path = folder / (f"member_{i}" if i else "") / "pretrain.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            autoencoder = IRCLAutoencoder((4, 8), embedding_dim=6)
            lively = tiny_classifier(IRCLClassifier).encoder.state_dict()
            lively = {
                key: value * (1 + 0.3 * i * (torch.rand(()) if value.is_floating_point() else 0))
                for key, value in lively.items()
            }
            autoencoder.encoder.load_state_dict(lively)
            save_checkpoint(path, {"network": autoencoder.state_dict()})
    shared = {"output_dir": folder, "seed": 0, "resume": False, "record": None, "device": "cpu", **(common or {})}
    cases = cases or patients()
    if network is None:
        places = {"num_biomarkers": 3, "views": 2, "members": members, **dict(additive)}
        sizes = {"num_layers": 1, "dim": 8, "num_heads": 2, "mlp_dim": 8, "num_modalities": 2, "num_covariates": 1}
        network = IRCLClassifier(4, 3, channels=(4, 8), embedding_dim=6, additive=places, answer="additive", **sizes)
        network.eval()
    runs = Members(members, "pretrain", shared, checkpoint=folder / "pretrain.pt", cases=cases)
    given = {
        "checkpoint": folder / "additive.pt",
        "modalities": ["T1", "FLAIR"],
        "bootstrap": 5,
        "starts": 2,
        "strength": 0.1,
    }
    return AdditiveStage(network, shared, cases, runs, **{**given, **settings}), network


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Folder, stage and network after one run with two members."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shared.visualize.place_gallery", lambda *arguments, **named: None)
        folder = tmp_path_factory.mktemp("additive")
        stage, network = stage_of(folder, members=2)
        stage.run()
    return folder, stage, network


def test_biomarkers_are_unit_centres_of_the_places_of_the_tumours(fitted):
    _, stage, network = fitted
    predictor, images = network.additive, stage.cases.stack("image")
    torch.testing.assert_close(predictor.biomarkers.norm(dim=-1), torch.ones(2, 2, 3))
    for member in range(2):
        features, covered = predictor.features(images, member), predictor.coverage(images, 8)
        owner = predictor.assign(features, member)
        for modality in range(2):
            own = slice(2 * modality, 2 * modality + 2)
            x, part = features[:, own].movedim(2, -1).double(), covered[:, own].unsqueeze(-1)
            for k in range(3):  # each is the direction of the mean of its own places, by the part covered
                mine = (owner[:, own] == k).unsqueeze(-1) * part
                mean = normalize((x * mine).sum(dim=(0, 1, 2, 3)), dim=0)
                torch.testing.assert_close(mean.float(), predictor.biomarkers[member, modality, k], atol=2e-5, rtol=0)
    assert not torch.allclose(predictor.biomarkers[0], predictor.biomarkers[1], atol=1e-2)


def test_weights_are_those_of_the_fit_and_members_are_averaged(fitted):
    _, stage, network = fitted
    images, known = stage.cases.stack("image"), stage.cases.stack("covariates")
    predictor = network.additive
    amounts = predictor.measured(images)
    fits = [fit_additive(amounts[:, i].flatten(1), LABELS, known, strength=0.1) for i in range(2)]
    fits = calibrate_members(fits, LABELS)
    expected = np.mean(
        [
            f.bias + amounts[:, i].flatten(1).numpy() @ f.weight + known.numpy() @ f.covariate_weight
            for i, f in enumerate(fits)
        ],
        axis=0,
    )
    logits = network(images, known)
    np.testing.assert_allclose((logits[:, 1] - logits[:, 0]).detach().numpy(), expected, atol=1e-4)
    torch.testing.assert_close(predictor.mean, amounts.mean(dim=0))
    torch.testing.assert_close(predictor.covariate_mean, known.double().mean(dim=0))
    assert not predictor.weight[..., 0].any() and predictor.bias[0] == 0


def test_encoders_are_those_of_the_members_and_all_is_saved(fitted):
    folder, _, network = fitted
    state = load_checkpoint(folder / "additive.pt")["additive"]
    assert all(torch.equal(value, state[key]) for key, value in network.additive.state_dict().items())
    for i, path in enumerate((folder / "pretrain.pt", folder / "member_1/pretrain.pt")):
        stored = load_checkpoint(path)["network"]
        for key, value in network.additive.encoders[i].state_dict().items():
            assert torch.equal(stored[f"encoder.{key}"], value)
    # stage II takes it over
    fresh = stage_of(folder, members=2)[1]
    save_checkpoint(folder / "biomarkers.pt", {"encoder": network.encoder.state_dict(), "biomarkers": torch.eye(3, 6)})
    cases = patients()
    start = SimpleNamespace(should_terminate=False, state=SimpleNamespace(epoch=0))
    LoadBiomarkers(folder / "biomarkers.pt", fresh, cases, additive=folder / "additive.pt")(start)
    images, known = cases.stack("image"), cases.stack("covariates")
    assert torch.equal(fresh(images, known), network(images, known)) and torch.equal(fresh.biomarkers, torch.eye(3, 6))
    with pytest.raises(CheckpointError, match=r"nothing.pt. Run the additive stage first: --run_id additive_run"):
        LoadBiomarkers(folder / "biomarkers.pt", fresh, cases, additive=folder / "nothing.pt")(start)


def test_each_biomarker_is_described(tmp_path, drawn):
    stage, network = stage_of(tmp_path, covariate_penalty=4.0)
    stage.run()
    predictor, images = network.additive, stage.cases.stack("image")
    rows, content = (
        rows_of(tmp_path / "additive_biomarkers.csv"),
        json.loads((tmp_path / "additive_biomarkers.json").read_text()),
    )
    assert [row["name"] for row in rows] == ["T1 0", "T1 1", "T1 2", "FLAIR 0", "FLAIR 1", "FLAIR 2"]
    owner, covered = predictor.biomarker_map(images), predictor.coverage(images, 8)
    labels, features = torch.tensor(LABELS), predictor.features(images)
    for k, row in enumerate(rows):
        # 16 x 16 pixels of 2 x 3 mm, 8 x 8 places, two slices
        area = ((owner == k) * covered).sum(dim=(1, 2, 3)) * 16 * 16 * 6 / 64 / 2
        assert int(row["patients"]) == int((area > 0).sum())
        assert float(row["area_mm2_negative"]) == pytest.approx(float(area[labels == 0].mean()), rel=1e-5)
        assert float(row["area_mm2_positive"]) == pytest.approx(float(area[labels == 1].mean()), rel=1e-5)
        typical = content["biomarkers"][k]["typical"]
        assert typical and len({place["patient"] for place in typical}) == len(typical) <= 8
        for place in typical:
            i, image, r, c = int(place["patient"][1:]), place["image"], place["row"], place["column"]
            assert owner[i, image, r, c] == k and covered[i, image, r, c] > 0.5
            near = features[i, :, :, :, :].movedim(1, -1) @ predictor.biomarkers[0, k // 3, k % 3]
            mine = near[(owner[i] == k) & (covered[i] > 0.5)]
            assert place["similarity"] == pytest.approx(float(mine.max()), abs=1e-4)
    x, known = predictor.measured(images)[:, 0].flatten(1).numpy(), stage.cases.stack("covariates")
    spread, options = x.std(axis=0), {"strength": 0.1, "covariate_penalty": 4.0}
    fit = fit_additive(x, LABELS, known, **options)
    np.testing.assert_allclose(predictor.covariate_weight[:, 1].numpy(), fit.covariate_weight, rtol=1e-5)
    # the interval is on the scale of the effect, which is calibrated
    low, high = fit.slope * np.percentile(bootstrap_weights(x, LABELS, known, draws=5, **options), [2.5, 97.5], axis=0)
    np.testing.assert_allclose([float(row["effect_low"]) for row in rows], low * spread, rtol=1e-4)
    np.testing.assert_allclose([float(row["effect_high"]) for row in rows], high * spread, rtol=1e-4)
    assert abs(fit.slope - 1) > 0.05
    effect = predictor.weight[0, ..., 1].flatten().numpy() * spread
    np.testing.assert_allclose([float(row["effect"]) for row in rows], effect, rtol=1e-5)
    assert [str(arguments[3].name) for arguments, _ in drawn] == [
        "additive_biomarkers_T1.png",
        "additive_biomarkers_FLAIR.png",
    ]


def test_a_stage_that_is_done_is_skipped_when_resuming(fitted, monkeypatch):
    folder = fitted[0]
    before = (folder / "additive.pt").read_bytes()
    stage, network = stage_of(folder, members=2, common={"resume": True})
    monkeypatch.setattr(AdditiveStage, "content", lambda self: pytest.fail("computed again"))
    stage.run()
    assert (folder / "additive.pt").read_bytes() == before and not network.additive.weight.any()


def test_a_seed_repeats_the_stage(fitted, tmp_path):
    for name in ("pretrain.pt", "member_1/pretrain.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((fitted[0] / name).read_bytes())
    stage, network = stage_of(tmp_path, members=2)
    torch.manual_seed(99)
    stage.run()
    for key, value in fitted[2].additive.state_dict().items():
        assert torch.equal(value, network.additive.state_dict()[key]), key


def test_k_means_sees_drawn_places_inside_the_tumours_alone(tmp_path, monkeypatch):
    seen, fit = [], fit_biomarkers
    monkeypatch.setattr("shared.biomarkers.fit_biomarkers", lambda x, *a, **k: seen.append((x, k)) or fit(x, *a, **k))
    cases = patients()
    stage, network = stage_of(tmp_path, cases)
    stage.run()
    covered = network.additive.coverage(cases.stack("image"), 8)
    features = network.additive.features(cases.stack("image")).movedim(2, -1)
    x, given = seen[0]
    torch.testing.assert_close(x, features[covered > 0])
    torch.testing.assert_close(given["weight"], covered[covered > 0])
    modality = torch.tensor([0, 0, 1, 1])[None, :, None, None].expand(covered.shape)
    assert torch.equal(given["modality"], modality[covered > 0])
    stage_of(tmp_path, cases, network, max_places=600)[0].run()
    assert 0.3 < len(seen[1][0]) / len(x) < 0.65  # 600 of 1280 places a modality


def test_groups_reach_the_fit(tmp_path, monkeypatch):
    given = []
    fit = fit_additive
    monkeypatch.setattr("shared.biomarkers.fit_additive", lambda *a, **k: given.append(k["groups"]) or fit(*a, **k))
    stage_of(tmp_path, patients(groups=True))[0].run()
    stage_of(tmp_path)[0].run()
    assert given == [[f"G{i // 2}" for i in range(10)], None]


def test_without_an_additive_predictor_the_stage_does_nothing(tmp_path):
    network = tiny_classifier(IRCLClassifier)
    stage_of(tmp_path, network=network)[0].run()
    assert not (tmp_path / "additive.pt").exists()


def test_what_is_missing_or_does_not_fit_is_refused(tmp_path):
    stage, _ = stage_of(tmp_path, members=2)
    (tmp_path / "member_1/pretrain.pt").unlink()
    with pytest.raises(CheckpointError, match=r"member_1.pretrain.pt\. Run stage I first: --run_id pretrain_run"):
        stage.run()
    with pytest.raises(DataError, match="biomarkers need at least 5000 distinct images of modality 0"):
        stage_of(tmp_path, additive={"num_biomarkers": 5000})[0].run()
    assert not (tmp_path / "additive.pt").exists()
    with pytest.raises(ValueError, match="at least 1, got 0"):
        stage_of(tmp_path, members=0)


# --- members ------------------------------------------------------------------------------------------------------


class Run:
    """In place of a stage: takes down what it was built with, and a random number."""

    runs: ClassVar[list] = []

    def __init__(self, **given):
        self.given = given

    def run(self):
        Run.runs.append(self.given | {"drawn": float(torch.rand(())), "cases": self.given["dataset"]})


def members_of(folder, count, cases, seed=3):
    """The members as a configuration builds them."""
    parser = ConfigParser(
        {
            "seed": seed,
            "ckpt_dir": str(folder / "models"),
            "output_dir": str(folder / "eval"),
            "common": {"seed": "@seed", "output_dir": "@output_dir"},
            "train": {"dataset": cases, "epochs": 7},
            "pretrain": {
                "trainer": {
                    "_target_": f"{__name__}.Run",
                    "seed": "@seed",
                    "checkpoint": "$@ckpt_dir + '/pretrain.pt'",
                    "output_dir": "@output_dir",
                    "dataset": "@train#dataset",
                    "epochs": "@train#epochs",
                }
            },
            "runs": {
                "_target_": "shared.engines.Members",
                "count": count,
                "section": "pretrain",
                "common": "@common",
                "checkpoint": "$@ckpt_dir + '/pretrain.pt'",
                "cases": "@train#dataset",
            },
        }
    )
    return parser.get_parsed_content("runs")


def test_members_are_the_stage_again_with_other_seeds_in_folders_of_their_own(tmp_path):
    Run.runs.clear()
    cases = patients(4)
    found = members_of(tmp_path, 3, cases)
    found.run()
    models = tmp_path / "models"
    assert found.checkpoints == [models / name / "pretrain.pt" for name in ("", "member_1", "member_2")]
    assert [run["checkpoint"] for run in Run.runs] == [str(path) for path in found.checkpoints[1:]]
    assert [run["output_dir"] for run in Run.runs] == [str(tmp_path / f"eval/member_{i}") for i in (1, 2)]
    assert [run["seed"] for run in Run.runs] == [1003, 2003]
    # read once; seeded as a run of that seed by itself; what follows is as if there were no members
    assert all(len(run["cases"]) == 4 and run["epochs"] == 7 for run in Run.runs)
    after = torch.rand(())
    torch.manual_seed(1003)
    assert Run.runs[0]["drawn"] == float(torch.rand(()))
    torch.manual_seed(3)
    assert after == torch.rand(())
    Run.runs.clear()
    members_of(tmp_path, 1, cases).run()
    assert not Run.runs
