"""A stage of a training: MONAI's trainer with its checkpoint, log, scheduler and, in several processes, DDP."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.engines import Evaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.utils import set_determinism
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from shared.data.loaders import ShuffledLoader
from shared.distributed.processes import share_batches, sync_batch_norm, world_size
from shared.handlers.checkpoint import StageCheckpoint
from shared.handlers.progress import TrainingLog


def on_device(network: nn.Module, device: str | torch.device, seed: int) -> nn.Module:
    """A network on its device; random numbers are seeded anew, so that what follows does not depend on its size."""
    set_determinism(seed)
    return network.to(device)


class StageTrainer(SupervisedTrainer):
    """MONAI's SupervisedTrainer for one stage: skipped when done, resumed where it stopped, logged, reproducible.

    Before the given handlers it adds :class:`shared.handlers.StageCheckpoint` and :class:`shared.handlers.TrainingLog`
    (its attributes ``checkpoint`` and ``log``), a ``LrScheduleHandler`` and a ``ValidationHandler``. The checkpoint
    holds what is needed to go on exactly: optimiser, scheduler, log, the loss's state, every handler with a
    ``state_dict``, every generator. In several processes DistributedDataParallel trains the network, with BatchNorm
    over all of them, and each process takes its part of every batch. A run ends by seeding all random numbers anew
    (unless ``seed`` is None), so that no stage depends on how long another took.

    Args:
        name: of the stage; its log is ``<name>_loss.csv``.
        common: what all stages share: ``device``, ``seed``, ``output_dir``, ``record`` (of
            :class:`shared.bundle.record.TrainingRecord`) and ``resume``.
        checkpoint: file that the stage leaves.
        max_epochs: epochs.
        train_data_loader: a :class:`shared.data.ShuffledLoader`; its batches are those of all processes together. Or:
        dataset: what such a loader is made of, with ``batch_size`` (None: all) and the seed that all stages share.
        batch_size: of all processes together.
        drop_last: leave out the items after the last whole batch.
        network: what is trained, on its device.
        optimizer: of its parameters.
        loss_function: its method ``terms()``, if there is one, names the loss's terms for the log.
        scheduler: of the learning rate; None: constant.
        scheduler_epoch_level: whether it steps once an epoch, or once a batch.
        train_handlers: handlers of this stage.
        validator: evaluator that runs every ``val_interval`` epochs (MONAI's ValidationHandler); None: none.
        val_interval: epochs.
        saved: the network whose weights the checkpoint holds; None: ``network``.
        bare: the checkpoint is the plain state dict (the last stage's ``model.pt``).
        save_interval: epochs between two saves on the way.
        generators: by name, ``torch.Generator`` or what has one as ``generator``; None among them is left out.
        unused_parameters: a step may leave parameters without a gradient (DistributedDataParallel must know).
        divided: each process takes its part of every batch; False: all take whole batches, with dropout of their own.
        settings: further arguments of MONAI's SupervisedTrainer (``prepare_batch``, ``inferer``, ``key_train_metric``).
    """

    def __init__(
        self,
        name: str,
        common: Mapping[str, Any],
        *,
        checkpoint: str | os.PathLike,
        max_epochs: int,
        network: nn.Module,
        optimizer: Optimizer,
        loss_function: Callable,
        train_data_loader: DataLoader | None = None,
        dataset: Dataset | None = None,
        batch_size: int | None = None,
        drop_last: bool = False,
        scheduler: Any = None,
        scheduler_epoch_level: bool = True,
        train_handlers: Sequence[Any] = (),
        validator: Evaluator | None = None,
        val_interval: int = 1,
        saved: nn.Module | None = None,
        bare: bool = False,
        save_interval: int = 10,
        generators: Mapping[str, Any] | None = None,
        unused_parameters: bool = False,
        divided: bool = True,
        **settings: Any,
    ):
        device, self.seed = torch.device(common["device"]), common["seed"]
        if train_data_loader is None:
            train_data_loader = ShuffledLoader(dataset, batch_size, seed=self.seed, drop_last=drop_last)
        if isinstance(loss_function, nn.Module):
            loss_function = loss_function.to(device)
        remembers = isinstance(loss_function, nn.Module) and loss_function.state_dict()
        self.log = TrainingLog(name, common["output_dir"], getattr(loss_function, "terms", None))
        state = {"optimizer": optimizer, "log": self.log} | ({} if scheduler is None else {"scheduler": scheduler})
        state |= {"loss": loss_function} if remembers else {}
        state |= {type(handler).__name__: handler for handler in train_handlers if hasattr(handler, "load_state_dict")}
        drawn = {key: getattr(value, "generator", value) for key, value in (generators or {}).items()}
        if getattr(train_data_loader, "generator", None) is not None:
            drawn["shuffle"] = train_data_loader.generator
        self.checkpoint = StageCheckpoint(
            checkpoint,
            network if saved is None else saved,
            state=state,
            generators={key: value for key, value in drawn.items() if value is not None},
            resume=common["resume"],
            record=common["record"],
            bare=bare,
            save_interval=save_interval,
        )
        steps = (
            []
            if scheduler is None
            else [LrScheduleHandler(scheduler, print_lr=False, epoch_level=scheduler_epoch_level)]
        )
        validation = [] if validator is None else [ValidationHandler(val_interval, validator)]
        if world_size() > 1:
            train_data_loader = share_batches(train_data_loader) if divided else train_data_loader
            network = sync_batch_norm(network)
            network = nn.parallel.DistributedDataParallel(
                network,
                device_ids=[device] if device.type == "cuda" else None,
                # parts that others trained are in it, each process's as they were read
                broadcast_buffers=not unused_parameters,
                find_unused_parameters=unused_parameters,
            )
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            train_data_loader=train_data_loader,
            network=network,
            optimizer=optimizer,
            loss_function=loss_function,
            train_handlers=[self.checkpoint, *steps, self.log, *validation, *train_handlers],
            **{"decollate": False, "optim_set_to_none": True} | settings,
        )

    def run(self) -> None:
        """Train the stage, then seed all random numbers anew."""
        super().run()
        if self.seed is not None:
            set_determinism(self.seed)
