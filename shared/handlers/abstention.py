"""When a model should not be believed: more than one class is plausible, or the patient is unlike those it knows."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from torch import nn

from shared.bundle.abstention import read_cohort, read_conformal
from shared.bundle.record import COHORT_FILE, CONFORMAL_FILE, read_model
from shared.distributed.processes import from_main, gather_objects
from shared.metrics.cohort_distance import Cohort
from shared.metrics.conformal import conformal_sets
from shared.networks.layer_statistics import LayerStatistics
from shared.reports.abstention import SEPARATOR, reason_text, set_text, shift_text

logger = logging.getLogger(__name__)

COLUMNS = ("set", "out_of_cohort", "cohort_distance", "reason")


class Abstention:
    """The columns ``set``, ``out_of_cohort``, ``cohort_distance`` and ``reason`` of predictions.

    The distance is taken from the forward pass that predicts. What the model lacks (``cohort.npz``, ``conformal.json``)
    leaves its columns empty, and a line of the log says how to make it; so do sets of another of the network's answers.

    Args:
        ckpt_dir: folder of the model.
        network: the network that predicts.
        coverage: share of the patients of each class whose class shall be in the set.

    Raises:
        CheckpointError: files of another model.
        DataError: a coverage that is no share.
    """

    def __init__(self, ckpt_dir: str | os.PathLike, network: nn.Module, *, coverage: float = 0.9):
        self.ckpt_dir, self.network, self.coverage = Path(ckpt_dir), network, coverage
        conformal_sets([], [{"patients": 0, "scores": [], "weights": []}] * 2, coverage)
        self.thresholds: dict[str, float] | None = None
        """Operating points that were fixed on patients left out; None until they are known."""
        self._scores: Any = None
        self._cohort: Cohort | None = None
        self._model: dict[str, Any] = {}
        self._limit = 1.0  # a distance is in units of the limit, unless patients left out say otherwise
        self._seen: LayerStatistics | None = None
        self._images: list[tuple[str, np.ndarray]] = []  # patient, and features of the image and by channel

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_STARTED, self._clear)
        for event in (Events.COMPLETED, Events.EXCEPTION_RAISED):
            engine.add_event_handler(event, self._ended)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Without an evaluator: inside it the network's next forward pass is the prediction's."""
        self.started()
        try:
            yield
        finally:
            self._ended()

    def started(self, *engine: Engine) -> None:
        """Read what there is, and watch the network."""
        cohort = from_main(lambda: read_cohort(self.ckpt_dir))
        conformal = from_main(lambda: read_conformal(self.ckpt_dir))
        self._scores = None if conformal is None else conformal["scores"]
        self.thresholds = (conformal or {}).get("thresholds")  # absent in an older file
        if conformal is None:
            logger.info(
                "No %s in %s: no sets. scripts/calibrate.py makes it from patients left out.",
                CONFORMAL_FILE,
                self.ckpt_dir,
            )
        made_of, answer = (conformal or {}).get("answer"), getattr(self.network, "answer", None)
        if made_of and answer and made_of != answer:
            logger.warning("The sets were calibrated on the answer %s, this one is %s: no sets.", made_of, answer)
            self.without_sets()
        self._cohort = self._seen = None
        self._images = []
        if cohort is None:
            logger.info("No %s in %s (an older training): no distance to its patients.", COHORT_FILE, self.ckpt_dir)
            return
        self._cohort, layers = cohort
        self._model = from_main(lambda: read_model(self.ckpt_dir))
        self._limit = ((conformal or {}).get("distance") or {"limit": 1.0})["limit"]
        self._seen = LayerStatistics(self.network, layers).__enter__()

    def without_sets(self) -> None:
        """Leave the sets empty: what is predicted is not what they were calibrated on."""
        self._scores = self.thresholds = None

    def _clear(self, engine: Engine) -> None:
        if self._seen is not None:
            self._seen.clear()

    def _ended(self, *event: Any) -> None:
        if self._seen is not None:
            self._seen.__exit__()
            self._seen = None
        if event[1:]:  # the engine and its exception
            raise event[1]

    def columns(
        self,
        probability: Sequence[float],
        class_names: Sequence[str],
        patients: Sequence[str] = (),
        covariates: Sequence[Any] = (),
        lacking: Sequence[bool] = (),
    ) -> list[dict[str, Any]]:
        """The four columns of the patients of a batch, which the network has just seen.

        Args:
            probability: of class 1, of each patient.
            class_names: of both classes.
            patients: names (of groups, where there are some), by which :meth:`shift` knows which rows count as one.
            covariates: ``[C]`` of each patient, where there are some.
            lacking: whether each lacks an image of a modality. The zeros in its place look like an exchange, and would
                shift the mean of all patients: neither is told of such a patient.
        """
        rows = [dict.fromkeys(COLUMNS, "") for _ in probability]
        sets = None if self._scores is None else conformal_sets(probability, self._scores, self.coverage)
        features = None if self._seen is None else self._seen.features(len(rows))
        far, swapped, odd = None, [None] * len(rows), [dict[int, float]()] * len(rows)
        sure = [True] * len(rows)
        if self._seen is not None and features is not None and self._cohort is not None:
            far, by_channel = self._cohort(features), self._seen.by_channel(len(rows))
            if (channels := self._cohort.channels) is not None:
                swapped = channels(by_channel)
                sure = [pair is None or channels.sure(row, pair) for row, pair in zip(by_channel, swapped, strict=True)]
            if self._cohort.covariates.size and len(covariates):
                odd = self._cohort.far_covariates(np.stack([np.asarray(one, float) for one in covariates]))
            swapped = [None if lacks else pair for pair, lacks in zip_longest(swapped, lacking)]
            seen = zip_longest(patients, np.concatenate([features[0], by_channel], axis=1), lacking)
            self._images += [(patient, image) for patient, image, lacks in seen if patient is not None and not lacks]
        for k, row in enumerate(rows):
            plausible = None if sets is None else sets[k].tolist()
            distance = None if far is None else float(far[k])
            if plausible is not None:
                row["set"] = set_text(plausible, class_names)
            if distance is not None:
                row["out_of_cohort"] = int(not distance <= self._limit or bool(swapped[k] or odd[k]))  # NaN, too
                row["cohort_distance"] = distance
            others = dict(zip(self._names("covariates", odd[k]), odd[k].values(), strict=True))
            pair = self._names("modalities", swapped[k] or ())
            row["reason"] = reason_text(plausible, self.coverage, distance, self._limit, pair, others, sure=sure[k])
        return rows

    def _names(self, key: str, numbers: Iterable[int]) -> list[str]:
        """Names of modalities or covariates, where the model knows them."""
        known = self._model.get(key) or []
        channels = self._cohort and self._cohort.channels
        if key == "modalities" and channels and len(known) != 1 + channels.parts["pairs"].max():
            known = []  # a network whose channels are slices, or colours
        other = "channel" if key == "modalities" else "covariate"
        return [known[k] if k < len(known) else f"{other} {k + 1}" for k in numbers]

    def shift(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """Whether the patients of all batches and processes together are unlike those of the training.

        A contrast that each patient might have is no chance if all have it; then a new scanner or sequence is likely.

        Args:
            rows: of all predictions: where it is so, it is added to each ``reason``.

        Returns:
            See :meth:`shared.metrics.cohort_distance.Cohort.shift`.
        """
        found: dict[str, list[np.ndarray]] = {}
        for part in gather_objects(self._images):
            for patient, features in part:
                found.setdefault(patient, []).append(features)
        if self._cohort is None or not found:
            return None
        means, own = np.stack([np.mean(part, axis=0) for part in found.values()]), self._cohort.distances[0]
        shift = self._cohort.shift(*np.split(means, [own.parts["mean"].size], axis=1))
        if shift is not None:
            shift |= {"exchanged": self._names("modalities", shift["exchanged"])} if "exchanged" in shift else {}
            why = "the files' order?" if "exchanged" in shift else "another scanner or sequence?"
            logger.warning("%s: %s Check the answers on labelled patients.", shift_text(shift), why)
            for row in rows:
                row["reason"] = SEPARATOR.join(filter(None, [row["reason"], shift_text(shift)]))
        return shift
