"""From a training's last step to the columns of predictions: a shifted scanner, older models, batches, other models."""

import csv
import json

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from torch import nn

from shared.bundle.abstention import read_cohort
from shared.bundle.record import read_model
from shared.engines import CohortStage, PreparePatches, cohort_stage
from shared.engines.cohort_stage import _spread_out
from shared.errors import CheckpointError, DataError
from shared.handlers import Abstention, ModelCheck, SavePredictions, abstention
from shared.metrics.conformal import class_scores
from shared.networks import LayerStatistics

COLUMNS = ["set", "out_of_cohort", "cohort_distance", "reason"]


def images(count, seed, *, gain=1.0, noise=0.0):
    """Blobs of two sizes on a background: what varies between patients is the anatomy, not the scanner."""
    random = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, 24)
    size = 0.2 + 0.4 * torch.rand(count, 1, 1, generator=random)
    bright = 0.5 + 0.2 * torch.rand(count, 1, 1, generator=random)
    blob = bright * torch.exp(-(axis[:, None] ** 2 + axis**2)[None] / size)
    image = blob[:, None].repeat(1, 3, 1, 1) + 0.02 * torch.randn(count, 3, 24, 24, generator=random)
    return gain * image + noise * torch.randn(count, 3, 24, 24, generator=random)


KNOWN = None  # covariates of the patients
LACKING: dict[int, str] = {}  # modalities, of patients by number


def cases(image):
    found = [{"patient": f"P{k}", "image": x, "label": k % 2} for k, x in enumerate(image)]
    found = [{**case, "lacking": LACKING.get(k, "")} if LACKING else case for k, case in enumerate(found)]
    return found if KNOWN is None else [{**case, "covariates": x} for case, x in zip(found, KNOWN, strict=True)]


def batch_of(some):
    more = {} if KNOWN is None else {"covariates": torch.stack([case["covariates"] for case in some])}
    return more | {
        "image": torch.stack([case["image"] for case in some]),
        "patient": [case["patient"] for case in some],
    }


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*first, *second, nn.Linear(8, 2)).eval()


@pytest.fixture(scope="module")
def model(network, tmp_path_factory):
    """A model's folder after the last step of its training."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "model.json").write_text(json.dumps({"weights": "these"}))
    stage(network, folder, images(60, 0)).run()
    return folder


def stage(network, folder, image, **common):
    given = cases(image)
    loader = [batch_of(given[k : k + 16]) for k in range(0, len(given), 16)]
    common = {"device": "cpu", "resume": False} | common
    return CohortStage(network, common, ckpt_dir=folder, dataloader=loader, prepare_batch=PreparePatches())


def cohort_of_groups(network, folder, image, groups):
    given = [case | {"group": group} for case, group in zip(cases(image), groups, strict=True)]
    parts = [given[k : k + 16] for k in range(0, len(given), 16)]
    loader = [batch_of(part) | {"group": [case["group"] for case in part]} for part in parts]
    found = stage(network, folder, image)
    found.dataloader = loader
    found.run()
    return read_cohort(folder)[0]


def predicted(network, model, image, folder, *, batch=8, coverage=0.9, check=None):
    """Rows of predictions.csv, as an evaluator leaves it."""

    def process(engine, part):
        with torch.no_grad():
            answers = network(torch.stack([case["image"] for case in part])).softmax(dim=1)
        engine.state.output = [{"pred": answer} for answer in answers]
        return engine.state.output

    engine, given = Engine(process), cases(image)
    abstention = Abstention(model, network, coverage=coverage)
    SavePredictions(folder, bootstrap=20, abstention=abstention, check=check).attach(engine)
    engine.run([given[k : k + batch] for k in range(0, len(given), batch)], max_epochs=1)
    assert not any(module._forward_pre_hooks for module in network.modules())
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_shifted_scanner_is_flagged_and_new_patients_are_not(network, model, tmp_path):
    same = predicted(network, model, images(60, 1), tmp_path)
    told = sum(row["out_of_cohort"] == "1" for row in same)
    assert told <= 3 and json.loads((tmp_path / "metrics.json").read_text())["out_of_cohort"] == told
    for shift in ({"noise": 0.05}, {"gain": 1.6}):
        rows = predicted(network, model, images(60, 2, **shift), tmp_path)
        assert sum(row["out_of_cohort"] == "1" for row in rows) >= 57, shift
    row = rows[0]
    alone, _ = row["reason"].split("; ")  # the second is of all together
    far, limit = float(row["cohort_distance"]), alone.split()[-1]
    assert alone == f"unlike the training patients: distance {far:.2f}, limit {limit}" and far > float(limit)
    assert row["set"] == "" and json.loads((tmp_path / "metrics.json").read_text())["out_of_cohort"] >= 57


def test_patients_together_are_told_to_be_shifted_where_each_alone_passes(network, model, tmp_path):
    same = predicted(network, model, images(20, 6), tmp_path)
    assert not any("together" in row["reason"] for row in same)
    assert "cohort_shift" not in json.loads((tmp_path / "metrics.json").read_text())
    rows = predicted(network, model, images(20, 7, gain=1.12), tmp_path)
    assert sum(row["out_of_cohort"] == "1" for row in rows) <= 10
    assert all("the 20 patients together are unlike the training patients" in row["reason"] for row in rows)
    found = json.loads((tmp_path / "metrics.json").read_text())["cohort_shift"]
    assert found["patients"] == 20 and found["sd"] > 0.5 and found["p"] < 0.001


def test_a_patient_of_several_rows_counts_once_among_all_and_those_of_an_earlier_run_no_more(network, model):
    abstention, random = Abstention(model, network), np.random.default_rng(0)
    with abstention.watching():
        cohort, parts = abstention._cohort, abstention._cohort.distances[0].parts
        channels = len(cohort.channels.orders[0, 1])
        rows = parts["mean"] + 3 * parts["scale"] + random.normal(size=(12, len(parts["mean"])))
        rows = np.concatenate([rows, random.normal(size=(12, channels))], axis=1)
        names = [f"P{k}" for k in (0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5)]
        abstention._images = list(zip(names, rows, strict=True))
        means = np.stack([rows[:7].mean(axis=0), *rows[7:]])
        expected = cohort.shift(means[:, :-channels], means[:, -channels:])
        found = abstention.shift([])
        assert found["patients"] == 6 and found["sd"] == pytest.approx(expected["sd"]) and found["sd"] > 1
    with abstention.watching():
        assert abstention.shift([]) is None


def test_exchanged_modalities_are_named_for_each_patient_and_for_the_folder(network, tmp_path, monkeypatch):
    gains = torch.tensor([1.0, 0.6, 1.0])[:, None, None]
    (tmp_path / "model.json").write_text(json.dumps({"weights": "these", "modalities": ["T1", "T2", "FLAIR"]}))
    stage(network, tmp_path, images(60, 0) * gains).run()
    new = images(20, 8) * gains
    same = predicted(network, tmp_path, new, tmp_path)
    assert not any("exchanged" in row["reason"] for row in same)
    reads = []
    monkeypatch.setattr(abstention, "read_model", lambda folder: reads.append(folder) or read_model(folder))
    rows = predicted(network, tmp_path, new[:, [1, 0, 2]], tmp_path)
    assert len(reads) == 1  # and not for every flagged row
    assert all(row["reason"].endswith("in the 20 patients together, T1 and T2 look exchanged") for row in rows)
    alone = [row for row in rows if "T1 and T2 look exchanged; in the 20" in row["reason"]]
    assert len(alone) >= 15 and {row["out_of_cohort"] for row in alone} == {"1"}
    assert json.loads((tmp_path / "metrics.json").read_text())["cohort_shift"]["exchanged"] == ["T1", "T2"]
    one = predicted(network, tmp_path, new[:1, [0, 2, 1]], tmp_path)  # one patient is enough
    assert "T2 and FLAIR look exchanged" in one[0]["reason"]
    odd = new[:, [1, 0, 2]]
    odd[:, 2] = odd[:, 2].flip(2) ** 2  # and another contrast: the exchange is not all
    told = [row["reason"] for row in predicted(network, tmp_path, odd[:4], tmp_path)]
    assert all("differ otherwise than in the training patients" in reason for reason in told)
    assert not any("exchanged" in reason for reason in told)
    # the file of a version before knows the distance only
    with np.load(tmp_path / "cohort.npz") as file:
        older = {name: file[name] for name in file.files if "channel" not in name and name != "covariates"}
    np.savez(tmp_path / "cohort.npz", **older)
    older = predicted(network, tmp_path, new[:2, [1, 0, 2]], tmp_path)
    assert all(row["out_of_cohort"] in "01" and "exchanged" not in row["reason"] for row in older)


def test_of_a_patient_who_lacks_a_modality_no_exchange_is_told_and_no_shift_of_all(network, tmp_path, monkeypatch):
    gains = torch.tensor([1.0, 0.6, 1.0])[:, None, None]
    (tmp_path / "model.json").write_text(json.dumps({"weights": "these", "modalities": ["T1", "T2", "FLAIR"]}))
    stage(network, tmp_path, images(60, 0) * gains).run()
    new = images(20, 8) * gains
    new[3, 0] = 0
    rows = predicted(network, tmp_path, new, tmp_path)
    assert rows[3]["reason"].endswith("T1 and T2 differ otherwise than in the training patients")
    assert not any("together" in row["reason"] for row in rows)  # which one patient alone shifts
    monkeypatch.setitem(globals(), "LACKING", {3: "T1"})
    rows = predicted(network, tmp_path, new, tmp_path)
    assert rows[3]["out_of_cohort"] == "1" and rows[3]["reason"].startswith("unlike the training patients: distance")
    assert not any("exchanged" in row["reason"] or "together" in row["reason"] for row in rows)
    assert "cohort_shift" not in json.loads((tmp_path / "metrics.json").read_text())


def test_a_covariate_in_another_unit_is_flagged_and_an_unknown_one_is_not(network, tmp_path, monkeypatch):
    (tmp_path / "model.json").write_text(json.dumps({"weights": "these", "covariates": ["age", "sex"]}))
    known = torch.stack([torch.linspace(20, 90, 60), (torch.arange(60) == 7).float()], dim=1)
    known[3, 0] = torch.nan
    monkeypatch.setitem(globals(), "KNOWN", known)
    stage(network, tmp_path, images(60, 0)).run()
    months = torch.tensor([[55.0, 1.0], [700.0, 0.0], [torch.nan, 0.0]])
    monkeypatch.setitem(globals(), "KNOWN", months)
    rows = predicted(network, tmp_path, images(3, 1), tmp_path)
    assert [row["out_of_cohort"] for row in rows] == ["0", "1", "0"]
    far = (700 - known[:, 0].nanmean()) / known[~known[:, 0].isnan(), 0].std(correction=0)
    assert rows[1]["reason"] == f"age is {far:.0f} SD from the training patients' mean: another unit?"


def test_of_more_rows_than_are_taken_each_patient_keeps_rows_spread_over_it(network, tmp_path, monkeypatch):
    assert _spread_out(list("aaaaaaaaaabbc"), 6) == [0, 5, 10, 11, 12]
    assert _spread_out(list("abcabc"), 2) == [0, 1, 2]  # never less than one of each
    (tmp_path / "model.json").write_text(json.dumps({"weights": "these"}))
    names, image = [f"G{k:02d}" for k in range(30)], images(60, 0)
    alone = cohort_of_groups(network, tmp_path, image[::2], names)
    monkeypatch.setattr(cohort_stage, "ROWS", 30)
    found = cohort_of_groups(network, tmp_path, image, np.repeat(names, 2).tolist())
    assert found.patients == alone.patients == 30
    assert found.limits == pytest.approx(alone.limits, rel=1e-4)
    for name in ("mean", "sd"):
        np.testing.assert_allclose(found.channels.parts[name], alone.channels.parts[name], rtol=1e-3, atol=1e-4)


def test_the_flag_of_a_patient_does_not_depend_on_its_batch(network, model, tmp_path):
    image = torch.cat([images(3, 3), images(3, 4, noise=0.2)])
    together, alone = (predicted(network, model, image, tmp_path, batch=batch) for batch in (6, 1))
    for one, other in zip(together, alone, strict=True):
        assert one["out_of_cohort"] == other["out_of_cohort"]
        assert float(one["cohort_distance"]) == pytest.approx(float(other["cohort_distance"]), rel=1e-4)


def test_the_file_holds_no_name_and_no_pickle(model):
    with np.load(model / "cohort.npz", allow_pickle=False) as file:
        assert {file[name].dtype.kind for name in file.files} <= set("fiU")
        texts = [*file["layers"], str(file["weights"])]
    assert texts == ["1", "5", "these"]


def test_an_older_model_answers_with_empty_columns(network, tmp_path):
    rows = predicted(network, tmp_path / "models", images(4, 5), tmp_path)
    assert [[row[name] for name in COLUMNS] for row in rows] == [[""] * 4] * 4
    assert all(0 < float(row["probability"]) < 1 for row in rows)
    assert "sets" not in json.loads((tmp_path / "metrics.json").read_text())


def test_sets_of_a_calibrated_model_and_their_coverage(network, model, tmp_path):
    random = np.random.default_rng(0)
    labels, folder = random.integers(0, 2, 80), tmp_path / "calibrated"
    folder.mkdir()
    for name in ("model.json", "cohort.npz"):
        (folder / name).write_bytes((model / name).read_bytes())
    content = {"weights": "these", "scores": class_scores(labels, random.uniform(size=80)), "distance": None}
    (folder / "conformal.json").write_text(json.dumps(content))
    rows = predicted(network, folder, images(10, 6), tmp_path, coverage=0.5)
    assert list(json.loads((tmp_path / "metrics.json").read_text())["operating_points"]) == ["0.5"]
    (folder / "conformal.json").write_text(json.dumps(content | {"thresholds": {"Youden": 0.25}}))
    rows = predicted(network, folder, images(10, 6), tmp_path, coverage=0.5)
    found = json.loads((tmp_path / "metrics.json").read_text())["operating_points"]
    assert found["Youden"]["threshold"] == 0.25 and list(found) == ["0.5", "Youden"]
    limit = json.loads((folder / "conformal.json").read_text())["scores"]
    for row in rows:
        p1 = (1 + sum(s >= 1 - float(row["probability"]) for s in limit[1]["scores"])) / (1 + limit[1]["patients"])
        assert ("positive" in row["set"]) == (p1 > 0.5)
    found = json.loads((tmp_path / "metrics.json").read_text())["sets"]
    right = [("negative", "positive")[int(row["label"])] in row["set"] for row in rows]
    assert found["coverage"] == 0.5 and found["classes"]["negative"]["n"] == 5
    assert found["classes"]["negative"]["value"] == pytest.approx(np.mean(right[::2]))
    wide = predicted(network, folder, images(10, 6), tmp_path, coverage=0.999)
    assert {row["set"] for row in wide} == {"negative; positive"}
    assert all(row["reason"].startswith("both classes are plausible at 99.9 %") for row in wide)
    # a limit from patients left out wins
    near = {"patients": 20, "log_mean": -9.0, "log_sd": 0.1, "limit": 1e-4}
    (folder / "conformal.json").write_text(json.dumps(content | {"distance": near}))
    assert {row["out_of_cohort"] for row in predicted(network, folder, images(4, 6), tmp_path)} == {"1"}


def test_sets_of_another_answer_are_not_told(network, tmp_path, monkeypatch, caplog):
    scores = class_scores([0, 1] * 10, [0.3, 0.7] * 10)
    content = {"weights": "", "answer": "graph", "scores": scores, "distance": None}
    (tmp_path / "conformal.json").write_text(json.dumps(content))
    for answer, told in (("graph", True), ("additive", False)):
        monkeypatch.setattr(network, "answer", answer, raising=False)
        rows = predicted(network, tmp_path, images(4, 5), tmp_path)
        assert all(bool(row["set"]) == told for row in rows)
    assert "calibrated on the answer graph, this one is additive" in caplog.text


def test_sets_of_other_views_are_not_told(network, tmp_path):
    scores = [{"patients": 60, "scores": [0.6], "weights": [1.0]}] * 2
    content = {"weights": "", "scores": scores, "distance": None, "thresholds": {"Youden": 0.25}}
    (tmp_path / "conformal.json").write_text(json.dumps(content))
    (tmp_path / "model.json").write_text(json.dumps({"views": 8}))
    for views, told in ((8, True), (1, False)):
        check = ModelCheck(tmp_path, used={"views": views})
        rows = predicted(network, tmp_path, images(4, 1), tmp_path / str(views), check=check)
        assert all(bool(row["set"]) == told for row in rows)
        metrics = json.loads((tmp_path / str(views) / "metrics.json").read_text())
        assert ("Youden" in str(metrics)) == told and metrics.get("switched") == (None if told else {"views": 1})


@pytest.mark.parametrize("name", ["cohort.npz", "conformal.json"])
def test_files_of_another_model_are_refused(network, model, tmp_path, name):
    (tmp_path / "model.json").write_text(json.dumps({"weights": "others"}))
    scores = class_scores([0, 1], [0.2, 0.8])
    (tmp_path / "conformal.json").write_text(json.dumps({"weights": "these", "scores": scores, "distance": None}))
    (tmp_path / "cohort.npz").write_bytes((model / "cohort.npz").read_bytes())
    (tmp_path / ({"cohort.npz", "conformal.json"} - {name}).pop()).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is of another model"):
        predicted(network, tmp_path, images(2, 7), tmp_path)


def test_damaged_files_are_refused(network, tmp_path):
    for name, text in (("cohort.npz", "no archive"), ("conformal.json", "{}")):
        (tmp_path / name).write_text(text)
        with pytest.raises(CheckpointError, match=name):
            predicted(network, tmp_path, images(2, 7), tmp_path)
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match="coverage is the share"):
        Abstention(tmp_path, network, coverage=90)


def test_an_archive_that_is_half_copied_is_refused(network, model, tmp_path):
    whole = (model / "cohort.npz").read_bytes()
    for content in (whole[: len(whole) // 2], b""):
        (tmp_path / "cohort.npz").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"cohort.npz cannot be read .*copy it once more"):
            predicted(network, tmp_path, images(2, 7), tmp_path)


@pytest.mark.parametrize("wrong", ["score", "weights", "limit", "threshold", "class"])
def test_a_calibration_with_what_is_no_number_is_refused(network, tmp_path, wrong):
    content = {"weights": "", "scores": class_scores([0, 1] * 5, [0.3, 0.7] * 5), "distance": {"limit": 1.0}}
    if wrong == "score":
        content["scores"][1]["scores"][0] = float("nan")
    elif wrong == "weights":
        content["scores"][0]["weights"].pop()
    elif wrong == "class":
        content["scores"].pop()
    else:
        content |= {"distance": {"limit": None}} if wrong == "limit" else {"thresholds": {"Youden": None}}
    (tmp_path / "conformal.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"or what is no number: run scripts/calibrate.py again"):
        predicted(network, tmp_path, images(2, 7), tmp_path)


def test_a_finished_step_is_kept_when_resuming_and_made_anew_otherwise(network, model, tmp_path, monkeypatch, caplog):
    for name in ("model.json", "cohort.npz"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    before = (tmp_path / "cohort.npz").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(LayerStatistics, "features", lambda *_: pytest.fail("computed again"))
        stage(network, tmp_path, images(8, 0), resume=True).run()
    assert (tmp_path / "cohort.npz").read_bytes() == before
    stage(network, tmp_path, images(8, 0)).run()
    assert (tmp_path / "cohort.npz").read_bytes() != before
    # a training that was stopped and goes on finds the file of the model before
    (tmp_path / "model.json").write_text(json.dumps({"weights": "others"}))
    stage(network, tmp_path, images(8, 0), resume=True).run()
    assert read_cohort(tmp_path) is not None
    stage(network, tmp_path, images(4, 0)).run()
    stage(network, tmp_path, images(8, 0) * torch.nan).run()
    assert "values are not finite" in caplog.text
    assert "fewer than 5 patients" in caplog.text and not (tmp_path / "cohort.npz").exists()
