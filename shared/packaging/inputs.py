"""What runs a network without data: random inputs as its metadata describes them, random buffers, silence."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from monai.bundle.scripts import _get_fake_spatial_shape
from torch import Tensor, nn


def random_inputs(formats: Mapping[str, Any], *, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Tensors as ``network_data_format#inputs`` describes them, by the names of the network's arguments.

    Args:
        formats: the description of each input.
        batch: first axis of each tensor.
        seed: of the random numbers: floats in [0, 1), integers within ``value_range``.

    Example:
        >>> image = {"num_channels": 3, "spatial_shape": [8, 8], "dtype": "float32", "value_range": [0, 1]}
        >>> tracts = {"num_channels": 4, "spatial_shape": [2], "dtype": "int64", "value_range": [-1, 5]}
        >>> {name: (x.shape, x.dtype) for name, x in random_inputs({"image": image, "tracts": tracts}).items()}
        {'image': (torch.Size([1, 3, 8, 8]), torch.float32), 'tracts': (torch.Size([1, 4, 2]), torch.int64)}
    """
    generator, made = torch.Generator().manual_seed(seed), {}
    for name, tensor in formats.items():
        shape = (batch, tensor["num_channels"], *_get_fake_spatial_shape(tensor["spatial_shape"]))
        dtype = getattr(torch, tensor["dtype"])
        if dtype.is_floating_point:
            made[name] = torch.rand(shape, generator=generator).to(dtype)
        else:
            low, high = (int(value) for value in tensor["value_range"])
            made[name] = torch.randint(low, high + 1, shape, generator=generator).to(dtype)
    return made


def make_room(network: nn.Module, rows: int = 12) -> None:
    """Rows of invented patients, where an untrained network keeps none yet of its training cohort.

    Args:
        network: its ``make_room`` sizes such buffers as those of a state dict; networks without it keep none.
        rows: patients.
    """
    room = getattr(network, "make_room", None)
    empty = [(name, buffer) for name, buffer in network.named_buffers() if buffer.ndim and not len(buffer)]
    if room is not None and empty:
        room({name: buffer.new_zeros(rows, *buffer.shape[1:]) for name, buffer in empty})


def fill_empty_buffers(network: nn.Module, *, seed: int = 0) -> None:
    """Random numbers for buffers that training fills (biomarkers, banks): of zeros, nothing would be compared."""
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in network.named_buffers():
        if buffer.is_floating_point() and buffer.numel() and not buffer.any() and not name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator))


@contextmanager
def quiet() -> Iterator[None]:
    """No logs, warnings or progress of what runs inside; the exception hook that configs set is put back."""
    hook, level = sys.excepthook, logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.excepthook = hook
        logging.disable(level)
