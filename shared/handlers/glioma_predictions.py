"""Predictions of glioma patients, their neighbours in the population graph, and what the graph has to beat."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.networks.utils import eval_mode

from shared.distributed.processes import gather_objects
from shared.handlers.abstention import Abstention
from shared.handlers.additive_answer import term_names
from shared.handlers.model_check import ModelCheck
from shared.handlers.predictions import SavePredictions
from shared.io import write_csv, write_json
from shared.metrics.classifiers import classifier
from shared.networks.glioma.classifier import GliomaClassifier
from shared.networks.glioma.embeddings import joined_output
from shared.networks.glioma.network import ENCODERS, GliomaOutput
from shared.reports.abstention import SEPARATOR
from shared.reports.glioma_controls import UNIMODAL, not_trained, write_glioma_controls
from shared.reports.predictions import write_predictions

NEAREST = 5
NO_NEIGHBOUR = "no neighbour in the population graph"
ANSWER = "probability_"  # before an answer's name: its probability, whichever of them is the prediction
PREFIX = {"image": "tumour_image_", "points": "tumour_points_", "brain": "brain_"}  # of the embeddings' columns
ITSELF = 1e-5  # a neighbour whose correlation is 1 but for rounding is the patient itself

logger = logging.getLogger(__name__)


class SaveGliomaPredictions(SavePredictions):
    """:class:`SavePredictions` with each patient's neighbours, a file per patient, and the controls of an evaluation.

    A patient without a neighbour in the bank is answered by its own features, and flagged ``out_of_cohort``. Beside the
    table go ``embeddings.csv``, and of a network with an additive answer ``additive.csv``: each patient's terms, which
    with the bias add up to the logit, and their Shapley values.

    Args:
        output_dir: where they go.
        network: whose population graph is looked at.
        class_names: of both classes.
        known: of patients by name, their age and grade (``covariates``) and label, for the controls; ``training`` of
            them are fitted to. None: no controls, and no SVM on the embeddings.
        training: names of the patients who trained.
        per_patient: also write ``patients/<patient>.json``.
        check: see :class:`SavePredictions`; a patient whose edge features are those of one in the bank (correlation 1)
            counts as trained on, too.
        bootstrap: draws of the intervals.
        seed: of the draws.
        thresholds: see :class:`SavePredictions`.
        abstention: see :class:`SavePredictions`; a patient without a neighbour is out of the cohort, too.
        covariates: names of the covariates, for the terms of the additive answer.
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
        covariates: Sequence[str] = (),
    ):
        options: dict[str, Any] = {"bootstrap": bootstrap, "seed": seed, "check": check, "thresholds": thresholds}
        options["abstention"] = abstention
        super().__init__(output_dir, class_names=class_names, **options)
        self.network, self.known, self.training, self.per_patient = network, known, list(training), per_patient
        self.covariates = list(covariates)
        self._outputs: list[GliomaOutput] = []  # a batch each, as are these
        self._covariates: list[torch.Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator, and look at what the encoders give."""
        super().attach(engine)
        engine.add_event_handler(Events.STARTED, self._watch)
        engine.add_event_handler(Events.COMPLETED, self._unwatch)

    def _watch(self, engine: Engine) -> None:
        def embedded(module: Any, given: tuple, out: GliomaOutput) -> None:
            self._outputs.append(out)

        self._hook = self.network.features.glioma.register_forward_hook(embedded)

    def _unwatch(self, _: Engine) -> None:
        self._hook.remove()

    def started(self, engine: Engine) -> None:
        """Forget earlier rows."""
        super().started(engine)
        self._outputs, self._covariates = [], []

    def collect(self, engine: Engine) -> None:
        """Keep the batch's probabilities, which sequences each patient lacks, and the covariates."""
        first = len(self.rows)
        super().collect(engine)
        for row, case in zip(self.rows[first:], engine.state.batch, strict=True):
            if "lacking" in case:
                said = f"predicted without {case['lacking']}" if case["lacking"] else ""
                reason = SEPARATOR.join(filter(None, [row.get("reason", ""), said]))
                row |= {"lacking": case["lacking"], "reason": reason}
        if self.network.population.num_covariates:
            self._covariates.append(torch.stack([torch.as_tensor(case["covariates"]) for case in engine.state.batch]))

    def write(self, engine: Engine) -> None:
        """Write tables, metrics, pictures and files per patient."""
        with eval_mode(self.network):  # the evaluator's own has ended
            self._write()

    @torch.no_grad()
    def _write(self) -> None:
        network, population = self.network, self.network.population
        output = _together(self._outputs)
        nodes, edges = network.graph_parts(output)
        covariates = torch.cat(self._covariates).to(nodes.device) if self._covariates else None
        found = population.predict(nodes, edges, covariates)
        weight, mask = population.query_graph(edges)
        known = population._covariates(covariates, len(nodes))
        alone = torch.stack([m.own(population._standard(nodes), known) for m in population.members]).mean(0).sigmoid()
        mlp = network.mlp_logits(nodes, covariates).sigmoid()
        own = {} if self.known is None else self._svm(population._standard(nodes))
        own |= {} if output.logits is None else {"multitask": output.logits.sigmoid()}
        if output.unimodal_logits is not None:
            columns = (f"{UNIMODAL}{name}" for name in network.features.glioma.encoders)
            own |= zip(columns, output.unimodal_logits.sigmoid().unbind(dim=1), strict=True)
        answers = {f"{ANSWER}{key}": x.sigmoid() for key, x in network.answers(output, covariates).items()}
        mutant = (mask.float() @ self.network.bank_labels) / mask.sum(dim=1).clamp(min=1)
        for k, row in enumerate(self.rows):
            alone_in_graph = bool(found.out_of_cohort[k])
            if alone_in_graph and "reason" in row:
                row["reason"] = SEPARATOR.join(filter(None, [row["reason"], NO_NEIGHBOUR]))
            row |= {key: float(values[k]) for key, values in answers.items()}
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
        terms = self._terms(output, covariates)
        if self.per_patient:
            self._write_patients(weight, mask, terms)
        further = {"additive": terms, "embeddings": self._embeddings(output)}
        further = {name: [row for part in gather_objects(rows) for row in part] for name, rows in further.items()}
        if not self.gathered():
            return
        for name, rows in further.items():
            if rows:
                write_csv(self.output_dir / f"{name}.csv", rows)
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
                answer=self.network.answer,
                bootstrap=self.bootstrap,
                seed=self.seed,
            )

    def _svm(self, nodes: torch.Tensor) -> dict[str, torch.Tensor]:
        """Probabilities of a support vector machine on the bank's embeddings; nothing where a class has one patient."""
        population, labels = self.network.population, self.network.bank_labels.long().cpu()
        fewest = int(torch.bincount(labels, minlength=2).min())
        if fewest < 2:
            return {}
        fitted = classifier("svm", folds=min(5, fewest))
        fitted.fit(population._standard(population.bank_nodes).cpu().numpy(), labels.numpy())
        return {"svm": torch.from_numpy(fitted.predict_proba(nodes.cpu().numpy())[:, 1])}

    def _terms(self, output: GliomaOutput, covariates: torch.Tensor | None) -> list[dict[str, Any]]:
        """Each patient's terms of the additive answer, and their Shapley values; nothing where there is none."""
        additive = self.network.additive
        if additive is None:
            return []
        scores, names = self.network.features.glioma.scores(output), term_names(self.network, self.covariates)
        terms, shapley = (part(scores, covariates).tolist() for part in (additive.contributions, additive.shapley))
        logits, bias, base = additive(scores, covariates).tolist(), float(additive.bias[0]), additive.base
        return [
            {"patient": row["patient"], "logit": logits[k], "bias": bias}
            | {f"term_{name}": terms[k][i] for i, name in enumerate(names)}
            | {"base": base}
            | {f"shapley_{name}": shapley[k][i] for i, name in enumerate(names)}
            for k, row in enumerate(self.rows)
        ]

    def _embeddings(self, output: GliomaOutput) -> list[dict[str, Any]]:
        """Each patient's embeddings, a feature a column, as scripts/population_graph.py reads them."""
        parts = {name: u.tolist() for name in ENCODERS if (u := getattr(output, f"u_{name}")) is not None}
        return [
            {"patient": row["patient"]}
            | {f"{PREFIX[name]}{i}": x for name, u in parts.items() for i, x in enumerate(u[k])}
            for k, row in enumerate(self.rows)
        ]

    def _write_patients(self, weight: torch.Tensor, mask: torch.Tensor, terms: Sequence[Mapping[str, Any]]) -> None:
        for k, row in enumerate(self.rows):
            order = weight[k].where(mask[k], -2.0).argsort(descending=True)[: min(NEAREST, int(mask[k].sum()))]
            nearest = [
                {"bank_row": int(i), "correlation": float(weight[k, i]), "label": int(self.network.bank_labels[i])}
                for i in order
            ]
            called = self.class_names[int(row["probability"] >= 0.5)]
            content = {key: None if value == "" else value for key, value in row.items()}
            content |= {"out_of_cohort": bool(row["out_of_cohort"]), "called": called, "answer": self.network.answer}
            if terms:
                content["additive"] = {key: value for key, value in terms[k].items() if key != "patient"}
            content |= {"nearest": nearest}
            content |= dict.fromkeys(not_trained(self.network.features.glioma.encoders, row), "not trained")
            write_json(self.output_dir / "patients" / f"{row['patient']}.json", content)


def _together(outputs: Sequence[GliomaOutput]) -> GliomaOutput:
    """Embeddings and classifiers' logits of all batches."""
    keys = (*(f"u_{name}" for name in ENCODERS), "unimodal_logits", "logits")
    joined = {
        key: None if getattr(outputs[0], key) is None else torch.cat([getattr(output, key) for output in outputs])
        for key in keys
    }
    logits = joined.pop("logits")
    return joined_output(*joined.values())._replace(logits=logits)
