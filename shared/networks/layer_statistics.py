"""What a network sees of an image at every resolution: means and spreads of its channels, taken as it computes anyway.

They tell contrast, noise, sharpness and colour from one another, which the last embedding was trained to ignore.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class LayerStatistics:
    """Mean and SD over all places of what goes into the first batch normalisation at each resolution.

    A context: inside it the network is watched. What counts is a layer's first call since :meth:`clear`, which is the
    image as it is; its flips and rotations, and further members, come later.

    Args:
        network: with 2D or 3D convolutions, each followed by a batch normalisation.
        layers: names of the layers; None: the first one that is met at each resolution.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8))
        >>> with LayerStatistics(net.eval()) as seen, torch.no_grad():
        ...     _ = net(torch.rand(6, 1, 16, 16))
        >>> seen.layers, seen.features(2).shape
        (['1', '3'], (2, 24))
    """

    def __init__(self, network: nn.Module, layers: Sequence[str] | None = None):
        self.network, self._wanted = network, None if layers is None else list(layers)
        self._hooks: list[Any] = []
        self._resolution: dict[tuple[int, ...], str] = {}
        self._found: dict[str, Tensor] = {}

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in the order of their first calls."""
        return list(self._resolution.values()) if self._wanted is None else self._wanted

    def __enter__(self) -> LayerStatistics:
        for name, module in self.network.named_modules():
            if isinstance(module, _BatchNorm) and (self._wanted is None or name in self._wanted):
                self._hooks.append(module.register_forward_pre_hook(partial(self._see, name)))
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def clear(self) -> None:
        """Before the next batch."""
        self._found = {}

    def _see(self, name: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        x = given[0]
        if name in self._found or x.ndim < 4:
            return
        if self._wanted is None and self._resolution.setdefault(tuple(x.shape[2:]), name) != name:
            return
        variance, mean = torch.var_mean(x.detach().float(), dim=list(range(2, x.ndim)), correction=0)
        self._found[name] = torch.cat([mean, variance.sqrt()], dim=1)

    def features(self, patients: int) -> np.ndarray | None:
        """Features of each patient of the batch, ``[B, 2 x channels of all layers]`` float64.

        Of several images of a patient, means over them. None: a layer was not called, or there is none.
        """
        if not self.layers or any(name not in self._found for name in self.layers):
            return None
        found = [self._found[name] for name in self.layers]
        joined = torch.cat([x.unflatten(0, (patients, -1)).mean(dim=1) for x in found], dim=1)
        return joined.double().cpu().numpy()
