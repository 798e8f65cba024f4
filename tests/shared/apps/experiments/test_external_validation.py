import json

import numpy as np
import pytest

from shared.apps.experiments.external_validation import main, validate
from shared.errors import DataError
from shared.io import write_csv
from shared.metrics import external_validation
from tests.support.documented import json_keys, undocumented


def rows_of(prefix, count, seed, factor=1.0):
    random = np.random.default_rng(seed)
    odds = random.normal(0, 1.3, count)
    labels = random.random(count) < 1 / (1 + np.exp(-odds))
    probability = 1 / (1 + np.exp(-factor * odds))
    return [
        {"patient": f"{prefix}{k}", "label": int(y), "probability": float(p)}
        for k, (y, p) in enumerate(zip(labels, probability, strict=True))
    ]


@pytest.fixture
def folders(tmp_path):
    folds = [{"seed": seed, "fold": k % 2, **row} for seed in (0, 1) for k, row in enumerate(rows_of("D", 50, 0))]
    write_csv(tmp_path / "near" / "predictions.csv", folds)
    write_csv(tmp_path / "far" / "predictions.csv", rows_of("E", 60, 1, 2.0))
    return tmp_path


def test_both_cohorts_are_told_side_by_side(folders, capsys):
    given = [
        "--development",
        str(folders / "near"),
        "--external",
        str(folders / "far"),
        "--output",
        str(folders / "out"),
    ]
    main([*given, "--bootstrap", "30"])
    found = json.loads((folders / "out/external.json").read_text())
    # rows are sorted by patient
    near, far = (
        sorted(rows, key=lambda row: row["patient"]) for rows in (rows_of("D", 50, 0), rows_of("E", 60, 1, 2.0))
    )
    cohorts = [([r["label"] for r in rows], [r["probability"] for r in rows], None) for rows in (near, far)]
    expected = external_validation(cohorts[0], cohorts[1], bootstrap=30)
    assert found["external"]["AUC"] == pytest.approx(expected["external"]["AUC"])
    assert found["difference"]["slope"] == pytest.approx(expected["difference"]["slope"])
    assert found["recalibration"] == expected["recalibration"]
    assert (found["development"]["patients"], found["external"]["patients"]) == (50, 60)
    page = (folders / "out/external.md").read_text()
    assert page in capsys.readouterr().out and "| AUC | 0." in page and "| intercept and slope | 0." in page
    assert (folders / "out/calibration.png").exists()
    assert not undocumented("external.json", json_keys(found), "External validation")


def test_patients_of_the_development_are_refused(folders):
    write_csv(folders / "same" / "predictions.csv", [*rows_of("E", 10, 1), *rows_of("D", 2, 3)])
    with pytest.raises(DataError, match=r"2 are in both .*same: D0, D1"):
        validate(str(folders / "near"), str(folders / "same"), str(folders / "out"))
    with pytest.raises(SystemExit, match=r"external_validation: .*no finished experiment"):
        main(["--development", str(folders / "near"), "--external", str(folders), "--output", str(folders / "out")])
    assert not (folders / "out").exists()


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"trained_on": 1}, r"the model was trained on 1 of its 60 rows \(E0\); predict others"),
        ({"label": ""}, r"patient E0 needs a label 0 or 1 .* has '' and"),
        ({"label": 2}, "patient E0 needs a label 0 or 1"),
        ({"probability": 73.5}, r"probability in \[0, 1\], has '[01]' and '73.5'"),  # per cent
        ({"probability": "nan"}, "patient E0 needs"),
    ],
)
def test_rows_that_would_flatter_or_mislead_are_refused(folders, others, message):
    first, *more = [row | {"trained_on": 0} for row in rows_of("E", 60, 1)]
    write_csv(folders / "far" / "predictions.csv", [first | others, *more])
    with pytest.raises(DataError, match=message):
        validate(str(folders / "near"), str(folders / "far"), str(folders / "out"), bootstrap=5)
    assert not (folders / "out").exists()
