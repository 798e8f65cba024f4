"""Predictions of glioma patients, their neighbours in the population graph, and what the graph has to beat."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.networks.utils import eval_mode

from shared.handlers.abstention import Abstention
from shared.handlers.model_check import ModelCheck
from shared.handlers.predictions import SavePredictions
from shared.io import write_json
from shared.networks.glioma.classifier import GliomaClassifier
from shared.networks.glioma.network import GliomaOutput
from shared.reports.abstention import SEPARATOR
from shared.reports.glioma_controls import UNIMODAL, not_trained, write_glioma_controls
from shared.reports.predictions import write_predictions

NEAREST = 5
NO_NEIGHBOUR = "no neighbour in the population graph"
ITSELF = 1e-5  # a neighbour whose correlation is 1 but for rounding is the patient itself

logger = logging.getLogger(__name__)


class SaveGliomaPredictions(SavePredictions):
    """:class:`SavePredictions` with each patient's neighbours, a file per patient, and the controls of an evaluation.

    A patient without a neighbour in the bank is answered by its own features, and flagged ``out_of_cohort``.

    Args:
        output_dir: where they go.
        network: whose population graph is looked at.
        class_names: of both classes.
        known: of patients by name, their age and grade (``covariates``) and label, for the controls; ``training`` of
            them are fitted to. None: no controls.
        training: names of the patients who trained.
        per_patient: also write ``patients/<patient>.json``.
        check: see :class:`SavePredictions`; a patient whose edge features are those of one in the bank (correlation 1)
            counts as trained on, too.
        bootstrap: draws of the intervals.
        seed: of the draws.
        thresholds: see :class:`SavePredictions`.
        abstention: see :class:`SavePredictions`; a patient without a neighbour is out of the cohort, too.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        network: GliomaClassifier,
        *,
        class_names: Sequence[str] = ("IDH wild type", "IDH mutant"),
        known: Sequence[Mapping[str, Any]] | None = None,
        training: Sequence[str] = (),
        per_patient: bool = False,
        bootstrap: int = 2000,
        seed: int = 0,
        check: ModelCheck | None = None,
        thresholds: Mapping[str, float] | None = None,
        abstention: Abstention | None = None,
    ):
        options: dict[str, Any] = {"bootstrap": bootstrap, "seed": seed, "check": check, "thresholds": thresholds}
        options["abstention"] = abstention
        super().__init__(output_dir, class_names=class_names, **options)
        self.network, self.known, self.training, self.per_patient = network, known, list(training), per_patient
        self._inputs: list[tuple] = []
        self._own: list[dict[str, torch.Tensor]] = []  # by column, a batch each

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator, and look at what the population graph is given."""
        super().attach(engine)
        engine.add_event_handler(Events.STARTED, self._watch)
        engine.add_event_handler(Events.COMPLETED, self._unwatch)

    def _watch(self, engine: Engine) -> None:
        def asked(module: Any, given: tuple, out: torch.Tensor) -> None:
            self._inputs.append(given)

        def embedded(module: Any, given: tuple, out: GliomaOutput) -> None:
            answers = {} if out.logits is None else {"multitask": out.logits}
            if out.unimodal_logits is not None:
                columns = (f"{UNIMODAL}{name}" for name in encoders.encoders)
                answers |= zip(columns, out.unimodal_logits.unbind(dim=1), strict=True)
            self._own.append(answers)

        graph, encoders = self.network.population, self.network.features.glioma
        self._hooks = [graph.register_forward_hook(asked), encoders.register_forward_hook(embedded)]

    def _unwatch(self, _: Engine) -> None:
        for hook in self._hooks:
            hook.remove()

    def started(self, engine: Engine) -> None:
        """Forget earlier rows."""
        super().started(engine)
        self._inputs, self._own = [], []

    def write(self, engine: Engine) -> None:
        """Write tables, metrics, pictures and files per patient."""
        with eval_mode(self.network):  # the evaluator's own has ended
            self._write()

    def _write(self) -> None:
        population = self.network.population
        nodes, edges, covariates = (
            None if part[0] is None else torch.cat(part) for part in zip(*self._inputs, strict=True)
        )
        found = population.predict(nodes, edges, covariates)
        weight, mask = population.query_graph(edges)
        known = population._covariates(covariates, len(nodes))
        alone = torch.stack([m.own(population._standard(nodes), known) for m in population.members]).mean(0).sigmoid()
        mlp = self.network.mlp_logits(nodes, covariates).sigmoid()
        own = {key: torch.cat([batch[key] for batch in self._own]).sigmoid() for key in self._own[0]}
        mutant = (mask.float() @ self.network.bank_labels) / mask.sum(dim=1).clamp(min=1)
        for k, row in enumerate(self.rows):
            alone_in_graph = bool(found.out_of_cohort[k])
            if alone_in_graph and "reason" in row:
                row["reason"] = SEPARATOR.join(filter(None, [row["reason"], NO_NEIGHBOUR]))
            row |= {
                "out_of_cohort": int(alone_in_graph or row.get("out_of_cohort") == 1),
                "neighbours": int(found.neighbours[k]),
                "neighbours_mutant": round(float(mutant[k]), 4) if found.neighbours[k] else "",
                "no_edges": float(alone[k]),
                "mlp": float(mlp[k]),
                **{key: float(values[k]) for key, values in own.items()},
            }
            if self.check is not None and weight.shape[1] and float(weight[k].max()) > 1 - ITSELF:
                row["trained_on"] = 1
        if again := [row["patient"] for row in self.rows if row.get("trained_on") == 1]:
            logger.warning("In the model's own population graph, or equal to one in it: %s.", ", ".join(again[:5]))
        if self.per_patient:
            self._write_patients(weight, mask)
        if not self.gathered():
            return
        metrics = write_predictions(self.output_dir, self.rows, class_names=self.class_names, **self.options)
        if metrics is not None:
            write_glioma_controls(
                self.output_dir,
                self.rows,
                metrics,
                class_names=self.class_names,
                known=self.known,
                training=self.training,
                encoders=self.network.features.glioma.encoders,
                bootstrap=self.bootstrap,
                seed=self.seed,
            )

    def _write_patients(self, weight: torch.Tensor, mask: torch.Tensor) -> None:
        for k, row in enumerate(self.rows):
            order = weight[k].where(mask[k], -2.0).argsort(descending=True)[: min(NEAREST, int(mask[k].sum()))]
            nearest = [
                {"bank_row": int(i), "correlation": float(weight[k, i]), "label": int(self.network.bank_labels[i])}
                for i in order
            ]
            called = self.class_names[int(row["probability"] >= 0.5)]
            content = {key: None if value == "" else value for key, value in row.items()}
            content |= {"out_of_cohort": bool(row["out_of_cohort"]), "called": called, "nearest": nearest}
            content |= dict.fromkeys(not_trained(self.network.features.glioma.encoders, row), "not trained")
            write_json(self.output_dir / "patients" / f"{row['patient']}.json", content)
