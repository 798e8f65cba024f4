"""Run a paper's tables, its ablations and the controls on a cohort: one command, resumable, with a report at the end.

The bundle's configs/study.json names the tables and their rows. Each row is a cross-validation in OUTPUT/rows/ROW, or a
control in OUTPUT/baselines; tables share rows, rows share stages. What is done is not run again: the same command goes
on after Ctrl-C, and collects what was run by --print-commands elsewhere.

    python scripts/study.py ircl_mvi --dataset_dir data/hcc
    python scripts/study.py ircl_mvi --dataset_dir data/hcc --tables table_3 figure_3 --seeds 0 1 2 --plan
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.apps import ROOT
from shared.apps.experiments.options import add_options, check_options, parse_options
from shared.apps.experiments.processes import working_folder
from shared.errors import DataError
from shared.io import MANIFEST, read_json_object, write_json

if TYPE_CHECKING:
    from shared.apps.experiments.cross_validate import Experiment
    from shared.apps.study.definition import Row, Study

RECORD = "study.json"
CHECKS = ("audit", "robustness", "failures", "learning_curve")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("bundle", help="a name under bundles/, or the folder of an unpacked bundle")
    add("--dataset_dir", required=True, help="folder with datalist.json")
    add("--datalist_file", help="another datalist (default: DATASET_DIR/datalist.json); its folds are replaced")
    add("--tables", nargs="+", metavar="NAME", help="of study.json (default: all)")
    add("--study", type=Path, help="another study.json (default: the bundle's configs/study.json)")
    add("--output", type=Path, help="folder (default: bundles/BUNDLE/eval/study)")
    add("--checks", nargs="+", choices=CHECKS, default=[], help="beside the tables, of the first row that is trained")
    add("--external", type=Path, metavar="DATASET_DIR", help="other patients: the first row's models predict them")
    add("--pseudonyms", action="store_true", help="no patient's id in the report")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--plan", action="store_true", help="say what would run, how many trainings, how long; run nothing"
    )
    ways.add_argument(
        "--print-commands", action="store_true", help="print one shell line per row and seed; run nothing"
    )
    ways.add_argument("--report", action="store_true", help="tables and report of what is there; run nothing")
    add_options(parser)
    args = parse_options(parser, argv)
    check_options(parser, args)
    return args


class StudyRun:
    """A study on a cohort: its rows' experiments, what of them is done; nothing is written before :meth:`run`.

    Args:
        args: of :func:`arguments`.

    Raises:
        DataError: no such bundle, study, table or datalist; all that is wrong with them.
    """

    def __init__(self, args: argparse.Namespace):
        from shared.apps.audit.study_checks import check_asked
        from shared.apps.experiments.cross_validate import Experiment
        from shared.apps.experiments.cross_validate import arguments as experiment_arguments
        from shared.apps.experiments.training_rows import read_json_datalist
        from shared.apps.study.analyses import Analyses
        from shared.apps.study.definition import read_study
        from shared.bundle.configs import find_bundle, find_config

        self.args, self.bundle = args, find_bundle(args.bundle, ROOT)
        self.shell = shlex.join(["python", "scripts/study.py", *args.argv])
        self.study: Study = read_study(args.study or self.bundle / "configs" / "study.json", self.bundle)
        self.tables = args.tables or list(self.study.tables)
        if unknown := [name for name in self.tables if name not in self.study.tables]:
            known = ", ".join(self.study.tables)
            raise DataError(f"{self.study.path} has no {', '.join(unknown)} (there: {known})")
        self.dataset_dir = Path(args.dataset_dir).resolve()
        self.datalist_file = Path(args.datalist_file or self.dataset_dir / "datalist.json").resolve()
        self.datalist = read_json_datalist(self.datalist_file)
        self.output = Path(args.output or self.bundle / "eval" / "study").resolve()
        # overlays may be paths, which are the caller's
        self.overlays = [str(find_config(self.bundle, name)) if Path(name).is_file() else name for name in args.config]
        self.configs = [find_config(self.bundle, name) for name in ("train", *self.overlays)]
        rows = self.study.needed(self.tables)
        if not isinstance(self.datalist.get("training"), list):
            raise DataError(f"{self.datalist_file} is no datalist: a 'training' list is needed")
        self.cwd = working_folder(self.bundle)
        self.missing = {row.name: reason for row in rows if (reason := row.missing(self.datalist, self.cwd))}
        for row in rows:
            if row.source in self.missing:
                self.missing.setdefault(row.name, self.missing[row.source])
        self.rows = {row.name: row for row in rows if row.name not in self.missing}
        self.experiments: dict[str, Experiment] = {
            name: Experiment(experiment_arguments(self.command(row, args.seeds)))
            for name, row in self.rows.items()
            if not row.baseline
        }
        self.analyses = Analyses(self)
        check_asked(self)

    def folder(self, row: Row) -> Path:
        """Where a row's results are."""
        return self.output / "baselines" / str(row.control) if row.baseline else self.output / "rows" / row.name

    def command(self, row: Row, seeds: Sequence[int]) -> list[str]:
        """Arguments of ``scripts/cross_validate.py`` that make a row."""
        args = self.args
        command = [str(self.bundle), *self._cohort(), "--output", str(self.folder(row)), "--title", row.title]
        command += ["--folds", str(args.folds), "--seeds", *map(str, seeds), "--bootstrap", str(args.bootstrap)]
        command += ["--threads", str(args.threads)]
        command += self.config_options(row)
        command += ["--shuffle-labels"] if row.shuffle_labels else []
        command += ["--reuse", str(self.folder(self.study.rows[row.source]))] if row.source else []
        return command + (["--reuse-stages", *row.stages] if row.stages else [])

    def config_options(self, row: Row, more: Mapping[str, Any] | None = None) -> list[str]:
        """Overlays and settings of a row, and more settings, as the drivers take them."""
        overlays = [*self.overlays, *row.config]
        settings = [*self.args.set, *(f"{key}={value}" for key, value in {**row.settings, **(more or {})}.items())]
        return (["--config", *overlays] if overlays else []) + (["--set", *settings] if settings else [])

    def _cohort(self) -> list[str]:
        return ["--dataset_dir", str(self.dataset_dir), "--datalist_file", str(self.datalist_file)]

    def baselines(self) -> list[Row]:
        """The controls that are not done with these folds and seeds."""
        return [row for row in self.rows.values() if row.baseline and not self._has_results(row)]

    def _has_results(self, row: Row) -> bool:
        from shared.metrics.repeated import RepeatedPredictions

        try:
            found = RepeatedPredictions.read(self.folder(row) / "predictions.csv")
        except (DataError, OSError):
            return False
        seeds = set(self.args.seeds) <= set(found.seeds) and (self.folder(row) / "results.json").is_file()
        return seeds and int(found.folds.max()) + 1 == self.args.folds

    def plan(self) -> str:
        """What is done and what would run, as a table."""
        from shared.reports.tables import markdown_table

        lines, times, left = [], self._times(), 0.0
        todo = done = 0
        measured = [seconds for found in times.values() for seconds in found]
        for name, row in self.rows.items():
            if row.baseline:
                state = "done" if self._has_results(row) else "to do"
                lines.append([name, row.title, "no network", "", state, ""])
                continue
            waiting = len(self.experiments[name].waiting())
            total = len(self.experiments[name].folds)
            own = times[name] or measured
            seconds = waiting * sum(own) / len(own) if own else 0.0
            todo, done, left = todo + waiting, done + total - waiting, left + seconds
            time = duration(seconds) if own and waiting else "" if not waiting else "not known yet"
            lines.append([name, row.title, str(total), str(total - waiting), str(waiting), time])
        lines += [[name, self.study.rows[name].title, "", "", f"not: {why}", ""] for name, why in self.missing.items()]
        for name, jobs in self.analyses.jobs.items():
            table = self.study.tables[name]
            state = f"not: {why}" if (why := self.analyses.missing(table)) else ""
            waiting = len(self.analyses.waiting(name))
            state = state or (f"{waiting} of {len(jobs)} commands to do" if waiting else "done")
            lines.append([name, table.title, table.analysis.script, "", state, ""])
        text = markdown_table(["row", "title", "trainings", "done", "to do", "time"], lines)
        jobs = self.args.jobs
        if not todo:
            time = "nothing left to train"
        elif measured:
            time = f"about {duration(left / jobs)} with --jobs {jobs}, from {len(measured)} folds already measured"
        else:
            time = "the time is not known yet: no fold is measured"
        return f"{text}\n\n{todo + done} trainings, {done} done, {todo} to do; {time}.\n"

    def _times(self) -> dict[str, list[float]]:
        """By row the seconds of its folds that are done."""
        return {
            name: [seconds for fold in experiment.folds if (seconds := fold.seconds()) is not None and fold.done()]
            for name, experiment in self.experiments.items()
        }

    def lines(self) -> Iterator[str]:
        """Shell lines, one per row and seed that is not done; those after a comment need the ones before it."""
        for free in (True, False):
            started = False
            for name, experiment in self.experiments.items():
                row = self.rows[name]
                if (row.source is None) != free:
                    continue
                for seed in sorted({fold.seed for fold in experiment.waiting()}):
                    if not free and not started:
                        yield "# the lines below take stages from those above: start them when these have ended"
                        started = True
                    script = str(ROOT / "scripts" / "cross_validate.py")
                    yield shlex.join([sys.executable, script, *self.command(row, [seed])])
        left = [row.name for row in self.baselines()]
        left += [job.name for name in self.analyses.jobs for job in self.analyses.waiting(name)]
        if left:
            yield f"# the study itself runs the rest, after these lines: {', '.join(left)}"

    def record(self) -> None:
        """Write what is run; other data or settings than before are refused.

        Raises:
            DataError: the folder holds a study of other data, folds, overlays or keys.
        """
        from shared.apps.experiments.data_record import data_record
        from shared.apps.report.flow import flow_counts
        from shared.bundle.configs import config_digest

        args, path = self.args, self.output / RECORD
        cases = self.datalist["training"] + self.datalist.get("validation", [])
        data = [cases, data_record(cases, self.dataset_dir, self.output)]
        now = {"bundle": self.bundle.name, "folds": args.folds}
        now |= {"configs": {file.name: config_digest(file) for file in self.configs}, "set": sorted(args.set)}
        now |= {"data": hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]}
        before = read_json_object(path, "study") if path.is_file() else now
        # an older record does not tell the settings
        if changed := [key for key, value in now.items() if before.get(key, value) != value]:
            raise DataError(
                f"{self.output} holds a study with other {', '.join(changed)}: choose another --output, or remove it"
            )
        # in the file's order: its first row is what the report is about
        rows = {name: self._described(self.rows[name]) for name in self.study.rows if name in self.rows}
        write_json(
            path,
            {
                **now,
                "citation": self.study.citation,
                "paper_data": self.study.paper_data,
                "cohort": str(self.datalist.get("name", self.dataset_dir.name)),
                "command": self.shell,
                "seeds": list(args.seeds),
                "tables": self.tables,
                "rows": rows,
                "missing": self.missing,
                "limits": list(self.study.limits),
                "flow": flow_counts(self.datalist, self._manifest(), args.folds),
            },
        )

    def _manifest(self) -> dict[str, Any]:
        """What the preparation wrote down; nothing where there is no such file."""
        from shared.apps.report.blocks import read_object

        return read_object(self.dataset_dir / MANIFEST) or {}

    def _described(self, row: Row) -> dict[str, Any]:
        folder = self.folder(row).relative_to(self.output).as_posix()
        if row.baseline:
            return {"title": row.title, "folder": folder, "changed": {}, "folds": None, "done": None}
        experiment = self.experiments[row.name]
        total, waiting = len(experiment.folds), len(experiment.waiting())
        changed = changed_settings(experiment.configs["train"], experiment.overrides)
        return {"title": row.title, "folder": folder, "changed": changed, "folds": total, "done": total - waiting}

    def run(self) -> None:
        """Run what is not done, under one progress bar."""
        from shared.apps.experiments.cross_validate import run_experiments

        self.record()
        self._run_baselines()
        options = {"jobs": self.args.jobs, "gpus": self.args.gpus, "name": self.bundle.name, "unit": "training"}
        run_experiments(list(self.experiments.values()), wait=True, **options)

    def _run_baselines(self) -> None:
        from importlib import import_module

        from shared.apps.baselines.given import Given
        from shared.bundle.configs import merge_configs, parse_overrides, with_overrides

        args = self.args
        config = merge_configs(self.configs)
        common: dict[str, Any] = {"dataset_dir": self.dataset_dir, "datalist_file": self.datalist_file}
        common |= {"output": self.output / "baselines", "folds": args.folds, "seeds": args.seeds}
        common |= {"config": with_overrides(config, parse_overrides(args.set, config))}
        common |= {"command": self.shell, "bootstrap": args.bootstrap, "threads": args.threads}
        by_module = sorted(self.baselines(), key=lambda row: str(row.baseline))
        for module, group in itertools.groupby(by_module, lambda row: row.baseline):
            rows = list(group)
            weights = next((self.cwd / row.weights for row in rows if row.weights), None)
            run = import_module(f"shared.apps.baselines.{module}").run
            run([str(row.control) for row in rows], Given(**common, weights=weights))

    def analyse(self) -> None:
        """Run the analyses that are not done; their rows are."""
        from shared.apps.experiments.processes import run_folds

        alone = {"jobs": 1, "gpus": ()}  # the command divides both
        for shares, options in ((False, {"jobs": self.args.jobs, "gpus": self.args.gpus}), (True, alone)):
            jobs = {job for known in self.analyses.jobs.values() for job in known if job.shares == shares}
            if waiting := sum(not job.done() for job in jobs):
                runs, done = self.analyses.runs(shares=shares), len(jobs) - waiting
                run_folds(runs, total=len(jobs), done=done, name="analyses", unit="command", **options)

    def collect(self, *, checks: bool = False) -> None:
        """Results of every row that is done, the tables, with ``checks`` what ``--checks`` asks for, the report."""
        from shared.apps.audit.study_checks import run_checks
        from shared.apps.study.report import write_report
        from shared.apps.study.tables import write_tables

        self.record()
        for experiment in self.experiments.values():
            if not experiment.waiting() and not self._collected(experiment):
                experiment.prepare()
                experiment.finish()
        self.analyses.collect()
        write_tables(self)
        try:
            run_checks(self, now=checks)
        finally:  # a check that fails takes no table away
            write_report(self.output, pseudonyms=self.args.pseudonyms)

    def _collected(self, experiment: Experiment) -> bool:
        from shared.data.subgroups import TABLES
        from shared.metrics.repeated import RepeatedPredictions

        path = experiment.output / "results.json"
        try:
            there = RepeatedPredictions.read(experiment.output / "predictions.csv").rows()
            bootstrap = json.loads(path.read_text(encoding="utf-8"))["bootstrap"]
        except (DataError, OSError, KeyError, ValueError):
            return False
        tables = [table for name in TABLES if (table := self.dataset_dir / name).is_file()]
        if any(table.stat().st_mtime > path.stat().st_mtime for table in tables):  # subgroups were added
            return False
        rows = [row for fold in experiment.folds for row in fold.rows()]
        return there == RepeatedPredictions.from_rows(rows).rows() and bootstrap == self.args.bootstrap


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    Example:
        >>> duration(42), duration(600), duration(9000)
        ('42 s', '10 min', '2.5 h')
    """
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def changed_settings(configs: Sequence[Path], overrides: Mapping[str, str]) -> dict[str, list]:
    """By key the default and the value, of every setting in which overlays and overrides differ from ``train.json``.

    Args:
        configs: ``train.json``, then the overlays.
        overrides: key to text.
    """
    from shared.bundle.configs import merge_configs

    before, after = (dict(_leaves(merge_configs(paths))) for paths in (configs[:1], configs))
    after |= overrides
    return {key: [before.get(key), value] for key, value in after.items() if str(before.get(key)) != str(value)}


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield key, value
        return
    for name, part in value.items():
        if not name.startswith(("_desc_", "_meta_")):
            yield from _leaves(part, f"{key}#{name}".lstrip("#"))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study, or say what it would do."""
    args = arguments(argv)
    from shared.apps.experiments.processes import resumable

    with resumable("study"):
        study = StudyRun(args)
        if args.plan:
            print(study.plan())
            return
        if args.print_commands:
            print("\n".join(study.lines()))
            return
        if not args.report:
            study.run()
            study.collect()  # tables are there, should an analysis fail
            study.analyse()
        study.collect(checks=not args.report)
    print(f"Tables: {study.output / 'tables'}\nReport: {study.output / 'report.html'}")
