"""The last step of a training: how far its own patients lie from one another, by which new ones are told from them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import SimpleInferer
from monai.networks.utils import eval_mode
from torch import nn
from tqdm import tqdm

from shared.bundle.abstention import read_cohort, write_cohort
from shared.bundle.record import COHORT_FILE
from shared.distributed.processes import from_main
from shared.errors import CheckpointError
from shared.metrics.cohort_distance import FEWEST, ROWS, Cohort
from shared.metrics.exchanged_channels import ExchangedChannels
from shared.networks.layer_statistics import LayerStatistics, exchange_orders

logger = logging.getLogger(__name__)


class CohortStage:
    """Write ``cohort.npz``: where the training patients lie, and from which distance on a patient is unlike them.

    The network computes each training patient once, as in an inference; the limit comes from patients whom the distance
    does not know (ten folds of the training patients, network fixed). ``scripts/calibrate.py`` replaces it by one of
    patients whom no network has seen.

    Args:
        network: the trained network.
        common: what all stages share; ``resume`` keeps a file of this very model.
        ckpt_dir: where the file goes, beside ``model.json``.
        dataloader: the training patients, neither shuffled nor augmented, with the key ``patient`` (or ``group``).
        prepare_batch: as in an evaluation.
        inferer: how the network is called.
    """

    def __init__(
        self,
        network: nn.Module,
        common: Mapping[str, Any],
        *,
        ckpt_dir: str | os.PathLike,
        dataloader: Iterable[Mapping[str, Any]],
        prepare_batch: Callable,
        inferer: Callable | None = None,
    ):
        self.network, self.dataloader, self.prepare_batch = network, dataloader, prepare_batch
        self.ckpt_dir, self.device, self.resume = Path(ckpt_dir), common["device"], common["resume"]
        self.inferer = SimpleInferer() if inferer is None else inferer

    def run(self) -> None:
        """Compute and write, or skip when resuming; of several processes the first does it, others wait."""
        from_main(self._run)

    def _run(self) -> None:
        path = self.ckpt_dir / COHORT_FILE
        if self.resume and self._is_made():
            logger.info("%s exists and resume is true, the stage is skipped.", path)
            return
        path.unlink(missing_ok=True)
        features, by_channel, groups, known, seen = self._features()
        why = "no layer of the network can be watched" if features is None else ""
        why = why or (f"fewer than {FEWEST} patients" if len(set(groups)) < FEWEST else "")
        why = why or ("" if all(np.isfinite(part).all() for part in features or ()) else "values are not finite")
        if why or features is None:
            logger.warning("%s: out_of_cohort will not be told of new patients.", why)
            return
        kept = _spread_out(groups, ROWS)
        parts, groups = [part[kept] for part in features], [groups[k] for k in kept]
        orders = exchange_orders(seen.channels)
        channels = ExchangedChannels.fit(by_channel[kept], groups, orders) if orders else None
        cohort = Cohort.fit(parts, groups, channels=channels)
        if known.size:
            there = np.ma.masked_invalid(known)
            cohort.covariates = np.stack([there.mean(axis=0).filled(0.0), there.std(axis=0).filled(0.0)])
        write_cohort(self.ckpt_dir, cohort, seen.layers)

    def _is_made(self) -> bool:
        """Whether the file is there, and of this very model: a training that goes on may have left an earlier one."""
        try:
            return read_cohort(self.ckpt_dir) is not None
        except CheckpointError:
            return False

    @torch.no_grad()
    def _features(
        self,
    ) -> tuple[list[np.ndarray] | None, np.ndarray, list[str], np.ndarray, LayerStatistics]:
        """Features of the parts and by channel, patient and covariates of each row, and what has seen them."""
        parts: list[Any] = []
        channels: list[np.ndarray] = []
        known: list[np.ndarray] = []
        groups: list[str] = []
        with eval_mode(self.network), LayerStatistics(self.network) as seen:
            for batch in tqdm(self.dataloader, desc="Cohort", leave=False):
                seen.clear()
                inputs, _, *more = self.prepare_batch(batch, self.device)
                args, kwargs = more or ((), {})
                self.inferer(inputs, self.network, *args, **kwargs)
                groups += [str(name) for name in batch.get("group", batch["patient"])]
                parts.append(seen.features(len(batch["patient"])))
                channels += [] if parts[-1] is None else [seen.by_channel(len(batch["patient"]))]
                known.append(np.asarray(batch.get("covariates", np.empty((len(batch["patient"]), 0))), float))
        if not parts or any(part is None for part in parts):
            return None, np.empty(0), groups, np.empty(0), seen
        found = [np.concatenate(part) for part in zip(*parts, strict=True)]
        return found, np.concatenate(channels), groups, np.concatenate(known), seen


def _spread_out(groups: list[str], most: int) -> list[int]:
    """Rows of at most so many in all, evenly many of each patient, evenly spread over them."""
    by_patient: dict[str, list[int]] = {}
    for row, name in enumerate(groups):
        by_patient.setdefault(name, []).append(row)
    share = max(1, most // len(by_patient))
    kept = [
        rows[i * len(rows) // min(share, len(rows))]
        for rows in by_patient.values()
        for i in range(min(share, len(rows)))
    ]
    return sorted(kept)
