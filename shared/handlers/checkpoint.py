"""Checkpoints of a stage: skipped when done, resumed where it stopped, written whole or not at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from shared.bundle.model import load_model
from shared.bundle.record import MODEL_FILE, TrainingRecord, read_model, weights_digest
from shared.bundle.settings import save_settings
from shared.checkpoint import load_checkpoint, load_weights, part_of, save_checkpoint, weights_below
from shared.data.cases import CaseDataset
from shared.distributed.processes import from_main, gather_objects, is_main, rank, world_size
from shared.errors import CheckpointError
from shared.losses.balanced import BalancedCrossEntropyLoss

SHARED_GENERATOR = "shuffle"  # all processes draw the same batches from it, and each takes its part

logger = logging.getLogger(__name__)


class StageCheckpoint:
    """Write ``<path>`` when a stage ends and ``<path>.resume`` on the way; skip or go on when ``resume`` is true.

    In several processes the first reads and writes for all of them, and the others draw numbers of their own (from the
    generators but ``shuffle``, and PyTorch's), kept in the same file.

    Args:
        path: the stage's checkpoint.
        network: whose weights it holds.
        state: further objects with ``state_dict``, needed to go on exactly (optimiser, bank, ...).
        generators: ``torch.Generator`` whose states are kept, beside PyTorch's own.
        resume: skip the stage when its checkpoint exists, else go on from the last epoch saved.
        save_interval: epochs between two saves on the way.
        bare: write the weights alone (what inference loads) instead of ``{"network": weights}``.
        record: what the stage is trained with and on, kept in its checkpoints (of a bare one in ``model.json``): a
            checkpoint of another training is refused. None: nothing is compared.

    Raises:
        CheckpointError: when the stage starts, see :class:`shared.bundle.record.TrainingRecord`.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        network: nn.Module,
        *,
        state: Mapping[str, Any] | None = None,
        generators: Mapping[str, torch.Generator] | None = None,
        resume: bool = False,
        save_interval: int = 1,
        bare: bool = False,
        record: TrainingRecord | None = None,
    ):
        self.path, self.network, self.record = Path(path), network, record
        self.partial = self.path.with_name(self.path.name + ".resume")
        self.state, self.generators = dict(state or {}), dict(generators or {})
        self.resume, self.save_interval, self.bare = resume, save_interval, bare
        self.done = False
        self._ended: dict[str, torch.Tensor] = {}

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; attach it before handlers that prepare the first epoch."""
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.DATALOADER_STOP_ITERATION, self._rewind)

    def started(self, engine: Engine) -> None:
        """Skip, go on, or start anew (an older checkpoint is then removed: it no longer belongs to this run)."""
        # after all other handlers of an epoch's end: what log, early stop and validation do there is part of the state;
        # and after model.json is written, so that no model.pt is there without it
        if not engine.has_event_handler(self.epoch_completed):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
            engine.add_event_handler(Events.COMPLETED, self.completed)
        finished, begun = from_main(self._found)
        if finished:
            logger.info("%s exists and resume is true: the stage is skipped.", self.path)
            state = from_main(lambda: load_checkpoint(self.path))
            load_weights(self.network, state if self.bare else part_of(state, "network", self.path), self.path)
            self.done = True
            engine.terminate()
        elif begun:
            self._restore(engine)
        else:
            self._draw_apart()

    def _found(self) -> tuple[bool, bool]:
        """Whether the stage is skipped, or goes on; what no longer belongs to this training is removed."""
        finished = self.resume and self.path.is_file()
        begun = self.resume and not finished and self.partial.is_file()
        if self.record is not None:
            state: Any = None
            if finished and self.bare:
                state = read_model(self.path.parent)
                if not state:
                    raise CheckpointError(
                        f"{self.path} is there, and no {MODEL_FILE} beside it says what it was trained with: copy it "
                        "from the training's folder, or train anew with --resume False."
                    )
            elif finished or begun:
                state = load_checkpoint(self.path if finished else self.partial)
            stored = state.get("record") if isinstance(state, dict) else None
            stage = self.record.stage_of(self.path)
            self.record.begin(stage, stored, finished=finished, going_on=finished or begun)
        elif not (finished or begun):
            self.path.unlink(missing_ok=True)
            self.partial.unlink(missing_ok=True)
        return finished, begun

    def _draw_apart(self) -> None:
        """Give each process but the first numbers of its own: dropout and views shall not repeat."""
        if is_main():
            return
        torch.manual_seed(torch.initial_seed() + rank())
        for name, generator in self.generators.items():
            if name != SHARED_GENERATOR:
                generator.manual_seed(generator.initial_seed() + rank())

    def _restore(self, engine: Engine) -> None:
        state = from_main(lambda: load_checkpoint(self.partial))
        load_weights(self.network, part_of(state, "network", self.partial), self.partial)
        kept = part_of(state, "generators", self.partial)
        kept = kept if isinstance(kept, list) else [kept]
        if len(kept) != world_size():
            raise CheckpointError(
                f"{self.partial} was written by {len(kept)} processes, and {world_size()} would go on with it: start "
                f"{len(kept)}, or train this stage anew (--resume False)."
            )
        if state["epoch"] > (engine.state.max_epochs or state["epoch"]):
            raise CheckpointError(
                f"{self.partial} holds {state['epoch']} epochs, and {engine.state.max_epochs} are asked for: give at "
                "least as many, or train this stage anew (--resume False)."
            )
        drawn = kept[rank()]
        for name, part in self.state.items():
            part.load_state_dict(part_of(state, name, self.partial))
        for name, generator in self.generators.items():
            generator.set_state(drawn[name])
        torch.set_rng_state(drawn["torch"])
        if "cuda" in drawn and torch.cuda.is_available():
            if world_size() == 1:
                torch.cuda.set_rng_state_all(drawn["cuda"])
            else:
                torch.cuda.set_rng_state(drawn["cuda"])
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["epoch"] * (engine.state.epoch_length or 0)
        logger.info("%s: going on after epoch %d.", self.partial, state["epoch"])

    def epoch_completed(self, engine: Engine) -> None:
        """Remember the generators; save every ``save_interval`` epochs."""
        self._ended = {name: generator.get_state() for name, generator in self.generators.items()}
        if engine.state.epoch % self.save_interval == 0:
            self.save(engine)

    def _rewind(self, engine: Engine) -> None:
        # a shuffling sampler may draw once more when it finds its end, after the epoch was saved: a resumed run would
        # not, and would go on with other batches
        for name, state in self._ended.items():
            self.generators[name].set_state(state)
        self._ended = {}

    def save(self, engine: Engine) -> None:
        """Save all that is needed to go on after this epoch."""
        drawn: dict[str, Any] = {name: generator.get_state() for name, generator in self.generators.items()}
        drawn["torch"] = torch.get_rng_state()
        if torch.cuda.is_available():  # a process of several has one device
            drawn["cuda"] = torch.cuda.get_rng_state_all() if world_size() == 1 else torch.cuda.get_rng_state()
        everyone = gather_objects(drawn)
        if not is_main():
            return
        content = {
            "network": self.network.state_dict(),
            "epoch": engine.state.epoch,
            "generators": drawn if len(everyone) == 1 else everyone,
        }
        content |= {name: part.state_dict() for name, part in self.state.items()}
        save_checkpoint(self.partial, content | self._kept_record())

    def _kept_record(self) -> dict[str, Any]:
        return {} if self.record is None else {"record": self.record.of(self.record.stage_of(self.path))}

    def completed(self, engine: Engine) -> None:
        """Write the stage's checkpoint, remove what was for resuming."""
        if not is_main():
            return
        if not self.done:
            self._write()
        if self.record is not None:
            self.record.end()

    def _write(self) -> None:
        weights = self.network.state_dict()
        save_checkpoint(self.path, weights if self.bare else {"network": weights} | self._kept_record())
        self.partial.unlink(missing_ok=True)


class LoadBiomarkers:
    """At the start of stage II: encoder and biomarkers into the classifier, covariates into its head.

    Covariates are standardised by the training cases, and their weights in the head start at those of their own
    logistic regression: in the few steps that stage II takes, weights from zero would hardly use them.

    Args:
        path: checkpoint of the biomarker stage.
        network: the classifier.
        cases: the training cases, whose covariates standardise (nobody else's).
        loss: of the stage; one that balances classes starts the head's bias at their frequencies, as the covariates'
            regression does.
        additive: checkpoint of the additive predictor, for a network that has one.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        network: nn.Module,
        cases: CaseDataset,
        *,
        loss: nn.Module | None = None,
        additive: str | os.PathLike | None = None,
    ):
        self.path, self.network, self.cases, self.loss = Path(path), network, cases, loss
        self.additive = additive and Path(additive)

    def attach(self, engine: Engine) -> None:
        """Register with the trainer of stage II."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load and standardise, unless the stage is skipped or goes on (its own checkpoint then holds all of it)."""
        if engine.should_terminate or engine.state.epoch > 0:
            return
        hint = "Run the earlier stages first: --run_id pretrain_run, then --run_id biomarkers_run."
        state = from_main(lambda: load_checkpoint(self.path, hint=hint))
        load_weights(self.network.encoder, part_of(state, "encoder", self.path), self.path)
        biomarkers = part_of(state, "biomarkers", self.path)
        if biomarkers.shape != self.network.biomarkers.shape:
            raise CheckpointError(
                f"{self.path} holds biomarkers {tuple(biomarkers.shape)}, the network takes "
                f"{tuple(self.network.biomarkers.shape)} (number, width). Run the biomarker stage again: "
                "--run_id biomarkers_run."
            )
        self.network.biomarkers.copy_(biomarkers)
        if self.network.additive is not None and self.additive is not None:
            hint = "Run the additive stage first: --run_id additive_run."
            state = from_main(lambda: load_checkpoint(self.additive, hint=hint))
            load_weights(self.network.additive, part_of(state, "additive", self.additive), self.additive)
        predictor = self.network.predictor
        if predictor.num_covariates:
            predictor.fit_covariates(self.cases.stack("covariates"), self.cases.stack("label"))
        elif self.loss is not None:
            StartBalanced(self.loss, predictor.head)(engine)


class LoadEncoder:
    """At the start of fine-tuning: the pretrained encoder into the classifier.

    Args:
        path: checkpoint of the pretraining; None: from scratch.
        network: the classifier; its ``encoder`` is filled.
        loss: of the fine-tuning; one that balances classes starts the head's bias at their frequencies.
        record: of this training; whom a checkpoint of another folder was trained on, is counted as seen.
    """

    def __init__(
        self,
        path: str | os.PathLike | None,
        network: nn.Module,
        *,
        loss: nn.Module | None = None,
        record: TrainingRecord | None = None,
    ):
        self.path, self.network = path and Path(path), network
        self.loss, self.record = loss, record

    def attach(self, engine: Engine) -> None:
        """Register with the trainer of the fine-tuning."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load, unless the stage is skipped or goes on (its own checkpoint then holds all of it)."""
        if engine.should_terminate or engine.state.epoch > 0:
            return
        if self.loss is not None:
            StartBalanced(self.loss, self.network.head)(engine)
        if self.path is None:
            return
        hint = "Run the pretraining first (--run_id pretrain_run), or train without it: add scratch.json."
        self.fill(from_main(lambda: load_checkpoint(self.path, hint=hint)))

    def fill(self, state: Any) -> None:
        """Load the encoder's part of the checkpoint's content."""
        state = part_of(state, "network", self.path)
        load_weights(self.network.encoder, weights_below(state, "encoder."), self.path)
        if self.record is not None and is_main():
            self.record.inherit(self.path)


class StartBalanced:
    """At the start of a training from scratch: the head's bias at the frequencies that a balancing loss counts out.

    Args:
        loss: of the training; one that balances nothing changes nothing.
        head: the layer that gives the logits.
    """

    def __init__(self, loss: nn.Module, head: nn.Linear):
        self.loss, self.head = loss, head

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Move the bias, unless the stage is skipped or goes on."""
        if not engine.should_terminate and engine.state.epoch == 0 and isinstance(self.loss, BalancedCrossEntropyLoss):
            self.loss.start(self.head)


class SaveSettings:
    """When the last stage ends: what the model is made of and was trained with, beside its weights.

    Args:
        ckpt_dir: where ``model.json`` goes.
        network: its ``settings`` become the section ``network``, unless ``architecture`` is given.
        record: of the training.
        architecture: of a network without ``settings``: its ``class`` (dotted name) and arguments.
        sections: further plain values, which evaluation, explanation and inference take from there.
    """

    def __init__(
        self,
        ckpt_dir: str | os.PathLike,
        network: nn.Module,
        *,
        record: TrainingRecord | None = None,
        architecture: Mapping[str, Any] | None = None,
        **sections: Any,
    ):
        self.ckpt_dir, self.network, self.record = ckpt_dir, network, record
        self.architecture, self.sections = architecture, sections

    def attach(self, engine: Engine) -> None:
        """Register with the trainer of stage II."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write ``model.json``; a stage that was skipped keeps the one of its training."""
        if not is_main() or (engine.state.epoch == 0 and (Path(self.ckpt_dir) / MODEL_FILE).is_file()):
            return
        content = {"network": self.network.settings if self.architecture is None else dict(self.architecture)}
        content |= {**self.sections, "weights": weights_digest(self.network.state_dict())}
        if self.record is not None:
            content["record"] = self.record.of(self.record.stages[-1])
        save_settings(self.ckpt_dir, **content)


class LoadModel:
    """At the start of an evaluation: the whole trained model."""

    def __init__(self, path: str | os.PathLike, network: nn.Module):
        self.path, self.network = Path(path), network

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load strictly."""
        load_model(self.path, self.network)
