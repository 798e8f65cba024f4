"""Several processes of one training, as torchrun starts them: what each does, what only the first does."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
from monai.data import DataLoader
from torch import Tensor, nn
from torch import distributed as dist

from shared.errors import DataError

Found = TypeVar("Found")
GLOO_SECONDS = 0.5  # until its threads have freed what they hold


def world_size() -> int:
    """Number of processes; 1 outside torchrun.

    Example:
        >>> world_size(), rank(), is_main()
        (1, 0, True)
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among all of them."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def start(backend: str) -> None:
    """Join the processes that torchrun started; all but the first stay silent.

    Args:
        backend: ``"nccl"`` for CUDA, ``"gloo"`` for CPUs.

    Raises:
        DataError: torchrun did not start this process.
    """
    if lacking := [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR") if name not in os.environ]:
        raise DataError(
            f"multi_gpu_train.json needs the processes that torchrun starts ({', '.join(lacking)} are not set): "
            "torchrun --nproc_per_node 2 -m monai.bundle run --config_file ..."
        )
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        # others wait while the first clusters or writes
        dist.init_process_group(backend, timeout=timedelta(hours=2))
    if not is_main():
        from tqdm import tqdm

        logging.disable(logging.WARNING)
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)


def stop() -> None:
    """Leave; nothing happens where nothing was joined."""
    if dist.is_available() and dist.is_initialized():
        gloo = dist.get_backend() == "gloo"
        dist.destroy_process_group()
        if gloo:
            # a DistributedDataParallel still there keeps its threads from being joined; they need the interpreter to
            # free their last tensors, and where that has ended they abort (PyTorch 179291)
            time.sleep(GLOO_SECONDS)


def rank_device(backend: str) -> torch.device:
    """Device of this process: its own GPU under ``"nccl"``, else the CPU.

    Example:
        >>> rank_device("gloo")
        device(type='cpu')
    """
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if backend == "nccl" else torch.device("cpu")


def from_main(function: Callable[[], Found]) -> Found:
    """What the first process finds, in all of them; what it raises is raised in all.

    Files are read so, too: machines need no common disk for checkpoints.

    Example:
        >>> from_main(lambda: 7)
        7
    """
    if world_size() == 1:
        return function()
    found: list[Any] = [None, None]
    if is_main():
        try:
            found[0] = function()
        except Exception as error:
            found[1] = error
    dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise found[1]
    return found[0]


def gather_objects(value: Found) -> list[Found]:
    """Every process's value, in the order of their ranks.

    Example:
        >>> gather_objects("rows")
        ['rows']
    """
    if world_size() == 1:
        return [value]
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, value)
    return everyone


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes, in the order of their ranks; equally many in each.

    Shape:
        - rows: ``[B, ...]`` -> ``[W B, ...]``
    """
    if world_size() == 1:
        return rows
    everyone = rows.new_empty(world_size() * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(everyone, rows.contiguous())
    return everyone


def mean_of_all(value: Tensor) -> Tensor:
    """Mean of a tensor over the processes."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= world_size()
    return value


def share_bounds(count: int) -> tuple[int, int]:
    """First and last (excluded) of ``count`` things that are this process's.

    Example:
        >>> share_bounds(5)
        (0, 5)
    """
    return count * rank() // world_size(), count * (rank() + 1) // world_size()


class SharedBatches:
    """This process's part of every batch: all draw the same batches, each takes its consecutive rows.

    A batch that the number of processes does not divide (an epoch's last one) loses its remainder, so that all parts
    weigh the same in the mean of the gradients.

    Args:
        batches: batch sampler, the same in all processes.

    Example:
        >>> list(SharedBatches([[3, 1], [2]]))
        [[3, 1], [2]]
    """

    def __init__(self, batches: Any):
        self.batches = batches

    def __len__(self) -> int:
        size, drop = getattr(self.batches, "batch_size", 0), getattr(self.batches, "drop_last", True)
        whole = len(self.batches)
        # a last batch with fewer rows than processes is no batch
        empty = not drop and 0 < len(self.batches.sampler) % size < world_size()
        return whole - empty

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            count = len(batch) // world_size()
            if count:
                yield batch[rank() * count : (rank() + 1) * count]


def share_batches(loader: DataLoader) -> DataLoader:
    """A loader of training batches whose ``batch_size`` is that of all processes together.

    Args:
        loader: as one process would use it; its order must come from a seeded generator.

    Raises:
        DataError: the processes do not divide its batch size.
    """
    if world_size() == 1:
        return loader
    if loader.batch_size % world_size():
        fits = max(1, round(loader.batch_size / world_size())) * world_size()
        raise DataError(
            f"batch_size is that of all processes together, and {world_size()} processes do not divide "
            f"{loader.batch_size}; set batch_size to {fits}, say, or start another number of processes."
        )
    return _with(loader, batch_sampler=SharedBatches(loader.batch_sampler), generator=loader.generator)


def share_cases(loader: DataLoader) -> DataLoader:
    """A loader of this process's part of the cases to evaluate: each case in one process, none twice, in order.

    Args:
        loader: as one process would use it, without shuffling.

    Raises:
        DataError: fewer cases than processes.
    """
    count = len(loader.dataset)
    if world_size() == 1 or not count:
        return loader
    if count < world_size():
        raise DataError(
            f"{count} cases cannot be evaluated in {world_size()} processes; evaluate without multi_gpu_train.json."
        )
    return _with(loader, batch_size=loader.batch_size, sampler=range(*share_bounds(count)))


def _with(loader: DataLoader, **changes: Any) -> DataLoader:
    same = {"num_workers": loader.num_workers, "collate_fn": loader.collate_fn, "pin_memory": loader.pin_memory}
    return DataLoader(loader.dataset, **same, **changes)


def sync_batch_norm(network: nn.Module) -> nn.Module:
    """Let BatchNorm see the batch of all processes: PyTorch's ``SyncBatchNorm``, on CPUs a class of our own.

    Weights keep their names, so that checkpoints fit either way.

    Args:
        network: changed in place; on its device already.
    """
    if world_size() == 1:
        return network
    if any(parameter.is_cuda for parameter in network.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    from shared.distributed.batch_norm import GatheredBatchNorm

    return GatheredBatchNorm.convert(network)
