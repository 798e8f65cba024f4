"""The trained folds of an experiment on other patients: each model predicts them, frozen, and all are compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import DataError
from shared.io import write_json

NAME = "60_external"


@dataclass(frozen=True)
class ExternalRun:
    """One model on the other cohort; ``truth`` is the label of each row."""

    folder: Path
    truth: dict[str, int]
    patients: dict[str, str] | None
    dataset_dir: Path

    @property
    def name(self) -> str:
        """Which model."""
        return f"external {self.folder.name}"

    def rows(self) -> list[dict]:
        """Its predictions.

        Raises:
            DataError: they are not there or not complete.
        """
        from shared.apps.experiments.folds import complete_rows

        path = self.folder / "predictions.csv"
        return complete_rows(path, self.truth, self.patients, self.dataset_dir, part="external part")


def external_rows(dataset_dir: Path) -> tuple[str, dict[str, int], dict[str, str] | None]:
    """The part that is predicted (``testing``, else ``training``), its labels, and whose its patches are.

    Raises:
        DataError: no datalist; a part without labels, or with one class.
    """
    from shared.apps.experiments.training_rows import is_patch_list, patch_truth
    from shared.data.checks import read_datalist

    content = read_datalist(dataset_dir)
    part = "testing" if content.get("testing") else "training"
    cases = content.get(part) or []
    where = f"{dataset_dir}/datalist.json, {part}"
    if is_patch_list({"training": cases}):
        truth, patients = patch_truth(cases, dataset_dir, where)
    else:
        truth, patients = {str(case["patient"]): case.get("label") for case in cases}, None
        if odd := [name for name, label in truth.items() if label not in (0, 1)]:
            raise DataError(f"{where}: {', '.join(odd[:5])} have no label of 0 or 1, which external validation needs")
    if len(set(truth.values())) < 2:
        raise DataError(f"{where}: both labels are needed, got {sorted(set(truth.values()))} of {len(truth)} rows")
    return part, truth, patients


def other_patients(experiment: Any, dataset_dir: Path) -> None:
    """The patients that are predicted can be, and are not those of the development.

    Raises:
        DataError: see :func:`external_rows`; a patient is in both cohorts.
    """
    _, truth, patients = external_rows(dataset_dir)
    cohorts = ((experiment.rows.labels, experiment.rows.patients), (truth, patients))
    near, far = (set(own if owner is None else owner.values()) for own, owner in cohorts)
    if both := sorted(near & far):
        raise DataError(
            f"External patients must not be those of the development; {len(both)} names are in both "
            f"{experiment.dataset_dir} and {dataset_dir}: {', '.join(both[:5])}; rename them where they are others"
        )


def external_runs(experiment: Any, dataset_dir: Path, output: Path) -> list[Any]:
    """One run of ``inference.json`` for each fold of the experiment that is trained and has not predicted yet.

    Args:
        experiment: of :class:`shared.apps.experiments.cross_validate.Experiment`, all folds done.
        dataset_dir: of the other patients.
        output: for ``models/seed<k>``, k counting seeds and folds.

    Raises:
        DataError: see :func:`external_rows`; the bundle has no inference.json.
    """
    from shared.apps.experiments import processes
    from shared.apps.report.blocks import read_object
    from shared.bundle.configs import find_config, merge_configs

    part, truth, patients = external_rows(dataset_dir)
    inference = find_config(experiment.bundle, "inference")
    merged = merge_configs([inference])
    nothing = output / "nothing.json"
    # explanations of every model would take longer than all predictions
    write_json(nothing, {key: None for key in ("mask",) if key in merged})
    runs = []
    for number, fold in enumerate(experiment.folds):
        job = ExternalRun(output / "models" / f"seed{number}", truth, patients, dataset_dir)
        marker = {"model": str(fold.checkpoints), "dataset_dir": str(dataset_dir), "part": part}
        if read_object(job.folder / "of.json") == marker and processes.is_complete(job):
            continue
        job.folder.mkdir(parents=True, exist_ok=True)
        write_json(job.folder / "of.json", marker)
        values = {"dataset_dir": dataset_dir, "split": part, "ckpt_dir": fold.checkpoints, "output_dir": job.folder}
        arguments = processes.bundle_arguments([inference, nothing], values, cwd=experiment.cwd)
        environment = processes.run_environment(experiment.args.threads)
        commands = [("inference", [*processes.RUN_BUNDLE, *arguments])]
        runs.append(processes.FoldRun(job, commands, cwd=experiment.cwd, environment=environment))
    return runs


def external_study(experiment: Any, dataset_dir: Path, folder: Path, *, title: str, jobs: int = 1) -> str:
    """Predict the other patients with every fold's model, compare with the development, write the section.

    Args:
        experiment: see :func:`external_runs`.
        dataset_dir: of the other patients.
        folder: of the study; the files go to ``external`` in it.
        title: of the row whose models these are.
        jobs: at a time.

    Returns:
        the page, as of :func:`shared.apps.experiments.external_validation.validate`.

    Raises:
        DataError: the experiment is not done, see also :func:`external_runs`; a patient is in both cohorts.
    """
    from shared.apps.experiments.external_validation import validate
    from shared.apps.experiments.processes import run_folds

    if experiment.waiting():
        raise DataError(f"{experiment.output} is not done: external validation needs all of its folds")
    other_patients(experiment, dataset_dir)
    output = folder / "external"
    output.mkdir(parents=True, exist_ok=True)
    runs = external_runs(experiment, dataset_dir, output)
    total = len(experiment.folds)
    run_folds(iter(runs), total=total, done=total - len(runs), jobs=jobs, name="external", unit="model")
    page = validate(str(experiment.output), str(output / "models"), str(output), bootstrap=experiment.args.bootstrap)
    section(folder, json.loads((output / "external.json").read_text(encoding="utf-8")), title, dataset_dir.name, total)
    return page


def section(folder: Path, result: dict[str, Any], title: str, cohort: str, models: int) -> None:
    """Write the section ``60_external``: differences to the development, drift of the calibration, recalibration."""
    from shared.apps.experiments.external_validation import MEASURES
    from shared.reports.sections import write_section
    from shared.reports.tables import bounds_text, number_text

    near, far, difference = (result[key] for key in ("development", "external", "difference"))
    drop = difference["AUC"]
    worse = drop["high"] is not None and drop["high"] < 0
    drifted = [name for key, name in (("intercept", "intercept"), ("slope", "slope")) if _off(far[key], key)]
    text = [
        f"{title}: {models} models, one of each fold, predict {far['patients']} patients of {cohort}, unchanged; "
        "figures are means over the models.",
        f"AUC {bounds_text(far['AUC'])} there, {bounds_text(near['AUC'])} in the development; difference "
        f"{bounds_text(drop)}, p {number_text(drop['p'])} (DeLong).",
        f"The calibration has drifted: its {' and '.join(drifted)} is not that of right probabilities."
        if drifted
        else "No drift of the calibration's intercept or slope is beyond chance.",
    ]
    rows = [[name, *(bounds_text(x[key]) for x in (near, far, difference))] for key, name in MEASURES.items()]
    tables = [{"caption": "Both cohorts", "header": ["", "development", "external", "difference"], "rows": rows}]
    if result["recalibration"] is None:
        text.append("No recalibration: half of the external patients is of one class.")
    else:
        shown = [key for key in MEASURES if key != "AUC"]
        rows = [
            [name, *(bounds_text(method[key]) if method else "not to be fitted" for key in shown)]
            for name, method in result["recalibration"]["methods"].items()
        ]
        caption = "After recalibration on half of the external patients, judged on the other half"
        tables.append({"caption": caption, "header": ["", *(MEASURES[key] for key in shown)], "rows": rows})
    write_section(
        folder,
        NAME,
        title="External validation",
        status="amber" if worse or drifted else "green",
        text=text,
        tables=tables,
        pictures=[("external/calibration.png", "Calibration of the external patients' probabilities")],
    )


def _off(measure: dict[str, Any], key: str) -> bool:
    """Whether the interval leaves out what right probabilities have."""
    right = {"intercept": 0.0, "slope": 1.0}[key]
    low, high = measure["low"], measure["high"]
    return (low is not None and low > right) or (high is not None and high < right)
