"""trace.json: the same inputs give the same trace wherever they lie, another input, model or setting gives another."""

import json
import shutil

import pytest
from ignite.engine import Engine

from shared.errors import DataError
from shared.handlers import ModelCheck, SaveTrace
from shared.io import write_json
from shared.reports.trace import check_trace, with_digests

CONFIG = {
    "evaluator": {"_target_": "SupervisedEvaluator", "network": "@network", "views": 2},
    "network": {"_target_": "shared.networks.Net", "width": 8},
    "answer": "additive",
    "dataset_dir": "/data",
}


def place(root):
    """A bundle, a model and two patients with an image of two files, a mask and an age."""
    for name, text in (("bundle/configs/inference.json", "{}"), ("models/model.pt", "weights"), ("data/a", "1")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("b", "c", "m"):
        (root / "data" / name).write_text(f"content of {name}")
    return root


def cases(root):
    data = root / "data"
    first = {"patient": "P1", "image": [str(data / "a"), str(data / "b")], "mask": str(data / "m"), "label": 1}
    first["covariates"] = {"age": 50, "sex": 1}
    return [first, {"patient": "P2", "image": str(data / "c"), "covariates": {"age": 60, "sex": 0}}]


def traced(root, *, config=CONFIG, of=None, **settings):
    check = ModelCheck(root / "models", cases=cases(root) if of is None else of, dataset_dir=root / "data")
    given = {"dataset_dir": root / "data", "bundle_root": root / "bundle", "covariates": ["age"], "config": config}
    saver = SaveTrace(root / "out", check, **given | settings)
    engine = Engine(lambda *_: None)
    saver.attach(engine)
    engine.run([0])
    return json.loads((root / "out/trace.json").read_text())


def test_the_same_inputs_give_the_same_trace_in_another_folder_under_another_name(tmp_path):
    first = traced(place(tmp_path / "one"))
    other = place(tmp_path / "deeper/two")
    (other / "data/a").rename(other / "data/renamed")
    moved = cases(other)
    moved[0]["image"][0] = str(other / "data/renamed")
    again = traced(other, of=moved)
    assert first["trace"] == again["trace"] and first["places"] != again["places"]
    assert [case["trace"] for case in first["cases"]] == [case["trace"] for case in again["cases"]]
    assert str(tmp_path) not in json.dumps({key: value for key, value in first.items() if key != "places"})
    assert [part["file"] for part in first["cases"][0]["inputs"]] == ["a", "b", "m"]
    assert first["settings"]["network#width"] == 8 and first["settings"]["answer"] == "additive"


def test_the_label_and_a_covariate_that_the_network_is_not_given_are_no_inputs(tmp_path):
    before = traced(place(tmp_path))
    other = cases(tmp_path)
    other[0]["label"], other[0]["covariates"]["sex"] = 0, 0
    assert traced(tmp_path, of=other)["trace"] == before["trace"]
    other[0]["covariates"]["age"] = 51
    changed = traced(tmp_path, of=other)["cases"]
    assert changed[0]["trace"] != before["cases"][0]["trace"] and changed[1]["trace"] == before["cases"][1]["trace"]


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "models/model.pt").write_text("other weights"),
        lambda root: (root / "bundle/configs/inference.json").write_text("{ }"),
        lambda root: {"config": CONFIG | {"answer": "prototype"}},
        lambda root: {"config": CONFIG | {"network": {"_target_": "shared.networks.Net", "width": 16}}},
        lambda root: {"device": "cuda"},
        lambda root: {"of": [case | {"trust_affines": True} for case in cases(root)]},
    ],
)
def test_another_model_config_setting_or_device_is_another_trace(tmp_path, change):
    before, given = traced(place(tmp_path)), change(tmp_path)
    after = traced(tmp_path, **(given if isinstance(given, dict) else {}))
    assert all(now["trace"] != then["trace"] for now, then in zip(after["cases"], before["cases"], strict=True))


def test_images_in_another_order_are_another_input(tmp_path):
    before, other = traced(place(tmp_path)), cases(tmp_path)
    other[0]["image"].reverse()
    assert traced(tmp_path, of=other)["cases"][0]["trace"] != before["cases"][0]["trace"]


def test_which_of_two_sequences_is_lacking_is_an_input(tmp_path):
    place(tmp_path)
    found = []
    for lacking in ({"T1": 0}, {"T1c": 1}):  # the same image stands twice
        known = cases(tmp_path)
        known[0] |= {"image": [str(tmp_path / "data/a")] * 2, "lacking": lacking}
        found.append(traced(tmp_path, of=known)["cases"][0]["trace"])
    assert found[0] != found[1]


def test_a_changed_input_model_output_or_trace_is_found(tmp_path):
    place(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/predictions.csv").write_text("patient,probability\n")
    traced(tmp_path)
    assert check_trace(tmp_path / "out", tmp_path / "data", tmp_path / "models") == []
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    (tmp_path / "copy/b").write_text("other")
    (tmp_path / "copy/c").unlink()
    found = "\n".join(check_trace(tmp_path / "out", tmp_path / "copy"))
    assert "P1: image b has changed" in found and "P2: image c is not in" in found and found.count("\n") == 1
    (tmp_path / "models/model.pt").write_text("other")
    (tmp_path / "out/predictions.csv").write_text("patient,probability\nP1,1\n")
    found = "\n".join(check_trace(tmp_path / "out", tmp_path / "data", tmp_path / "models"))
    assert "predictions.csv has changed since it was written" in found and "model.pt has changed" in found
    content = json.loads((tmp_path / "out/trace.json").read_text())
    content["cases"][0]["values"]["covariate age"] = 49.0
    write_json(tmp_path / "out/trace.json", content)
    assert any("was edited" in line for line in check_trace(tmp_path / "out", tmp_path / "data"))
    assert with_digests({key: value for key, value in content.items() if key != "trace"})["trace"] != content["trace"]


def test_no_or_a_damaged_trace_is_one_error(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        check_trace(tmp_path, tmp_path)
    (tmp_path / "trace.json").write_text('{"cases": [{}]}')
    with pytest.raises(DataError, match="is damaged"):
        check_trace(tmp_path, tmp_path)


def test_a_run_that_stops_leaves_no_older_trace(tmp_path):
    traced(place(tmp_path))
    engine = Engine(lambda *_: 1 / 0)
    check = ModelCheck(tmp_path / "models", cases=cases(tmp_path), dataset_dir=tmp_path / "data")
    SaveTrace(tmp_path / "out", check, dataset_dir=tmp_path / "data", bundle_root=tmp_path, config={}).attach(engine)
    with pytest.raises(ZeroDivisionError):
        engine.run([0])
    assert not (tmp_path / "out/trace.json").exists()
