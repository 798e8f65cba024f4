"""What stands beside the population graph is called what it is, and who was not trained is said, not scored."""

import json

import pytest

from shared.reports.glioma_controls import write_glioma_controls

ROWS = [
    {"patient": f"P{k}", "label": k % 2, "probability": p, "out_of_cohort": 0, "no_edges": 1 - p, "mlp": p}
    for k, p in enumerate((0.1, 0.9, 0.2, 0.4, 0.6, 0.7))
]


def table(folder):
    lines = [line for line in (folder / "controls.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells[2:]}


def test_a_classifier_without_a_column_was_not_trained(tmp_path):
    rows = [{**row, "multitask": row["probability"]} for row in ROWS]
    names = ("wild type", "mutant")
    encoders = ("image", "points", "brain")
    found = write_glioma_controls(tmp_path, rows, {}, class_names=names, encoders=encoders, bootstrap=20)
    untrained = [f"MLP trained with the {name} encoder" for name in ("image", "surface", "brain")]
    assert not set(untrained) & set(found["all"]["AUC"]) and {k: table(tmp_path)[k] for k in untrained} == {
        name: ["not trained"] for name in untrained
    }
    assert json.loads((tmp_path / "metrics.json").read_text())["not_trained"] == untrained
    # 8 of 9 pairs are in order, with the edges left out 1 of 9
    scores = {name: score["value"] for name, score in found["all"]["AUC"].items()}
    assert scores["population graph"] == scores["MLP trained with the encoders"] == pytest.approx(8 / 9)
    assert scores["trained with edges, predicted without"] == pytest.approx(1 / 9)


def test_one_encoder_alone_has_one_classifier(tmp_path):
    write_glioma_controls(tmp_path, ROWS, {}, class_names=("a", "b"), encoders=("image",), bootstrap=20)
    assert json.loads((tmp_path / "metrics.json").read_text())["not_trained"] == ["MLP trained with the encoders"]
