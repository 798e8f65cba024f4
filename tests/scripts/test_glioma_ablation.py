"""Ablations of the glioma bundle: every override is one of the bundle's keys, tables hold what the runs predicted."""

import json
from pathlib import Path

import pytest

from shared.bundle.configs import find_bundle, find_config, merge_configs, parse_overrides
from shared.io import write_csv
from shared.networks.glioma.population_edges import VARIANTS
from tests.scripts.test_prepare_scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
script = load_script("glioma_ablation")
cross_validate = load_script("cross_validate")


@pytest.mark.parametrize("group", script.GROUPS)
def test_every_variant_is_a_cross_validation_of_the_bundle(group, tmp_path):
    args = script.arguments(
        ["--dataset_dir", "data", "--config", "cpu", "--output", str(tmp_path), "--seeds", "0", "1"]
    )
    bundle = find_bundle("glioma_idh", ROOT)
    for name in (script.WHOLE, *script.variants(group)):
        command = script.cross_validation(args, name, tmp_path, None)
        given = cross_validate.arguments(command[2:])
        merged = merge_configs([find_config(bundle, overlay) for overlay in ("train", *given.config)])
        parse_overrides(given.set, merged, reserved=cross_validate.SET_HERE)  # refuses a key that is not there
        assert given.seeds == [0, 1] and given.title == name and given.config[0] == "cpu"
        brainless = group == "backbones" or name in ("image", "points", "image + points")
        assert bool(given.reuse) == (name != script.WHOLE and not brainless)
        assert ("contrast" in (given.reuse_stages or [])) == (group == "graphs" and name != script.WHOLE)


def test_the_graphs_are_those_of_table_1():
    assert {f"graph {name}" for name in VARIANTS} < set(script.variants("graphs"))


def test_the_table_of_signs_scores_the_own_classifier_beside_the_graph(tmp_path):
    for sign in script.SIGNS:
        for fold in (0, 1):
            folder = tmp_path / sign / "brain" / "seed0" / f"fold{fold}"
            folder.mkdir(parents=True)
            lines = ["patient,label,probability,multitask,unimodal_image"]
            # the classifier tells tracts and nothing else, the graph answers the wrong way round
            for number, label in enumerate((0, 1, 0, 1)):
                own = label if sign == "tracts" else 0.5
                lines.append(f"P{fold}{number},{label},{0.9 - 0.8 * label},{own},{1 - own}")
            (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
    text = script.sign_table(tmp_path, ["brain"], bootstrap=20)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| brain")
    ]
    assert [cell.split()[0] for cell in rows[0][2:]] == ["0.500", "0.500", "1.000"]
    assert [cell.split()[0] for cell in rows[1][2:]] == ["0.500", "0.500", "0.000"]
    assert [cell.split()[0] for cell in rows[2][2:]] == ["0.000", "0.000", "0.000"]
    assert [row[1] for row in rows] == ["own classifier", "the image's classifier", "population graph"]
    assert (tmp_path / "signs.csv").read_text().count("own classifier") == 3


def finished(folder, graph, own=None, *, seeds=(0,)):
    """A run whose population graph, and own classifier, rank so many of the 4 pairs right."""
    rows = []
    for seed in (0, 1):
        for fold in (0, 1):
            path = folder / f"seed{seed}" / f"fold{fold}"
            for number in (2 * fold, 2 * fold + 1):
                row = {"patient": f"P{number}", "label": number % 2, "probability": SCORES[graph][number]}
                row |= {} if own is None else {"multitask": SCORES[own][number] if seed == 0 else 0.5}
                rows.append({"seed": seed, "fold": fold, **row})
            write_csv(path / "predictions.csv", [{k: v for k, v in r.items() if k != "seed"} for r in rows[-2:]])
    write_csv(folder / "predictions.csv", [row for row in rows if row["seed"] in seeds])


# probabilities of P0-P3, labels 0 1 0 1, by the AUC they have
SCORES = {
    1.0: (0.1, 0.9, 0.2, 0.8),
    0.75: (0.1, 0.9, 0.7, 0.6),
    0.5: (0.1, 0.9, 0.8, 0.05),
    0.25: (0.5, 0.9, 0.95, 0.1),
}


def test_each_row_says_whose_answer_it_scores(tmp_path):
    """The image's encoder alone: the graph on its embedding, and its own answer, are two figures."""
    finished(tmp_path / "whole", 1.0, 0.75)
    for name in script.variants("encoders"):
        finished(tmp_path / script._slug(name), 0.5, None if name == "brain" else 0.25)
    text = script.group_table(tmp_path, "encoders", bootstrap=20)
    cells = {
        line.split(" | ")[0].strip("| "): line.split(" | ")[1].split()[0] for line in text.splitlines() if "| " in line
    }
    assert cells["whole: population graph"] == "1.000" and cells["whole: own classifier"] == "0.750"
    assert cells["image: population graph"] == "0.500" and cells["image: own classifier"] == "0.250"
    assert "brain: own classifier" not in cells and "Not trained: the own classifier of brain." in text
    # differences are within a kind of answer: to the whole's graph, and to the whole's classifier
    rows = {name: line for line in text.splitlines() for name in cells if line.startswith(f"| {name} |")}
    assert "-0.500 [" in rows["image: population graph"] and "-0.500 [" in rows["image: own classifier"]


def test_runs_without_a_classifier_and_graphs_have_one_table(tmp_path):
    for name in ("whole", *script.variants("backbones"), *script.variants("graphs")):
        finished(tmp_path / script._slug(name), 1.0)
    text = script.group_table(tmp_path, "backbones", bootstrap=20)
    assert "own classifier |" not in text and "of whole; 3D-ResNet34; 3D-DenseNet121." in text
    assert "own classifier" not in script.group_table(tmp_path, "graphs", bootstrap=20)


def test_signs_need_the_datalists_of_phantoms(tmp_path):
    (tmp_path / "datalist.json").write_text(json.dumps({}))
    with pytest.raises(SystemExit, match=r"datalist_shape.json.*make_phantom_brains.py"):
        script.main(["--dataset_dir", str(tmp_path), "--signs", "--output", str(tmp_path / "out")])


def test_explanations_of_all_folds_are_one_table_for_each_sign(tmp_path):
    for sign, (encoder, part, truth, keys) in script.SCORED.items():
        for fold in (0, 1):
            folder = tmp_path / sign / encoder / "seed0" / f"fold{fold}" / script.EXPLAINED
            folder.mkdir(parents=True)
            lines = [",".join(["patient", "truth", "map", *keys])]
            for name, score in (("a map", 1 + fold), ("a control", 0)):
                lines.append(",".join([f"P{fold}", truth, name, *[str(score)] * len(keys)]))
                lines.append(",".join([f"P{fold}", "something else", name, *["9"] * len(keys)]))
            (folder / f"localisation_{part}.csv").write_text("\n".join(lines) + "\n")
    text = script.explanation_table(tmp_path, seeds=[0], folds=2, bootstrap=20)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| a ")]
    # the mean over both folds' patients, of this sign alone
    assert len(rows) == 2 * len(script.SCORED)
    assert {cell.split()[0] for row in rows if row[0] == "a map" for cell in row[1:]} == {"1.500"}
    assert {cell.split()[0] for row in rows if row[0] == "a control" for cell in row[1:]} == {"0.000"}
    assert text.count("2 patients**") == 3 and (tmp_path / "explanations.csv").is_file()


def test_explaining_goes_with_signs_and_its_keys_are_the_bundles(tmp_path, capsys, monkeypatch):
    given = ["--dataset_dir", "data", "--config", "cpu", "--output", str(tmp_path), "--folds", "2"]
    with pytest.raises(SystemExit):
        script.arguments([*given, "--explain"])
    assert "--signs" in capsys.readouterr().err
    args = script.arguments([*given, "--explain", "--signs"])
    args.bundle = str(find_bundle("glioma_idh", ROOT))
    commands = []

    def record(command, **_):
        commands.append(command)
        return script.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(script.subprocess, "run", record)
    folders = [tmp_path / "shape" / "points" / "seed0" / f"fold{k}" / script.EXPLAINED for k in (0, 1)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "localisation.json").write_text("{}")
        (folder.parent / "models").mkdir()
        (folder.parent / "models" / "model.pt").write_bytes(b"trained")
    script.explain(args, "shape")
    assert len(commands) == 2  # of which model these are nobody knows
    script.explain(args, "shape")
    assert len(commands) == 2  # done: not again
    (folders[1].parent / "models" / "model.pt").write_bytes(b"trained again")
    script.explain(args, "shape")
    assert len(commands) == 3 and str(folders[1]) in " ".join(commands[2])
    merged = merge_configs([find_config(Path(args.bundle), name) for name in ("train", "cpu", "explain")])
    keys = {word.split("=")[0][2:].split("#")[0] for word in commands[0] if word.startswith("--") and "=" in word}
    assert keys >= {"fold", "ckpt_dir", "split", "max_patients", "network_def"} and keys <= set(merged)
