"""scripts/population_graph.py on a small cohort whose label is written in its features."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
METHODS = ["gat", "gat_no_edges", "logistic", "grade_covariates", "gat_covariates"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("population_graph_script", ROOT / "scripts" / "population_graph.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    features, metadata = [["ID", *"abcd"]], [["ID", "Sex", "Age at MRI", "WHO CNS Grade", "IDH"]]
    for i in range(45):
        label = int(i % 3 == 0)
        features.append([f"P{i}", 3 * label + random.normal(), *random.normal(size=3)])
        idh = "mutated" if label else "wildtype"
        metadata.append([f"P{i}", "MF"[i % 2], random.integers(20, 80), 2 + 2 * (i % 2), idh])
    for name, rows in (("f", features), ("m", metadata)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    tables = ["--features", str(folder / "f.csv"), "--metadata", str(folder / "m.csv")]
    return [*tables, "--folds", "3", "--seeds", "0", "1", "--epochs", "8", "--bootstrap", "30", "--methods", *METHODS]


def test_runs_goes_on_and_compares(script, options, tmp_path, capsys):
    command = [*options, "--output", str(tmp_path)]
    assert script.main(command) == 0
    text = capsys.readouterr().out
    assert "30 folds were run, 0 were there" in text and "Graph of the whole cohort, all 4 features" in text
    for name in METHODS:
        assert {"predictions.csv", "results.md", "roc.png"} <= {path.name for path in (tmp_path / name).iterdir()}
    before = (tmp_path / "comparison.md").read_text()
    assert "| age + grade, no features |" in before and "AUC, grade 2-3" in before

    (tmp_path / "gat" / "seed1" / "fold2" / "predictions.csv").unlink()  # as if it had been interrupted
    assert script.main(command) == 0
    assert "1 folds were run, 29 were there" in capsys.readouterr().out
    assert (tmp_path / "comparison.md").read_text() == before

    assert script.main([*command, "--epochs", "9"]) == 2
    assert "epochs was 8, is now 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "forest"], "no method forest; there are gat,"),
        (["--grades", "9"], "0 patients are of grade 9"),
        (["--label-column", "MGMT"], "no column 'MGMT'"),
        (["--folds", "30"], "fewer than the 30 folds"),
    ],
)
def test_says_what_is_wrong(script, options, tmp_path, capsys, more, message):
    assert script.main([*options, "--output", str(tmp_path), *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tumour-prefix", "u"], "go together"),
        (["--tumour-prefix", "u", "--brain-prefix", "v", "--external", "x"], "features of its own"),
        (["--covariates", "weight"], "no column is given for the covariates weight"),
        (["--seeds", "1", "1"], "no seed given twice"),
    ],
)
def test_refuses_options(script, options, capsys, more, message):
    with pytest.raises(SystemExit):
        script.main([*options, "--output", "x", *more])
    assert message in capsys.readouterr().err
