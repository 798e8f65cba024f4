"""Subgroups of an evaluation or a cross-validation, again: after subgroups.csv was added, or with cuts of your own.

python scripts/subgroups.py eval/study/rows/ircl --dataset_dir data/hcc --cuts age=50,65
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.apps.experiments.options import add_options
from shared.errors import DataError


def cuts_option(text: str) -> tuple[str, list[float]]:
    """A column and its cuts.

    Example:
        >>> cuts_option("age=50,65")
        ('age', [50.0, 65.0])
    """
    name, sign, values = text.partition("=")
    try:
        found = [float(value) for value in values.split(",")]
    except ValueError:
        found = []
    if not name or not sign or not found or found != sorted(set(found)):
        raise argparse.ArgumentTypeError(f"must be COLUMN=CUT[,CUT...] with rising numbers, as age=50,65, got {text!r}")
    return name, found


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", help="of an evaluation or a cross-validation, with predictions.csv")
    add("--dataset_dir", required=True, help="folder with datalist.json")
    add("--datalist_file", help="another datalist (default: DATASET_DIR/datalist.json)")
    add("--cuts", nargs="+", type=cuts_option, default=[], metavar="COLUMN=CUT,CUT", help="instead of thirds")
    add_options(parser, "--bootstrap")
    args = parser.parse_args(argv)
    if args.bootstrap < 1:
        parser.error("--bootstrap must be at least 1")
    return args


def subgroups(
    folder: str, dataset_dir: str, datalist_file: str | None = None, *, cuts: Mapping[str, Any], bootstrap: int = 2000
) -> list[dict[str, Any]]:
    """Write the subgroups' table, picture and section into ``folder``; return the rows.

    Raises:
        DataError: no predictions, no datalist, cuts that fit no column.
    """
    from shared.apps.experiments.comparison import NO_FOLD, read_runs
    from shared.data.checks import read_datalist
    from shared.data.subgroups import subgroup_values
    from shared.metrics.thresholds import fold_thresholds
    from shared.reports.predictions import patch_name
    from shared.reports.subgroups import write_subgroups

    content = read_datalist(dataset_dir, datalist_file or "datalist.json")
    found, root = read_runs(folder), Path(dataset_dir).resolve()
    cases = [case for part in ("training", "validation", "testing") for case in content.get(part) or ()]
    patches = found.images is not None
    named = {patch_name(root / c["image"], root) if patches else str(c["patient"]): c for c in cases}
    own = {name: named[name] for name in found.names if name in named}
    if not own:
        raise DataError(f"{folder}: none of its {len(found.names)} rows is in the datalist of {dataset_dir}")
    values = subgroup_values(list(own.values()), list(own), root)
    labels, probability = found.labels, found.probability
    options: dict[str, Any] = {"groups": found.groups, "cuts": dict(cuts), "bootstrap": bootstrap}
    youden = None if (found.folds == NO_FOLD).any() else fold_thresholds(labels, probability, found.folds).get("Youden")
    if youden is not None:
        options |= {"threshold": youden, "threshold_name": "of Youden, fixed on the other folds"}
    if patches:
        options["patients"] = found.patients
    return write_subgroups(folder, labels, probability, found.names, values, **options)


def main(argv: Sequence[str] | None = None) -> None:
    """Write and print them."""
    args = arguments(argv)
    from shared.reports.tables import interval_text, markdown_table

    options: dict[str, Any] = {"cuts": dict(args.cuts), "bootstrap": args.bootstrap}
    try:
        rows = subgroups(args.folder, args.dataset_dir, args.datalist_file, **options)
    except DataError as error:
        raise SystemExit(f"subgroups: {error}") from None
    if not rows:
        print("No column divides the patients: add covariates, or subgroups.csv to the prepared folder.")
        return
    table = [[row["column"], row["level"], str(row["patients"]), interval_text(row["AUC"])] for row in rows]
    print(markdown_table(["", "level", "patients", "AUC"], table))
    print(f"Table and picture: {Path(args.folder) / 'subgroup_metrics.csv'}")


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
