"""The runs of a label-efficiency experiment, and their table; imports neither torch nor MONAI."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.apps.experiments.comparison import NO_FOLD
from shared.apps.experiments.folds import complete_rows
from shared.apps.experiments.processes import is_complete
from shared.digests import sha256
from shared.errors import DataError
from shared.metrics.repeated import RepeatedPredictions, paired_seed_difference, summarise
from shared.reports.tables import difference_text, markdown_table, number_text

METRICS = ("AUC", "BACC")
HOW = (
    "Tested on {images} patches of {patients} patients, {positive} of {positive_name}. Patients are the unit: a draw "
    "labels all patches of a patient, about equally many of either class; draws are nested. Every figure is the mean "
    "over {draws} draws, with its standard deviation and, in brackets, smallest and largest draw. Difference: "
    "{arm} - {control}, mean over the draws, with the 95 % bootstrap interval over the patients tested on ({bootstrap} "
    "replicates); p: two-sided, from the same replicates."
)


@dataclass(frozen=True)
class PretrainingRun:
    """The pretraining of one draw, without labels: all of the draw's fractions start from it."""

    name: str
    folder: Path
    draw: int

    @property
    def checkpoint(self) -> Path:
        """What it leaves."""
        return self.folder / "models" / "pretrain.pt"

    def rows(self) -> list[dict]:
        """Nothing, once the checkpoint is there."""
        if not self.checkpoint.is_file():
            raise DataError(f"{self.checkpoint} was not written: is there a stage 'pretrain' in the bundle?")
        return []

    def done(self) -> bool:
        """Say whether it need not run."""
        return self.checkpoint.is_file()


@dataclass(frozen=True)
class TestedRun:
    """One training with one draw of labels, tested on the common part."""

    name: str
    folder: Path
    arm: str
    draw: int
    fraction: float
    truth: Mapping[str, int]
    patients: Mapping[str, str]
    dataset_dir: Path

    @property
    def datalist(self) -> Path:
        """What it trains on, the same in all arms."""
        return self.folder.parent / "datalist.json"

    def rows(self) -> list[dict]:
        """Its predictions, as those of a seed.

        Raises:
            DataError: they are not complete.
        """
        path = self.folder / "predictions.csv"
        found = complete_rows(path, self.truth, self.patients, self.dataset_dir, part="test part")
        return [{"seed": self.draw, "fold": NO_FOLD, **row} for row in found]

    def done(self) -> bool:
        """Say whether it need not run."""
        return is_complete(self)


def take_checkpoint(run: PretrainingRun, folder: Path) -> bool:
    """Put the pretraining's checkpoint into ``folder``, as a second name of the same file where that works.

    Returns:
        False while there is none yet.

    Raises:
        DataError: the run began with another pretraining.
    """
    if not run.done():
        return False
    target = folder / run.checkpoint.name
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{run.checkpoint.name}"
        temporary.unlink(missing_ok=True)
        try:
            os.link(run.checkpoint, temporary)
        except OSError:
            shutil.copyfile(run.checkpoint, temporary)
        temporary.replace(target)
    elif not target.samefile(run.checkpoint) and sha256(target) != sha256(run.checkpoint):
        raise DataError(f"{target} is not {run.checkpoint}, which was trained again: remove {folder.parent}")
    return True


def summary_rows(
    runs: Sequence[TestedRun], counts: Mapping[tuple[int, float], Mapping[str, int]], *, bootstrap: int = 2000
) -> tuple[list[dict], list[dict]]:
    """Results run by run, and their summary by fraction and arm with the paired difference to the first arm's.

    Args:
        runs: finished ones.
        counts: labelled patients and patches of each (draw, fraction).
        bootstrap: replicates of the intervals.

    Returns:
        rows of ``draw, fraction, labelled_patients, labelled_patches, arm, AUC, BACC``; and rows of ``fraction,
        labelled_patients, labelled_patches, arm, draws``, per metric ``{metric}, {metric}_sd, {metric}_min,
        {metric}_max``, and ``difference[metric]`` (first arm minus this one) for all arms but the first.
    """
    single, table = [], {}
    for run in runs:
        predictions = RepeatedPredictions.from_rows(run.rows(), source=run.name)
        table.setdefault((run.fraction, run.arm), []).extend(run.rows())
        values = summarise(predictions, names=METRICS, bootstrap=0)["metrics"]
        labelled = {f"labelled_{key}": value for key, value in counts[run.draw, run.fraction].items()}
        row = {"draw": run.draw, "fraction": run.fraction, **labelled, "arm": run.arm}
        single.append({**row, **{name: values[name]["value"] for name in METRICS}})
    arms = list(dict.fromkeys(run.arm for run in runs))
    summary = []
    for fraction in sorted({run.fraction for run in runs}):
        first = RepeatedPredictions.from_rows(table[fraction, arms[0]])
        for arm in arms:
            rows = [row for row in single if row["fraction"] == fraction and row["arm"] == arm]
            keys = [key for key in rows[0] if key.startswith("labelled_")]
            line = {"fraction": fraction, **{key: float(np.mean([row[key] for row in rows])) for key in keys}}
            line |= {"arm": arm, "draws": len(rows)}
            for name in METRICS:
                values = np.array([row[name] for row in rows])
                sd = float(values.std(ddof=1)) if len(values) > 1 else None
                line |= {name: float(values.mean()), f"{name}_sd": sd}
                line |= {f"{name}_min": float(values.min()), f"{name}_max": float(values.max())}
            if arm != arms[0]:
                other = RepeatedPredictions.from_rows(table[fraction, arm])
                line["difference"] = {
                    name: paired_seed_difference(other, first, name, bootstrap=bootstrap) for name in METRICS
                }
            summary.append(line)
    return single, summary


def markdown(summary: Sequence[Mapping], *, title: str, note: str, command: str) -> str:
    """The page of an experiment: a row a fraction, the arms side by side."""
    arms = list(dict.fromkeys(line["arm"] for line in summary))
    header = ["labels", "patients", "patches"]
    header += [f"{name}, {arm}" for name in METRICS for arm in arms]
    header += [cell for name in METRICS for cell in (f"{name}: {arms[0]} - {arms[1]}", "p")] if len(arms) > 1 else []
    rows = []
    for fraction in dict.fromkeys(line["fraction"] for line in summary):
        of_arm = {line["arm"]: line for line in summary if line["fraction"] == fraction}
        first = of_arm[arms[0]]
        row = [f"{fraction:.0%}", f"{first['labelled_patients']:.3g}", f"{first['labelled_patches']:.3g}"]
        row += [_spread_text(of_arm[arm], name) for name in METRICS for arm in arms]
        if len(arms) > 1:
            for name in METRICS:
                difference = of_arm[arms[1]]["difference"][name]
                row += [difference_text(difference), number_text(difference["p"])]
        rows.append(row)
    return "\n".join([f"# {title}", "", markdown_table(header, rows), "", note, "", "```", command, "```", ""])


def _spread_text(line: Mapping, name: str) -> str:
    sd = "" if line[f"{name}_sd"] is None else f" ± {line[f'{name}_sd']:.3f}"
    return f"{line[name]:.3f}{sd} ({line[f'{name}_min']:.3f}-{line[f'{name}_max']:.3f})"
