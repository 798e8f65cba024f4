"""The checks of a study: of its cohort, and of its first row that is trained; each leaves a section for the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import DataError
from shared.io import write_json

if TYPE_CHECKING:
    from shared.apps.study.study import StudyRun


def check_asked(study: StudyRun) -> None:
    """The checks that are asked for can be run, which is told before anything is trained.

    Raises:
        DataError: the study has no row that is trained; the other patients cannot be used.
    """
    args, main = study.args, _main(study)
    needed = [check for check in args.checks if check != "audit"] + ["external"] * bool(args.external)
    if args.report or not needed:
        return
    if main is None:
        raise DataError(f"{', '.join(needed)}: the study has no row that is trained; name tables that have one")
    if args.external:
        from shared.apps.audit.external import other_patients

        other_patients(study.experiments[main], args.external.resolve())


def _main(study: StudyRun) -> str | None:
    """The first row that is trained."""
    return next((name for name in study.study.rows if name in study.experiments), None)


def run_checks(study: StudyRun, *, now: bool = True) -> None:
    """Take up the first row's subgroups; run the checks that are asked for.

    Args:
        study: whose rows are run and collected.
        now: false: run none.

    Raises:
        DataError: what a check needs is not there.
    """
    args = study.args
    asked, main = [*args.checks] * now, _main(study)
    if "audit" in asked:
        _audit(study)
    if main is None:
        return
    experiment = study.experiments[main]
    take_section(study.output, study.folder(study.rows[main]), "20_subgroups")
    if "robustness" in asked:
        _robustness(study, experiment)
    if "failures" in asked:
        from shared.apps.audit import failures

        folder = study.output / "failures"
        found, rows = failures.failures(experiment.output)
        failures.write(folder, found, rows, report=study.output)
    if "learning_curve" in asked:
        _learning_curve(study, main, experiment)
    if args.external and now:
        from shared.apps.audit.external import external_study

        title = study.rows[main].title
        external_study(experiment, args.external.resolve(), study.output, title=title, jobs=args.jobs)


def take_section(study: Path, folder: Path, name: str) -> None:
    """Copy a row's section to the study, its pictures named from there; without one, the study's goes too.

    Args:
        study: its folder.
        folder: the row's, inside it.
        name: of the section.
    """
    source, target = folder / "sections" / f"{name}.json", study / "sections" / f"{name}.json"
    if not source.is_file():
        target.unlink(missing_ok=True)
        return
    content = json.loads(source.read_text(encoding="utf-8"))
    for picture in content["pictures"]:
        picture["file"] = (folder / picture["file"]).relative_to(study).as_posix()
    write_json(target, content)


def _places(study: StudyRun) -> list[str]:
    """Bundle and cohort, as the checks' command lines have them."""
    return [str(study.bundle), "--dataset_dir", str(study.dataset_dir), "--report", str(study.output)]


def _shared(study: StudyRun) -> list[str]:
    args: Any = study.args
    return ["--threads", str(args.threads), "--jobs", str(args.jobs)]


def _audit(study: StudyRun) -> None:
    from shared.apps.audit import audit

    options = ["--datalist_file", str(study.datalist_file), "--output", str(study.output / "audit"), *_shared(study)]
    audit.audit(audit.arguments([*_places(study), *options]))


def _robustness(study: StudyRun, experiment: Any) -> None:
    """Of the first fold's model and the patients it left out."""
    from shared.apps.audit import robustness

    fold = experiment.folds[0]
    options = ["--ckpt_dir", str(fold.checkpoints), "--datalist_file", str(fold.datalist), "--fold", str(fold.number)]
    options += ["--output", str(study.output / "robustness"), *_shared(study)]
    robustness.robustness(robustness.arguments([*_places(study), *options]))


def _learning_curve(study: StudyRun, main: str, experiment: Any) -> None:
    from shared.apps.audit.learning_curve import learning_curve

    # a share has stages of its own
    command = study.command(replace(study.rows[main], source=None, stages=()), study.args.seeds)
    options: dict[str, Any] = {"jobs": study.args.jobs, "gpus": study.args.gpus}
    learning_curve(experiment, command, study.output / "learning_curve", study.output, **options)
