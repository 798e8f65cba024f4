"""What a study makes of a row's trained models: their explanations, a comparison of these, label efficiency."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.apps import ROOT
from shared.apps.experiments.label_efficiency_run import LEFT_OUT
from shared.apps.experiments.processes import RUN_BUNDLE, SECONDS, FoldRun, bundle_arguments, run_environment
from shared.apps.report.blocks import read_object
from shared.errors import DataError
from shared.reports.sections import write_section

if TYPE_CHECKING:
    from shared.apps.study.definition import Table
    from shared.apps.study.study import StudyRun


@dataclass(frozen=True)
class AnalysisJob:
    """One command of an analysis; its log says whether this command has ended well, with all weights there are now."""

    name: str
    folder: Path
    step: str
    command: tuple[str, ...]
    cwd: Path = ROOT

    @property
    def shares(self) -> bool:
        """Whether the command has jobs of its own, so that several at a time would be too many."""
        return "--jobs" in self.command

    def done(self) -> bool:
        """Say whether it need not run."""
        try:
            text = (self.folder / f"{self.step}.log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        arrived = any(Path(file).is_file() for file in (read_object(self.folder / LEFT_OUT) or {}).values())
        return text.startswith(f"$ {shlex.join(self.command)}\n") and bool(SECONDS.search(text)) and not arrived

    def rows(self) -> list[dict]:
        """Nothing, once it has ended."""
        if not self.done():
            raise DataError(f"{self.folder / self.step}.log does not end as it should")
        return []


class Analyses:
    """The analyses of a study's tables, on the first seed of their rows.

    Args:
        run: the study, whose rows are trained when jobs run.
    """

    def __init__(self, run: StudyRun):
        self.run = run
        self.jobs = {
            table.name: [] if self.missing(table) else list(MADE[table.analysis.script](run, table))
            for name in run.tables
            if (table := run.study.tables[name]).analysis
        }

    def missing(self, table: Table) -> str:
        """Why the cohort does not allow an analysis; nothing where it does."""
        assert table.analysis is not None
        if table.analysis.row in self.run.missing:
            return self.run.missing[table.analysis.row]
        if table.analysis.script == "label_efficiency" and not self.run.datalist.get("testing"):
            return "the cohort has no testing section, on which label efficiency is measured"
        return ""

    def waiting(self, name: str) -> list[AnalysisJob]:
        """Jobs of a table that are not done."""
        return [job for job in self.jobs[name] if not job.done()]

    def runs(self, *, shares: bool) -> Iterator[FoldRun]:
        """Runs of all jobs that wait and have jobs of their own, or have none."""
        environment = run_environment(self.run.args.threads)
        # tables may share an analysis
        for job in dict.fromkeys(job for name in self.jobs for job in self.waiting(name) if job.shares == shares):
            job.folder.mkdir(parents=True, exist_ok=True)
            yield FoldRun(job, [(job.step, job.command)], cwd=job.cwd, environment=environment)

    def collect(self) -> None:
        """Write a section of the report for each analysis that is done."""
        for name, jobs in self.jobs.items():
            table = self.run.study.tables[name]
            page = _folder(self.run, table) / _PAGES.get(table.analysis.script, "")
            if jobs and not self.waiting(name) and page.is_file():
                text, tables = page_parts(page.read_text(encoding="utf-8"))
                write_section(
                    self.run.output,
                    f"50_{name}",
                    title=table.title,
                    text=text,
                    tables=tables,
                    pictures=[(p.resolve(), f"{table.title}: {p.stem}") for p in sorted(page.parent.glob("*.png"))],
                    # the pictures of explanations name patients
                    patients=table.analysis.script != "label_efficiency",
                )

    def note(self, table: Table) -> str:
        """What stands under the table's title."""
        if missing := self.missing(table):
            return f"Not run: {missing}."
        if waiting := len(self.waiting(table.name)):
            return f"Not done: {len(self.jobs[table.name]) - waiting} of {len(self.jobs[table.name])} commands."
        what = f"Row {table.analysis.row}, first seed"
        if table.analysis.script == "label_efficiency":
            what = f"Trained by itself, with the settings of the row {table.analysis.row}"
        return f"{what}: see the report, and analyses/{_folder(self.run, table).name}."


def page_parts(text: str) -> tuple[list[str], list[dict]]:
    """Sentences, and tables with the sentence before them as caption, of a Markdown page.

    Example:
        >>> page_parts("# T\\n\\nAll:\\n\\n| a | b |\\n|---|---|\\n| 1 | 2 |\\n\\nEnd.\\n\\n```\\ncommand\\n```\\n")
        (['End.'], [{'caption': 'All:', 'header': ['a', 'b'], 'rows': [['1', '2']]}])
        >>> page_parts("|  | a |\\n|---|---|\\n| x |  |\\n")[1]
        [{'caption': '', 'header': ['', 'a'], 'rows': [['x', '']]}]
    """
    sentences: list[str] = []
    tables: list[dict] = []
    for part in text.strip().split("\n\n"):
        if part.startswith("|"):
            header, _, *rows = ([cell.strip() for cell in line.strip()[2:-2].split(" | ")] for line in part.split("\n"))
            caption = sentences.pop() if sentences and sentences[-1].endswith(":") else ""
            tables.append({"caption": caption, "header": header, "rows": rows})
        elif not part.startswith(("#", "```")):
            sentences.append(" ".join(part.split()))
    return sentences, tables


def _explain(run: StudyRun, table: Table) -> Iterator[AnalysisJob]:
    """The bundle's ``explain`` of each fold's left-out patients; the report shows what lies in the fold's folder."""
    from shared.bundle.configs import find_config, merge_configs, parse_overrides

    analysis = table.analysis
    experiment = run.experiments[analysis.row]
    configs = [*experiment.configs["train"], find_config(run.bundle, "explain")]
    own = parse_overrides([f"{key}={value}" for key, value in analysis.settings.items()], merge_configs(configs))
    for fold in experiment.folds:
        if fold.seed != run.args.seeds[0]:
            continue
        values = {"dataset_dir": run.dataset_dir, "datalist_file": fold.datalist, "fold": fold.number}
        values |= {"seed": fold.seed, "ckpt_dir": fold.checkpoints, "output_dir": fold.folder / "explained"}
        values |= {"split": "validation", **experiment.overrides, **own}
        command = [*RUN_BUNDLE, *bundle_arguments(configs, values, cwd=experiment.cwd, run_id="explain")]
        yield _job(run, table, f"fold{fold.number}", command, cwd=run.cwd)


def _compare(run: StudyRun, table: Table) -> Iterator[AnalysisJob]:
    """The comparison of explanations: patches of all folds, patients of the first fold's model."""
    from shared.apps.experiments.explanation_comparison import explains_patches

    experiment = run.experiments[table.analysis.row]
    folds = [fold for fold in experiment.folds if fold.seed == run.args.seeds[0]]
    folds = folds if explains_patches(str(run.bundle)) else folds[:1]
    command = ["--bundle", str(run.bundle), "--dataset_dir", str(run.dataset_dir), "--split", "validation"]
    command += ["--datalist_file", str(folds[0].datalist), "--output", str(_folder(run, table))]
    command += ["--checkpoints", *(str(fold.checkpoints) for fold in folds)]
    command += ["--fold", *(str(fold.number) for fold in folds), "--bootstrap", str(run.args.bootstrap)]
    script = [sys.executable, str(ROOT / "scripts" / "compare_explanations.py")]
    yield _job(run, table, "compare", [*script, *command, *_configs(run, table)])


def _efficiency(run: StudyRun, table: Table) -> Iterator[AnalysisJob]:
    command = [str(run.bundle), "--dataset_dir", str(run.dataset_dir), "--datalist_file", str(run.datalist_file)]
    command += ["--output", str(_folder(run, table)), "--title", table.title]
    command += ["--bootstrap", str(run.args.bootstrap), "--threads", str(run.args.threads)]
    command += ["--jobs", str(run.args.jobs), *(["--gpus", ",".join(run.args.gpus)] if run.args.gpus else [])]
    module = [sys.executable, "-m", "shared.apps.experiments.label_efficiency_run"]
    yield _job(run, table, "measure", [*module, *command, *_configs(run, table)])


def _configs(run: StudyRun, table: Table) -> list[str]:
    analysis = table.analysis
    return [*run.config_options(run.study.rows[analysis.row], analysis.settings), *analysis.arguments]


def _folder(run: StudyRun, table: Table) -> Path:
    """Of the first table with this analysis."""
    first = next(name for name, other in run.study.tables.items() if other.analysis == table.analysis)
    return run.output / "analyses" / first


def _job(run: StudyRun, table: Table, step: str, command: Sequence[str], cwd: Path = ROOT) -> AnalysisJob:
    folder = _folder(run, table)
    return AnalysisJob(f"{folder.name}/{step}", folder, step, tuple(map(str, command)), cwd)


MADE: dict[str, Callable[[StudyRun, Table], Iterator[AnalysisJob]]] = {
    "explain": _explain,
    "compare_explanations": _compare,
    "label_efficiency": _efficiency,
}
_PAGES = {"compare_explanations": "explanation_comparison.md", "label_efficiency": "label_efficiency.md"}
