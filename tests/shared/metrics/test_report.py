"""Metrics of repeated cross-validation against scikit-learn in plain loops."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

from shared.errors import DataError
from shared.io import write_csv
from shared.metrics.repeated import RepeatedPredictions, paired_seed_difference, summarise

SCORES = {
    "ACC": lambda y, p: accuracy_score(y, p >= 0.5),
    "AUC": roc_auc_score,
    "F1": lambda y, p: f1_score(y, p >= 0.5),
    "PRE": lambda y, p: precision_score(y, p >= 0.5),
    "REC": lambda y, p: recall_score(y, p >= 0.5),
}


def make(patients=40, seeds=(0, 3), folds=4, noise=1.0, random_state=0):
    random = np.random.default_rng(random_state)
    rows = []
    for seed in seeds:
        for number in range(patients):
            label = int(number % 3 == 0)
            score = 1 / (1 + np.exp(-(2 * label - 1 + noise * random.normal())))
            fold = (number + seed) % folds
            row = {"seed": seed, "fold": fold, "patient": f"{number:03}", "label": label}
            rows.append({**row, "probability": round(score, 2)})
    return RepeatedPredictions.from_rows(rows)


def test_values_spread_and_folds_against_loops():
    table = make()
    summary = summarise(table, bootstrap=20)
    for name, score in SCORES.items():
        of_seeds = [score(table.labels, probability) for probability in table.probability]
        metric = summary["metrics"][name]
        assert metric["seeds"] == pytest.approx(of_seeds) and metric["value"] == pytest.approx(np.mean(of_seeds))
        assert metric["sd"] == pytest.approx(np.std(of_seeds, ddof=1))
    aucs = []
    for folds, probability in zip(table.folds, table.probability, strict=True):
        aucs += [roc_auc_score(table.labels[folds == f], probability[folds == f]) for f in range(4)]
    assert summary["fold_auc"]["value"] == pytest.approx(np.mean(aucs)) and summary["fold_auc"]["folds"] == 8


def test_interval_is_that_of_patients_drawn_with_all_their_seeds():
    table = make(patients=60)
    summary = summarise(table, bootstrap=4000, seed=5)
    random = np.random.default_rng(1)
    draws = [random.integers(0, 60, 60) for _ in range(300)]
    for name in ("AUC", "PRE"):
        score = SCORES[name]
        samples = [np.mean([score(table.labels[d], p[d]) for p in table.probability]) for d in draws]
        low, high = np.percentile(samples, [2.5, 97.5])
        assert summary["metrics"][name]["low"] == pytest.approx(low, abs=0.03), name
        assert summary["metrics"][name]["high"] == pytest.approx(high, abs=0.03), name


def test_more_seeds_of_the_same_patients_do_not_count_as_more_patients():
    one, many = make(seeds=(0,), noise=0.7), make(seeds=range(8), noise=0.7)
    width = [np.ptp([m["low"], m["high"]]) for m in (summarise(t)["metrics"]["AUC"] for t in (one, many))]
    same = RepeatedPredictions(
        one.patients, one.labels, tuple(range(8)), one.folds.repeat(8, 0), one.probability.repeat(8, 0)
    )
    repeated = summarise(same)["metrics"]["AUC"]
    assert np.ptp([repeated["low"], repeated["high"]]) == pytest.approx(width[0], abs=1e-12)
    assert width[1] > width[0] / np.sqrt(8)


def grouped(table, count):
    """The same predictions, ``count`` patients after each other in one group."""
    rows = [{**row, "group": f"G{int(row['patient']) // count:03}"} for row in table.rows()]
    return RepeatedPredictions.from_rows(rows)


def test_groups_are_drawn_whole(tmp_path):
    table = grouped(make(patients=60), 3)
    assert table.groups[:4] == ("G000",) * 3 + ("G001",) and len(set(table.groups)) == 20
    write_csv(tmp_path / "predictions.csv", table.rows())
    again = RepeatedPredictions.read(tmp_path / "predictions.csv")
    assert again.groups == table.groups and list(table.rows()[0])[:4] == ["seed", "fold", "patient", "group"]
    summary = summarise(again, bootstrap=4000, seed=5)
    assert summary["groups"] == 20 and summary["patients"] == 60 and "groups" not in summarise(make(), bootstrap=5)
    random = np.random.default_rng(1)
    draws = [np.concatenate([np.arange(3) + 3 * g for g in random.integers(0, 20, 20)]) for _ in range(400)]
    samples = [np.mean([roc_auc_score(table.labels[d], p[d]) for p in table.probability]) for d in draws]
    found = [summary["metrics"]["AUC"][end] for end in ("low", "high")]
    assert found == pytest.approx(np.percentile(samples, [2.5, 97.5]), abs=0.03)
    # a whole copy of each patient adds nothing
    pairs = [row for row in make(patients=30).rows() for _ in range(2)]
    pairs = [{**row, "patient": f"{row['patient']}{i % 2}", "group": row["patient"]} for i, row in enumerate(pairs)]
    twice = summarise(RepeatedPredictions.from_rows(pairs), bootstrap=300)["metrics"]["AUC"]
    once = summarise(make(patients=30), bootstrap=300)["metrics"]["AUC"]
    assert [twice[key] for key in ("value", "low", "high")] == pytest.approx(
        [once[k] for k in ("value", "low", "high")]
    )
    assert paired_seed_difference(table, make(patients=60), bootstrap=10) is None


def test_paired_difference():
    good, bad = make(noise=0.3), make(noise=3.0, random_state=4, seeds=(0,))
    difference = paired_seed_difference(good, bad, bootstrap=500)
    mean = [np.mean([roc_auc_score(t.labels, p) for p in t.probability]) for t in (good, bad)]
    assert difference["value"] == pytest.approx(mean[1] - mean[0]) and difference["high"] < 0
    assert difference["p"] < 0.05
    alike = paired_seed_difference(good, make(noise=0.3, random_state=9), bootstrap=500)
    assert alike["low"] <= 0 <= alike["high"] and alike["p"] > 0.05
    assert paired_seed_difference(good, make(patients=41)) is None


def patches(patients=20, each=4, seeds=(0, 1), random_state=0):
    """Patches whose patients differ more than the patches of one."""
    random = np.random.default_rng(random_state)
    rows = []
    for seed in seeds:
        for number in range(patients):
            of_patient = random.normal()
            for k in range(each):
                score = 1 / (1 + np.exp(-(number % 2 - 0.5 + 1.5 * of_patient + 0.3 * random.normal())))
                row = {"seed": seed, "fold": 0, "image": f"{k}/{number}.png", "patient": f"{number:02}"}
                rows.append({**row, "label": number % 2, "probability": score})
    return rows


def test_patches_are_drawn_with_their_patient():
    rows = patches()
    table = RepeatedPredictions.from_rows(rows)
    assert table.rows() == sorted(rows, key=lambda row: (row["seed"], row["image"]))
    summary = summarise(table, names=("AUC", "BACC"), bootstrap=2000)
    assert (summary["images"], summary["patients"], summary["positive"]) == (80, 20, 40)
    assert set(summary["metrics"]) == {"AUC", "BACC"}
    random, members = (
        np.random.default_rng(3),
        [np.flatnonzero(np.array(table.patients) == f"{n:02}") for n in range(20)],
    )
    samples = []
    for pick in random.integers(0, 20, (300, 20)):
        drawn = np.concatenate([members[i] for i in pick])
        samples.append(np.mean([roc_auc_score(table.labels[drawn], p[drawn]) for p in table.probability]))
    found = summary["metrics"]["AUC"]
    assert (found["low"], found["high"]) == pytest.approx(np.percentile(samples, [2.5, 97.5]), abs=0.03)
    alone = [{key: row[key] for key in row if key != "image"} | {"patient": row["image"]} for row in rows]
    naive = summarise(RepeatedPredictions.from_rows(alone))["metrics"]["AUC"]
    assert naive["value"] == pytest.approx(found["value"])
    assert naive["high"] - naive["low"] < 0.7 * (found["high"] - found["low"])


def test_paired_difference_of_patches():
    first, other = (RepeatedPredictions.from_rows(patches(random_state=i)) for i in range(2))
    for metric, score in (("AUC", roc_auc_score), ("BACC", lambda y, p: np.mean([SCORES["REC"](y, p), tnr(y, p)]))):
        found = paired_seed_difference(first, other, metric, bootstrap=300)
        mean = [np.mean([score(t.labels, p) for p in t.probability]) for t in (first, other)]
        assert found["value"] == pytest.approx(mean[1] - mean[0]) and found["low"] < found["value"] < found["high"]
    moved = [row | {"patient": "x" if row["image"] == "0/3.png" else row["patient"]} for row in patches()]
    assert paired_seed_difference(first, RepeatedPredictions.from_rows(moved)) is None


def tnr(labels, probability):
    return recall_score(labels, probability >= 0.5, pos_label=0)


def test_an_image_of_two_patients_is_refused():
    rows = patches(4, 1)
    with pytest.raises(DataError, match=r"image 0/1.png is of two patients"):
        RepeatedPredictions.from_rows([row | {"patient": f"{row['patient']}{row['seed']}"} for row in rows])


def test_nobody_called_positive_has_no_precision_and_stays_json():
    table = make(seeds=(0,))
    quiet = RepeatedPredictions(table.patients, table.labels, table.seeds, table.folds, table.probability * 0.4)
    precision = summarise(quiet, bootstrap=50)["metrics"]["PRE"]
    assert precision["value"] is None and precision["low"] is None and precision["seeds"] == [None]


def test_incomplete_rows_are_all_named():
    rows = make(patients=4, seeds=(0, 1)).rows()
    with pytest.raises(
        DataError, match=r"2 problems:\n.*000 stands twice in seed 0\n.*003 has no prediction in seed 1"
    ):
        RepeatedPredictions.from_rows([*rows[:-1], rows[0]])
    with pytest.raises(DataError, match="has two labels"):
        RepeatedPredictions.from_rows([*rows[:-1], {**rows[-1], "label": 0}])
    with pytest.raises(DataError, match="no predictions"):
        RepeatedPredictions.from_rows([])
    table = make()
    with pytest.raises(DataError, match="both classes"):
        summarise(RepeatedPredictions(table.patients, table.labels * 0, table.seeds, table.folds, table.probability))


def test_a_file_with_other_columns_is_refused(tmp_path):
    (tmp_path / "p.csv").write_text("patient,label\nP1,0\n")
    with pytest.raises(DataError, match="columns seed, fold, patient, label, probability are needed"):
        RepeatedPredictions.read(tmp_path / "p.csv")
