"""scripts/study.py with a bundle that needs no training: rows shared, killed, resumed, collected; tables and report."""

import csv
import json
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from html import unescape
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from shared.apps.baselines import patches
from shared.apps.experiments import cross_validate, folder, label_efficiency_run, processes
from shared.apps.study import analyses
from shared.apps.study import study as script
from shared.apps.study.definition import read_study
from shared.apps.study.report import report_content, write_report
from shared.bundle.configs import all_bundles, find_config, merge_configs, parse_overrides
from shared.errors import DataError
from shared.metrics import holm_adjusted
from shared.metrics.repeated import RepeatedPredictions
from tests.support.documented import json_keys, undocumented
from tests.support.fake_patch_bundle import write_bundle
from tests.support.tiny_patches import write_patch_data

ROOT = Path(__file__).parents[2]
STUDY = {
    "citation": "A. Author, A paper",
    "paper_data": "data of the paper",
    "rows": {
        "whole": {"title": "whole"},
        "small": {"title": "small net", "config": ["small"], "reuse": {"row": "whole", "stages": ["pretrain"]}},
        "longer": {"title": "longer", "config": ["scratch"], "set": {"epochs": 7}},
        "forest": {"title": "forest", "baseline": "patches", "control": "forest"},
        "age": {
            **{"title": "age alone", "baseline": "features", "control": "covariates"},
            "needs": {"covariates": True},
        },
        "imagenet": {"title": "ImageNet", "baseline": "patches", "control": "imagenet", "weights": "models/none.pt"},
    },
    "tables": {
        "table_2": {
            "title": "Table 2",
            "metrics": ["AUC", "ACC", "REC_0", "TP"],
            "reference": "whole",
            "paper_unit": "%",
            "rows": [
                {"row": "small", "paper": {"AUC": 91.26}},
                {"title": "whole", "row": "whole", "paper": {"AUC": 92.78, "SEN": 12.5}},
                {"row": "longer", "paper": {"AUC": 80}},
                {"title": "never built", "why_not": "no description of it", "paper": {"AUC": 87.7}},
            ],
        },
        "controls": {"title": "Controls", "rows": [{"row": k} for k in ("longer", "forest", "age", "imagenet")]},
        "no_network": {"title": "No network", "rows": [{"row": "forest"}]},
        "figure_5": {"title": "Figure 5", "why_not": "made elsewhere"},
        "figure_6": {"title": "Figure 6", "analysis": {"script": "explain", "row": "whole", "set": {"top": 3}}},
        "figure_7": {"title": "Figure 7", "analysis": {"script": "explain", "row": "whole", "set": {"top": 3}}},
        "efficiency": {"title": "Labels", "analysis": {"script": "label_efficiency", "row": "whole"}},
    },
    "limits": ["a limit of this bundle"],
}  # fmt: skip


def fake_forest(controls, args):
    """Stands in for the control's features and trees; what it leaves is of the same form."""
    assert list(controls) == ["forest"]
    content = json.loads(Path(args.datalist_file).read_text())
    cases = content["training"] + content["validation"]
    rows = []
    for seed in args.seeds:
        for i, case in enumerate(cases):
            row = {"seed": seed, "fold": i % args.folds, "image": case["image"], "patient": case["patient"]}
            rows.append({**row, "label": case["label"], "probability": (7 * i % 11) / 11})
    target = Path(args.output) / "forest"
    folder.write_experiment(target, title="forest", command="python forest", settings={})
    folder.write_results(target, RepeatedPredictions.from_rows(rows), bootstrap=args.bootstrap)


PAGE = "# Labels\\n\\nAll patches:\\n\\n| labels | AUC |\\n|---|---|\\n| 5% | 0.712 |\\n\\nFour draws.\\n"


def fake_efficiency(run, table):
    """Stands in for the trainings of label efficiency; leaves a page as it does."""
    folder = run.output / "analyses/efficiency"
    code = f"open({str(folder / 'label_efficiency.md')!r}, 'w').write('{PAGE}')"
    yield analyses.AnalysisJob("efficiency/measure", folder, "measure", (sys.executable, "-c", code))


@pytest.fixture(scope="module", autouse=True)
def quick():
    """No matplotlib, no forest."""
    with pytest.MonkeyPatch.context() as patch:
        picture = next(ROOT.glob("docs/images/*.png"))
        patch.setattr(folder, "_pictures", lambda path, *_: shutil.copy(picture, path / "roc.png"))
        patch.setattr(patches, "run", fake_forest)
        patch.setitem(analyses.MADE, "label_efficiency", fake_efficiency)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A bundle with a study, patches, and RUN_BUNDLE in place of MONAI."""
    root = tmp_path_factory.mktemp("study")
    content = write_patch_data(root / "data", training=6, testing=4, side=16)
    content["validation"], content["training"] = content["training"][15:], content["training"][:15]
    (root / "data/datalist.json").write_text(json.dumps(content))
    bundle = write_bundle(root / "bundle")
    (bundle / "configs/study.json").write_text(json.dumps(STUDY))
    with pytest.MonkeyPatch.context() as patch:
        for module in (cross_validate, analyses):
            patch.setattr(module, "RUN_BUNDLE", (sys.executable, str(bundle / "fake_method.py")))
        yield root


def options(place, name, *more):
    given = ["--dataset_dir", place / "data", "--output", place / name, "--bootstrap", "20", "--folds", "2"]
    return [str(place / "bundle"), *map(str, given), "--threads", "1", *more]


@pytest.fixture(scope="module")
def whole(place):
    """The folder of a study that ran through."""
    script.main(options(place, "whole"))
    return place / "whole"


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tables(path):
    return {name: (path / f"tables/{name}.csv").read_bytes() for name in ("table_2", "controls", "figure_5")}


def test_plan_counts_and_writes_nothing(place, capsys):
    script.main(options(place, "planned", "--plan", "--seeds", "0", "1"))
    text = capsys.readouterr().out
    assert "12 trainings, 0 done, 12 to do; the time is not known yet" in text
    assert "| age | age alone |  |  | not: the cohort has no covariates |" in text
    assert not (place / "planned").exists()
    script.main(options(place, "planned", "--plan", "--tables", "table_2"))
    assert "6 trainings, 0 done, 6 to do" in capsys.readouterr().out


def test_rows_share_folds_and_stages_and_stand_beside_the_papers_numbers(place, whole, capsys):
    ran = [(whole / f"rows/{row}/seed0/fold1/calls.txt").read_text().split() for row in ("whole", "small")]
    assert ran == [["run", "evaluate"]] * 2
    stages = [whole / f"rows/{row}/seed0/fold1/models/pretrain.pt" for row in ("whole", "small")]
    assert stages[0].read_bytes() == stages[1].read_bytes()
    found = {(row["title"], row["metric"]): row for row in table(whole / "tables/table_2.csv")}
    for row in ("whole", "small", "longer"):
        predictions = table(whole / f"rows/{row}/predictions.csv")
        labels, scores = [int(r["label"]) for r in predictions], [float(r["probability"]) for r in predictions]
        assert float(found[row, "AUC"]["value"]) == pytest.approx(roc_auc_score(labels, scores))
        called = np.array(scores) >= 0.5
        negatives = np.array(labels) == 0
        assert float(found[row, "REC_0"]["value"]) == pytest.approx((~called)[negatives].mean())
        assert float(found[row, "TP"]["value"]) == called[~negatives].sum()
    assert 0 < float(found["longer", "AUC"]["value"]) < float(found["whole", "AUC"]["value"]) < 1
    assert found["small", "AUC"]["paper"] == "91.26" and found["whole", "SEN"]["value"] == ""
    difference = float(found["longer", "AUC"]["value"]) - float(found["whole", "AUC"]["value"])
    assert float(found["longer", "AUC"]["difference"]) == pytest.approx(difference)
    assert found["never built", "AUC"]["status"] == "no description of it"
    page = (whole / "tables/table_2.md").read_text()
    assert "never built: no description of it" in page and "on its data (A. Author, A paper; data of the paper)" in page
    assert r"whole (reference)" in (whole / "tables/table_2.tex").read_text()
    compared = [row["difference"] for row in json.loads((whole / "tables/table_2.json").read_text())["rows"]]
    compared = [difference for difference in compared if difference]
    assert len(compared) == 2 and "p (Holm)" in page and any(each["p_holm"] > each["p"] for each in compared)
    assert [each["p_holm"] for each in compared] == holm_adjusted([each["p"] for each in compared])
    controls = {row["title"]: row["status"] for row in table(whole / "tables/controls.csv")}
    done = dict.fromkeys(("longer", "forest"), "done")
    assert controls == {**done, "age": "the cohort has no covariates", "imagenet": "there is no file models/none.pt"}
    script.main(options(place, "whole", "--plan"))
    assert "6 trainings, 6 done, 0 to do; nothing left to train" in capsys.readouterr().out
    script.main(options(place, "whole", "--plan", "--seeds", "0", "1"))
    text = capsys.readouterr().out
    assert re.search(r"12 trainings, 6 done, 6 to do; about \d+ s with --jobs 1, from 6 folds already measured", text)


def test_a_fold_waits_for_the_one_whose_stages_it_takes(place):
    small = script.StudyRun(script.arguments(options(place, "waits"))).experiments["small"]
    run = next(small.runs(small.folds, wait=True))
    assert not run.poll() and run.process is None
    with pytest.raises(DataError, match="holds no checkpoint of an earlier stage"):
        next(small.runs(small.folds)).poll()


def test_runs_share_the_gpus_evenly(place, monkeypatch):
    study = script.StudyRun(script.arguments(options(place, "gpus", "--gpus", "3,1", "--jobs", "3")))
    seen = []
    monkeypatch.setattr(processes.FoldRun, "poll", lambda run: seen.append(run.environment) or len(seen) > 9)
    folds = study.experiments["whole"].folds * 2
    runs = study.experiments["whole"].runs(folds)
    processes.run_folds(runs, total=4, jobs=study.args.jobs, gpus=study.args.gpus)
    assert Counter(environment["CUDA_VISIBLE_DEVICES"] for environment in seen[:3]) == {"3": 2, "1": 1}
    assert seen[0]["OMP_NUM_THREADS"] == "1" and "PATH" in seen[0]
    for odd in ("0,", "a", "1,1"):
        with pytest.raises(SystemExit):
            script.arguments(options(place, "gpus", "--gpus", odd))


def test_a_row_is_the_cross_validation_that_its_command_makes(whole):
    about = json.loads((whole / "rows/small/experiment.json").read_text())
    arguments = shlex.split(about["command"])[2:]
    before = (whole / "rows/small/results.csv").read_bytes()
    (whole / "rows/small/results.csv").unlink()
    cross_validate.main(arguments)
    assert (whole / "rows/small/results.csv").read_bytes() == before
    changed = json.loads((whole / "study.json").read_text())["rows"]
    assert changed["small"]["changed"] == {"epochs": [3, 1]} and changed["longer"]["changed"]["epochs"] == [3, "7"]


def test_killed_at_a_random_moment_and_resumed_gives_the_same_tables(place, whole, capsys):
    given = options(place, "killed")
    start = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from shared.apps.experiments import cross_validate\n"
        "from shared.apps.baselines import patches\n"
        "patches.run = lambda controls, given: None\n"
        "from shared.apps.study import analyses\n"
        f"method = {str(place / 'bundle/fake_method.py')!r}\n"
        "analyses.RUN_BUNDLE = cross_validate.RUN_BUNDLE = (sys.executable, method)\n"
        "from shared.apps.study.study import main\n"
        f"main({given!r})"
    )
    moment = random.randrange(1, 6)
    process = subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if len(list((place / "killed").glob("rows/*/seed0/fold*/predictions.csv"))) >= moment:
            process.kill()
            process.wait()
        time.sleep(0.01)
    script.main(options(place, "killed", "--plan"))
    done = int(re.search(r"(\d+) done", capsys.readouterr().out)[1])
    there = {path: path.stat().st_mtime_ns for path in (place / "killed").glob("rows/*/seed0/fold*/predictions.csv")}
    script.main(given)
    assert done >= moment - 1, moment
    assert sum(path.stat().st_mtime_ns == before for path, before in there.items()) >= done, moment
    assert tables(place / "killed") == tables(whole), moment


def test_printed_commands_run_and_are_collected(place, whole, capsys, monkeypatch):
    script.main(options(place, "printed", "--print-commands"))
    lines = capsys.readouterr().out.splitlines()
    comment = next(i for i, line in enumerate(lines) if line.startswith("#"))
    commands = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert [Path(words[1]).name for words in commands] == ["cross_validate.py"] * 3
    assert "--reuse" in commands[-1] and comment == 2 and not (place / "printed").exists()
    assert lines[-1].startswith("# the study itself runs the rest") and "forest" in lines[-1]
    for words in commands:
        cross_validate.main(words[2:])
    monkeypatch.setattr(cross_validate, "RUN_BUNDLE", (sys.executable, "-c", "raise SystemExit('trained again')"))
    script.main(options(place, "printed"))
    assert tables(place / "printed") == tables(whole)


def test_analyses_run_once_on_the_first_seeds_models(place, whole, capsys):
    for fold in (0, 1):
        explained = whole / f"rows/whole/seed0/fold{fold}/explained"
        assert json.loads((explained / "localisation.json").read_text())["top"] == "3"
        assert (explained / "calls.txt").read_text().split() == ["explain"]  # two tables, one analysis
    section = json.loads((whole / "sections/50_efficiency.json").read_text())
    assert section["tables"] == [{"caption": "All patches:", "header": ["labels", "AUC"], "rows": [["5%", "0.712"]]}]
    assert section["text"] == ["Four draws."] and section["title"] == "Labels"
    script.main(options(place, "whole", "--plan"))
    text = capsys.readouterr().out
    assert "| figure_6 | Figure 6 | explain |  | done |  |" in text
    assert "analyses/figure_6" in (whole / "tables/figure_7.md").read_text()
    script.main(options(place, "planned", "--plan"))
    assert "| efficiency | Labels | label_efficiency |  | 1 of 1 commands to do |  |" in capsys.readouterr().out
    script.main(options(place, "planned", "--plan", "--tables", "efficiency"))
    assert "0 trainings" in capsys.readouterr().out  # it trains by itself, not the row


def test_controls_alone_need_no_training(place):
    script.main(options(place, "alone", "--tables", "no_network"))
    assert [row["status"] for row in table(place / "alone/tables/no_network.csv")] == ["done"]
    assert not (place / "alone/rows").exists() and (place / "alone/report.html").is_file()


def test_an_analysis_that_failed_or_was_cut_off_runs_again(tmp_path):
    job = analyses.AnalysisJob("a/b", tmp_path, "b", ("true",))
    log = tmp_path / "b.log"
    for text in ("$ true\n", "$ false\n# ended after 1.0 s\n"):
        log.write_text(text)
        assert not job.done(), text
    log.write_text("$ true\nwords\n# ended after 1.0 s\n")
    assert job.done()


def test_an_analysis_that_went_without_weights_runs_again_once_they_are_there(tmp_path):
    job, weights = analyses.AnalysisJob("a/b", tmp_path, "b", ("true",)), tmp_path / "imagenet resnet50.pt"
    (tmp_path / "b.log").write_text("$ true\nmore\n# ended after 1.0 s\n")
    (tmp_path / label_efficiency_run.LEFT_OUT).write_text(json.dumps({"imagenet": str(weights)}))
    assert job.done()
    weights.touch()
    assert not job.done()
    (tmp_path / label_efficiency_run.LEFT_OUT).write_text("{}")
    assert job.done()


def test_report_says_what_is_not_done(place, capsys):
    script.main(options(place, "nothing", "--report"))
    status = {row["title"]: row["status"] for row in table(place / "nothing/tables/table_2.csv")}
    assert status["small"] == "not done: 0 of 2 trainings"
    page = (place / "nothing/report.html").read_text()
    assert "Nothing has been evaluated in this folder yet." in page and "Not done: whole, 0 of 2 trainings." in page


def test_other_settings_are_refused_of_controls_too(place, tmp_path):
    alone = json.loads((place / "bundle/configs/study.json").read_text())
    alone["tables"] = {"one": {"title": "One", "rows": [{"title": "forest", "row": "forest"}]}}
    (tmp_path / "study.json").write_text(json.dumps(alone))
    given = [*options(place, "alone"), "--study", str(tmp_path / "study.json")]
    script.main(given)
    script.main(given)  # the same goes on
    key = next(iter(json.loads((place / "bundle/configs/train.json").read_text())))
    with pytest.raises(SystemExit, match="a study with other set: choose another --output"):
        script.main([*given, "--set", f"{key}=7"])


def test_other_data_or_folds_are_refused(place, whole):
    with pytest.raises(SystemExit, match="a study with other folds: choose another --output"):
        script.main([*options(place, "whole"), "--folds", "3"])
    with pytest.raises(SystemExit, match="has no table_9"):
        script.main(options(place, "whole", "--tables", "table_9"))


def texts(page):
    """All cells of a page's tables, and its text."""
    page = unescape(page)
    return re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page), re.sub(r"<[^>]+>", " ", page)


def test_the_report_is_one_file_with_the_numbers_of_its_files(whole):
    page = (whole / "report.html").read_text()
    found, text = texts(page)
    assert "://" not in page and "<script" not in page and len(page) < 15e6
    assert set(re.findall(r'src="(.{5})', page)) == {"data:"}
    assert page.count("<img") == page.count('alt="ROC') == 4
    for row in ("rows/whole", "rows/small", "rows/longer", "baselines/forest"):
        results = json.loads((whole / row / "results.json").read_text())
        assert f"from {row}/results.json" in text
        for metric in results["metrics"].values():
            assert all(f"{metric[key]:.3f}" in found for key in ("value", "low", "high")), row
        assert str(results["positive"]) in found
    assert "18" in found and "Table 1. Patients" in text
    assert all(word in text for word in ("a limit of this bundle", "made elsewhere", "no description of it", "91.26"))
    assert "The only control without a network (forest) has" in text and "The AUC of whole is" in text
    commands = [
        json.loads((whole / f"rows/{row}/experiment.json").read_text())["command"] for row in ("small", "whole")
    ]
    assert all(command in text for command in commands)
    assert re.search(r"small net\s+epochs\s+3\s+1\s", text) and re.search(r"longer\s+epochs\s+3\s+7\s", text)
    headers = re.findall(r"<table>.*?</table>", page, re.DOTALL)
    assert headers and all('scope="col"' in part and 'scope="row"' in part for part in headers)


def numbers(content):
    if isinstance(content, dict):
        return [number for value in content.values() for number in numbers(value)]
    if isinstance(content, list):
        return [number for value in content for number in numbers(value)]
    return [content] if isinstance(content, int | float) else []


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_opens_the_page_without_network_or_errors(whole, tmp_path, scheme):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    flags += ["--enable-logging=stderr", f"--user-data-dir={tmp_path}"]
    flags += [f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"]  # 0: dark
    command = [BROWSER, *flags, "--dump-dom", (whole / "report.html").as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "CONSOLE" not in ended.stderr
    found, _ = texts(ended.stdout)
    metrics = json.loads((whole / "rows/whole/results.json").read_text())["metrics"]
    assert all(f"{metric['value']:.3f}" in found for metric in metrics.values())


def test_a_report_of_an_evaluation_holds_every_number_of_metrics_json(tmp_path):
    metrics = {
        "AUC": {"value": 0.8125, "low": 0.711, "high": 0.909},
        "n": 57,
        "classes": {"HP": {"precision": {"value": 0.123, "low": None, "high": None}, "support": 31}},
        "confusion": {"classes": ["HP", "SSA"], "matrix": [[84, 15], [13, 86]]},
        "calibration": {"slope": {"value": 0.934, "low": 0.7, "high": 1.2}, "bins": [{"mean": 0.05, "observed": 0.07}]},
        "decision": {"thresholds": [0.1, 0.2], "net_benefit": [0.331, 0.274]},
        "operating_points": [{"sensitivity": {"value": 0.951, "low": 0.9, "high": 0.99}, "threshold": 0.222}],
        "delong": {"size alone": {"difference": 0.044, "p": 0.031}},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    _, text = texts(write_report(tmp_path).read_text())
    missing = [n for n in numbers(metrics) if (f"{n:.3f}" if isinstance(n, float) else str(n)) not in text]
    assert not missing
    assert "0.951 [0.900, 0.990]" in text and "Decision curves" in text and "its AUC is 0.812 [0.711, 0.909]" in text


def test_missing_and_broken_pieces_do_not_break_the_report(tmp_path, whole):
    text = write_report(tmp_path).read_text()
    assert "No results are in the folder." in text and "No explanations are in the folder." in text
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    (copy / "rows/small/results.json").write_text("{half")
    for name in ("rows/whole/experiment.json", "rows/longer/roc.png", "tables/controls.json"):
        (copy / name).unlink()
    for path in copy.glob("rows/*/seed0/datalist.json"):
        path.unlink()
    text = write_report(copy).read_text()
    assert "No datalist is in the folder." in text and "Table 2" in text


def test_pseudonyms_leave_out_what_shows_a_patient(tmp_path):
    (tmp_path / "explained/patients").mkdir(parents=True)
    (tmp_path / "explained/patients/Smith.png").write_bytes(b"\x89PNG")
    (tmp_path / "explained/localisation.json").write_text('{"maps": {"Grad-CAM": {"pointing": 0.75}}}')
    assert "Smith" in write_report(tmp_path).read_text() and "0.750" in (tmp_path / "report.html").read_text()
    text = write_report(tmp_path, pseudonyms=True).read_text()
    assert "Smith" not in text and "1 pictures are left out" in text


def test_pictures_that_do_not_fit_are_named(tmp_path, monkeypatch):
    (tmp_path / "metrics.json").write_text('{"n": 1}')
    (tmp_path / "roc.png").write_bytes(b"\x89PNG" * 9)
    monkeypatch.setattr("shared.apps.study.report.LARGEST", 40)
    pictures = report_content(tmp_path)["experiments"][0]["pictures"]
    assert [(p["data"], p["file"]) for p in pictures] == [("", "roc.png")]


def test_every_file_of_a_study_is_described(whole):
    paths = [
        whole / "study.json",
        *sorted((whole / "tables").glob("*.json")),
        *sorted((whole / "tables").glob("*.csv")),
    ]
    missing = []
    for path in paths:
        if path.stem not in ("table_2", "controls") and path.suffix == ".csv":  # no row in it
            continue
        names = json_keys(json.loads(path.read_text())) if path.suffix == ".json" else list(table(path)[0])
        missing += undocumented(path.relative_to(whole), names, "Study")
    assert not missing


def test_all_that_is_wrong_with_a_study_is_said_at_once(place, tmp_path):
    rows = {
        "a": {"config": ["nott"], "sett": {}},
        "b": {"reuse": {"row": "zz"}},
        "c": {"reuse": {"row": "d"}},
        "d": {"reuse": {"row": "c"}},
        "e": {"baseline": "other"},
        "f": {"set": {"x": None}},
    }
    odd = {"analysis": {"script": "other", "row": "e", "fold": 1}}
    content = {"rows": rows, "tables": {"t": {"rows": [{"row": "g"}, {"title": "x"}]}, "u": {}, "v": odd}, "more": 1}
    path = tmp_path / "study.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as error:
        read_study(path, place / "bundle")
    parts = ("unknown keys more", "unknown keys sett", "no overlay 'nott'", "'zz', which is not there", "c -> d -> c")
    parts += ("'baseline' must be one of", "set 'x' must be", "no row 'g'", "'x': needs either", "u: needs 'rows'")
    parts += ("unknown keys fold", "'script' of an analysis must be one of explain", "a trained row, not 'e'")
    text = str(error.value)
    assert not [part for part in parts if part not in text]


@pytest.mark.parametrize("bundle", all_bundles(ROOT), ids=lambda path: path.name)
def test_studies_of_the_bundles_name_what_there_is(bundle):
    study = read_study(bundle / "configs/study.json", bundle)
    assert {row.name for row in study.needed(study.tables)} == set(study.rows)
    same = {}
    for row in study.rows.values():
        if row.baseline:
            assert row.control in import_module(f"shared.apps.baselines.{row.baseline}").CONTROLS
            continue
        configs = [find_config(bundle, name) for name in ("train", *row.config)]
        parse_overrides([f"{key}={value}" for key, value in row.settings.items()], merge_configs(configs))
        same.setdefault(json.dumps([row.config, row.settings, row.shuffle_labels]), []).append(row.name)
    assert not [names for names in same.values() if len(names) > 1], "rows that do not differ share one row"


def test_the_graphs_are_those_of_table_1():
    from shared.networks.glioma.population_edges import VARIANTS

    bundle = ROOT / "bundles/glioma_idh"
    study, train = read_study(bundle / "configs/study.json", bundle), merge_configs([find_config(bundle, "train")])
    rows = [study.rows[line.row] for line in study.tables["table_2"].lines]
    graphs = [row.settings.get("network_def#graph", train["network_def"]["graph"]) for row in rows]
    assert sorted(graphs) == sorted(VARIANTS)


def test_label_efficiency_is_a_command_that_its_module_takes(place):
    given = ["sscl_crc", "--dataset_dir", str(place / "data"), "--tables", "testing_section", "--jobs", "2"]
    run = script.StudyRun(script.arguments([*given, "--config", "cpu", "--gpus", "0,1"]))
    (job,) = analyses._efficiency(run, run.study.tables["testing_section"])
    assert not run.experiments and job.command[1:3] == ("-m", "shared.apps.experiments.label_efficiency_run")
    args = label_efficiency_run.arguments(job.command[3:])
    assert (args.fractions, args.jobs, args.gpus, args.config) == ([1.0], 2, ("0", "1"), ["cpu"])
    assert args.controls == ["forest", "random", "pretrained", "imagenet"] and (job.cwd / args.imagenet).suffix == ".pt"


def test_a_command_that_shares_out_jobs_itself_runs_alone(place, monkeypatch, tmp_path):
    given = ["sscl_crc", "--dataset_dir", str(place / "data"), "--tables", "testing_section", "--jobs", "2"]
    run = script.StudyRun(script.arguments([*given, "--gpus", "0,1"]))
    (sharing,) = analyses._efficiency(run, run.study.tables["testing_section"])
    plain = [analyses.AnalysisJob(f"plain {k}", tmp_path, f"step{k}", ("true",)) for k in range(3)]
    run.analyses.jobs, seen = {"first": [sharing], "second": [*plain, sharing]}, []

    def recorded(runs, *, total, done, jobs, gpus, **more):
        seen.append(([one.fold.name for one in runs], total, done, jobs, gpus))

    monkeypatch.setattr(processes, "run_folds", recorded)
    run.analyse()
    assert seen == [(["plain 0", "plain 1", "plain 2"], 3, 0, 2, ("0", "1")), ([sharing.name], 1, 0, 1, ())]
