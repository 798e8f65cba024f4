import json
from math import comb

import pytest
from scipy.special import beta

from shared.apps.experiments.folds import Fold
from shared.apps.experiments.training_rows import TrainingRows, shuffle_labels, simulate_votes
from shared.errors import DataError


@pytest.fixture
def datalist(tmp_path):
    cases = [
        {"image": f"{'SSA' if i % 2 else 'HP'}/{i}.png", "patient": f"P{i // 4}", "label": i % 2, "soft_label": i / 40}
        for i in range(40)
    ]
    content = {"training": cases[:32], "validation": cases[32:], "testing": [{"image": "t.png"}]}
    content["training"][0]["image"] = str(tmp_path / "elsewhere.png")
    path = tmp_path / "data" / "datalist.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    return path


def test_patches_of_a_patient_share_a_fold_and_validation_joins(datalist):
    rows = TrainingRows.read(datalist, datalist.parent)
    assert len(rows.labels) == 40 and "validation" not in rows.datalist
    fold_of = rows.folds(3, seed=0)
    assert set(fold_of.values()) == {0, 1, 2} and fold_of != rows.folds(3, seed=1)
    of_patient = {}
    for name, fold in fold_of.items():
        assert of_patient.setdefault(rows.patients[name], fold) == fold
    split = rows.split(fold_of)
    assert split["testing"] == [{"image": "t.png"}]
    for case in split["training"]:
        assert case["fold"] == of_patient[case["patient"]] and "soft_label" in case
    assert str(datalist.parent.parent / "elsewhere.png") in fold_of and "SSA/1.png" in fold_of


def test_shuffled_labels_take_the_votes_with_them(datalist):
    rows = TrainingRows.read(datalist, datalist.parent)
    fold_of = rows.folds(2, seed=0)
    labels = shuffle_labels(rows.labels, fold_of, fold=0, seed=0)
    cases = rows.split(fold_of, labels)["training"]
    changed = [case for case in cases if case["label"] != rows.labels[rows.name_of(case)]]
    assert changed and all(case["fold"] == 1 for case in changed)
    assert not any("soft_label" in case for case in cases)


def test_simulated_votes_err_as_often_as_the_beta_distribution_says():
    labels = {str(i): i % 2 for i in range(20000)}
    votes = simulate_votes(labels, 7, seed=0)
    assert {round(7 * share, 9) for share in votes.values()} == set(range(8))
    wrong = [(share > 0.5) != labels[name] for name, share in votes.items()]
    # with p ~ Beta(1, 4), P(k of 7 err) = C(7, k) B(1 + k, 11 - k) / B(1, 4)
    by_count = [comb(7, k) * beta(1 + k, 11 - k) / beta(1, 4) for k in range(8)]
    assert sum(wrong) / 20000 == pytest.approx(sum(by_count[4:]), abs=0.01)
    close = sum(abs(share - 0.5) < 0.1 for share in votes.values()) / 20000
    assert close == pytest.approx(by_count[3] + by_count[4], abs=0.01)
    errors = sum(abs(share - labels[name]) for name, share in votes.items()) / 20000
    assert errors == pytest.approx(0.2, abs=0.01)
    assert votes == simulate_votes(dict(reversed(labels.items())), 7, seed=0) != simulate_votes(labels, 7, seed=1)


def test_votes_are_written_where_they_were_cast(datalist):
    rows = TrainingRows.read(datalist, datalist.parent)
    fold_of = rows.folds(2, seed=0)
    cast = {name: 2 / 3 for name, fold in fold_of.items() if fold == 1}
    labels = {**rows.labels, **dict.fromkeys(cast, 1)}
    for case in rows.split(fold_of, labels, cast)["training"]:
        assert case.get("soft_label") == (2 / 3 if case["fold"] == 1 else None)
        assert case["label"] == (1 if case["fold"] == 1 else rows.labels[rows.name_of(case)])


def test_volumes_go_by_patient(tmp_path):
    cases = [{"image": [f"{i}.nii.gz"], "patient": f"P{i}", "label": i % 2} for i in range(8)]
    (tmp_path / "d.json").write_text(json.dumps({"training": cases}))
    rows = TrainingRows.read(tmp_path / "d.json", tmp_path)
    assert rows.patients is None and set(rows.labels) == {f"P{i}" for i in range(8)}
    assert sorted(rows.folds(2, 0).values()) == [0] * 4 + [1] * 4


def test_a_groups_patients_share_a_fold_and_its_predictions_tell_the_group(tmp_path):
    cases = [
        {"image": [f"{i}.nii.gz"], "patient": f"P{i:02}", "label": i // 2 % 2, "group": f"G{i // 2}"} for i in range(24)
    ]
    (tmp_path / "d.json").write_text(json.dumps({"training": cases}))
    rows = TrainingRows.read(tmp_path / "d.json", tmp_path)
    assert rows.patients is None and rows.groups["P03"] == "G1"
    fold_of = rows.folds(3, 1)
    assert all(fold_of[f"P{i:02}"] == fold_of[f"P{i + 1:02}"] for i in range(0, 24, 2))
    assert sorted(fold_of.values()) == [0] * 8 + [1] * 8 + [2] * 8 and fold_of != rows.folds(3, 2)
    assert {case["group"] for case in rows.split(fold_of)["training"]} == {f"G{i}" for i in range(12)}
    truth = {name: label for name, label in rows.labels.items() if fold_of[name] == 0}
    fold = Fold(tmp_path / "run", 1, 0, truth, groups=rows.groups)
    fold.folder.mkdir(parents=True)
    lines = [f"{name},{label},0.5" for name, label in truth.items()]
    (fold.folder / "predictions.csv").write_text("\n".join(["patient,label,probability", *lines]))
    assert all(row["group"] == rows.groups[row["patient"]] for row in fold.rows()) and len(fold.rows()) == 8


def test_all_that_is_wrong_is_named(datalist):
    content = json.loads(datalist.read_text())
    content["training"][1]["label"] = 2
    content["training"][2]["patient"] = ""
    content["training"].append(content["training"][3])
    datalist.write_text(json.dumps(content))
    problems = (
        r"3 problems:\n(?s:.)*SSA/1.png has label 2(?s:.)*HP/2.png has no patient(?s:.)*SSA/3.png stands in it twice"
    )
    with pytest.raises(DataError, match=problems):
        TrainingRows.read(datalist, datalist.parent)
    with pytest.raises(DataError, match=r"no datalist at .*prepare_image_folder.py"):
        TrainingRows.read(datalist.parent / "none.json", datalist.parent)
    datalist.write_text("[]")
    with pytest.raises(DataError, match="must be a JSON object, found a list"):
        TrainingRows.read(datalist, datalist.parent)


def test_predictions_of_a_fold_are_those_of_its_images(datalist, tmp_path):
    rows = TrainingRows.read(datalist, datalist.parent)
    fold_of = rows.folds(2, seed=0)
    truth = {name: label for name, label in rows.labels.items() if fold_of[name] == 0}
    fold = Fold(tmp_path / "run", 3, 0, truth, False, rows.patients, datalist.parent)
    fold.folder.mkdir(parents=True)
    # absolute paths are named as relative ones
    lines = [f"{datalist.parent / name},{rows.patients[name]},{label},0.25" for name, label in truth.items()]
    table = fold.folder / "predictions.csv"
    table.write_text("\n".join(["image,patient,label,probability", *lines]))
    found = fold.rows()
    assert {row["image"] for row in found} == set(truth) and found[0]["seed"] == 3
    assert all(row["patient"] == rows.patients[row["image"]] for row in found)
    table.write_text("\n".join(["image,patient,label,probability", *lines[1:]]))
    assert not fold.done()
    with pytest.raises(DataError, match=rf"each of the fold's {len(truth)} images once"):
        fold.rows()
