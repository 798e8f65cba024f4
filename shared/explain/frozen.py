"""A network that is only looked at: eval mode and no gradients for its parameters, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients for the network's parameters, undone afterwards module by module.

    Example:
        >>> network = nn.Linear(2, 1)
        >>> with frozen(network):
        ...     network.training, network.weight.requires_grad
        (False, False)
        >>> network.training, network.weight.requires_grad
        (True, True)
    """
    training = [(module, module.training) for module in network.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        network.eval().requires_grad_(False)
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, required in gradients:
            parameter.requires_grad_(required)
