"""Keep the memory bank and its inter-patient positives up to date (Rao et al., Algorithm 1)."""

from __future__ import annotations

import logging

import torch
from ignite.engine import Engine, Events
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn
from tqdm import tqdm

from shared.data.mixup import ContrastiveRows
from shared.distributed.processes import from_main, gather_objects, gather_rows, share_bounds, world_size
from shared.losses.ircl import IRCLPretrainLoss

logger = logging.getLogger(__name__)


class MemoryBankHandler:
    """Seed the bank from a first pass, renew positives every f epochs, update rows after each optimiser step.

    The update runs on ``ITERATION_COMPLETED``, after the optimiser's step and outside autograd. In several processes
    each encodes its part of the first pass, the first one selects the positives, and every one updates the rows of all:
    bank and positives are the same everywhere.

    Args:
        rows: the rows of the bank.
        loss: its ``contrastive.bank`` is updated, its ``inter_positives`` are written.
        network: the autoencoder, for the first pass.
        epochs: E of Algorithm 1; later epochs keep all rows.
        update_every: f; positives are renewed in epochs 1, 1 + f, 1 + 2f, ...
        num_positives: s, inter-patient positives per row; 0: none.
        include_self: the literal entropy of Eq. 4, with the self-similarity.
        inferer: as in training.
        batch_size: of the first pass.
    """

    def __init__(
        self,
        rows: ContrastiveRows,
        loss: IRCLPretrainLoss,
        network: nn.Module,
        *,
        epochs: int = 80,
        update_every: int = 8,
        num_positives: int = 2,
        include_self: bool = False,
        inferer: Inferer | None = None,
        batch_size: int = 512,
    ):
        self.rows, self.loss, self.network = rows, loss, network
        self.bank = loss.contrastive.bank
        self.epochs, self.update_every, self.num_positives = epochs, update_every, num_positives
        self.include_self, self.batch_size = include_self, batch_size
        self.inferer = inferer or SimpleInferer()
        self.restored = False

    def attach(self, engine: Engine) -> None:
        """Register with the trainer of stage I."""
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.EPOCH_STARTED, self.epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)

    @torch.no_grad()
    def started(self, engine: Engine) -> None:
        """Fill the bank with the embeddings of the images as they are (unless a checkpoint restored it)."""
        self.loss.to(engine.state.device)
        # a trainer that runs again goes on with the bank it has: each round of a federation is such a run
        if self.restored or engine.should_terminate or engine.state.epoch > 0:
            return
        self.network.to(engine.state.device).eval()
        parts = torch.arange(*share_bounds(len(self.rows))).split(self.batch_size)
        for part in tqdm(parts, desc="Seeding the memory bank", leave=False):
            z = self.inferer(self.rows.batch(part).to(engine.state.device), self.network)[-1]
            self.bank.seed(part.to(z.device), z)
        self._share_seeds()

    def _share_seeds(self) -> None:
        if world_size() > 1:
            own = self.bank.embeddings[slice(*share_bounds(len(self.rows)))].cpu().clone()
            self.bank.embeddings.copy_(torch.cat(gather_objects(own)))

    def epoch_started(self, engine: Engine) -> None:
        """Algorithm 1, lines 2 to 14."""
        if self.num_positives and (engine.state.epoch - 1) % self.update_every == 0:
            self.loss.inter_positives = from_main(lambda: self._positives(engine.state.epoch))

    def _positives(self, epoch: int) -> Tensor:
        groups = self.rows.groups.to(self.bank.embeddings.device)
        options = {"groups": groups, "include_self": self.include_self}
        return self.bank.positives(epoch, self.epochs, self.num_positives, **options).cpu()

    def iteration_completed(self, engine: Engine) -> None:
        """m <- normalise(momentum * m + (1 - momentum) * z)."""
        row, z = engine.state.output["label"]["row"], engine.state.output["pred"][-1]
        self.bank.update(gather_rows(row.to(z.device)), gather_rows(z.detach()))

    def state_dict(self) -> dict:
        """Bank and positives, to go on where training stopped."""
        return {"embeddings": self.bank.embeddings, "inter_positives": self.loss.inter_positives}

    def load_state_dict(self, state: dict) -> None:
        """Restore bank and positives."""
        self.bank.embeddings.copy_(state["embeddings"])
        self.loss.inter_positives = state["inter_positives"]
        self.restored = True
