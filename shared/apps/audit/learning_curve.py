"""Learning curve: how good a bundle is when it is trained on a share of the patients, cross-validated for each share.

Draws are nested: a larger share keeps the patients of a smaller one; all shares are tested on the same patients. A
curve that still rises says that more patients would help. A check of ``scripts/study.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.io import write_csv, write_json

SHARES = (0.25, 0.5, 0.75)
"""Of the training patients, beside all of them."""
COLUMNS = ("share", "patients", "AUC_value", "AUC_low", "AUC_high", "AUC_sd", "BRIER_value", "BRIER_low", "BRIER_high")
COLUMNS += ("difference", "difference_low", "difference_high", "p", "p_holm")


def learning_curve(
    experiment: Any, command: Sequence[str], output: Path, report: Path, *, jobs: int = 1, gpus: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Run what is not done of every share; write table, picture and section; return a row per share.

    Args:
        experiment: the :class:`shared.apps.experiments.cross_validate.Experiment` on all patients, done.
        command: its arguments of ``scripts/cross_validate.py``; it takes no stages of another one.
        output: folder of the experiments on shares, and of the files.
        report: folder of the report that shows the section.
        jobs: trainings at a time.
        gpus: numbers.

    Raises:
        DataError: a share that leaves too few patients.
    """
    from shared.apps.experiments.cross_validate import Experiment, arguments, run_experiments

    experiments: dict[float, Any] = {}
    for share in SHARES:
        own = ["--output", str(output / f"share_{share:g}"), "--title", f"{share:.0%} of the patients"]
        experiments[share] = Experiment(arguments([*command, *own, "--share", str(share)]))
    run_experiments(list(experiments.values()), jobs=jobs, gpus=gpus, name="learning curve", unit="training")
    rows = curve({**experiments, 1.0: experiment}, experiment.args.bootstrap)
    write(output, report, rows, experiment.bundle.name)
    return rows


def curve(experiments: Mapping[float, Any], bootstrap: int) -> list[dict[str, Any]]:
    """AUC and Brier score of each share; the AUC's difference to the largest one, on the same drawn patients (Holm)."""
    from shared.metrics.multiplicity import holm_adjusted
    from shared.metrics.repeated import RepeatedPredictions, paired_seed_difference, summarise

    found = {
        share: RepeatedPredictions.from_rows([row for fold in experiment.folds for row in fold.rows()])
        for share, experiment in experiments.items()
    }
    largest = found[max(found)]
    rows, differences = [], []
    for share, predictions in found.items():
        metrics = summarise(predictions, names=("AUC", "BRIER"), bootstrap=bootstrap)["metrics"]
        row: dict[str, Any] = {"share": share, "patients": training_patients(experiments[share])}
        row |= {f"AUC_{key}": metrics["AUC"][key] for key in ("value", "low", "high", "sd")}
        row |= {f"BRIER_{key}": metrics["BRIER"][key] for key in ("value", "low", "high")}
        difference = None
        if predictions is not largest:
            difference = paired_seed_difference(largest, predictions, "AUC", bootstrap=bootstrap)
        differences.append(difference)
        given = difference or {}
        row |= {"difference": given.get("value"), "p": given.get("p")}
        rows.append(row | {f"difference_{key}": given.get(key) for key in ("low", "high")})
    corrected = holm_adjusted([difference["p"] if difference else None for difference in differences])
    return [{**row, "p_holm": p} for row, p in zip(rows, corrected, strict=True)]


def training_patients(experiment: Any) -> float:
    """Mean number of patients that a fold trains on."""
    counts = []
    for fold in experiment.folds:
        drawn = experiment.drawn(fold, experiment.fold_of[fold.seed])
        owner = experiment.rows.patients
        counts.append(len(drawn if owner is None else {owner[row] for row in drawn}))
    return sum(counts) / len(counts)


def write(output: Path, report: Path, rows: Sequence[Mapping[str, Any]], bundle: str) -> None:
    """Write learning_curve.csv, .json, .png and the section ``50_learning_curve``."""
    from shared.reports.sections import write_section
    from shared.reports.tables import difference_text, interval_text, number_text

    write_csv(output / "learning_curve.csv", rows, columns=COLUMNS)
    write_json(output / "learning_curve.json", {"bundle": bundle, "rows": list(rows)})
    learning_figure(rows, output / "learning_curve.png")
    last, before = rows[-1], rows[-2]
    high = before["difference_high"]
    rises = high is not None and high < 0
    text = [
        f"AUC against the number of training patients, {rows[0]['patients']:.0f} to {last['patients']:.0f} a fold; "
        "draws are nested, and all shares are tested on the same patients.",
        "The curve still rises at its end: more patients would help."
        if rises
        else f"From {before['patients']:.0f} to {last['patients']:.0f} patients no rise is beyond chance.",
    ]
    table = []
    for row in rows:
        auc, brier = ({k: row[f"{name}_{k}"] for k in ("value", "low", "high")} for name in ("AUC", "BRIER"))
        gap = {"value": row["difference"], "low": row["difference_low"], "high": row["difference_high"]}
        compared = ["", ""] if row["difference"] is None else [difference_text(gap), number_text(row["p_holm"])]
        table.append(
            [f"{row['share']:.0%}", f"{row['patients']:.0f}", interval_text(auc), interval_text(brier), *compared]
        )
    header = ["share", "training patients", "AUC", "Brier score", "AUC - largest", "p (Holm)"]
    write_section(
        report,
        "50_learning_curve",
        title="Learning curve",
        text=text,
        tables=[{"caption": "AUC and Brier score by share of the patients", "header": header, "rows": table}],
        pictures=[((output / "learning_curve.png").resolve(), "AUC against the number of training patients")],
    )


def learning_figure(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the curve with its intervals."""
    from shared.visualize.style import NEGATIVE, new_figure, plain, save

    figure = new_figure(5.2, 3.8)
    axes = figure.subplots()
    x, y = [row["patients"] for row in rows], [row["AUC_value"] for row in rows]
    ends = [[row[f"AUC_{key}"] for row in rows] for key in ("low", "high")]
    axes.fill_between(x, *ends, color=NEGATIVE, alpha=0.15, linewidth=0)
    axes.plot(x, y, "o-", color=NEGATIVE, linewidth=1.8)
    axes.axhline(0.5, color="0.7", linewidth=1, linestyle=":")
    axes.set(xlabel="training patients of a fold", ylabel="AUC, 95 % interval", xlim=(0, None))
    plain(axes)
    save(figure, path)
