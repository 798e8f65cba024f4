import csv
import json

import pytest
import torch

from shared.explain import ClassifierLogit, GliomaExplainer, GliomaExplainStage
from tests.support.tiny_brain import tiny_atlas
from tests.support.tiny_glioma_cases import CODES, tiny_network, tiny_patient


class Fixed(torch.nn.Module):
    """The classifier's logit, moved so that every patient is predicted alike."""

    def __init__(self, net, sign):
        super().__init__()
        self.logit, self.sign = ClassifierLogit(net), sign

    def forward(self, output, case):
        return self.logit(output, case) + self.sign * 100


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def atlas():
    return tiny_atlas()


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    signs = ["patient,tracts_infiltrated", "P1,1 3", "P2,", "P3,0"]
    (folder / "signs.csv").write_text("\n".join(signs) + "\n")
    return [tiny_patient(folder, f"P{i}", label=i % 2, seed=i) for i in (1, 2, 3)]


def run(cases, atlas, output, sign, **options):
    net = tiny_network(atlas)
    explainer = GliomaExplainer(net, Fixed(net, sign), block=0, edges={"epochs": 5}, steps=2)
    given = {"planted": CODES, "bootstrap": 50, "max_patients": 0, "sequences": ["T1", "FLAIR"], **options}
    GliomaExplainStage(explainer, cases, atlas=atlas, output_dir=output, **given).run()
    return explainer


def test_wild_types_signs_are_scored_where_wild_type_is_explained(cases, atlas, tmp_path):
    signs = next(iter(cases))["files"]["mask"].rsplit("/", 2)[0] + "/signs.csv"
    run(cases, atlas, tmp_path, -1, signs_file=signs, max_patients=1)
    rows = table(tmp_path / "explanations.csv")
    assert [row["patient"] for row in rows] == ["P1", "P2", "P3"] and {row["answer"] for row in rows} == {"negative"}
    assert {row[f"explained_{name}"] for row in rows for name in ("image", "points", "brain")} == {"negative"}
    assert all(float(row["probability"]) < 0.5 < float(row["p_all"]) for row in rows)
    written = {path.name.split("_")[0] for path in (tmp_path / "patients").glob("*_cam.nii.gz")}
    assert written == {"P1"}
    volume = table(tmp_path / "localisation_volume.csv")
    assert {row["truth"] for row in volume} == {"spicules", "enhancing_rim", "planted"}
    expected = {"Grad-CAM", "Grad-CAM, untrained", "tumour centre", "tumour", "random map", "coarse random map"}
    expected |= {"integrated gradients", "integrated gradients, untrained"}
    assert {row["map"] for row in volume} == expected | {
        f"{a} {b}" for a in ("bright", "dark") for b in ("T1", "FLAIR")
    }
    surface = {row["map"] for row in table(tmp_path / "localisation_surface.csv")}
    assert surface == {
        "attention",
        "Grad-CAM",
        "attention, untrained",
        "random",
        "far from the centre",
        "far from the centre, as coarse",
    }
    tracts = table(tmp_path / "localisation_tracts.csv")
    assert {row["patient"] for row in tracts} == {"P1", "P3"}  # none were infiltrated in P2
    assert {row["map"] for row in tracts} == {"GNNExplainer", "overlap with the tumour", "edge attention", "random"}
    summary = json.loads((tmp_path / "localisation.json").read_text())
    even = summary["volume"]["planted"]["maps"]["tumour"]["energy_ratio_in_tumour"]
    assert even["value"] == pytest.approx(1)
    first, paired = summary["volume"]["planted"], summary["volume"]["planted"]["minus control"]["Grad-CAM"]
    gap = first["maps"]["Grad-CAM"]["pointing"]["value"] - first["maps"]["random map"]["pointing"]["value"]
    assert paired["random map"]["pointing"]["value"] == pytest.approx(gap)
    assert summary["surface"]["spicules"]["patients"] == 3 and summary["tracts"]["infiltrated tracts"]["patients"] == 2


def test_mutants_sign_is_scored_where_mutant_is_explained(cases, atlas, tmp_path):
    run(cases, atlas, tmp_path, 1)
    assert {row["truth"] for row in table(tmp_path / "localisation_volume.csv")} == {
        "mismatch",
        "enhancing_rim",
        "planted",
    }
    assert not (tmp_path / "localisation_surface.csv").exists() and not (tmp_path / "localisation_tracts.csv").exists()


def test_real_patients_are_explained_without_scores(cases, atlas, tmp_path):
    real = [{**case, "files": {**case["files"], "planted": None}} for case in cases[:1]]
    del real[0]["label"]
    run(real, atlas, tmp_path, 1)
    assert not list(tmp_path.glob("localisation*")) and table(tmp_path / "explanations.csv")[0]["label"] == ""


def test_the_checkpoint_is_loaded_first(cases, atlas, tmp_path):
    net, other = tiny_network(atlas), tiny_network(atlas)
    with torch.no_grad():
        other.classifier[-1].bias.fill_(5.0)
    torch.save(other.state_dict(), tmp_path / "model.pt")
    explainer = GliomaExplainer(net, ClassifierLogit(net), block=0)
    stage = GliomaExplainStage(
        explainer,
        cases[:1],
        atlas=atlas,
        network=net,
        checkpoint=tmp_path / "model.pt",
        output_dir=tmp_path / "out",
        max_patients=0,
    )
    stage.run()
    assert net.classifier[-1].bias.item() == 5.0
    expected = GliomaExplainer(other, ClassifierLogit(other), block=0)(cases[0]).probability
    assert float(table(tmp_path / "out" / "explanations.csv")[0]["probability"]) == pytest.approx(expected)
