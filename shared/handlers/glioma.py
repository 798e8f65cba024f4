"""What the glioma stages do when they start and end: take over the earlier stages' weights, set scales and the bank."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from shared.bundle.model import ATLAS_FILE
from shared.checkpoint import load_checkpoint, load_weights, part_of, weights_below
from shared.data.brain.atlas import TractAtlas
from shared.data.brain.cases import GliomaRows
from shared.data.brain.preparation import shipped_preparation, write_preparation
from shared.distributed.processes import from_main, is_main
from shared.handlers.additive_answer import FitAdditive
from shared.losses.glioma import GliomaLoss
from shared.networks.glioma.classifier import FeaturesTraining, GliomaClassifier
from shared.networks.glioma.embeddings import FrozenEmbeddings, brain_networks

logger = logging.getLogger(__name__)


class UnimodalFirst:
    """In the first epochs of ``contrast`` each encoder learns by its own classifier alone, undisturbed by the others.

    Taught by all at once from the start, an encoder may not learn. Nothing is done where the encoders have no
    classifiers of their own, or these no weight in the loss.

    Args:
        network: the features in training.
        loss: of the training.
        share: of all epochs of this run; going on with more of them moves the boundary.

    Raises:
        ValueError: the share is not in [0, 1].
    """

    def __init__(self, network: FeaturesTraining, loss: GliomaLoss, share: float):
        if not 0 <= share <= 1:
            raise ValueError(f"unimodal_share is a share of the epochs, between 0 and 1, got {share}.")
        self.glioma, self.loss, self.share = network.features.glioma, loss, share

    def attach(self, engine: Engine) -> None:
        """Register with the stage's trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Shield the encoders in this epoch, or no longer."""
        taught = self.glioma.unimodal and self.loss.classification_weight > 0 and self.loss.unimodal_weight > 0
        self.glioma.shielded = taught and engine.state.epoch <= round(self.share * engine.state.max_epochs)


class StartContrast:
    """At the start of ``contrast``: the node and edge encoders, and the scale of their attributes.

    Args:
        network: the features in training.
        rows: the patients of this stage.
        nodes: checkpoint of the stage ``nodes``.
        edges: checkpoint of the stage ``edges``.
        device: where the encoders run.
    """

    def __init__(
        self,
        network: FeaturesTraining,
        rows: GliomaRows,
        *,
        nodes: str | os.PathLike,
        edges: str | os.PathLike,
        device: Any = "cpu",
    ):
        self.network, self.rows, self.device = network, rows, device
        self.nodes, self.edges = Path(nodes), Path(edges)

    def attach(self, engine: Engine) -> None:
        """Register with the stage's trainer, after its checkpoint handler."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load and fit, unless the stage is skipped or goes on (its own checkpoint then holds all of it)."""
        if engine.should_terminate or engine.state.epoch > 0:
            return
        features = self.network.features
        if features.nodes is None:
            logger.info("There is no brain encoder: the brain network's encoders are not built, trained or stored.")
            return
        for path, module, prefix, run in (
            (self.nodes, features.nodes, "", "nodes_run"),
            (self.edges, features.edges, "mri.", "edges_run"),
        ):
            hint = f"Run that stage first: --run_id {run}."
            state = part_of(from_main(partial(load_checkpoint, path, hint=hint)), "network", path)
            load_weights(module, weights_below(state, prefix), path)
        features.fit_attributes(*brain_networks(self.rows.items, features, self.device, standardised=False))


class StartPopulation:
    """At the start of ``train``: the frozen features, the patients' embeddings as the graph's bank, the sum.

    Args:
        path: checkpoint of the stage ``contrast``.
        network: the classifier.
        embeddings: of the patients of this stage.
        additive: fits the additive answer, where the network has one; None: with the defaults.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        network: GliomaClassifier,
        embeddings: FrozenEmbeddings,
        additive: FitAdditive | None = None,
    ):
        self.path, self.network, self.embeddings = Path(path), network, embeddings
        self.additive = FitAdditive() if additive is None else additive

    def attach(self, engine: Engine) -> None:
        """Register with the stage's trainer, after its checkpoint handler."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load, embed and set, unless the stage is skipped or goes on."""
        if engine.should_terminate or engine.state.epoch > 0:
            return
        network, rows = self.network, self.embeddings.rows
        hint = "Run it first: --run_id contrast_run."
        state = part_of(from_main(partial(load_checkpoint, self.path, hint=hint)), "network", self.path)
        load_weights(FeaturesTraining(network.features), state, self.path)
        population = network.population
        output = self.embeddings.outputs()
        nodes, edges = network.graph_parts(output)
        labels = rows.labels.to(nodes.device)
        known = rows.covariate_table.to(nodes.device) if population.num_covariates else None
        population.set_bank(nodes, edges, known)
        network.bank_labels = labels.to(population.bank_nodes)
        network.note_sizes()
        if known is not None:
            population.fit_covariates(known, labels)
        if population.graph != "none":
            population.report(labels)
        if network.additive is not None:
            self.additive(network, output.unimodal_logits, rows)


class SaveAtlas:
    """When the last stage ends: the atlas, and how the patients were prepared, beside the checkpoint.

    Args:
        atlas: inference reads the voxels of its regions and tracts.
        ckpt_dir: where ``atlas.npz`` goes.
        dataset_dir: of the patients; ``preparation.json`` and ``histogram_reference.json`` go along, by which
            ``scripts/prepare_glioma.py`` prepares new ones.
    """

    def __init__(self, atlas: TractAtlas, ckpt_dir: str | os.PathLike, dataset_dir: str | os.PathLike | None = None):
        self.atlas, self.ckpt_dir = atlas, Path(ckpt_dir)
        self.preparation = {} if dataset_dir is None else shipped_preparation(dataset_dir)

    def attach(self, engine: Engine) -> None:
        """Register with the last stage's trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write them; a stage that was skipped keeps those of its training."""
        if not is_main() or (engine.state.epoch == 0 and (self.ckpt_dir / ATLAS_FILE).is_file()):
            return
        self.atlas.save(self.ckpt_dir / ATLAS_FILE)
        write_preparation(self.preparation, self.ckpt_dir)
