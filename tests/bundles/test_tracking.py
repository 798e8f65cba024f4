"""Every stage of every bundle with MONAI's ``--tracking mlflow`` and with the bundle's TensorBoard file, read back."""

import csv
import json
import sys

import pytest
from monai.bundle import ConfigWorkflow

import shared.bundle.tracking
from shared.bundle.contents import find_bundles
from tests.support.bundle_runs import ROOT, bundle_workflow, cause
from tests.support.script_modules import load_script
from tests.support.small import small_settings
from tests.support.tiny_glioma import write_cohort
from tests.support.tiny_patches import write_patch_data

pytestmark = pytest.mark.slow

SHORT = {
    "ircl_mvi": {"roi#size": 32, "val_interval": 1, "train#epochs": 2, "pretrain#epochs": 1, "pretrain#max_epochs": 1},
    "glioma_idh": {"val_interval": 3, "train#epochs": 3, "contrast#epochs": 1, "nodes#epochs": 1, "edges#epochs": 1},
    "sscl_crc": {"val_interval": 1} | dict.fromkeys(["size", "train#size", "pretrain#size", "cache_size"], 32),
}
STAGES = {
    "ircl_mvi": ["pretrain", "train"],
    "glioma_idh": ["nodes", "edges", "contrast", "train"],
    "sscl_crc": ["pretrain", "train"],
}


def write_ircl(folder):
    """Six phantom patients to train on, four to test."""
    counts = ["--patients", "6", "--test-patients", "4", "--folds", "2"]
    load_script("make_phantom_cohort").main(["--output", str(folder), *counts])
    return folder


def write_sscl(folder):
    """Noisy patches in two folds."""
    content = write_patch_data(folder, training=8, testing=4, each=2)
    for entry in content["training"]:
        entry["fold"] = int(entry["patient"][1:]) // 2 % 2
    (folder / "datalist.json").write_text(json.dumps(content))
    return folder


DATA = {"ircl_mvi": write_ircl, "glioma_idh": write_cohort, "sscl_crc": write_sscl}


def settings(name):
    """The bundle's tests' own small network, trained for less."""
    return {**small_settings(name), **SHORT[name]}


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """A bundle changes how errors are shown."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.fixture(scope="module", params=list(STAGES))
def tracked(request, tmp_path_factory):
    """Name, folder of data and outputs of a bundle trained and evaluated with MONAI's own word."""
    pytest.importorskip("mlflow")
    name, out = request.param, tmp_path_factory.mktemp(request.param)
    places = {"data": DATA[name](out / "data"), "out": out, "tracking": "mlflow"}
    hook = sys.excepthook
    bundle_workflow(name, "train", "cpu", **places, **settings(name)).run()
    bundle_workflow(name, "train", "cpu", "evaluate", **places, run_id="evaluate", **settings(name)).run()
    sys.excepthook = hook
    return name, out


def runs(out):
    """Runs of the database, oldest first: name, status, and by metric all its values by step."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{out}/eval/mlruns.db")
    (experiment,) = client.search_experiments(filter_string="name = 'monai_experiment'")
    for run in sorted(client.search_runs(experiment.experiment_id), key=lambda run: run.info.start_time):
        id, names = run.info.run_id, run.data.metrics
        history = {name: [(each.step, each.value) for each in client.get_metric_history(id, name)] for name in names}
        yield run.info.run_name, run.info.status, history, [each.path for each in client.list_artifacts(id)]


def losses(out, stage):
    with (out / f"eval/{stage}_loss.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_mlflow_has_a_finished_run_of_every_stage_with_its_losses(tracked):
    name, out = tracked
    *trained, evaluated = list(runs(out))
    assert [status for _, status, *_ in (*trained, evaluated)] == ["FINISHED"] * (len(STAGES[name]) + 1)
    for stage, (run_name, _, history, artifacts) in zip(STAGES[name], trained, strict=True):
        assert run_name == trained[0][0] and run_name.startswith("run_")
        steps, values = zip(*history[f"{stage}_loss"], strict=True)
        assert steps == tuple(range(1, len(steps) + 1))
        means, each = losses(out, stage), len(steps) // len(losses(out, stage))
        found = [sum(values[i * each : (i + 1) * each]) / each for i in range(len(means))]
        assert found == pytest.approx(means, rel=1e-5)
        assert len(artifacts) == 1 and artifacts[0].startswith("config_")
    # the validator's AUC is in the last stage's run, at the trainer's epochs
    epochs, interval = settings(name).get("train#epochs", 2), settings(name)["val_interval"]
    assert [step for step, _ in trained[-1][2]["AUC"]] == list(range(interval, epochs + 1, interval))


def test_mlflow_has_an_evaluations_own_figure_in_a_run_of_its_own(tracked):
    _, out = tracked
    run_name, _, history, _ = list(runs(out))[-1]
    with (out / "eval/metrics.json").open() as file:
        auc = json.load(file)["AUC"]
    assert run_name.startswith("evaluate_")
    assert history == {"AUC": [(1, pytest.approx(auc["value"] if isinstance(auc, dict) else auc))]}


@pytest.mark.parametrize("name", ["sscl_crc"])  # the others' files are compared with their stages below
def test_tensorboards_file_gives_the_curves_of_every_stage(name, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracking = str(ROOT / f"bundles/{name}/configs/tracking.json")
    flow = bundle_workflow(
        name, "train", "cpu", data=DATA[name](tmp_path / "data"), out=tmp_path, tracking=tracking, **settings(name)
    )
    flow.run()
    for stage in (*STAGES[name], "validation"):
        events = EventAccumulator(str(tmp_path / f"eval/tensorboard/{stage}"))
        events.Reload()
        scalars = {tag: [each.value for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        if stage == "validation":
            assert list(scalars) == ["AUC"]
        else:
            assert scalars["epoch_loss"] == pytest.approx(losses(tmp_path, stage)) and len(scalars["loss"]) > 0


@pytest.mark.parametrize("package", ["mlflow", "tensorboard"])
def test_tracking_without_its_package_is_one_line(package, monkeypatch, tmp_path):
    monkeypatch.setattr(shared.bundle.tracking, "find_spec", lambda name: None)
    configs = ROOT / "bundles/ircl_mvi/configs"
    tracking = package if package == "mlflow" else str(configs / "tracking.json")
    flow = ConfigWorkflow(str(configs / "train.json"), logging_file=False, tracking=tracking, output_dir=str(tmp_path))
    with pytest.raises(RuntimeError) as caught:
        flow.initialize()
    expected = f"--tracking needs {package}: pip install {package} (the version in requirements-dev.txt)."
    assert str(cause(caught.value)) == expected


def test_every_stage_of_every_bundle_is_in_its_tracking_file():
    for bundle in find_bundles(root=ROOT):
        train, tracking = (json.loads((bundle / f"configs/{each}.json").read_text()) for each in ("train", "tracking"))
        stages = {f"{key}#trainer" for key, value in train.items() if isinstance(value, dict) and "trainer" in value}
        assert stages | {"validate#evaluator", "evaluator"} == {
            place["id"] for place in tracking["handlers_id"].values()
        }
        assert set(tracking["handlers_id"]) <= set(tracking["configs"])
