"""Failures: the most confident errors first, each with its own picture."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from shared.apps.audit import failures as script
from shared.errors import DataError
from shared.io import write_csv


def picture(path, grey=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(path)


def volumes(folder):
    rows = [("P0", 1, 0.9), ("P1", 0, 0.97), ("P2", 1, 0.2), ("P3", 0, 0.4), ("P4", 0, 0.5)]
    write_csv(
        folder / "predictions.csv", [dict(zip(("patient", "label", "probability"), r, strict=True)) for r in rows]
    )


def test_errors_come_by_confidence_with_their_pictures(tmp_path, capsys):
    volumes(tmp_path)
    picture(tmp_path / "patients/P1_overlay.png")
    picture(tmp_path / "patients/P10_overlay.png")
    script.main([str(tmp_path), "--count", "2"])
    assert "3 of 5 are called wrong" in capsys.readouterr().out
    with (tmp_path / "failures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["P1", "P2", "P4"]
    assert [float(row["error"]) for row in rows] == pytest.approx([0.97, 0.8, 0.5])
    assert rows[0]["picture"] == "patients/P1_overlay.png" and rows[1]["picture"] == ""
    section = json.loads((tmp_path / "sections/40_failures.json").read_text())
    assert section["patients"] and len(section["tables"][0]["rows"]) == 2
    assert section["text"][0] == "3 of 5 are called wrong at 0.5: 1 of label 1, 2 of label 0."
    assert any("1 there is no explanation" in text for text in section["text"])
    assert (tmp_path / "failures.png").is_file()


def test_seeds_are_averaged(tmp_path):
    for seed, probability in ((0, 0.9), (1, 0.3)):
        rows = [{"patient": "P0", "label": 0, "probability": probability}]
        write_csv(tmp_path / f"seed{seed}/predictions.csv", [*rows, {"patient": "P1", "label": 1, "probability": 0.6}])
    found, rows = script.failures(tmp_path)
    assert rows == 2 and [(f.name, round(f.probability, 6)) for f in found] == [("P0", 0.6)]
    assert found[0].sd == pytest.approx(np.std([0.9, 0.3], ddof=1))


def test_patches_are_found_by_their_path(tmp_path):
    rows = [{"image": f"{name}/a.png", "patient": name, "label": 0, "probability": 0.9} for name in ("HP", "SSA")]
    write_csv(tmp_path / "predictions.csv", rows)
    for name in ("HP", "SSA"):
        for kind in ("cam", "overlays"):
            picture(tmp_path / f"explained/{kind}/{name}-a.png")
    found, _ = script.failures(tmp_path, [tmp_path / "explained"])
    assert [f.picture.relative_to(tmp_path).as_posix() for f in found] == [
        "explained/overlays/HP-a.png",
        "explained/overlays/SSA-a.png",
    ]


def test_without_errors_there_is_no_gallery(tmp_path):
    write_csv(tmp_path / "predictions.csv", [{"patient": "P0", "label": 1, "probability": 0.7}])
    picture(tmp_path / "failures.png")
    script.main([str(tmp_path)])
    section = json.loads((tmp_path / "sections/40_failures.json").read_text())
    assert section["pictures"] == [] and not section["patients"] and not (tmp_path / "failures.png").exists()


def test_folders_that_are_not_there_are_named(tmp_path):
    volumes(tmp_path)
    with pytest.raises(DataError, match="gone: no such folder"):
        script.failures(tmp_path, [tmp_path / "gone"])
    with pytest.raises(SystemExit, match="no finished experiment"):
        script.main([str(tmp_path / "patients")])
