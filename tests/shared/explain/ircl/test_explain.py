import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from shared.explain import ExplainStage
from shared.explain.ircl.shapley import BiomarkerShapley
from shared.explain.ircl.stage import surest_correct

SIDE, PATIENTS, DRAWS = 16, 3, 400


class StubExplainer:
    """Says of each patient what the case holds; its masks are ones in the left half."""

    class_names, names = ("no", "yes"), ["Biomarker 0", "Biomarker 1"]
    network, answer, unit = None, "prototype", "probability"

    def __init__(self):
        self.mask = "optimiser"

    def __call__(self, case):
        mask = torch.zeros(2, 1, SIDE, SIDE)
        mask[..., : SIDE // 2] = 1
        values = torch.tensor([[0.1, -0.2]], dtype=torch.float64)
        return {
            "patient": case["patient"],
            "probability": case["probability"],
            "images": [{"modality": "T1", "slice": i, "biomarker": i} for i in range(2)],
            "shapley": BiomarkerShapley(values, torch.tensor([0.5]), torch.tensor([case["probability"]])),
            "shown": np.array([True, True]),
            "masks": None if self.mask is None else SimpleNamespace(mask=mask),
            "places": None,
        }

    def write(self, case, result, folder):
        pass


@pytest.fixture
def drawn(monkeypatch):
    """What the stage asks to be drawn; the planted pattern is the upper quarter of both images."""
    asked = {}
    for name in ("shapley_distribution", "shapley_patient_bars"):
        monkeypatch.setattr(f"shared.visualize.{name}", lambda *a, name=name, **k: asked.update({name: k}))
    monkeypatch.setattr("shared.explain.ircl.stage.load_model", lambda *_: None)
    planted = torch.zeros(2, SIDE, SIDE, dtype=torch.long)
    planted[:, : SIDE // 4] = 1
    monkeypatch.setattr("shared.explain.ircl.planted.labels_to_images", lambda *_: planted)
    return asked


def cases(probabilities=(0.9, 0.2, 0.3), labels=(1, 0, 0)):
    """Patients of two images each."""
    return [
        {"patient": f"P{i}", "label": label, "probability": p, "planted": "planted.nii.gz", "geometry": {}}
        | {"image": torch.zeros(2, SIDE, SIDE)}
        for i, (p, label) in enumerate(zip(probabilities, labels, strict=True))
    ]


def run(folder, cohort, **settings):
    stage = ExplainStage(StubExplainer(), cohort, checkpoint="model.pt", output_dir=folder, **settings)
    stage.run()
    return stage


def test_random_maps_are_many_differ_between_images_and_score_as_chance(drawn, tmp_path):
    run(tmp_path, cases(), planted_visible={"T1": [1]}, random_maps=DRAWS)
    summary = json.loads((tmp_path / "localisation.json").read_text())
    chance, share = summary["random map"], 1 / 4
    assert chance["images"] == 2 * PATIENTS and chance["maps_per_image"] == DRAWS
    # uniform noise: its maximum lies in the pattern as often as the pattern is large; half of both areas is over 0.5
    assert chance["pointing"] == pytest.approx(share, abs=3 * (share * (1 - share) / (2 * PATIENTS * DRAWS)) ** 0.5)
    assert chance["energy_inside"] == pytest.approx(share, abs=2e-3)
    assert chance["energy_ratio"] == pytest.approx(1, abs=8e-3)
    assert chance["iou"] == pytest.approx((share / 2) / (share + (1 - share) / 2), abs=2e-3)
    # the mean of six images' hits or misses is a sixth of a binomial number
    binomial = np.random.default_rng(0).binomial(2 * PATIENTS, share, 20000) / (2 * PATIENTS)
    assert (chance["low"]["pointing"], chance["high"]["pointing"]) == pytest.approx(
        tuple(np.percentile(binomial, [2.5, 97.5])), abs=1e-9
    )
    assert chance["low"]["energy_ratio"] < 1 < chance["high"]["energy_ratio"]
    assert summary["mask"]["energy_ratio"] == 1 and summary["mask"]["iou"] == pytest.approx(1 / 5)
    with (tmp_path / "localisation.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["map"] == "random map"]
    assert len({row["energy_inside"] for row in rows}) == 2 * PATIENTS


def test_random_maps_are_seeded(drawn, tmp_path):
    settings = {"planted_visible": {"T1": [1]}, "random_maps": 5}
    found = [
        (run(tmp_path / str(i), cases(), seed=seed, **settings), (tmp_path / str(i) / "localisation.json").read_text())[
            1
        ]
        for i, seed in enumerate((4, 4, 5))
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("probability", "labels", "expected"),
    [
        ([0.6, 0.9, 0.2, 0.7], [1, 1, 0, 0], [1, 2]),
        ([0.4, 0.45, 0.2, 0.1], [1, 1, 0, 0], [3]),  # the surest positive is called negative
        ([0.4, 0.9], [1, 0], []),
        ([0.5, 0.5], [1, 0], [0]),
    ],
)
def test_the_surest_are_correct(probability, labels, expected):
    assert surest_correct(np.array(labels), np.array(probability)) == expected


def test_only_correct_patients_are_shown_as_the_surest_correct(drawn, tmp_path, caplog):
    run(tmp_path, cases((0.4, 0.2, 0.3), (1, 0, 0)))
    assert drawn["shapley_patient_bars"]["titles"] == ["P1 (no)"]
    drawn.clear()
    run(tmp_path, cases((0.4, 0.6, 0.7), (1, 0, 0)))
    assert "shapley_patient_bars" not in drawn and "No patient is called right" in caplog.text
