"""Sections, flow diagram, checklists and model card of a report."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest

from shared.apps.report.blocks import blocks
from shared.apps.report.checklists import AUTHOR, answers
from shared.apps.report.flow import flow_counts, flow_diagram
from shared.apps.report.model_card import write_model_card
from shared.apps.study.report import report_content, write_report
from shared.io import write_json

ROOT = Path(__file__).parents[4]
SECTION = {
    "title": "Leakage audit",
    "status": "red",
    "text": ["One <b>patient</b> is in two folds."],
    "tables": [{"caption": "Checks", "header": ["check", "result"], "rows": [["patients", "0.125"]]}],
    "pictures": [],
    "patients": False,
}
METRICS = {
    "AUC": {"value": 0.8125, "low": 0.711, "high": 0.909},
    "BRIER": {"value": 0.1875, "low": 0.125, "high": 0.25},
    "calibration": {"slope": {"value": 0.934, "low": 0.7, "high": None}},
    "patients": 57,
    "positive": 21,
}


def results_of(metrics):
    """As a cross-validation writes them."""
    pooled = {name: metrics[name] for name in ("AUC", "BRIER")}
    return {"metrics": pooled, **{name: value for name, value in metrics.items() if name not in pooled}}


def write_study(folder, *, done=True):
    """A study of one row and a control, as far as the report reads it."""
    rows = {
        "whole": {"title": "whole", "folder": "rows/whole", "changed": {"epochs": [3, "7"]}, "folds": 2, "done": 2},
        "forest": {"title": "forest", "folder": "baselines/forest", "changed": {}, "folds": None, "done": None},
    }
    content = {"bundle": "ircl_mvi", "folds": 5, "data": "abc", "citation": "A. Author", "cohort": "liver <1>"}
    content |= {"command": "python", "seeds": [0, 1], "tables": [], "rows": rows, "missing": {}, "limits": ["a limit"]}
    cases = [{"patient": f"P{i}", "label": i % 2, "covariates": {"age": 50 + i} if i else {}} for i in range(5)]
    content["flow"] = flow_counts({"training": cases}, {"left_out": ["P9: no mask", "P8: no mask"]}, 5)
    write_json(folder / "study.json", content)
    write_json(folder / "rows/whole/seed0/datalist.json", {"training": cases})
    forest = results_of(METRICS | {"AUC": {"value": 0.5125, "low": 0.4, "high": 0.6}})
    write_json(folder / "baselines/forest/results.json", {"title": "forest", **forest})
    if done:
        write_json(folder / "rows/whole/results.json", {"title": "whole", **results_of(METRICS)})
        versions = {"python": "3.11", "torch": "2.13.0"}
        about = {"title": "whole", "command": "python x", "settings": {}, "versions": versions}
        write_json(folder / "rows/whole/experiment.json", about)
    return folder


def text_of(html):
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def checklist(folder, name):
    """By number what the checklist says."""
    lines = (folder / f"checklists/{name}.md").read_text().splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| ")]
    return {number.strip(): here.strip() for number, _, here in cells[1:]}


def test_sections_of_others_are_shown_in_order_and_a_broken_one_is_named(tmp_path):
    write_json(tmp_path / "metrics.json", METRICS)
    write_json(tmp_path / "sections/10_audit.json", SECTION)
    write_json(tmp_path / "sections/05_subgroups.json", SECTION | {"title": "Subgroups", "status": ""})
    write_json(tmp_path / "sections/20_odd.json", SECTION | {"status": "purple"})
    write_json(tmp_path / "sections/21_away.json", SECTION | {"pictures": [{"file": "../x.png", "alt": "x"}]})
    (tmp_path / "sections/30_half.json").write_text("{")
    html = write_report(tmp_path).read_text()
    text = text_of(html)
    assert text.index("Subgroups") < text.index("Leakage audit") and "red: objection" in text
    assert "One <b>patient</b> is in two folds." in text and "<b>" not in html and "from sections/10_audit.json" in text
    assert all(f"sections/{name}.json cannot be shown" in text for name in ("20_odd", "21_away", "30_half"))


def test_sections_with_patients_are_left_out_with_pseudonyms(tmp_path):
    write_json(tmp_path / "metrics.json", METRICS)
    write_json(tmp_path / "sections/10_audit.json", SECTION)
    write_json(tmp_path / "sections/20_failures.json", SECTION | {"title": "Failures", "patients": True})
    content = report_content(tmp_path, pseudonyms=True)
    assert [section["title"] for section in content["sections"]] == ["Leakage audit"]
    assert "20_failures.json is left out" in content["broken"][0]
    assert len(report_content(tmp_path)["sections"]) == 2


def test_the_flow_counts_patients_not_images_and_every_reason():
    cases = [{"patient": f"S{i // 2}", "label": i % 2} for i in range(8)] + [{"patient": "S9", "label": 1}]
    lines = ["P1: no mask", "P2: no mask", "P3: empty", "folder without a name"]
    unlabelled = [{"patient": "S7"}]
    found = flow_counts({"training": cases, "unlabelled": unlabelled, "classes": ["HP", "SSA"]}, {"left_out": lines}, 3)
    assert found["left_out"] == {"no mask": 2, "empty": 1, "folder without a name": 1}
    trained = {"name": "cross-validated in 3 folds", "patients": 5, "classes": {"HP": 4, "SSA": 5}}
    assert found["parts"] == [trained, {"name": "without a label", "patients": 1, "classes": {}}]
    many = flow_counts({"training": cases}, {"left_out": [f"P{i}: reason {i}" for i in range(9)]})
    assert many["left_out"]["other reasons"] == 3 and sum(many["left_out"].values()) == 9
    diagram = flow_diagram(found, "study.json")
    assert [box["lines"][0] for box in diagram["boxes"][:3]] == ["found: 10", "left out: 4", "in the datalist: 6"]
    assert all(box["x"] + box["width"] <= diagram["width"] for box in diagram["boxes"])
    hidden = flow_diagram(found, "study.json", reasons=False)
    assert "no mask" not in json.dumps(hidden) and ["left out", "4", ""] in hidden["rows"]


def test_the_page_draws_the_flow_with_a_text_for_those_who_cannot_see_it(tmp_path):
    html = write_report(write_study(tmp_path)).read_text()
    assert 'role="img"' in html and html.count("<rect") == 4 and "no mask: 2" in text_of(html)
    assert "cross-validated in 5 folds 5 label 0: 3, label 1: 2" in text_of(html)
    assert 'href="checklists/TRIPOD_AI.md"' in html


def test_checklists_say_what_the_files_say_and_leave_the_rest_to_the_authors(tmp_path):
    write_report(write_study(tmp_path))
    tripod, claim, metrics = (checklist(tmp_path, name) for name in ("TRIPOD_AI", "CLAIM_2024", "METRICS"))
    assert len(tripod) == 52 and list(claim) == [str(i) for i in range(1, 45)]
    assert list(metrics) == [str(i) for i in range(1, 31)]
    assert "AUC 0.812 [0.711, 0.909]" in tripod["23a"] and "(rows/whole/results.json)" in tripod["23a"]
    assert "2 no mask" in tripod["6b"] and "age 1" in tripod["11"] and "57 patients or rows, 21" in tripod["21"]
    assert "5 folds by patient" in claim["19"] and "torch 2.13.0" in claim["23"] and "epochs" in claim["25"]
    assert "slope 0.934 [0.700, -]" in metrics["22"] and "forest: AUC 0.512" in metrics["25"]
    assert all(found == AUTHOR for found in (tripod["17"], claim["34"], claim["33"], metrics["7"], tripod["14"]))
    assert "liver &lt;1>" in claim["7"]
    write_json(tmp_path / "sections/10_subgroups.json", SECTION | {"title": "Subgroups"})
    write_report(tmp_path)
    assert "sections/10_subgroups.json" in checklist(tmp_path, "TRIPOD_AI")["14"]


@pytest.mark.parametrize("place", ["external.json", "external/external.json"])
def test_checklists_tell_the_external_validation_of_a_study_too(tmp_path, place):
    auc = {"value": 0.7, "low": 0.6, "high": 0.8}
    write_json(write_study(tmp_path) / place, {"external": {"AUC": auc}, "difference": {"AUC": auc}})
    told = answers(tmp_path, report_content(tmp_path))["external"]
    assert told.startswith("AUC 0.700 [0.600, 0.800]") and told.endswith(f"({place})")


def test_a_controls_numbers_are_never_told_as_the_methods(tmp_path):
    write_study(tmp_path, done=False)
    content = report_content(tmp_path)
    assert "The method itself has not been evaluated yet." in content["answer"]
    assert "performance" not in answers(tmp_path, content)
    text = write_model_card(tmp_path, ROOT / "bundles/ircl_mvi").read_text()
    assert "model-index" not in text and "0.512" not in text


def test_the_model_card_has_the_results_and_the_models_settings(tmp_path):
    write_study(tmp_path)
    record = {"settings": {"pretrain#temperature": 0.1}}
    write_json(tmp_path / "rows/whole/seed0/fold0/models/model.json", {"classes": ["no", "yes"], "record": record})
    other = {"settings": {"pretrain#temperature": 0.7}}  # of a row whose name comes before
    write_json(tmp_path / "rows/ablation/seed0/fold0/models/model.json", {"record": other})
    text = write_model_card(tmp_path, ROOT / "bundles/ircl_mvi").read_text()
    head = text.split("---\n")[1]
    yaml = pytest.importorskip("yaml")
    (model,) = yaml.safe_load(head)["model-index"]
    measured = {metric["type"]: metric["value"] for metric in model["results"][0]["metrics"]}
    assert measured == {"roc_auc": 0.8125, "brier_score": 0.1875}
    assert model["results"][0]["dataset"]["name"] == "liver <1>" and yaml.safe_load(head)["library_name"] == "monai"
    assert "| AUC | 0.812 [0.711, 0.909] | rows/whole/results.json |" in text
    assert "| pretrain#temperature | 0.100 |" in text and "second class of no, yes" in text and "a limit" in text
    for heading in ("## Uses and directions", "## Warnings", "## Trust ingredients", "## Key metrics", "## Resources"):
        assert heading in text
    assert AUTHOR in text


def test_a_report_is_made_again_without_what_was_removed(tmp_path):
    write_study(tmp_path)
    write_json(tmp_path / "sections/10_audit.json", SECTION)
    assert "Leakage audit" in write_report(tmp_path).read_text()
    shutil.rmtree(tmp_path / "sections")
    assert "Leakage audit" not in write_report(tmp_path).read_text()


def test_objects_of_a_kind_are_rows_and_lists_of_a_length_are_columns():
    value = {"value": 0.9, "low": 0.8, "high": 1.0}
    points = {"0.5": {"threshold": 0.5, "PPV": value}, "Youden": {"threshold": 0.4, "PPV": value}}
    curve = {"x": [i / 10 for i in range(10)], "y": [1.0] * 10, "smoother": "loess"}
    found = {block["title"]: block for block in blocks({"operating_points": points, "calibration": {"curve": curve}})}
    assert found["Operating points"]["header"] == ["", "threshold", "PPV"]
    assert found["Operating points"]["rows"][1] == ["Youden", "0.400", "0.900 [0.800, 1.000]"]
    drawn = [block for block in blocks(curve, "curve") if block.get("long")]
    assert drawn[0]["header"] == ["x", "y"] and drawn[0]["rows"][3] == ["0.300", "1.000"]
    assert len(drawn[0]["rows"]) == 10
    odd = blocks({"points": {"a": {"v": value}, "b": {"w": value}}})  # not of a kind: a table each
    assert [block["title"] for block in odd] == ["points, a", "points, b"]
