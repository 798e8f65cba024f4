"""What pretraining is worth when few labels are known: train a patch bundle on draws of labelled patients.

Each draw pretrains once, on all training pixels and no label (with ``--pretrainings 1`` one pretraining serves all
draws: they differ by labels alone, not by seed); then, for each fraction, only the labels of some patients are known:
the bundle is trained from the pretraining and, with the same total budget, from scratch (the overlay scratch.json), and
tested on the testing section. Beside it stand controls on the same labels (``--controls``): a random forest on colour
and texture, linear probes of a random encoder, of the pretraining and of ImageNet weights. Runs that are done are not
run again. An analysis of ``scripts/study.py``:

    python -m shared.apps.experiments.label_efficiency_run sscl_crc --dataset_dir data/sscl_crc --config cpu \\
        --fractions 0.05 0.1 0.25 0.5 1 --draws 3 --controls forest pretrained --output eval/label_efficiency
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.apps import ROOT
from shared.apps.baselines.patches import CONTROLS, TITLES, TREES
from shared.apps.experiments.options import add_options, parse_options
from shared.apps.experiments.processes import RUN_BUNDLE, working_folder
from shared.errors import DataError
from shared.io import write_csv, write_json, write_text

SET_HERE = ("dataset_dir", "datalist_file", "fold", "seed", "ckpt_dir", "output_dir", "resume", "split")
ARMS = ("pretrained", "scratch")
MARK = "control.json"  # weights of a control that is done
LEFT_OUT = "left_out.json"  # controls whose weights are not there, with the file


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("bundle", help="a name under bundles/, or the folder of an unpacked bundle")
    add("--dataset_dir", required=True, help="folder with datalist.json")
    add("--datalist_file", help="another datalist (default: DATASET_DIR/datalist.json)")
    add("--split", choices=("testing", "validation"), default="testing", help="what is tested on (default: testing)")
    add("--fractions", type=float, nargs="+", default=[0.05, 0.1, 0.25, 0.5, 1.0], help="of labelled patients")
    add("--draws", type=int, default=3, help="each with a seed of its own, from 0 on (default: 3)")
    add("--pretrainings", type=int, help="with seeds of their own, which the draws take in turn (default: one a draw)")
    add("--scratch", default="scratch", help="overlay of the control without pretraining (default: scratch)")
    add("--controls", nargs="+", choices=CONTROLS, default=[], help="without training of a network, on the same labels")
    weights = "ImageNet weights (default: %(default)s), relative to the repository's, or an unpacked bundle's, folder"
    add("--imagenet", default="models/imagenet_resnet50.pt", help=f"{weights}; without them that control is left out")
    add("--output", required=True, help="folder of the experiment")
    add("--title", default="Label efficiency", help="of table and picture")
    add_options(parser, "--config", "--set", "--jobs", "--gpus", "--threads", "--bootstrap")
    args = parse_options(parser, argv)
    args.fractions = sorted(set(args.fractions))
    counts = (args.jobs, args.draws, pretraining_count(args), args.bootstrap)
    if min(counts) < 1 or not all(0 < f <= 1 for f in args.fractions):
        parser.error(
            "--jobs, --draws, --pretrainings and --bootstrap must be at least 1, --fractions above 0 and at most 1"
        )
    return args


def pretraining_count(args: argparse.Namespace) -> int:
    """How many pretrainings the draws share; without ``--pretrainings`` each has its own, and draws can be added."""
    return args.draws if args.pretrainings is None else args.pretrainings


def commands(args: argparse.Namespace, run: Any, configs: Mapping, cwd: Path, overrides: Mapping) -> list:
    """Return a run's commands: pretraining alone, or fine-tuning and evaluation."""
    from shared.apps.experiments.label_efficiency import PretrainingRun
    from shared.apps.experiments.processes import bundle_arguments

    pretraining = isinstance(run, PretrainingRun)
    datalist = run.folder / "datalist.json" if pretraining else run.datalist
    values = {"dataset_dir": args.dataset_dir, "datalist_file": datalist, "fold": -1}
    values |= {"seed": run.draw % pretraining_count(args)}
    values |= {"ckpt_dir": run.folder / "models", "output_dir": run.folder, "resume": True, **overrides}
    if pretraining:
        steps = [("pretrain_run", configs["pretrained"], {})]
    else:
        train = configs[run.arm]
        steps = [("train_run", train, {}), ("evaluate", [*train, *configs["evaluate"]], {"split": args.split})]
    return [
        (run_id, [*RUN_BUNDLE, *bundle_arguments(files, {**values, **own}, cwd=cwd, run_id=run_id)])
        for run_id, files, own in steps
    ]


def read(args: argparse.Namespace) -> tuple[dict, tuple, tuple]:
    """Return the datalist, and labels and patients of the patches that train and of those tested on."""
    from shared.apps.experiments.training_rows import is_patch_list, patch_truth, read_json_datalist

    path = Path(args.datalist_file or args.dataset_dir / "datalist.json")
    datalist = read_json_datalist(path)
    if not is_patch_list(datalist):
        raise DataError(
            f"{path}: label efficiency is of patches; its training section must list PNG, JPEG or TIFF files"
        )
    training = patch_truth(datalist["training"], args.dataset_dir, f"{path}, training")
    tested = patch_truth(datalist.get(args.split, []), args.dataset_dir, f"{path}, {args.split}")
    if len(set(tested[0].values())) < 2:
        raise DataError(f"{path}: the {args.split} split needs patches of both classes to be tested on")
    return datalist, training, tested


def plan(
    args: argparse.Namespace, datalist: Mapping, training: tuple, tested: tuple, output: Path
) -> tuple[list, list, dict]:
    """Write the datalists; return pretrainings, runs to test, and labelled counts of each draw and fraction."""
    from shared.apps.experiments.label_draws import draw_patients, labelled_counts, with_labels_of
    from shared.apps.experiments.label_efficiency import PretrainingRun, TestedRun

    (labels, patients), (truth, owners) = training, tested
    pretrainings, runs, counts = [], [], {}
    for draw in range(args.draws):
        if draw < pretraining_count(args):
            pretraining = PretrainingRun(f"draw{draw}/pretraining", output / f"draw{draw}" / "pretraining", draw)
            write_json(pretraining.folder / "datalist.json", with_labels_of(datalist, set(patients.values())))
            pretrainings.append(pretraining)
        for fraction in args.fractions:
            folder = output / f"draw{draw}" / f"{fraction:g}"
            drawn = with_labels_of(datalist, draw_patients(labels, patients, fraction, seed=draw))
            counts[draw, fraction] = labelled_counts(drawn)
            write_json(folder / "datalist.json", drawn)
            for arm in [*ARMS, *(TITLES[control] for control in args.controls)]:
                own = folder / arm.replace(" ", "_")
                own.mkdir(parents=True, exist_ok=True)
                name = f"{own.relative_to(output)}"
                runs.append(TestedRun(name, own, arm, draw, fraction, truth, owners, args.dataset_dir))
    return pretrainings, runs, counts


def fit_controls(
    args: argparse.Namespace, runs: Sequence[Any], datalist: Mapping, output: Path, config: Mapping, weights: Mapping
) -> None:
    """Fit and test the controls that are not done, on the labels of their draw.

    Args:
        args: of the command.
        runs: those of the controls.
        datalist: of all patches.
        output: the experiment's folder.
        config: the merged configs.
        weights: by control and number of the pretraining the file that it needs.
    """
    from tqdm import tqdm

    from shared.apps.baselines.patches import Patches, weights_digests
    from shared.io import read_json_object
    from shared.reports.predictions import patch_name, write_predictions

    control_of = {title: control for control, title in TITLES.items()}
    waiting = []
    for run in runs:
        control, number = control_of[run.arm], run.draw % pretraining_count(args)
        file = weights.get((control, number))
        before = run.folder / MARK
        if run.done() and file and not file.is_file():
            continue  # removed to save room
        mark = weights_digests(file) if file else {}
        if not run.done() or mark != (read_json_object(before, "control") if before.is_file() else {}):
            waiting.append((run, control, number, file, mark))
    if not waiting:
        return
    entries = [*datalist["training"], *datalist[args.split]]
    entries = [{**entry, "image": str(args.dataset_dir / entry["image"])} for entry in entries]
    patches = Patches(entries, args.dataset_dir, output / "features", config)
    row_of = {name: row for row, name in enumerate(patches.names)}
    for run, control, number, file, mark in tqdm(waiting, desc="controls", unit="run", dynamic_ncols=True):
        kept = json.loads(run.datalist.read_text(encoding="utf-8"))["training"]
        train = [row_of[patch_name(args.dataset_dir / entry["image"], args.dataset_dir)] for entry in kept]
        table = patches.features(control, number, file)
        rows = patches.predict(control, table, train, [row_of[name] for name in run.truth], run.draw)
        options = {"class_names": datalist.get("classes", ("negative", "positive")), "bootstrap": args.bootstrap}
        write_predictions(run.folder, rows, **options)
        if mark:
            write_json(run.folder / MARK, mark)


def label_efficiency(args: argparse.Namespace) -> Path:
    """Run the experiment; return its folder."""
    from shared.apps.experiments.data_record import data_record, named_files
    from shared.apps.experiments.folder import write_experiment
    from shared.apps.experiments.label_efficiency import take_checkpoint
    from shared.apps.experiments.processes import FoldRun, run_environment, run_folds
    from shared.bundle.configs import (
        config_digest,
        find_bundle,
        find_config,
        merge_configs,
        parse_overrides,
        with_overrides,
    )

    bundle = find_bundle(args.bundle, ROOT)
    train = [find_config(bundle, name) for name in ("train", *args.config)]
    configs = {"pretrained": train, "scratch": [*train, find_config(bundle, args.scratch)]}
    configs["evaluate"] = [find_config(bundle, "evaluate")]
    used = [*configs["scratch"], *configs["evaluate"]]
    merged = merge_configs(used)
    needed = (*SET_HERE, "pretrain_run", "train_run", "evaluate")
    if lacking := [key for key in needed if key not in merged]:
        raise DataError(f"{bundle.name} cannot be measured so: its configs lack the keys {', '.join(lacking)}")
    overrides = parse_overrides(args.set, merged, reserved=SET_HERE)

    args.dataset_dir, output = Path(args.dataset_dir).resolve(), Path(args.output).resolve()
    datalist, training, held = read(args)
    cwd = working_folder(bundle)
    digest = hashlib.sha256(json.dumps(datalist, sort_keys=True).encode()).hexdigest()[:16]
    files = {path.name: config_digest(path) for path in used}
    settings = {"bundle": bundle.name, "configs": files, "overrides": overrides, "split": args.split}
    if args.pretrainings is not None:
        settings["pretrainings"] = args.pretrainings
    settings |= {"datalist": digest, "trees": TREES if "forest" in args.controls else None}
    cases = [case for section in datalist.values() if isinstance(section, list) for case in section]
    cases = [case for case in cases if isinstance(case, dict) and "image" in case]
    settings["data"] = data_record(cases, args.dataset_dir, output, files=named_files(overrides, cwd))
    command = shlex.join(["python", "-m", "shared.apps.experiments.label_efficiency_run", *args.argv])
    imagenet = cwd / args.imagenet
    left_out = {"imagenet": str(imagenet)} if "imagenet" in args.controls and not imagenet.is_file() else {}
    if left_out:
        print(f"There is no file {imagenet}: no control with ImageNet weights")
        args.controls = [control for control in args.controls if control not in left_out]
    write_experiment(output, title=args.title, command=command, settings=settings)
    write_json(output / LEFT_OUT, left_out)
    pretrainings, tested, counts = plan(args, datalist, training, held, output)

    environment = run_environment(args.threads)
    trained = [run for run in tested if run.arm in ARMS]
    needing = (ARMS[0], TITLES["pretrained"])
    wanted = {run.draw % len(pretrainings) for run in tested if run.arm in needing and not run.done()}
    queue = [run for run in pretrainings if run.draw in wanted and not run.done()]
    queue += [run for run in trained if not run.done()]

    def runs() -> Iterator[FoldRun]:
        for run in queue:
            options: dict[str, Any] = {"cwd": cwd, "environment": environment}
            if getattr(run, "arm", None) == ARMS[0]:
                source, folder = pretrainings[run.draw % len(pretrainings)], run.folder / "models"
                options["ready"] = lambda source=source, folder=folder: take_checkpoint(source, folder)
            yield FoldRun(run, commands(args, run, configs, cwd, overrides), **options)

    total = len(pretrainings) + len(trained)
    shown = {"name": "label efficiency", "unit": "run"}
    run_folds(runs(), total=total, done=total - len(queue), jobs=args.jobs, gpus=args.gpus, **shown)
    weights = {("pretrained", number): run.checkpoint for number, run in enumerate(pretrainings)}
    weights |= {("imagenet", number): imagenet for number in range(len(pretrainings))}
    controls = [run for run in tested if run.arm not in ARMS]
    fit_controls(args, controls, datalist, output, with_overrides(merge_configs(train), overrides), weights)
    report(args, tested, counts, datalist, output, command)
    return output


def report(
    args: argparse.Namespace, runs: Sequence[Any], counts: Mapping, datalist: Mapping, output: Path, command: str
) -> None:
    """Write results.csv, label_efficiency.csv, label_efficiency.md and label_efficiency.png."""
    from shared.apps.experiments.label_efficiency import HOW, METRICS, markdown, summary_rows
    from shared.apps.experiments.label_efficiency_figure import label_efficiency_figure

    single, summary = summary_rows(runs, counts, bootstrap=args.bootstrap)
    write_csv(output / "results.csv", single)
    flat = []
    for line in summary:
        row = {key: value for key, value in line.items() if key != "difference"}
        for name in METRICS:
            found = line.get("difference", {}).get(name, {})
            row |= {
                f"{name}_gain{end}": found.get(key) for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))
            }
        flat.append(row)
    write_csv(output / "label_efficiency.csv", flat)
    positive = datalist.get("classes", ("class 0", "class 1"))[1]
    counted = {"images": len(runs[0].truth), "patients": len(set(runs[0].patients.values()))}
    counted |= {"positive": sum(runs[0].truth.values()), "positive_name": positive, "draws": args.draws}
    note = HOW.format(**counted, arm=ARMS[0], control=ARMS[1], bootstrap=args.bootstrap)
    text = markdown(summary, title=args.title, note=note, command=command)
    write_text(output / "label_efficiency.md", text)
    label_efficiency_figure(single, output / "label_efficiency.png", title=args.title)


def main(argv: Sequence[str] | None = None) -> None:
    """Run, or go on."""
    args = arguments(argv)
    from shared.apps.experiments.processes import resumable

    with resumable("label_efficiency"):
        output = label_efficiency(args)
    print((output / "label_efficiency.md").read_text(encoding="utf-8"))
    print(f"Table, picture and predictions: {output}")


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
