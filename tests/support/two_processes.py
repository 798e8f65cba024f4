"""A function in two processes of ``torch.distributed`` on the CPU, and a step that they share."""

import os
import socket
from datetime import timedelta

import torch
from torch import distributed as dist
from torch import multiprocessing

PROCESSES = 2


def in_two_processes(work, folder):
    """What ``work(rank)``, a function of a module, returns in each process, passed on through files in ``folder``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_process, (work, port, folder), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


def _process(rank, work, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=60))
    torch.save(work(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


def small_network():
    """The same float64 network in every process."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5)).double()


def mean_of_processes(gradient):
    """The gradient that DistributedDataParallel would step with."""
    dist.all_reduce(gradient)
    return gradient / PROCESSES
