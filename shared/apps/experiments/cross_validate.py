"""Cross-validate a bundle, whatever its method: train and evaluate it in every fold, pool the patients, write a table.

Folds that are done are not run again: an interrupted experiment goes on with the same command. Where an image, a label
or a setting changed meanwhile, it is refused. The patches of a patient, and the patients of a group, are left out
together; of patches, a validation section joins the training section; the testing section stays apart.

    python scripts/cross_validate.py ircl_mvi --dataset_dir data/phantom --folds 5 --seeds 0 1 2 --config cpu
    python scripts/cross_validate.py --report EXPERIMENT [EXPERIMENT ...] --output comparison.md
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shared.apps import ROOT
from shared.apps.experiments.options import METRIC_OPTION, add_options
from shared.apps.experiments.processes import RUN_BUNDLE
from shared.errors import DataError
from shared.io import write_json

SET_HERE = ("dataset_dir", "datalist_file", "fold", "seed", "ckpt_dir", "output_dir", "resume")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("bundle", nargs="?", help="a name under bundles/, or the folder of an unpacked bundle")
    add("--dataset_dir", help="folder with datalist.json")
    add("--datalist_file", help="another datalist (default: DATASET_DIR/datalist.json); its folds are replaced")
    add("--name", help="of the experiment's folder (default: made of the overlays' names)")
    add("--title", help="of its table (default: the name)")
    add("--output", help="folder (default: bundles/BUNDLE/eval/cross_validation/NAME); with --report the file to write")
    reuse = (
        "start from the earlier stages' checkpoints (all but model.pt) of the same seed and fold of another experiment"
    )
    add("--reuse", metavar="EXPERIMENT", help=f"{reuse}; right only where those stages do not depend on what differs")
    add("--reuse-stages", nargs="+", metavar="STAGE", help="which of them --reuse takes (default: all)")
    add("--shuffle-labels", action="store_true", help="control: permute the labels of the patients that train")
    votes = "train on the votes of so many simulated annotators: label their majority, soft_label their share"
    add("--votes", type=int, metavar="N", help=f"{votes}; tested on the true labels")
    add(
        "--report",
        nargs="+",
        metavar="[TITLE=]EXPERIMENT",
        help="only compare finished experiments; the first is the reference",
    )
    add("--metrics", **METRIC_OPTION)
    add_options(parser)
    args = parser.parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    args.threads = args.threads or max(1, (os.cpu_count() or 1) // max(1, args.jobs))
    if not args.report and not (args.bundle and args.dataset_dir):
        parser.error("BUNDLE and --dataset_dir are needed (or --report)")
    if args.report and not args.output:
        parser.error("--report needs --output FILE.md")
    if args.reuse_stages and not args.reuse:
        parser.error("--reuse-stages needs --reuse EXPERIMENT")
    if args.votes is not None and (args.shuffle_labels or args.votes < 1 or args.votes % 2 == 0):
        parser.error("--votes must be odd, so that there is a majority, and goes without --shuffle-labels")
    if args.jobs < 1 or args.folds < 2 or args.bootstrap < 1 or len(set(args.seeds)) != len(args.seeds):
        parser.error("--jobs and --bootstrap must be at least 1, --folds at least 2, and no seed given twice")
    return args


def fold_commands(args: argparse.Namespace, fold: Any, configs: dict, cwd: Path, overrides: dict) -> list:
    """Return a fold's two commands: train (stages with a checkpoint are skipped), then evaluate on the true labels."""
    from shared.apps.experiments.processes import bundle_arguments

    commands = []
    for step, datalist in (("train", fold.training_datalist), ("evaluate", fold.datalist)):
        left_out = {"split": "validation"} if step == "evaluate" and fold.patients is not None else {}
        values = {"dataset_dir": args.dataset_dir, "datalist_file": datalist, "fold": fold.number, "seed": fold.seed}
        values |= {"ckpt_dir": fold.checkpoints, "output_dir": fold.folder, "resume": step == "train"}
        values |= {**left_out, **overrides}
        run_id = "run" if step == "train" else step
        commands.append((step, [*RUN_BUNDLE, *bundle_arguments(configs[step], values, cwd=cwd, run_id=run_id)]))
    return commands


def cross_validate(args: argparse.Namespace) -> Path:
    """Run the experiment; return its folder."""
    from shared.apps.experiments.data_record import check_same_data, data_record, named_files
    from shared.apps.experiments.folder import write_experiment, write_results
    from shared.apps.experiments.folds import Fold
    from shared.apps.experiments.processes import FoldRun, run_environment, run_folds
    from shared.apps.experiments.training_rows import TrainingRows, shuffle_labels, simulate_votes
    from shared.bundle.configs import config_digest, find_bundle, find_config, merge_configs, parse_overrides
    from shared.metrics.repeated import RepeatedPredictions

    bundle = find_bundle(args.bundle, ROOT)
    configs = {"train": [find_config(bundle, name) for name in ("train", *args.config)]}
    configs["evaluate"] = [*configs["train"], find_config(bundle, "evaluate")]
    merged = merge_configs(configs["evaluate"])
    if lacking := [key for key in SET_HERE if key not in merged]:
        raise DataError(f"{bundle.name} cannot be cross-validated: its configs lack the keys {', '.join(lacking)}")
    overrides = parse_overrides(args.set, merged, reserved=SET_HERE)

    args.dataset_dir = Path(args.dataset_dir).resolve()
    rows = TrainingRows.read(Path(args.datalist_file or args.dataset_dir / "datalist.json"), args.dataset_dir)
    fold_of = {seed: rows.folds(args.folds, seed) for seed in args.seeds}

    if args.votes and rows.patients is None:
        raise DataError(f"--votes needs patches: {bundle.name}'s cases have no soft_label to train on")

    parts = [path.stem for path in configs["train"][1:]] + ["shuffled"] * args.shuffle_labels
    parts += [f"{args.votes}votes"] if args.votes else []
    name = args.name or "_".join(parts) or "default"
    output = Path(args.output or bundle / "eval" / "cross_validation" / name).resolve()
    source = Path(args.reuse).resolve() if args.reuse else None
    # A bundle of this repository finds shared/ from the root, an unpacked one in its own folder.
    cwd = ROOT if bundle.is_relative_to(ROOT / "bundles") else bundle
    files = named_files(overrides, cwd)
    cases = [{key: value for key, value in case.items() if key != "fold"} for case in rows.datalist["training"]]
    settings = {
        "bundle": bundle.name,
        "configs": {path.name: config_digest(path) for path in configs["evaluate"]},
        "overrides": overrides,
        "folds": args.folds,
        "shuffle_labels": args.shuffle_labels,
        "training": hashlib.sha256(json.dumps(cases, sort_keys=True).encode()).hexdigest()[:16],
        "data": data_record(rows.datalist["training"], args.dataset_dir, output, files=files),
        "reuse": str(source) if source else None,
        **({"reuse_stages": args.reuse_stages} if args.reuse_stages else {}),
        **({"votes": args.votes} if args.votes else {}),
    }
    command = shlex.join(["python", "scripts/cross_validate.py", *args.argv])
    if source:
        check_same_data(source, settings["data"])
    write_experiment(output, title=args.title or name, command=command, settings=settings)

    folds = []
    for seed, split in fold_of.items():
        votes = simulate_votes(rows.labels, args.votes, seed) if args.votes else {}
        for number in range(args.folds):
            truth = {row: label for row, label in rows.labels.items() if split[row] == number}
            relabelled = args.shuffle_labels or bool(votes)
            fold = Fold(output, seed, number, truth, relabelled, rows.patients, args.dataset_dir, rows.groups)
            write_json(fold.datalist, rows.split(split))
            if args.shuffle_labels:
                shuffled = shuffle_labels(rows.labels, split, fold=number, seed=seed)
                write_json(fold.training_datalist, rows.split(split, shuffled))
            elif votes:
                cast = {row: share for row, share in votes.items() if split[row] != number}
                majority = {**rows.labels, **{row: int(share > 0.5) for row, share in cast.items()}}
                write_json(fold.training_datalist, rows.split(split, majority, cast))
            fold.folder.mkdir(exist_ok=True)
            folds.append(fold)

    environment = run_environment(args.threads)
    waiting = [fold for fold in folds if not fold.done()]

    def runs() -> Iterator[FoldRun]:
        for fold in waiting:
            if source:
                fold.take_checkpoints(source, args.reuse_stages)
            yield FoldRun(fold, fold_commands(args, fold, configs, cwd, overrides), cwd=cwd, environment=environment)

    run_folds(runs(), total=len(folds), done=len(folds) - len(waiting), jobs=args.jobs, name=name)
    predictions = RepeatedPredictions.from_rows([row for fold in folds for row in fold.rows()])
    write_results(output, predictions, bootstrap=args.bootstrap)
    return output


def main(argv: Sequence[str] | None = None) -> None:
    """Run, or compare what was run."""
    args = arguments(argv)
    from shared.apps.experiments.processes import resumable

    with resumable("cross_validate"):
        if args.report:
            from shared.apps.experiments.compare_runs import compare

            options = {"bootstrap": args.bootstrap, "metrics": args.metrics}
            print(compare(args.report, output=args.output, **options))
            return
        output = cross_validate(args)
    print((output / "results.md").read_text(encoding="utf-8"))
    print(f"Table, pictures and predictions: {output}")


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
