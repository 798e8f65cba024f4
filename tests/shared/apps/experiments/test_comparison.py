import csv

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from shared.apps.experiments.comparison import comparison_figure, comparison_table, read_column, read_runs
from shared.apps.experiments.folder import write_experiment, write_results
from shared.errors import DataError
from shared.io import write_csv
from shared.metrics import calibration_report, decision_curve, delong_test, holm_adjusted, operating_points
from shared.metrics.repeated import RepeatedPredictions
from shared.metrics.thresholds import fold_thresholds
from shared.reports.predictions import patch_name, write_predictions


def rows_of(seed, noise, patients=14, each=4):
    random = np.random.default_rng(seed)
    rows = []
    for number in range(patients):
        shift = 0.4 * random.normal()
        for k in range(each):
            score = 1 / (1 + np.exp(-(2.5 * (number % 2) - 1.2 + shift + noise * random.normal())))
            row = {"image": f"{k}/{number}.png", "patient": f"P{number:02}", "label": number % 2}
            rows.append({**row, "probability": float(score)})
    return rows


@pytest.fixture
def runs(tmp_path):
    for name, seeds, noise in (("good", (0, 1, 2), 0.5), ("poor", (0, 7), 3.0)):
        for seed in seeds:
            write_csv(tmp_path / name / f"seed{seed}" / "predictions.csv", rows_of(seed, noise))
    write_csv(tmp_path / "alone" / "predictions.csv", rows_of(11, 1.0))
    return tmp_path


def cells(table, title):
    header, line = table.splitlines()[0], next(x for x in table.splitlines() if x.startswith(f"| {title} |"))
    split = [[cell.strip() for cell in text.strip("|").split("|")] for text in (header, line)]
    names = [f"p {i}" if name == "p" else name for i, name in enumerate(split[0])]
    return dict(zip(names, split[1], strict=True))


def test_means_over_seeds_and_differences_to_the_first(runs):
    table = comparison_table([runs / "good", runs / "poor", runs / "alone"], titles=["SSCL", None, None], bootstrap=200)
    mean = {}
    for name, seeds, noise in (("SSCL", (0, 1, 2), 0.5), ("poor", (0, 7), 3.0), ("alone", (11,), 1.0)):
        found, of_seeds = cells(table, name), [rows_of(seed, noise) for seed in seeds]
        pairs = [([r["label"] for r in rows], np.array([r["probability"] for r in rows])) for rows in of_seeds]
        auc = np.mean([roc_auc_score(y, p) for y, p in pairs])
        bacc = np.mean([balanced_accuracy_score(y, p >= 0.5) for y, p in pairs])
        assert float(found["AUC"].split()[0]) == pytest.approx(auc, abs=6e-4)
        assert float(found["BACC"].split()[0]) == pytest.approx(bacc, abs=6e-4)
        assert found["seeds"] == str(len(seeds)) and "fold-wise AUC" not in found
        mean[name] = auc, bacc
    poor = cells(table, "poor")
    assert float(poor["AUC - first"].split()[0]) == pytest.approx(mean["poor"][0] - mean["SSCL"][0], abs=2e-3)
    assert float(poor["BACC - first"].split()[0]) == pytest.approx(mean["poor"][1] - mean["SSCL"][1], abs=2e-3)
    assert cells(table, "SSCL")["AUC - first"] == ""
    assert "56 patches of 14 patients, 28 positive" in table and "with all of its patches" in table
    assert "left" not in table.split("\n\n")[1]  # nothing was cross-validated


def test_p_values_are_corrected_for_the_number_of_rows_and_delongs_stand_beside(runs):
    table = comparison_table([runs / "good", runs / "poor", runs / "alone"], bootstrap=200)
    header, _, first, *others = table.splitlines()[:5]
    names = [cell.strip() for cell in header.strip("|").split("|")]
    at = names.index("AUC - first")
    assert names[at + 1 : at + 4] == ["p", "p (Holm)", "p (DeLong)"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in others]
    p = [float(row[at + 1]) for row in rows]
    assert [float(row[at + 2]) for row in rows] == pytest.approx(holm_adjusted(p), abs=2e-3)
    tables = [read_runs(runs / name) for name in ("good", "poor", "alone")]
    for row, other in zip(rows, tables[1:], strict=True):
        good = tables[0]
        expected = delong_test(good.labels, other.probability, good.probability, groups=good.patients)["p"]
        assert float(row[at + 3]) == pytest.approx(expected, abs=6e-4)
    assert not first.strip("|").split("|")[at].strip()


def test_the_decision_curves_of_runs_of_the_same_patches_are_drawn(runs, monkeypatch):
    found = []
    monkeypatch.setattr("shared.visualize.curves.save", lambda figure, path, **_: found.append(figure))
    write_csv(runs / "other" / "seed0" / "predictions.csv", rows_of(0, 1.0)[4:])
    comparison_figure(
        [runs / name for name in ("good", "poor", "other")], runs / "a.png", titles=["SSCL", None, None], bootstrap=20
    )
    labels = [line.get_label() for line in found[0].axes[0].lines]
    assert labels == ["none", "all", "poor", "SSCL"]


def test_runs_on_other_patches_are_not_subtracted(runs):
    write_csv(runs / "other" / "seed0" / "predictions.csv", rows_of(0, 1.0)[4:])
    table = comparison_table([runs / "good", runs / "other"], bootstrap=50)
    assert cells(table, "other")["AUC - first"] == "other patches"


def test_cross_validated_patches(runs):
    rows = [{"seed": 0, "fold": int(r["patient"][1:]) // 5, **r} for r in rows_of(0, 0.5)]
    folder = runs / "cv"
    write_experiment(folder, title="Cross-validated", command="c", settings={})
    summary = write_results(folder, RepeatedPredictions.from_rows(rows), bootstrap=100)
    text = (folder / "results.md").read_text()
    assert "56 patches of 14 patients" in text and "left its patient out" in text
    assert f"{summary['metrics']['BACC']['value']:.3f} [" in text and (folder / "calibration.png").exists()
    with (folder / "results.csv").open(newline="") as file:
        assert [row["metric"] for row in csv.DictReader(file)][:2] == ["AUC", "BACC"]
    given = RepeatedPredictions.read(folder / "predictions.csv")
    options = {"groups": given.patients, "bootstrap": 100}
    assert summary["calibration"] == calibration_report(given.labels, given.probability, **options)
    assert summary["decision"] == decision_curve(given.labels, given.probability, **options)
    fixed = fold_thresholds(given.labels, given.probability, given.folds)
    assert summary["operating_points"] == operating_points(given.labels, given.probability, fixed, **options)
    assert set(summary["operating_points"]) == {"0.5", "Youden", "sensitivity 0.9"}
    assert (
        text.index("| AUC |") < text.index("| slope |") < text.index("net benefit at") < text.index("| sensitivity |")
    )
    assert "56 rows of 14 patients, 28 positive. For 95 % intervals" in text and (folder / "decision.png").exists()
    table = comparison_table([folder, runs / "good"], bootstrap=50)
    found = cells(table, "Cross-validated")
    assert float(found["fold-wise AUC"]) > 0.5 and float(found["AUC"].split()[0]) > 0.5


def test_patients_of_a_test_part_have_no_images(tmp_path):
    rows = [{key: row[key] for key in ("patient", "label", "probability")} for row in rows_of(0, 1.0, 30, 1)]
    write_predictions(tmp_path / "a" / "seed4", rows, bootstrap=10)
    assert not (tmp_path / "a/seed4/confusion.png").exists()
    runs = read_runs(tmp_path / "a")
    assert runs.images is None and runs.seeds == (4,) and len(runs.patients) == 30
    table = comparison_table([tmp_path / "a"], bootstrap=50)
    assert "| experiment | AUC | sd | ACC |" in table and "BACC" not in table and "30 patients" in table


def test_all_folders_without_results_are_named(runs):
    (runs / "good/seed1/predictions.csv").write_text("image,patient\n")
    (runs / "poor/seed7/predictions.csv").write_text("image,patient,label,probability\n0/0.png,P00,0,0.5\n")
    (runs / "alone" / "predictions.csv").write_text("name,probability\nx,0.5\n")
    found = r"4 problems:\n.*none: no finished.*\n.*good: no .*seed1.*is empty.*\n.*poor: .*in seed 7; and 52 more.*\n"
    with pytest.raises(DataError, match=found):
        comparison_table([runs / "none", runs / "good", runs / "poor", runs / "alone"])


def test_names_of_patches(tmp_path):
    assert patch_name(tmp_path / "a/b.png", tmp_path) == "a/b.png"
    assert patch_name(tmp_path / "a/b.png", tmp_path / "c") == str(tmp_path / "a/b.png")
    assert patch_name("a/b.png", None) == "a/b.png"
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    assert patch_name(tmp_path / "real" / "x.png", tmp_path / "link") == "x.png"


def test_another_answer_is_a_column_of_the_folds_of_the_experiments_seeds(tmp_path):
    for seed in (0, 1):
        for fold in (0, 1):
            row = {"patient": f"P{fold}", "label": fold, "probability": 0.1, "other": 0.2 + fold / 10 + seed / 2}
            write_csv(tmp_path / f"seed{seed}" / f"fold{fold}" / "predictions.csv", [row])
    found = read_column(tmp_path, "other")
    assert found.seeds == (0, 1) and found.probability.tolist() == [
        [0.2, pytest.approx(0.3)],
        pytest.approx([0.7, 0.8]),
    ]
    assert found.folds.tolist() == [[0, 1], [0, 1]] and read_column(tmp_path, "none") is None
    kept = [{"seed": 1, "fold": k, "patient": f"P{k}", "label": k, "probability": 0.1} for k in (0, 1)]
    write_csv(tmp_path / "predictions.csv", kept)
    assert read_column(tmp_path, "other").probability.tolist() == [pytest.approx([0.7, 0.8])]
    write_csv(tmp_path / "seed1" / "fold1" / "predictions.csv", [{"patient": "P1", "label": 1, "probability": 0.1}])
    with pytest.raises(DataError, match=r"fold1.* has no column 'other'"):
        read_column(tmp_path, "other")
    with pytest.raises(DataError, match=r"no predictions.csv in its folders of folds"):
        read_column(tmp_path / "nowhere", "other")
