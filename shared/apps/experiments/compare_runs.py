"""Put runs side by side that were tested on one common part: means over seeds, intervals over patients, differences.

Each FOLDER holds predictions.csv of one run, or folders seed<k> with one each; TITLE= before it names its row. The
differences are to the first, with p corrected for their number (Holm); beside the table goes a picture of the decision
curves. Folders of cross_validate.py, whose predictions hold several folds, are taken as well.

    python scripts/compare_runs.py --output comparison.md "SSCL=eval/finetuned" "from scratch=eval/scratch" \\
        eval/baselines/forest eval/baselines/imagenet
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from shared.apps.experiments.options import METRIC_OPTION, add_options
from shared.errors import DataError
from shared.io import write_text


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="[TITLE=]FOLDER", help="the first is the reference")
    parser.add_argument("--output", help="Markdown file to write, with a picture beside it; it is printed in any case")
    parser.add_argument("--metrics", **METRIC_OPTION)
    add_options(parser, "--bootstrap")
    args = parser.parse_args(argv)
    if args.bootstrap < 1:
        parser.error("--bootstrap must be at least 1")
    return args


def compare(runs: Sequence[str], *, output: str | None, bootstrap: int, metrics: Sequence[str] | None = None) -> str:
    """The table of ``[TITLE=]FOLDER`` runs, also written to ``output``, beside a picture of the decision curves.

    ``metrics`` as :func:`comparison_table` has it.

    Raises:
        DataError: a folder has no predictions, or of other patients.
    """
    from shared.apps.experiments.comparison import comparison_figure, comparison_table

    titles, folders = [], []
    for run in runs:
        title, equals, folder = ("", "", run) if Path(run).is_dir() else run.partition("=")
        titles.append(title or None)
        folders.append(folder if equals else run)
    table = comparison_table(folders, titles=titles, bootstrap=bootstrap, metrics=metrics)
    if output:
        write_text(output, table)
        picture = Path(output).with_name(f"{Path(output).stem}_decision.png")
        comparison_figure(folders, picture, titles=titles, bootstrap=bootstrap)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Compare."""
    args = arguments(argv)
    try:
        print(compare(args.runs, output=args.output, bootstrap=args.bootstrap, metrics=args.metrics))
    except DataError as error:
        raise SystemExit(f"compare_runs: {error}") from None


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
