"""Label efficiency on a bundle that needs no training; its commands are made as cross_validate.py's."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from shared.apps.baselines import patches
from shared.apps.baselines.patch_probes import fit_probe
from shared.apps.experiments import label_efficiency_run as module
from shared.networks import PatchEncoder
from tests.support.fake_patch_bundle import write_bundle
from tests.support.tiny_patches import write_patch_data

ARMS = ("pretrained", "scratch")


@pytest.fixture
def data(tmp_path):
    write_patch_data(tmp_path / "data", training=12, testing=6, side=16)
    return tmp_path / "data"


@pytest.fixture
def run(data, tmp_path, monkeypatch):
    """Run main with the method in place of monai.bundle; return the experiment's folder."""
    bundle = write_bundle(tmp_path / "bundle")
    monkeypatch.setattr(module, "RUN_BUNDLE", (sys.executable, str(bundle / "fake_method.py")))

    def call(*options, name="experiment"):
        output = tmp_path / name
        given = ["--dataset_dir", str(data), "--output", str(output), "--bootstrap", "50", "--threads", "1"]
        module.main([str(bundle), *given, "--fractions", "0.2", "1", "--draws", "2", *options])
        return output

    return call


def read(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def calls(output):
    return {str(path.parent.relative_to(output)): path.read_text().split() for path in output.rglob("calls.txt")}


def test_one_pretraining_a_draw_and_both_arms_on_the_same_labels(run, data):
    output = run("--config", "small", "--set", "epochs=7")
    each = {f"draw{d}/{f}/{arm}": ["train_run", "evaluate"] for d in (0, 1) for f in ("0.2", "1") for arm in ARMS}
    assert calls(output) == {**each, "draw0/pretraining": ["pretrain_run"], "draw1/pretraining": ["pretrain_run"]}
    content = json.loads((data / "datalist.json").read_text())
    for draw in (0, 1):
        full = json.loads((output / f"draw{draw}/1/datalist.json").read_text())
        few = json.loads((output / f"draw{draw}/0.2/datalist.json").read_text())
        assert len(full["training"]) == 36 and 3 <= len(few["training"]) <= 9
        assert full["testing"] == few["testing"] == content["testing"]
        assert {e["image"] for e in few["training"] + few["unlabelled"]} == {
            e["image"] for e in content["training"] + content["unlabelled"]
        }
        for fraction in ("0.2", "1"):
            starts = {}
            for arm in ARMS:
                model = json.loads((output / f"draw{draw}/{fraction}/{arm}/models/model.pt").read_text())
                starts[arm] = model["start"]
                assert len(model["trained"]) == (36 if fraction == "1" else len(few["training"]))
            # pretrained on all training pixels and the unlabelled ones, of the draw's own seed
            assert starts == {"pretrained": {"seed": draw, "pixels": 42}, "scratch": None}
    assert (output / "draw0/0.2/pretrained/models/pretrain.pt").samefile(
        output / "draw0/pretraining/models/pretrain.pt"
    )
    log = (output / "draw0/0.2/scratch/train_run.log").read_text().splitlines()[0]
    assert "scratch.json" in log and "small.json" in log and "--epochs=7" in log and "--fold=-1" in log
    assert "--split=testing" in (output / "draw0/0.2/scratch/evaluate.log").read_text().splitlines()[0]


def test_tables_are_those_of_the_predictions(run, capsys):
    output = run()
    single, summary = read(output / "results.csv"), read(output / "label_efficiency.csv")
    assert len(single) == 8 and len(summary) == 4
    for row in single:
        rows = read(output / f"draw{row['draw']}" / f"{float(row['fraction']):g}" / row["arm"] / "predictions.csv")
        labels, scores = [int(r["label"]) for r in rows], np.array([float(r["probability"]) for r in rows])
        assert float(row["AUC"]) == pytest.approx(roc_auc_score(labels, scores))
        assert float(row["BACC"]) == pytest.approx(balanced_accuracy_score(labels, scores >= 0.5))
    for row in summary:
        of_draws = [float(r["AUC"]) for r in single if (r["fraction"], r["arm"]) == (row["fraction"], row["arm"])]
        assert float(row["AUC"]) == pytest.approx(np.mean(of_draws))
        assert float(row["AUC_sd"]) == pytest.approx(np.std(of_draws, ddof=1))
        assert (float(row["AUC_min"]), float(row["AUC_max"])) == pytest.approx((min(of_draws), max(of_draws)))
    mean = {(row["fraction"], row["arm"]): float(row["AUC"]) for row in summary}
    control = next(row for row in summary if row["arm"] == "scratch" and row["fraction"] == "0.2")
    gain = mean["0.2", "pretrained"] - mean["0.2", "scratch"]
    assert float(control["AUC_gain"]) == pytest.approx(gain) and gain > 0
    assert float(control["AUC_gain_low"]) <= gain <= float(control["AUC_gain_high"])
    text = (output / "label_efficiency.md").read_text()
    assert f"{gain:+.3f} [" in text and "| 100% | 12 | 36 |" in text and "18 patches of 6 patients, 9 of SSA" in text
    assert text in capsys.readouterr().out
    assert (output / "label_efficiency.png").read_bytes().startswith(b"\x89PNG")


def test_goes_on_where_it_stopped_and_draws_can_be_added(run, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "evaluate 1/scratch")
    with pytest.raises(SystemExit, match=r"draw0/1/scratch: evaluate ended with exit status 1(?s:.)*exploded"):
        run()
    monkeypatch.delenv("FAKE_FAIL")
    output = run()
    after = calls(output)
    assert after["draw0/pretraining"] == ["pretrain_run"] and after["draw0/0.2/scratch"] == ["train_run", "evaluate"]
    assert after["draw0/1/scratch"] == ["train_run", "evaluate"] * 2
    run("--draws", "3")
    assert len(calls(output)) == 15 and calls(output)["draw1/0.2/scratch"] == ["train_run", "evaluate"]
    with pytest.raises(SystemExit, match=r"holds results of other settings.*overrides was"):
        run("--set", "epochs=8")


def test_one_pretraining_may_serve_all_draws(run):
    output = run("--pretrainings", "1")
    assert [name for name, ran in calls(output).items() if ran == ["pretrain_run"]] == ["draw0/pretraining"]
    first, second = (output / f"draw{draw}/0.2/pretrained/models/pretrain.pt" for draw in (0, 1))
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(SystemExit, match=r"other settings.*pretrainings"):
        run()
    with pytest.raises(SystemExit):
        run("--pretrainings", "0", name="none")


def test_other_pixels_and_another_pretraining_are_refused(run, data):
    output = run()
    content = json.loads((data / "datalist.json").read_text())
    case = content["testing"][0]
    before = (data / case["image"]).read_bytes()
    (data / case["image"]).write_bytes((data / content["testing"][-1]["image"]).read_bytes())
    with pytest.raises(SystemExit, match=rf"other settings \(data was different for {case['patient']}\)"):
        run()
    (data / case["image"]).write_bytes(before)
    # an arm that is not done began with a pretraining that was replaced since
    arm, pretraining = output / "draw0/0.2/pretrained", output / "draw0/pretraining/models/pretrain.pt"
    (arm / "predictions.csv").unlink()
    pretraining.unlink()
    pretraining.write_text("another")
    with pytest.raises(SystemExit, match=r"pretrain.pt is not .*, which was trained again: remove "):
        run()


def test_jobs_wait_for_their_pretraining(run, monkeypatch):
    monkeypatch.setenv("FAKE_SLOW", "0.5")
    output = run("--jobs", "3", name="parallel")
    starts = [json.loads(path.read_text())["start"] for path in output.rglob("pretrained/models/model.pt")]
    assert len(starts) == 4 and all(starts)


def test_controls_on_the_same_labels(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(patches, "TREES", 20)
    monkeypatch.setattr(patches, "IMAGENET_SIZE", 32)
    encoder = {"block": "basic", "layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8], "stages": [4]}
    config = tmp_path / "encoder.json"
    config.write_text(json.dumps({"network_def": {"encoder": encoder}, "size": 32, "cache_size": None}))
    options = ("--draws", "1", "--config", str(config), "--controls", "forest", "random", "imagenet")
    output = run(*options)
    rows = read(output / "results.csv")
    forest = [row for row in rows if row["arm"] == "random forest"]
    assert [float(row["labelled_patients"]) for row in forest] == [2, 12] and float(forest[1]["AUC"]) == 1.0
    text = (output / "label_efficiency.md").read_text()
    assert "AUC, random forest" in text and "AUC, probe of a random encoder" in text
    assert "ImageNet" not in text  # there are no weights
    assert list(json.loads((output / "left_out.json").read_text())) == ["imagenet"]
    assert not list(output.rglob("random_forest/models"))
    # the probe at 20 % of the labels, by hand
    kept = [case["image"] for case in json.loads((output / "draw0/0.2/datalist.json").read_text())["training"]]
    names = [row["image"] for row in read(output / "features/colour_texture.csv")]
    stored = np.load(output / "features/random0.npz")
    assert len(names) == len(stored["features"]) == 54
    x, train = stored["features"], [names.index(name) for name in kept]
    of = {case["image"]: case for case in json.loads((data / "datalist.json").read_text())["training"]}
    labels, owners = np.array([of[name]["label"] for name in kept]), [of[name]["patient"] for name in kept]
    model = fit_probe(x[train], labels, owners, seed=0)
    tested = read(output / "draw0/0.2/probe_of_a_random_encoder/predictions.csv")
    expected = model.predict_proba(x[[names.index(row["image"]) for row in tested]])[:, 1]
    assert [float(row["probability"]) for row in tested] == pytest.approx(expected.tolist(), abs=1e-9)

    weights, marks = tmp_path / "imagenet.pt", []
    for seed in (0, 1):  # weights that are new are used
        torch.manual_seed(seed)
        torch.save(PatchEncoder(**{**encoder, "channels": [4, 6, 6, 8]}).state_dict(), weights)
        run(*options, "--imagenet", str(weights))
        marks.append((output / "draw0/1/probe_of_an_ImageNet_encoder/predictions.csv").read_text())
    assert marks[0] != marks[1] and json.loads((output / "left_out.json").read_text()) == {}
    before = (output / "draw0/1/random_forest/predictions.csv").stat().st_mtime_ns
    run(*options, "--imagenet", str(weights))
    assert (output / "draw0/1/random_forest/predictions.csv").stat().st_mtime_ns == before
    assert calls(output)["draw0/1/scratch"] == ["train_run", "evaluate"]


def test_bad_input_is_refused_before_anything_runs(run, data, tmp_path):
    content = json.loads((data / "datalist.json").read_text())

    def message(change, *options):
        (data / "datalist.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(SystemExit) as error:
            run(*options)
        assert not list((tmp_path / "experiment").rglob("calls.txt"))
        return str(error.value)

    assert "the testing split needs patches of both classes" in message({"testing": content["testing"][:3]})
    assert "has label None" in message({"testing": [{**content["testing"][0], "label": None}, *content["testing"][1:]]})
    assert "label efficiency is of patches" in message(
        {"training": [{"image": "a.nii.gz", "patient": "P", "label": 0}]}
    )
    assert "the config has no epoch; is epochs meant" in message({}, "--set", "epoch=3")
    assert "fold is set by this script" in message({}, "--set", "fold=3")
    (tmp_path / "bundle/configs/train.json").write_text(json.dumps({"fold": 0}))
    assert "lack the keys dataset_dir, datalist_file, seed" in message({})
    with pytest.raises(SystemExit):
        module.main(["x", "--dataset_dir", str(data), "--output", str(tmp_path / "o"), "--fractions", "1.5"])
