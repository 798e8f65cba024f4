"""Rules every bundle keeps, found by glob: no Python, complete metadata, expressions that stay short."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))
LONGEST_EXPRESSION = 110


def expressions(value, place=""):
    """All ``$`` expressions of a config with where they stand."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from expressions(part, f"{place}#{key}")
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from expressions(part, f"{place}#{i}")
    elif isinstance(value, str) and value.startswith("$"):
        yield place, value


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_bundle_holds_its_files_and_no_python(bundle):
    names = ("LICENSE", "docs/README.md", "docs/data_license.txt")
    configs = ("metadata.json", "train.json", "evaluate.json", "inference.json", "explain.json", "logging.conf")
    missing = [name for name in (*names, *(f"configs/{name}" for name in configs)) if not (bundle / name).is_file()]
    assert not missing
    assert not list(bundle.rglob("*.py"))


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_expressions_are_short_and_outputs_stay_in_the_bundle(bundle):
    for path in bundle.glob("configs/*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        long = [(place, text) for place, text in expressions(content) if len(text) > LONGEST_EXPRESSION]
        assert not long, path
        assert content.get("bundle_root") != ".", "a plain '.' writes into whatever the current folder is"


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_metadata_pins_what_the_requirements_pin(bundle):
    metadata = json.loads((bundle / "configs/metadata.json").read_text(encoding="utf-8"))
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("#")[0].strip().split("==") for line in lines if "==" in line)
    wanted = metadata["required_packages_version"] | {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    assert {name: pins.get(name) for name in wanted} == wanted
    assert metadata["version"] in metadata["changelog"]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_predictions_and_labels_meet_on_the_device_that_predicts(bundle):
    # what the evaluator does with them: tests/shared/engines/test_evaluator.py
    evaluator = json.loads((bundle / "configs/train.json").read_text(encoding="utf-8"))["validate"]["evaluator"]
    assert (evaluator["_target_"], evaluator["device"]) == ("shared.engines.ClassEvaluator", "@device")


def strings(value, place=""):
    """All strings of a config with where they stand."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from strings(part, f"{place}#{key}".strip("#"))
    if isinstance(value, str):
        yield place, value


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_no_stage_learns_from_those_who_validate_or_test(bundle):
    others = ("evaluate", "explain", "explain_inference", "inference", "tracking", "study", "metadata")
    seen = 0
    for path in bundle.glob("configs/*.json"):
        if path.stem in others:
            continue
        for place, text in strings(json.loads(path.read_text(encoding="utf-8"))):
            if place.startswith("validate#") or place.rpartition("#")[2] == "_desc_":
                continue
            seen += 1
            asks = [word for word in ("@validate", "datalist.validation", "datalist.testing") if word in text]
            # a trainer's validator, and the data that a run reads before its first stage
            assert not asks or place.endswith("#trainer#validator") or text == "$len(@validate#dataset)", (path, place)
    assert seen > 100


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_every_stages_loss_goes_to_the_device(bundle):
    content = json.loads((bundle / "configs/train.json").read_text(encoding="utf-8"))
    stages = [name for name, part in content.items() if isinstance(part, dict) and "trainer" in part]
    assert len(stages) >= 2
    for name in stages:
        trainer = content[name]["trainer"]
        assert (trainer["_target_"], trainer["loss_function"]) == ("shared.engines.StageTrainer", f"@{name}#loss")
        assert trainer["common"] == "@common" and content["common"]["device"] == "@device"


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_where_classes_are_balanced_the_probabilities_know_it(bundle):
    train = json.loads((bundle / "configs/train.json").read_text(encoding="utf-8"))["train"]
    if "class_balance" not in train:
        assert "balanced" not in json.dumps(train) and train["pos_weight"] is None
        return
    loss = train["loss"]
    assert loss["_target_"] == "shared.losses.BalancedCrossEntropyLoss" and loss["balance"] == "@train#class_balance"
    assert loss["labels"].startswith("$@train#dataset.") and loss.get("sampled", False) is (
        "weights" in train.get("dataloader", ())
    )
    handlers = [handler for handler in train["handlers"] if isinstance(handler, dict)]  # others are named
    assert [handler.get("loss") for handler in handlers].count("@train#loss") == 1
