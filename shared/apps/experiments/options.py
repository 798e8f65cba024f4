"""Options that the drivers of experiments have in common, declared once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any


def _numbers(text: str) -> tuple[str, ...]:
    """GPU numbers of "0,1"."""
    found = tuple(part.strip() for part in text.split(","))
    if not all(part.isdecimal() for part in found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r}: numbers of different GPUs, such as 0,1")
    return found


_OPTIONS: dict[str, dict[str, Any]] = {
    "--folds": {"type": int, "default": 5, "help": "folds by patient (default: 5)"},
    "--seeds": {"type": int, "nargs": "+", "default": [0], "help": "each splits anew and trains anew (default: 0)"},
    "--config": {
        "nargs": "+",
        "default": [],
        "metavar": "OVERLAY",
        "help": "configs merged over train.json: names or paths",
    },
    "--set": {
        "nargs": "+",
        "action": "extend",
        "default": [],
        "metavar": "KEY=VALUE",
        "help": "override keys of the configs",
    },
    "--jobs": {"type": int, "default": 1, "help": "runs at a time (default: 1)"},
    "--gpus": {
        "type": _numbers,
        "default": (),
        "metavar": "0,1",
        "help": "GPUs that the runs take in turn, each one of them (default: what CUDA_VISIBLE_DEVICES says)",
    },
    "--threads": {"type": int, "help": "CPU threads of each (default: cores / jobs)"},
    "--bootstrap": {"type": int, "default": 2000, "help": "replicates of the intervals (default: 2000)"},
}


def add_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """Declare the named options, or all of them, on a driver's parser.

    Args:
        parser: the driver's.
        names: of ``--folds --seeds --config --set --jobs --gpus --threads --bootstrap``; none: all.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_options(parser, "--folds", "--seeds")
        >>> parser.parse_args(["--folds", "3"])
        Namespace(folds=3, seeds=[0])
    """
    for name in names or _OPTIONS:
        parser.add_argument(name, **_OPTIONS[name])


def parse_options(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a driver's command line; ``argv`` is kept, and cores are shared among the jobs unless threads are given."""
    args = parser.parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    args.threads = args.threads or max(1, (os.cpu_count() or 1) // max(1, args.jobs))
    return args


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with the parser's error where jobs, bootstrap, folds or seeds make no cross-validation."""
    if args.jobs < 1 or args.folds < 2 or args.bootstrap < 1 or len(set(args.seeds)) != len(args.seeds):
        parser.error("--jobs and --bootstrap must be at least 1, --folds at least 2, and no seed given twice")
