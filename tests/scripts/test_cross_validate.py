"""scripts/cross_validate.py on a bundle that needs no training: its JSON writes predictions from the datalist."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.support.script_modules import load_script

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "cross_validate.py"

# What the bundle's expressions call. It stands in for monai.bundle too, where a test is not about MONAI (4 s a start).
METHOD = """
import csv, hashlib, json, os, sys, time
from pathlib import Path

def train(datalist_file, fold, seed, ckpt_dir, resume, note):
    ckpt_dir = Path(ckpt_dir)
    ckpt_dir.mkdir(parents=True, exist_ok=True)
    if os.environ.get("FAKE_FAIL") == f"{seed}/{fold}":
        print("line before the end")
        try:
            raise RuntimeError("the network exploded")
        except RuntimeError as error:
            raise ValueError("wrapped") from error
    if os.environ.get("FAKE_SLEEP") == f"{seed}/{fold}":
        (ckpt_dir / "asleep").write_text(str(os.getpid()))
        time.sleep(120)
    if not (resume and (ckpt_dir / "pretrain.pt").exists()):
        (ckpt_dir / "pretrain.pt").write_text(f"stage one of {note}")
    cases = json.loads(Path(datalist_file).read_text())["training"]
    labels = {c["patient"]: c["label"] for c in cases if c["fold"] != fold}
    content = {"labels": labels, "pretrain": (ckpt_dir / "pretrain.pt").read_text(), "note": note}
    (ckpt_dir / "model.pt").write_text(json.dumps(content))

def evaluate(datalist_file, fold, seed, ckpt_dir, output_dir, skip):
    trained = json.loads((Path(ckpt_dir) / "model.pt").read_text())["labels"]
    cases = [c for c in json.loads(Path(datalist_file).read_text())["training"] if c["fold"] == fold]
    assert not {c["patient"] for c in cases} & set(trained)
    with (Path(output_dir) / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", "label", "probability"])
        for case in cases[skip:]:
            noise = int(hashlib.sha256(f"{seed}{case['patient']}".encode()).hexdigest(), 16) % 100 / 100
            writer.writerow([case["patient"], case["label"], 0.3 * case["label"] + 0.7 * noise])

if __name__ == "__main__":
    values = dict(argument[2:].split("=", 1) for argument in sys.argv if "=" in argument)
    values = {k: json.loads(v) if k in ("fold", "seed", "skip") else v for k, v in values.items()}
    values.setdefault("skip", 0)
    values.setdefault("note", "note")
    if "evaluate" in sys.argv:
        evaluate(*(values[k] for k in ("datalist_file", "fold", "seed", "ckpt_dir", "output_dir", "skip")))
    else:
        values["resume"] = values["resume"] == "True"
        train(*(values[k] for k in ("datalist_file", "fold", "seed", "ckpt_dir", "resume", "note")))
"""
TRAIN = {
    "imports": ["$import fake_method"],
    **dict.fromkeys(("dataset_dir", "datalist_file", "ckpt_dir", "output_dir"), ""),
    "fold": 0,
    "seed": 0,
    "resume": False,
    "skip": 0,
    "net": {"width": 64},
    "note": "note",
    "run": "$fake_method.train(@datalist_file, @fold, @seed, @ckpt_dir, @resume, @note)",
}
EVALUATE = {
    "evaluate": "$fake_method.evaluate(@datalist_file, @fold, @seed, @ckpt_dir, @output_dir, @skip)",
}


@pytest.fixture
def module():
    return load_script("cross_validate")


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "fake bundle"
    (folder / "configs").mkdir(parents=True)
    (folder / "fake_method.py").write_text(METHOD)
    for name, content in (("train", TRAIN), ("evaluate", EVALUATE), ("small", {"net": {"width": 8}})):
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def data(tmp_path):
    cases = [{"patient": f"P{i:02}", "image": f"P{i:02}.nii.gz", "label": int(i % 3 > 0)} for i in range(24)]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "datalist.json").write_text(
        json.dumps({"name": "fake", "training": cases, "testing": [{"patient": "T"}]})
    )
    return folder


@pytest.fixture
def run(module, bundle, data, tmp_path, monkeypatch):
    """Run main with the method in place of monai.bundle; return the experiment's folder."""
    monkeypatch.setattr(module, "RUN_BUNDLE", (sys.executable, str(bundle / "fake_method.py")))

    def call(*options, name="experiment"):
        output = tmp_path / name
        module.main([str(bundle), "--dataset_dir", str(data), "--output", str(output), "--bootstrap", "50", *options])
        return output

    return call


def read(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_monai_understands_the_commands(run, bundle, monkeypatch):
    """What the logs say was run is given to MONAI in this process: the same predictions must come of it."""
    import fire
    from monai.bundle import scripts

    options = ("--config", "small", "--set", "note=hello", "net#width=4")
    output = run("--folds", "2", *options)
    fold = output / "seed0" / "fold1"
    expected = (fold / "predictions.csv").read_text()
    (fold / "predictions.csv").unlink()
    (fold / "models" / "model.pt").unlink()
    monkeypatch.chdir(bundle)
    monkeypatch.syspath_prepend(str(bundle))
    for step in ("train", "evaluate"):
        line = (fold / f"{step}.log").read_text().splitlines()[0]
        assert "small.json" in line and "net#width=4" in line
        fire.Fire(scripts.run, command=shlex.split(line.removeprefix("$ "))[2:])
    assert (fold / "predictions.csv").read_text() == expected
    assert json.loads((fold / "models/model.pt").read_text())["note"] == "hello"


def test_results_are_those_of_the_pooled_predictions(run, capsys):
    output = run("--folds", "3", "--seeds", "0", "1", "--title", "Fake method")
    rows = read(output / "predictions.csv")
    assert len(rows) == 48 and list(rows[0]) == ["seed", "fold", "patient", "label", "probability"]
    aucs, fold_aucs = [], []
    for seed in "01":
        mine = [row for row in rows if row["seed"] == seed]
        labels, scores = [int(r["label"]) for r in mine], [float(r["probability"]) for r in mine]
        aucs.append(roc_auc_score(labels, scores))
        for fold in "012":
            inside = [r["fold"] == fold for r in mine]
            fold_aucs.append(roc_auc_score(np.array(labels)[inside], np.array(scores)[inside]))
    results = json.loads((output / "results.json").read_text())
    auc = results["metrics"]["AUC"]
    assert auc["value"] == pytest.approx(np.mean(aucs)) and auc["seeds"] == pytest.approx(aucs)
    assert auc["sd"] == pytest.approx(np.std(aucs, ddof=1)) and auc["low"] < auc["value"] < auc["high"]
    assert results["fold_auc"]["value"] == pytest.approx(np.mean(fold_aucs))
    table = {row["metric"]: row for row in read(output / "results.csv")}
    assert float(table["AUC"]["value"]) == pytest.approx(np.mean(aucs)) and set(table) >= {"ACC", "F1", "PRE", "REC"}
    assert f"{np.mean(aucs):.3f}" in (output / "results.md").read_text()
    assert "Fake method" in capsys.readouterr().out
    for picture in ("roc.png", "calibration.png"):
        assert (output / picture).read_bytes().startswith(b"\x89PNG")


def test_folds_are_stratified_by_patient_and_differ_between_seeds(run, data):
    output = run("--folds", "4", "--seeds", "0", "1")
    splits = []
    for seed in (0, 1):
        datalist = json.loads((output / f"seed{seed}/datalist.json").read_text())
        assert datalist["testing"] == [{"patient": "T"}]
        fold_of = {case["patient"]: case["fold"] for case in datalist["training"]}
        positives = [sum(c["label"] for c in datalist["training"] if c["fold"] == fold) for fold in range(4)]
        assert positives == [4, 4, 4, 4]
        assert {
            row["patient"]: int(row["fold"]) for row in read(output / "predictions.csv") if int(row["seed"]) == seed
        } == fold_of
        splits.append(fold_of)
    assert splits[0] != splits[1]
    assert "fold" not in json.loads((data / "datalist.json").read_text())["training"][0]


def test_groups_are_left_out_whole_and_drawn_whole(run, data):
    content = json.loads((data / "datalist.json").read_text())
    for number, case in enumerate(content["training"]):
        case |= {"group": f"G{number // 2}"}
    (data / "datalist.json").write_text(json.dumps(content))
    output = run("--folds", "3")
    rows = read(output / "predictions.csv")
    folds = {}
    for row in rows:
        assert row["group"] == f"G{int(row['patient'][1:]) // 2}"
        folds.setdefault(row["group"], set()).add(row["fold"])
    assert len(rows) == 24 and len(folds) == 12 and all(len(found) == 1 for found in folds.values())
    assert json.loads((output / "results.json").read_text())["groups"] == 12
    page = (output / "results.md").read_text()
    assert "24 patients in 12 groups, 16 positive." in page and "replicates draws groups of patients" in page


def test_the_same_seed_gives_the_same_results(run):
    one, two = run("--folds", "3", name="one"), run("--folds", "3", "--jobs", "2", name="two")
    assert (one / "predictions.csv").read_bytes() == (two / "predictions.csv").read_bytes()
    assert (one / "results.csv").read_bytes() == (two / "results.csv").read_bytes()


def test_goes_on_where_it_stopped(run, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "0/2")
    with pytest.raises(SystemExit) as failure:
        run("--folds", "3")
    message = str(failure.value)
    assert "seed0/fold2: train ended with exit status 1" in message and "the network exploded" in message
    assert "ValueError: wrapped" not in message
    assert "line before the end" in message and "train.log" in message
    monkeypatch.delenv("FAKE_FAIL")
    output = run("--folds", "3", name="experiment")
    before = {fold: (output / f"seed0/fold{fold}/train.log").stat().st_mtime_ns for fold in (0, 1, 2)}
    (output / "seed0/fold2/predictions.csv").write_text("patient,label,probability\n")
    run("--folds", "3", "--seeds", "0", "1")
    after = {fold: (output / f"seed0/fold{fold}/train.log").stat().st_mtime_ns for fold in (0, 1, 2)}
    assert [before[fold] == after[fold] for fold in (0, 1, 2)] == [True, True, False]
    assert len(read(output / "predictions.csv")) == 48


def test_other_settings_in_the_same_folder_are_refused_but_descriptions_are_not_settings(run, bundle):
    run("--folds", "2")
    path = bundle / "configs" / "train.json"
    path.write_text(json.dumps({**TRAIN, "_desc_": "a word more"}, indent=1))
    run("--folds", "2")
    with pytest.raises(SystemExit, match=r"other settings \(folds was 2, is now 3\)"):
        run("--folds", "3")
    path.write_text(json.dumps({**TRAIN, "net": {"width": 32}}))
    with pytest.raises(SystemExit, match=r"configs was .*choose another --name"):
        run("--folds", "2")


def test_images_that_changed_since_the_folds_were_done_are_refused_by_name(run, data):
    for i in range(24):
        (data / f"P{i:02}.nii.gz").write_bytes(b"%02d" % i)
        os.utime(data / f"P{i:02}.nii.gz", ns=(10**18, 10**18))
    output = run("--folds", "2")
    before = (output / "results.csv").read_bytes()
    run("--folds", "2")  # the same: reported again
    record = json.loads((output / "experiment.json").read_text())["settings"]["data"]
    assert len(record) == 24
    # two patients' images are exchanged: names, sizes and dates are as they were
    one, other, aside = (data / name for name in ("P03.nii.gz", "P07.nii.gz", "aside"))
    one.rename(aside), other.rename(one), aside.rename(other)
    with pytest.raises(SystemExit, match=r"other settings \(data was different for P03, P07\): choose another"):
        run("--folds", "2")
    with pytest.raises(SystemExit, match=r"experiment was run on other files \(P03, P07\): run it again on these"):
        run("--folds", "2", "--reuse", str(output), name="target")
    one.rename(aside), other.rename(one), aside.rename(other)
    run("--folds", "2")
    (data / "atlas.npz").write_bytes(b"another network")
    with pytest.raises(SystemExit, match=r"data was different for atlas.npz\)"):
        run("--folds", "2")
    (data / "atlas.npz").unlink()
    (output / "experiment.json").unlink()  # results of nobody knows what
    with pytest.raises(SystemExit, match=r"experiment.json cannot be read"):
        run("--folds", "2")
    assert (output / "results.csv").read_bytes() == before


def test_files_that_settings_name_are_compared_by_content(run, bundle):
    (bundle / "weights.pt").write_bytes(b"one")
    run("--folds", "2", "--set", "note=weights.pt")
    (bundle / "weights.pt").write_bytes(b"two")
    with pytest.raises(SystemExit, match=r"data was different for note\)"):
        run("--folds", "2", "--set", "note=weights.pt")


def test_a_read_only_cohort_keeps_its_digests_with_the_experiment(data, tmp_path, monkeypatch):
    from shared.apps.experiments import data_record as module

    (data / "P00.nii.gz").write_bytes(b"1")
    cases = [{"patient": "P00", "image": "P00.nii.gz"}, {"patient": "P01", "image": ["P01.nii.gz"]}]
    usual = module.data_record(cases, data, tmp_path)
    assert (data / ".sha256.json").is_file() and not (tmp_path / ".sha256.json").exists()
    (data / ".sha256.json").unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert module.data_record(cases, data, tmp_path) == usual
    assert (tmp_path / ".sha256.json").is_file() and not (data / ".sha256.json").exists()


def test_settings_may_change_while_nothing_has_come_of_them(run, bundle, monkeypatch):
    good = (bundle / "configs" / "train.json").read_text()
    (bundle / "fake_method.py").write_text("raise SystemExit('no such network')")
    with pytest.raises(SystemExit, match="no such network"):
        run("--folds", "2")
    (bundle / "fake_method.py").write_text(METHOD)
    (bundle / "configs" / "train.json").write_text(good.replace("64", "32"))
    assert (run("--folds", "2") / "results.md").exists()


def test_overrides_are_checked(run):
    with pytest.raises(SystemExit) as failure:
        run("--set", "nott=5", "net#width=3", "other#width=3", "fold=1", "plain")
    message = str(failure.value)
    assert "4 problems" in message and "the config has no nott; is note meant?" in message
    assert "the config has no other#width" in message and "fold is set by this script" in message
    assert "'plain' must be key=value" in message


def test_incomplete_predictions_are_an_error(run):
    with pytest.raises(SystemExit, match=r"evaluate ended well, but .*must hold each of the fold's 12 patients once"):
        run("--folds", "2", "--set", "skip=1")


def test_shuffled_labels_are_shuffled_in_training_only(run, data):
    output = run("--folds", "2", "--shuffle-labels", "--seeds", "0", "1")
    truth = {c["patient"]: c["label"] for c in json.loads((data / "datalist.json").read_text())["training"]}
    assert all(int(row["label"]) == truth[row["patient"]] for row in read(output / "predictions.csv"))
    for fold in ("seed0/fold0", "seed0/fold1", "seed1/fold0"):
        trained = json.loads((output / fold / "models/model.pt").read_text())["labels"]
        assert trained != {patient: truth[patient] for patient in trained}
        assert sorted(trained.values()) == sorted(truth[patient] for patient in trained)
        cases = json.loads((output / fold / "datalist.json").read_text())["training"]
        left_out = [case for case in cases if case["patient"] not in trained]
        assert left_out and all(case["label"] == truth[case["patient"]] for case in left_out)


def test_reuse_takes_the_earlier_stages_of_the_same_fold_and_not_the_model(run):
    source = run("--folds", "2", "--set", "note=first", name="source")
    output = run("--folds", "2", "--set", "note=second", "--reuse", str(source), name="target")
    for fold in (0, 1):
        model = json.loads((output / f"seed0/fold{fold}/models/model.pt").read_text())
        assert model["pretrain"] == "stage one of first" and model["note"] == "second"
    with pytest.raises(SystemExit, match="seed1/fold0/models holds no checkpoint of an earlier stage"):
        run("--folds", "2", "--seeds", "1", "--reuse", str(source), name="missing")
    for fold in (0, 1):
        (source / f"seed0/fold{fold}/models/second.pt").write_text("of another stage")
    some = run("--folds", "2", "--set", "note=3", "--reuse", str(source), "--reuse-stages", "pretrain", name="some")
    assert json.loads((some / "seed0/fold0/models/model.pt").read_text())["pretrain"] == "stage one of first"
    assert not (some / "seed0/fold0/models/second.pt").exists()
    with pytest.raises(SystemExit, match="holds no checkpoint of the stages nothing"):
        run("--folds", "2", "--reuse", str(source), "--reuse-stages", "nothing", name="none")
    # the source was trained again after this fold began
    (source / "seed0/fold0/models/pretrain.pt").write_text("stage one of fourth")
    (some / "seed0/fold0/predictions.csv").unlink()
    with pytest.raises(SystemExit, match=r"pretrain.pt is not .*source/seed0/fold0/models/pretrain.pt, which was tr"):
        run("--folds", "2", "--set", "note=3", "--reuse", str(source), "--reuse-stages", "pretrain", name="some")
    (source / "seed0/fold1/predictions.csv").unlink()
    with pytest.raises(SystemExit, match="seed0/fold1 has not ended"):
        run("--folds", "2", "--reuse", str(source), name="halfway")


def test_reuse_refuses_a_stage_that_saw_the_left_out_patients(run, data):
    source = run("--folds", "2", name="source")
    datalist = json.loads((data / "datalist.json").read_text())
    datalist["training"] = [*datalist["training"][1:], {**datalist["training"][0], "patient": "P99"}]
    (data / "datalist.json").write_text(json.dumps(datalist))
    with pytest.raises(SystemExit, match="trained on other patients"):
        run("--folds", "2", "--reuse", str(source), name="target")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_the_children_and_can_be_resumed(bundle, data, tmp_path, number):
    output = tmp_path / "out"
    options = [str(bundle), "--dataset_dir", str(data), "--folds", "2", "--output", str(output), "--bootstrap", "50"]
    start = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parents[1])!r})\n"
        "from shared.apps.experiments import cross_validate as script\n"
        f"script.RUN_BUNDLE = (sys.executable, {str(bundle / 'fake_method.py')!r})\n"
        f"script.main({options!r})"
    )
    command = [sys.executable, "-c", start]
    process = subprocess.Popen(
        command, env={**os.environ, "FAKE_SLEEP": "0/1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    mark = output / "seed0/fold1/models/asleep"
    end = time.monotonic() + 30
    while not (mark.exists() and mark.read_text()) and time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "The same command goes on" in errors and "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    resumed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"50%.*1/2", resumed.stderr) and len(read(output / "predictions.csv")) == 24


def test_report_compares_to_the_first(run, module, tmp_path):
    good = run("--folds", "2", "--seeds", "0", "1", "--title", "good", name="good")
    bad = run("--folds", "2", "--title", "bad", name="bad")
    rows = read(bad / "predictions.csv")
    for row in rows:
        row["probability"] = 1 - float(row["probability"])
    with (bad / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    module.main(["--report", str(good), str(bad), "--output", str(tmp_path / "table.md"), "--bootstrap", "200"])
    lines = (tmp_path / "table.md").read_text().splitlines()
    first, second = (next(line for line in lines if line.startswith(f"| {name} |")) for name in ("good", "bad"))
    columns = [cell.strip() for cell in lines[0].strip("|").split("|")]
    cells = dict(zip(columns, (cell.strip() for cell in second.strip("|").split("|")), strict=True))
    assert cells["wREC"] == cells["ACC"] != cells["REC"]  # of both classes, and of the positive one
    auc = [float(line.split("|")[2].split()[0]) for line in (first, second)]
    assert auc[0] > 0.6 and float(cells["AUC - first"].split()[0]) == pytest.approx(auc[1] - auc[0], abs=0.002)
    assert float(cells["p"]) < 0.05 and cells["seeds"] == "1"
    with pytest.raises(SystemExit, match="2 problems"):
        module.main(["--report", str(tmp_path / "x"), str(tmp_path / "y"), "--output", str(tmp_path / "t.md")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["training"][0].update(label=2), "P00 has label 2, must be 0 or 1"),
        (lambda d: d["training"].append({**d["training"][0], "label": 1}), "P00 has two labels"),
        (lambda d: [case.update(label=1) for case in d["training"]], "a split needs both classes"),
        (lambda d: d.pop("training"), "'training' list"),
        (lambda d: d["training"][0].pop("patient"), "'training' list"),
        (lambda d: d.update(training=d["training"][:3]), "fewer than the 5 folds|cannot fill 5 folds"),
    ],
)
def test_a_wrong_datalist_is_refused_before_anything_is_written(run, data, tmp_path, change, message):
    datalist = json.loads((data / "datalist.json").read_text())
    change(datalist)
    (data / "datalist.json").write_text(json.dumps(datalist))
    with pytest.raises(SystemExit, match=message):
        run()
    assert not (tmp_path / "experiment").exists()


def test_other_bad_input(run, module, bundle, data, tmp_path):
    with pytest.raises(SystemExit, match=r"no bundle 'nothing'"):
        module.main(["nothing", "--dataset_dir", str(data)])
    with pytest.raises(SystemExit, match=r"prepare_patients.py"):
        module.main([str(bundle), "--dataset_dir", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match=r"config 'huge' .*small.json"):
        run("--config", "huge")
    (bundle / "configs" / "small.json").write_text("{")
    with pytest.raises(SystemExit, match="cannot be read as JSON"):
        run("--config", "small")
    (bundle / "configs" / "train.json").write_text(json.dumps({"run": "$1"}))
    with pytest.raises(SystemExit, match="lack the keys dataset_dir, datalist_file, fold"):
        run()


def test_runs_without_torch_or_monai(bundle, data, tmp_path):
    code = (
        "import sys, runpy; sys.modules['torch'] = sys.modules['monai'] = None\n"
        f"sys.argv = ['x', '--report', {str(tmp_path)!r}, '--output', 'x']\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "no finished experiment" in ended.stderr and "Traceback" not in ended.stderr
