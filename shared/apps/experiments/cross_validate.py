"""Cross-validate a bundle, whatever its method: train and evaluate it in every fold, pool the patients, write a table.

Folds that are done are not run again: an interrupted experiment goes on with the same command. Where an image, a label
or a setting changed meanwhile, it is refused. The patches of a patient, and the patients of a group, are left out
together; of patches, a validation section joins the training section; the testing section stays apart.

    python scripts/cross_validate.py ircl_mvi --dataset_dir data/phantom --folds 5 --seeds 0 1 2 --config cpu
    python scripts/cross_validate.py --report EXPERIMENT [TITLE=EXPERIMENT ...] --output comparison.md

--report puts finished experiments side by side: means over seeds, intervals over patients, paired differences to the
first with p corrected for their number (Holm), and a picture of the decision curves. Folders of an evaluation, or
folders seed<k> with one each, are taken as well: of runs that were tested on one common part.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.apps import ROOT
from shared.apps.experiments.options import add_options, check_options, parse_options
from shared.apps.experiments.processes import RUN_BUNDLE, working_folder
from shared.errors import DataError
from shared.io import write_json

if TYPE_CHECKING:
    from shared.apps.experiments.processes import FoldRun

METRICS = ("AUC", "BACC", "BRIER", "ECE", "SLOPE", "ACC", "F1", "PRE", "REC", "wF1", "wPRE", "wREC")
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
    add("--output", help="folder (default: bundles/BUNDLE/eval/cross_validation/NAME); with --report a file (.md), too")
    reuse = (
        "start from the earlier stages' checkpoints (all but model.pt) of the same seed and fold of another experiment"
    )
    add("--reuse", metavar="EXPERIMENT", help=f"{reuse}; right only where those stages do not depend on what differs")
    add("--reuse-stages", nargs="+", metavar="STAGE", help="which of them --reuse takes (default: all)")
    add("--shuffle-labels", action="store_true", help="control: permute the labels of the patients that train")
    votes = "train on the votes of so many simulated annotators: label their majority, soft_label their share"
    add("--votes", type=int, metavar="N", help=f"{votes}; tested on the true labels")
    share = "train on so large a share of the training patients, drawn by label; a larger share keeps a smaller one's"
    add("--share", type=float, metavar="S", help=f"{share}: for a learning curve")
    add(
        "--report",
        nargs="+",
        metavar="[TITLE=]EXPERIMENT",
        help="only compare finished experiments, or runs tested on one common part; the first is the reference",
    )
    compared = "what --report compares, with intervals and differences (default: AUC, and of patches BACC)"
    add("--metrics", nargs="+", choices=METRICS, help=compared)
    add_options(parser)
    args = parse_options(parser, argv)
    if not args.report and not (args.bundle and args.dataset_dir):
        parser.error("BUNDLE and --dataset_dir are needed (or --report)")
    if args.reuse_stages and not args.reuse:
        parser.error("--reuse-stages needs --reuse EXPERIMENT")
    if args.votes is not None and (args.shuffle_labels or args.votes < 1 or args.votes % 2 == 0):
        parser.error("--votes must be odd, so that there is a majority, and goes without --shuffle-labels")
    if args.share is not None and (not 0 < args.share <= 1 or args.reuse or args.votes or args.shuffle_labels):
        parser.error("--share must be above 0, at most 1, and goes without --reuse, --votes and --shuffle-labels")
    check_options(parser, args)
    return args


class Experiment:
    """A cross-validation as the command line asks for it; nothing is written before :meth:`prepare`.

    Args:
        args: of :func:`arguments`.

    Raises:
        DataError: no such bundle, config or datalist; keys that the configs lack; too few patients for the folds.
    """

    def __init__(self, args: argparse.Namespace):
        from shared.apps.experiments.folds import Fold
        from shared.apps.experiments.training_rows import TrainingRows
        from shared.bundle.configs import find_bundle, find_config, merge_configs, parse_overrides
        from shared.data.subgroups import read_subgroup_tables

        self.args, self.bundle = args, find_bundle(args.bundle, ROOT)
        self.configs = {"train": [find_config(self.bundle, name) for name in ("train", *args.config)]}
        self.configs["evaluate"] = [*self.configs["train"], find_config(self.bundle, "evaluate")]
        merged = merge_configs(self.configs["evaluate"])
        if lacking := [key for key in SET_HERE if key not in merged]:
            raise DataError(
                f"{self.bundle.name} cannot be cross-validated: its configs lack the keys {', '.join(lacking)}"
            )
        self.overrides = parse_overrides(args.set, merged, reserved=SET_HERE)
        self.dataset_dir = Path(args.dataset_dir).resolve()
        datalist = Path(args.datalist_file or self.dataset_dir / "datalist.json")
        self.rows = TrainingRows.read(datalist, self.dataset_dir)
        known = [*self.rows.labels, *(str(case["patient"]) for case in self.rows.datalist["training"])]
        read_subgroup_tables(self.dataset_dir, known=known)  # what is wrong is told before anything is trained
        self.fold_of = {seed: self.rows.folds(args.folds, seed) for seed in args.seeds}
        if args.votes and self.rows.patients is None:
            raise DataError(f"--votes needs patches: {self.bundle.name}'s cases have no soft_label to train on")
        parts = [path.stem for path in self.configs["train"][1:]] + ["shuffled"] * args.shuffle_labels
        parts += [f"{args.votes}votes"] if args.votes else []
        parts += [f"share{args.share:g}"] if args.share else []
        self.name = args.name or "_".join(parts) or "default"
        self.output = Path(args.output or self.bundle / "eval" / "cross_validation" / self.name).resolve()
        self.source = Path(args.reuse).resolve() if args.reuse else None
        self.cwd = working_folder(self.bundle)
        rows, relabelled = self.rows, bool(args.shuffle_labels or args.votes or args.share)
        shared = (relabelled, self.rows.patients, self.dataset_dir, self.rows.groups)
        self.folds = []
        for seed, split in self.fold_of.items():
            for number in range(args.folds):
                truth = {row: label for row, label in rows.labels.items() if split[row] == number}
                self.folds.append(Fold(self.output, seed, number, truth, *shared))

    def prepare(self) -> None:
        """Record what is run, write the folds' datalists.

        Raises:
            DataError: the folder holds results of other settings or data; those that are reused are of other data.
        """
        from shared.apps.experiments.data_record import check_same_data, data_record, named_files
        from shared.apps.experiments.folder import write_experiment
        from shared.bundle.configs import config_digest

        args, training = self.args, self.rows.datalist["training"]
        cases = [{key: value for key, value in case.items() if key != "fold"} for case in training]
        files = named_files(self.overrides, self.cwd)
        settings = {
            "bundle": self.bundle.name,
            "configs": {path.name: config_digest(path) for path in self.configs["evaluate"]},
            "overrides": self.overrides,
            "folds": args.folds,
            "shuffle_labels": args.shuffle_labels,
            "training": hashlib.sha256(json.dumps(cases, sort_keys=True).encode()).hexdigest()[:16],
            "data": data_record(training, self.dataset_dir, self.output, files=files),
            "reuse": str(self.source) if self.source else None,
            **({"reuse_stages": args.reuse_stages} if args.reuse_stages else {}),
            **({"votes": args.votes} if args.votes else {}),
            **({"share": args.share} if args.share else {}),
        }
        command = shlex.join(["python", "scripts/cross_validate.py", *args.argv])
        if self.source:
            check_same_data(self.source, settings["data"])
        write_experiment(self.output, title=args.title or self.name, command=command, settings=settings)
        for fold in self.folds:
            split = self.fold_of[fold.seed]
            write_json(fold.datalist, self.rows.split(split))
            if fold.relabelled:
                write_json(fold.training_datalist, self._training(fold, split))
            fold.folder.mkdir(exist_ok=True)

    def _training(self, fold: Any, split: Mapping[str, int]) -> dict:
        """The datalist that a fold trains on, where it is not that of all folds."""
        if not self.args.share:
            return self.rows.split(split, *self._other_labels(fold, split))
        content, drawn = self.rows.split(split), self.drawn(fold, split)
        kept = [c for c in content["training"] if (name := self.rows.name_of(c)) in drawn or split[name] == fold.number]
        return {**content, "training": kept}

    def drawn(self, fold: Any, split: Mapping[str, int]) -> set[str]:
        """The rows of the share that a fold trains on: whole patients (groups), about the same share of each label."""
        from shared.apps.experiments.label_draws import draw_patients

        labels = {row: label for row, label in self.rows.labels.items() if split[row] != fold.number}
        owner = self.rows.patients or self.rows.groups or {row: row for row in labels}
        patients = draw_patients(labels, owner, self.args.share or 1.0, seed=fold.seed)
        return {row for row in labels if owner[row] in patients}

    def _other_labels(self, fold: Any, split: Mapping[str, int]) -> tuple:
        """Labels that a fold trains on, where these are not the true ones; of votes also their shares."""
        from shared.apps.experiments.training_rows import shuffle_labels, simulate_votes

        labels = self.rows.labels
        if self.args.shuffle_labels:
            return (shuffle_labels(labels, split, fold=fold.number, seed=fold.seed),)
        votes = simulate_votes(labels, self.args.votes, fold.seed)
        cast = {row: share for row, share in votes.items() if split[row] != fold.number}
        return {**labels, **{row: int(share > 0.5) for row, share in cast.items()}}, cast

    def commands(self, fold: Any) -> list:
        """A fold's two commands: train (stages with a checkpoint are skipped), then evaluate on the true labels."""
        from shared.apps.experiments.processes import bundle_arguments

        commands = []
        for step, datalist in (("train", fold.training_datalist), ("evaluate", fold.datalist)):
            left_out = {"split": "validation"} if step == "evaluate" and fold.patients is not None else {}
            values = {"dataset_dir": self.dataset_dir, "datalist_file": datalist, "fold": fold.number}
            values |= {"seed": fold.seed, "ckpt_dir": fold.checkpoints, "output_dir": fold.folder}
            values |= {"resume": step == "train", **left_out, **self.overrides}
            arguments = bundle_arguments(
                self.configs[step], values, cwd=self.cwd, run_id="run" if step == "train" else step
            )
            commands.append((step, [*RUN_BUNDLE, *arguments]))
        return commands

    def runs(self, folds: Iterable[Any], *, wait: bool = False) -> Iterator[FoldRun]:
        """Runs of these folds.

        Args:
            folds: of this experiment.
            wait: what is reused may still run; each fold begins when its own is there.
        """
        from shared.apps.experiments.processes import FoldRun, run_environment

        environment = run_environment(self.args.threads)

        def ready(fold: Any) -> bool:
            if self.source is None:
                return True
            if wait and not fold.of(self.source).done():
                return False
            fold.take_checkpoints(self.source, self.args.reuse_stages)
            return True

        for fold in folds:
            start = partial(ready, fold)
            yield FoldRun(fold, self.commands(fold), cwd=self.cwd, environment=environment, ready=start)

    def waiting(self) -> list[Any]:
        """The folds that are not done."""
        return [fold for fold in self.folds if not fold.done()]

    def finish(self) -> None:
        """Write the results of all folds, which must be done."""
        from shared.apps.experiments.folder import write_results
        from shared.metrics.repeated import RepeatedPredictions

        predictions = RepeatedPredictions.from_rows([row for fold in self.folds for row in fold.rows()])
        write_results(self.output, predictions, bootstrap=self.args.bootstrap)
        self._subgroups(predictions)

    def _subgroups(self, predictions: Any) -> None:
        """Subgroups of all patients, called at the threshold that the other folds fixed (Youden's)."""
        from shared.data.subgroups import subgroup_values
        from shared.metrics.thresholds import fold_thresholds
        from shared.reports.subgroups import write_subgroups

        cases = self.rows.datalist["training"]
        values = subgroup_values(cases, [self.rows.name_of(case) for case in cases], self.dataset_dir)
        labels, probability = predictions.labels, predictions.probability
        youden = fold_thresholds(labels, probability, predictions.folds).get("Youden")
        options: dict[str, Any] = {"groups": predictions.groups, "bootstrap": self.args.bootstrap}
        if youden is not None:
            options |= {"threshold": youden, "threshold_name": "of Youden, fixed on the other folds"}
        if predictions.images is not None:
            options["patients"] = predictions.patients
        write_subgroups(self.output, labels, probability, predictions.names, values, **options)


def run_experiments(experiments: Sequence[Experiment], *, wait: bool = False, **options: Any) -> None:
    """Run the folds of experiments that are not done, under one progress bar.

    Args:
        experiments: in this order.
        wait: a fold begins when that whose stages it takes is done.
        options: ``jobs``, ``gpus``, ``name`` and ``unit`` of :func:`shared.apps.experiments.processes.run_folds`.
    """
    from shared.apps.experiments.processes import run_folds

    waiting = [experiment.waiting() for experiment in experiments]
    for experiment in experiments:
        experiment.prepare()
    runs = (
        run for experiment, folds in zip(experiments, waiting, strict=True) for run in experiment.runs(folds, wait=wait)
    )
    total = sum(len(experiment.folds) for experiment in experiments)
    run_folds(runs, total=total, done=total - sum(map(len, waiting)), **options)


def cross_validate(args: argparse.Namespace) -> Path:
    """Run the experiment; return its folder."""
    experiment = Experiment(args)
    run_experiments([experiment], jobs=args.jobs, gpus=args.gpus, name=experiment.name)
    experiment.finish()
    return experiment.output


def main(argv: Sequence[str] | None = None) -> None:
    """Run, or compare what was run."""
    args = arguments(argv)
    from shared.apps.experiments.processes import resumable

    with resumable("cross_validate"):
        if args.report:
            from shared.apps.experiments.comparison import compare

            print(compare(args.report, args.output, bootstrap=args.bootstrap, metrics=args.metrics))
            return
        output = cross_validate(args)
    print((output / "results.md").read_text(encoding="utf-8"))
    print(f"Table, pictures and predictions: {output}")
