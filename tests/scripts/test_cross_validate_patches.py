"""scripts/cross_validate.py on patches, with a bundle that needs no training."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from shared.data.splits import grouped_folds
from tests.support.fake_patch_bundle import write_bundle
from tests.support.script_modules import load_script
from tests.support.tiny_patches import write_patch_data

SCRIPTS = Path(__file__).parents[2] / "scripts"


def read(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def data(tmp_path):
    content = write_patch_data(tmp_path / "data", training=12, testing=4, side=16)
    content["validation"] = content["training"][30:]
    content["training"] = content["training"][:30]
    (tmp_path / "data/datalist.json").write_text(json.dumps(content))
    return tmp_path / "data"


@pytest.fixture
def run(data, tmp_path, monkeypatch):
    bundle, module = write_bundle(tmp_path / "bundle"), load_script("cross_validate")
    monkeypatch.setattr(module, "RUN_BUNDLE", (sys.executable, str(bundle / "fake_method.py")))

    def call(*options, name="experiment"):
        output = tmp_path / name
        given = ["--dataset_dir", str(data), "--output", str(output), "--bootstrap", "50", "--folds", "3"]
        module.main([str(bundle), *given, *options])
        return output

    return call


def test_patches_of_a_patient_are_left_out_together(run, data):
    output = run("--seeds", "0", "1")
    rows = read(output / "predictions.csv")
    assert list(rows[0]) == ["seed", "fold", "image", "patient", "label", "probability"] and len(rows) == 72
    content = json.loads((data / "datalist.json").read_text())
    entries = content["training"] + content["validation"]  # a validation section is left out in turn, too
    for seed in (0, 1):
        fold_of = grouped_folds([e["patient"] for e in entries], [e["label"] for e in entries], 3, seed)
        mine = [row for row in rows if row["seed"] == str(seed)]
        assert {row["image"] for row in mine} == {e["image"] for e in entries}
        assert all(int(row["fold"]) == fold_of[row["patient"]] for row in mine)
        written = json.loads((output / f"seed{seed}/datalist.json").read_text())
        assert "validation" not in written and written["testing"] == content["testing"]
    log = (output / "seed0/fold1/evaluate.log").read_text().splitlines()[0]
    assert "--split=validation" in log and "evaluate.json" in log
    results = json.loads((output / "results.json").read_text())
    auc = np.mean([auc_of([row for row in rows if row["seed"] == seed]) for seed in "01"])
    assert results["metrics"]["AUC"]["value"] == pytest.approx(auc)
    assert results["patients"] == 12 and results["images"] == 36 and "BACC" in results["metrics"]
    assert "36 patches of 12 patients" in (output / "results.md").read_text()


def auc_of(rows):
    return roc_auc_score([int(row["label"]) for row in rows], [float(row["probability"]) for row in rows])


def test_a_fold_that_is_done_does_not_run_again(run):
    output = run()
    (output / "seed0/fold2/predictions.csv").write_text("image,patient,label,probability\n")
    before = (output / "predictions.csv").read_bytes()
    run()
    assert (output / "predictions.csv").read_bytes() == before
    ran = [len((output / f"seed0/fold{k}/calls.txt").read_text().split()) for k in range(3)]
    assert ran == [2, 2, 4]


def test_the_shuffled_control_is_tested_on_true_labels(run, data):
    output = run("--shuffle-labels")
    content = json.loads((data / "datalist.json").read_text())
    truth = {e["image"]: e["label"] for e in content["training"] + content["validation"]}
    assert all(int(row["label"]) == truth[row["image"]] for row in read(output / "predictions.csv"))
    shuffled = json.loads((output / "seed0/fold0/datalist.json").read_text())["training"]
    changed = [e for e in shuffled if e["label"] != truth[e["image"]]]
    assert changed and all(e["fold"] != 0 for e in changed)


def test_simulated_votes_train_and_the_true_labels_test(run, data, tmp_path, capsys):
    output = run("--votes", "7")
    content = json.loads((data / "datalist.json").read_text())
    truth = {e["image"]: e["label"] for e in content["training"] + content["validation"]}
    assert all(int(row["label"]) == truth[row["image"]] for row in read(output / "predictions.csv"))
    shares = {}
    for fold in range(3):
        for entry in json.loads((output / f"seed0/fold{fold}/datalist.json").read_text())["training"]:
            if entry["fold"] == fold:
                assert entry["label"] == truth[entry["image"]] and "soft_label" not in entry
            else:
                assert entry["label"] == int(entry["soft_label"] > 0.5)
                assert shares.setdefault(entry["image"], entry["soft_label"]) == entry["soft_label"]
    assert len(shares) == 36 and any((share > 0.5) != truth[name] for name, share in shares.items())
    assert json.loads((output / "experiment.json").read_text())["settings"]["votes"] == 7
    capsys.readouterr()
    table, metrics = tmp_path / "table.md", ("AUC", "BRIER", "ECE", "SLOPE")
    given = ["--bootstrap", "50", "--metrics", *metrics]
    load_script("cross_validate").main(["--report", f"a={output}", f"b={output}", "--output", str(table), *given])
    text = table.read_text()
    assert text.startswith("| experiment | AUC | BRIER | ECE | SLOPE | fold-wise AUC | sd | ACC |")
    assert "+0.000 [+0.000, +0.000]" in text and "SLOPE: of a logistic regression" in text


@pytest.mark.parametrize("options", [("--votes", "6"), ("--votes", "7", "--shuffle-labels")])
def test_votes_without_a_majority_or_a_meaning_are_refused(run, options, capsys):
    with pytest.raises(SystemExit):
        run(*options)
    assert "--votes must be odd" in capsys.readouterr().err


def test_runs_of_a_test_part_are_compared(run, data, tmp_path, capsys):
    """Runs on the test part, one of them a control; the cross-validated ones are of other patches."""
    entries = json.loads((data / "datalist.json").read_text())["testing"]
    random = np.random.default_rng(0)
    for name, noise in (("ours", 0.2), ("theirs", 0.8)):
        for seed in (0, 1):
            lines = ["image,patient,label,probability"]
            for e in entries:
                p = (1 - noise) * (0.25 + 0.5 * e["label"]) + noise * random.random()
                lines.append(f"{e['image']},{e['patient']},{e['label']},{p}")
            folder = tmp_path / name / f"seed{seed}"
            folder.mkdir(parents=True)
            (folder / "predictions.csv").write_text("\n".join(lines))
    output = run("--title", "folds")
    target = tmp_path / "out" / "table.md"
    given = [f"ours={tmp_path / 'ours'}", str(tmp_path / "theirs"), str(output)]
    load_script("cross_validate").main(["--report", *given, "--output", str(target), "--bootstrap", "50"])
    lines = target.read_text().splitlines()
    assert lines[2].startswith("| ours | 1.000 [1.000, 1.000] |") and lines[3].startswith("| theirs |")
    theirs = np.mean([auc_of(read(tmp_path / f"theirs/seed{seed}/predictions.csv")) for seed in (0, 1)])
    assert lines[3].split("|")[2].split()[0] == f"{theirs:.3f}" and f"{theirs - 1:+.3f} [" in lines[3]
    assert lines[4].startswith("| folds |") and "other patches" in lines[4]
    assert target.read_text() in capsys.readouterr().out
    with pytest.raises(SystemExit, match="cross_validate: 2 problems"):
        load_script("cross_validate").main(["--report", str(tmp_path / "nothing"), f"x={tmp_path / 'nowhere'}"])
