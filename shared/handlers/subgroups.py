"""An evaluation's subgroups, after its predictions are written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from shared.data.subgroups import read_subgroup_tables
from shared.distributed.processes import is_main
from shared.reports.subgroups import evaluated_subgroups


class SaveSubgroups:
    """Write ``subgroup_metrics.csv``, ``subgroups.png``, ``sections/20_subgroups.json`` of an evaluator's predictions.

    Patients are told apart by covariates, by ``subgroups`` of the case, by the columns of ``subgroups.csv`` and
    ``acquisition.csv`` in the prepared folder, and by the size of their tumour. Stands after
    :class:`shared.handlers.SavePredictions`, whose ``predictions.csv`` it reads; without labels nothing is written.

    Args:
        output_dir: where ``predictions.csv`` is.
        cases: those that are evaluated, of the datalist.
        dataset_dir: the prepared folder.
        bootstrap: draws of the 95 % intervals, over patients.
        seed: of the draws.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        cases: Sequence[Mapping[str, Any]],
        dataset_dir: str | os.PathLike,
        *,
        bootstrap: int = 2000,
        seed: int = 0,
    ):
        self.output_dir, self.cases, self.dataset_dir = Path(output_dir), cases, dataset_dir
        self.bootstrap, self.seed = bootstrap, seed

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def started(self, engine: Engine) -> None:
        """What is wrong with the tables is told before anything is predicted.

        Raises:
            DataError: see :func:`shared.data.subgroups.read_subgroup_tables`.
        """
        read_subgroup_tables(self.dataset_dir)  # of whom they are is checked where the whole datalist is known

    def __call__(self, engine: Engine) -> None:
        """Write what is to be told of them."""
        if is_main():
            options: dict[str, Any] = {"bootstrap": self.bootstrap, "seed": self.seed}
            evaluated_subgroups(self.output_dir, self.cases, self.dataset_dir, **options)
