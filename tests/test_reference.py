"""The pages of docs/reference say what the code does: configs, equations, outputs."""

import re
from pathlib import Path
from pydoc import locate

import pytest

from shared.apps.baselines.population_report import write_population_report
from shared.apps.experiments.folder import write_experiment, write_results
from shared.apps.reference.configs import configs_page, undescribed
from shared.biomarkers import biomarker_table, flat_rows
from shared.bundle.configs import read_config
from shared.io import write_csv, write_json
from shared.metrics.repeated import RepeatedPredictions
from shared.reports.glioma_controls import CONTROLS, write_glioma_controls
from shared.reports.predictions import write_predictions
from tests.support.documented import undocumented_in

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
BUNDLES = sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/train.json"))


def test_the_page_of_configs_is_what_the_script_makes():
    made = configs_page(ROOT / "bundles")
    assert (REFERENCE / "configs.md").read_text(encoding="utf-8") == made, "run python scripts/make_reference.py"


@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_key_of_a_config_is_explained(bundle):
    assert not undescribed(ROOT / "bundles" / bundle)


def page_tables(page):
    """By heading of the second level, the cells of all table rows below it, headers left out."""
    tables, heading = {}, ""
    for line in (REFERENCE / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line[3:].strip()
        elif line.startswith("|") and not line.startswith("|---"):
            tables.setdefault(heading, []).append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return tables


def has_key(config, key):
    place = config
    for part in key.split("#"):
        if not isinstance(place, dict) or part not in place:
            return False
        place = place[part]
    return True


@pytest.mark.parametrize("bundle", BUNDLES)
def test_keys_and_targets_of_the_equations_exist(bundle):
    configs = [read_config(path) for path in (ROOT / "bundles" / bundle / "configs").glob("*.json")]
    rows = [row for row in page_tables("equations.md")[bundle] if row[0] != "paper"]
    wrong = []
    for paper, _, keys, code in rows:
        named = [key for key in re.findall(r"`([^`]+)`", keys) if not key.endswith(".json")]
        wrong += [f"{paper}: no key {key}" for key in named if not any(has_key(config, key) for config in configs)]
        targets = re.findall(r"`([^`]+)`", code)
        wrong += [f"{paper}: no {target}" for target in targets if locate(target) is None]
        if not targets or not (named or keys == "-"):
            wrong.append(f"{paper}: an empty cell")
    assert rows and not wrong


@pytest.mark.parametrize(("bundle", "equations"), [("ircl_mvi", 10), ("sscl_crc", 4), ("glioma_idh", 8)])
def test_all_equations_of_the_papers_are_there(bundle, equations):
    named = set()
    for row in page_tables("equations.md")[bundle]:
        for first, last in re.findall(r"Eq\. (\d+)(?: to (\d+))?", row[0]):
            named |= set(range(int(first), int(last or first) + 1))
        named |= {int(number) for number in re.findall(r", (\d+)", row[0]) if row[0].startswith("Eq.")}
    assert named == set(range(1, equations + 1))


def test_every_column_and_key_of_an_evaluation_is_described(tmp_path):
    rows = [
        {"patient": f"P{i}", "label": i % 2, "probability": 0.1 + 0.1 * i} | dict.fromkeys(CONTROLS, 0.5)
        for i in range(6)
    ]
    plain = [{key: row[key] for key in ("patient", "label", "probability")} for row in rows]
    write_predictions(tmp_path / "ircl_mvi", plain, bootstrap=20)
    write_predictions(
        tmp_path / "sscl_crc", [{"image": f"{i}.png", **row} for i, row in enumerate(plain)], bootstrap=20
    )
    rows = [row | {"out_of_cohort": 0, "neighbours": 3, "neighbours_mutant": 0.5} for row in rows]
    metrics = write_predictions(tmp_path / "glioma_idh", rows, bootstrap=20)
    known = [{**row, "covariates": {"age": 40 + i, "grade": 2 + i % 3}} for i, row in enumerate(rows)]
    given = {"class_names": ["wild type", "mutant"], "known": known, "training": [row["patient"] for row in rows]}
    write_glioma_controls(tmp_path / "glioma_idh", rows, metrics, bootstrap=20, encoders=["image"], **given)
    for bundle in BUNDLES:
        assert not undocumented_in(tmp_path / bundle, bundle)


@pytest.mark.parametrize("image", [False, True])
def test_every_column_and_key_of_a_cross_validation_is_described(tmp_path, image):
    rows = [
        {"seed": seed, "fold": i % 2, "patient": f"P{i}", "label": i // 4, "probability": i / 8}
        | ({"image": f"{i}.png"} if image else {})
        for seed in (0, 1)
        for i in range(8)
    ]
    write_experiment(tmp_path, title="T", command="C", settings={"folds": 2})
    write_results(tmp_path, RepeatedPredictions.from_rows(rows), bootstrap=20)
    assert not undocumented_in(tmp_path, "Cross-validation")


def test_every_column_of_a_population_report_is_described(tmp_path):
    rows = [
        {"seed": 0, "fold": i % 2, "patient": f"P{i}", "label": i % 2, "probability": ((3 * i) % 8) / 8}
        for i in range(8)
    ]
    tables = dict.fromkeys(("gat", "gat_no_edges"), RepeatedPredictions.from_rows(rows))
    grade = {f"P{i}": 4.0 if i < 4 else 2.0 for i in range(8)}
    write_population_report(tmp_path, tables, {"gat": "GAT", "gat_no_edges": "without"}, grade, bootstrap=20)
    assert (tmp_path / "differences.csv").is_file() and not undocumented_in(tmp_path, "Population graph")


def test_biomarkers_and_the_lack_of_a_description_are_seen(tmp_path):
    table = biomarker_table([0, 0, 2], [0.9, 0.95, 0.8], ["A", "B", "A"], [1, 0, 1], num_biomarkers=3)
    write_csv(tmp_path / "biomarkers.csv", flat_rows(table))
    write_json(tmp_path / "biomarkers.json", {"biomarkers": table})
    assert not undocumented_in(tmp_path, "ircl_mvi")
    write_csv(tmp_path / "biomarkers.csv", [{"biomarker": 0, "colour": "red"}])
    write_json(tmp_path / "biomarkers.json", {"biomarkers": [{"colour": "red"}]})
    write_json(tmp_path / "new.json", {})
    assert undocumented_in(tmp_path, "ircl_mvi") == [
        "biomarkers.csv: colour",
        "biomarkers.json: biomarkers[].colour",
        "new.json: not described",
    ]
