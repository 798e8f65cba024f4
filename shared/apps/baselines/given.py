"""What a study gives its controls without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Given:
    """A cohort, its folds, and where results go: a folder of an experiment per control below ``output``.

    ``config`` are the bundle's merged configs, ``weights`` those of a control that needs some, ``command`` what is
    recorded.
    """

    dataset_dir: Path
    datalist_file: Path
    output: Path
    folds: int
    seeds: Sequence[int]
    config: Mapping[str, Any]
    command: str
    bootstrap: int = 2000
    threads: int = 1
    weights: Path | None = None
