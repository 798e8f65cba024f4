"""Overrides of every bundle, by every way in: what is refused, in which words, and what is read as it is meant."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow, create_workflow, run

from shared.bundle.override_values import COMPUTED, fault_of
from tests.support.bundle_runs import cause

ROOT = Path(__file__).parents[3]
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))
OVERLAYS = [path for bundle in BUNDLES for path in sorted(bundle.glob("configs/*.json"))]


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """A bundle changes how errors are shown."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "path", list(sys.path))


def configs(bundle, *names):
    return [str(ROOT / f"bundles/{bundle}/configs/{name}.json") for name in names]


def initialised(files, **overrides):
    flow = ConfigWorkflow(files, logging_file=False, **overrides)
    flow.initialize()
    return flow


def problems_of(call):
    """Lines of the project's own error that a call ends in."""
    with pytest.raises(Exception) as caught:
        call()
    error = cause(caught.value)
    assert error is not None, caught.value
    return error.problems


def refused(*names, bundle="ircl_mvi", **overrides):
    (problem,) = problems_of(lambda: initialised(configs(bundle, *(names or ("train",))), **overrides))
    return problem


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("ckptdir", "Did you mean --ckpt_dir?"),
        ("mixup_ration", "Did you mean --mixup_ratio?"),
        ("pretrain#epocs", "Did you mean --pretrain#epochs or --pretrain#max_epochs?"),
        ("network_def#dropuot", "Did you mean --network_def#dropout?"),
        ("epochs", "Did you mean --pretrain#epochs or --train#epochs?"),
        ("max_masks", "It is one of explain.json: list that in --config_file, too."),
        ("section", "It is --split now."),
        ("part", "It is --split now."),
        ("train#trainer#max_epoch", "Did you mean --train#trainer#max_epochs?"),
        ("train#trainer#acumulation_steps", "Did you mean --train#trainer#accumulation_steps?"),
        ("xyz", "nothing refers to it."),
    ],
)
def test_a_misspelt_key_is_refused_with_what_may_be_meant(key, hint):
    problem = refused(**{key: 3})
    assert problem.startswith(f"--{key} is no key of this bundle's configs") and problem.endswith(hint)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_every_way_in_meets_the_same_check(bundle, tmp_path, monkeypatch):
    file = str(bundle / "configs/train.json")
    args = tmp_path / "args.json"
    args.write_text(json.dumps({"config_file": file, "outputdir": "x"}))

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["/env/monai/bundle/__main__.py", *words])
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=False)

    ways = [
        lambda: initialised(file, outputdir="x"),
        lambda: create_workflow(config_file=file, outputdir="x"),
        lambda: create_workflow(config_file=(file,), args_file=str(args)),
        lambda: run(config_file=[file], outputdir="x"),
        lambda: command("run", "--config_file", file, "--outputdir", "x"),
        lambda: command("run", "-outputdir", "x", f"--config_file=['{file}']"),
        lambda: command("run", "-outputdir=x", f"--config_file=('{file}',)"),
        lambda: command("run", "--args_file", str(args)),
        lambda: command("run_workflow", "--config_file", file, "--output-dir", "x", "--outputdir=x"),
    ]
    for way in ways:
        (problem,) = problems_of(way)
        assert problem.startswith("--outputdir is no key") and problem.endswith("Did you mean --output_dir?")


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_the_bundles_own_configs_pass(overlay):
    names = {"train": [], "metadata": [], "tracking": [], "study": [], "inference": None}.get(
        overlay.stem, [overlay.stem]
    )
    merged = ["inference"] if names is None else ["train", *names]
    if overlay.stem == "explain_inference":
        merged = ["inference", "explain", "explain_inference"]
    check = {
        "_target_": "shared.bundle.overrides.check_overrides",
        "_requires_": "@bundle_path",
        "workflows": "@workflows",
    }
    assert initialised(configs(overlay.parents[1].name, *merged), initialize=[check])._is_initialized


def test_what_somebodys_own_config_adds_is_taken_where_something_uses_it(tmp_path):
    own = tmp_path / "mine.json"
    content = {
        "rate": 0.01,
        "train#learning_rate": "$@rate / 2",
        "both_run": ["$print(1)"],
        "_note": "mine",
        "size": 48,
    }
    own.write_text(json.dumps(content | {"roi#size": "@size", "pretrain#trainer#amp": False}))
    flow = initialised([*configs("ircl_mvi", "train"), str(own)])
    assert flow.parser.get_parsed_content("train::learning_rate") == 0.005
    own.write_text(json.dumps({"rate": 0.01}))
    assert problems_of(lambda: initialised([*configs("ircl_mvi", "train"), str(own)]))[0].startswith("--rate is no key")


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_what_evaluation_reads_from_the_model_is_checked_as_in_training(bundle):
    place = {"ircl_mvi": "roi#size", "glioma_idh": "preparing#size", "sscl_crc": "views"}[bundle.name]
    given = {place: "a", "network_def": {"_target_": "torch.nn.Identity"}}
    assert refused("train", "evaluate", bundle=bundle.name, **given).startswith(
        f"--{place} a: it must be a whole number"
    )


def test_a_run_id_that_is_none_is_refused_with_those_that_are():
    known = "pretrain_run, biomarkers_run, additive_run, train_run, run"
    assert refused(run_id="trian_run") == f"--run_id trian_run is none of {known}."


def test_own_configs_may_lie_beside_other_files(tmp_path):
    train = json.loads((ROOT / "bundles/ircl_mvi/configs/train.json").read_text())
    root = str(ROOT / "bundles/ircl_mvi/models")  # where somebody wants the outputs; no bundle
    (tmp_path / "mine.json").write_text(json.dumps(train | {"rate": 1}))
    (tmp_path / "datalist.json").write_text("[1, 2]")
    (tmp_path / "false.json").write_text('{"num_slices": 5}')
    files = [str(tmp_path / "mine.json"), str(tmp_path / "false.json")]
    parser = initialised(files, bundle_root=root, seed="$@rate").parser
    assert [parser.get_parsed_content(key) for key in ("num_slices", "seed", "ckpt_dir")] == [5, 1, f"{root}/models"]
    (problem,) = problems_of(lambda: initialised(files, bundle_root=root, sed=1))
    assert problem.startswith("--sed is no key")


def test_all_problems_come_at_once():
    lines = problems_of(lambda: initialised(configs("glioma_idh", "train"), epochs=1, in_channels="a", seed=1.5))
    assert [line.split()[0] for line in lines] == ["--epochs", "--seed", "--in_channels"]


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "num_slices",
            "three",
            "it must be a whole number of at least 1, and is the text 'three'. Write --num_slices 3.",
        ),
        ("num_slices", 0, "it must be a whole number of at least 1, and is 0, a whole number. Write --num_slices 3."),
        ("seed", 1.5, "it must be a whole number of at least 0, and is 1.5, a number. Write --seed 0."),
        ("num_slices", True, "of at least 1, and is True, a truth value. Write --num_slices 3."),
        (
            "train#weight_decay",
            "1e-3x",
            "it must be a number, and is the text '1e-3x'. Write --train#weight_decay 0.0.",
        ),
        (
            "train#weight_decay",
            float("nan"),
            "it must be a number, and is nan, a number. Write --train#weight_decay 0.0.",
        ),
        ("covariates", "age", "it must be a list of texts, and is the text 'age'. Write --covariates \"['age']\"."),
        ("covariates", [1], "it must be a list of texts, and is [1], a list. Write --covariates \"['age']\"."),
        (
            "network_def#channels",
            [8, "a"],
            "is [8, 'a'], a list. Write --network_def#channels \"[64, 128, 256, 512]\".",
        ),
        ("device", "gpu", "it must be a device, and is the text 'gpu'. Write --device cpu or --device cuda:0."),
        ("resume", "false", "it must be True or False, and is the text 'false'. Write --resume True or False."),
        ("bf16", 1, "it must be True or False, and is 1, a whole number. Write --bf16 True or False."),
        ("split", "test", "one of training, validation, testing, and is the text 'test'. Write --split testing."),
        ("ckpt_dir", None, "it must be a text, a file's or folder's name, and is null. Write --ckpt_dir TEXT."),
        ("dataset_dir", ["a", "b"], "folder's name, and is ['a', 'b'], a list. Write --dataset_dir TEXT."),
        ("dataset_dir", "$x", "is a Python expression, and x is no name there. A text that begins so is written ./$x"),
        (
            "dataset_dir",
            "$1 /x y",
            "is a Python expression, and this is none. A text that begins so is written ./$1 /x y",
        ),
        ("output_dir", "@x", "it refers to @x, which is no key here. A text of that name is written ./@x"),
        ("mixup_ratio", "$@ratio * 2", "it refers to @ratio, which is no key here. A text that begins so"),
    ],
)
def test_a_value_of_the_wrong_kind_is_one_line(key, value, message):
    problem = refused(**{key: value})
    assert problem.startswith(f"--{key} {value}: ") and message in problem and "\n" not in problem


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
@pytest.mark.parametrize("config", ["train", "inference"])
def test_every_bundle_reads_values_as_they_are_meant(bundle, config):
    meant = {"dataset_dir": (20240501, "20240501"), "output_dir": ("out#1/a@b", "out#1/a@b"), "ckpt_dir": ("m", "m")}
    meant["device"] = ("cpu", torch.device("cpu"))
    if bundle.name != "sscl_crc":
        meant["covariates"] = (("age", "sex"), ["age", "sex"])
    if config == "train":
        meant["channels_last"] = ("true", True)
    parser = initialised(configs(bundle.name, config), **{key: given for key, (given, _) in meant.items()}).parser
    assert {key: parser.get_parsed_content(key) for key in meant} == {key: value for key, (_, value) in meant.items()}
    # where the bundle lies is known still, outside the workflow
    assert Path(parser.get_parsed_content("bundle_root")) == bundle


@pytest.mark.parametrize(
    "value", ["$torch.device('cpu')", torch.device("cpu"), "$[torch.device(x) for x in ['cpu']][0]"]
)
def test_a_device_may_be_an_expression_or_one(value):
    parser = initialised(configs("sscl_crc", "train"), device=value, **{"train#size": "@pretrain#size"}).parser
    assert (
        parser.get_parsed_content("device") == torch.device("cpu") and parser.get_parsed_content("train::size") == 224
    )


def test_a_gpu_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert fault_of("device", "cuda:1", COMPUTED) == (None, torch.device("cuda:1"))
    fault, _ = fault_of("device", "cuda:2", COMPUTED)
    assert fault == "this machine has 2 CUDA devices. Write --device cpu or cuda:0."


def test_numbers_may_be_whole_where_others_are_due_and_null_where_texts_are():
    values = {"train#learning_rate": 1, "roi#extent_mm": 87.5, "roi#normalise": None, "pretrain#vgg_weights": None}
    parser = initialised(configs("ircl_mvi", "train"), **values).parser
    assert [parser.get_parsed_content(key) for key in values] == [1, 87.5, None, None]


# --- as typed -----------------------------------------------------------------------------------------------------


def typed(monkeypatch, *words):
    """A bundle's command in this process, which ends for want of data: the last line."""
    file = configs("ircl_mvi", "train")[0]
    monkeypatch.setattr(sys, "argv", ["/env/monai/bundle/__main__.py", "run", "--config_file", file, *words])
    return problems_of(lambda: runpy.run_module("monai.bundle", run_name="__main__", alter_sys=False))


@pytest.mark.parametrize("name", ["20240501", "2024_05", "1.10", "1e3", "0x10", "#1/data", "a::b", "#1::2"])
def test_a_folders_name_arrives_as_it_was_typed(name, monkeypatch):
    (problem,) = typed(monkeypatch, "--dataset_dir", name)
    assert problem.startswith(f"{name}: no such dataset folder")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "false"], "--seed false: it would arrive as a text, which counts as true; write False."),
        (["-resume", "FALSE"], "--resume FALSE: it would arrive as a text, which counts as true; write False."),
        (["--pretrain#vgg_weights=null"], "--pretrain#vgg_weights null: it would arrive as a text; put null into"),
        (["--roi", "{'mask_background': [false, 1]}"], "[false, 1]}: it would arrive as a text, which counts as true"),
        (
            ["--ckpt_dir", "None"],
            "--ckpt_dir None: it would be ignored without a word; put null into a small JSON file",
        ),
    ],
)
def test_a_value_that_would_arrive_as_another_one_is_refused(words, message, monkeypatch):
    assert message in typed(monkeypatch, *words)[0]


def test_values_that_arrive_as_they_read_are_taken(monkeypatch):
    words = [
        "--run_id",
        "train_run",
        "--resume",
        "True",
        "--covariates",
        "['/data/null','false']",
        "--pretrain#vgg_weights",
        "[1,None]",
    ]
    (problem,) = typed(monkeypatch, *words, "--dataset_dir", "none")
    assert problem.startswith("none: no such dataset folder")


@pytest.mark.parametrize("bundle", [path.name for path in BUNDLES])
@pytest.mark.parametrize("config", ["train", "inference"])
def test_a_file_in_place_of_the_results_folder_is_refused_before_anything_else(bundle, config, tmp_path):
    (tmp_path / "file").touch()
    problem = refused(config, bundle=bundle, output_dir=str(tmp_path / "file"), dataset_dir=str(tmp_path / "none"))
    assert problem.startswith(f"{tmp_path / 'file'} cannot be written to: Not a directory; a file stands")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
