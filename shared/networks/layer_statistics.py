"""What a network is given and what it makes of it first: means and spreads of channels, taken as it computes anyway.

They tell contrast, noise, sharpness and colour from one another, which the last embedding was trained to ignore.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

RESOLUTIONS = 2  # those of later layers hide a shift among the many features of what the image shows
OF_CHANNEL = 4  # features of the image that each channel has
_LEAST = 1e-3  # added to a spread before its logarithm


class LayerStatistics:
    """Of the image: mean, log SD, log gradient and skewness of each channel, correlation of each two; of two layers:
    mean and log SD of each channel.

    The image is what goes into the first convolution, the layers what goes into the first batch normalisation at each
    of the first two resolutions. Where the image is 0 in all channels there is no image (outside a mask): these places
    do not count. What counts is a layer's first call since :meth:`clear`, which is the image as it is; its flips and
    rotations, and further members, come later.

    A context: inside it the network is watched.

    Args:
        network: with 2D or 3D convolutions, each followed by a batch normalisation.
        layers: names of the layers; None: those that are met first.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8))
        >>> with LayerStatistics(net.eval()) as seen, torch.no_grad():
        ...     _ = net(torch.rand(6, 1, 16, 16))
        >>> seen.layers, [part.shape for part in seen.features(2)]
        (['1', '3'], [(2, 4), (2, 8), (2, 16)])
    """

    def __init__(self, network: nn.Module, layers: Sequence[str] | None = None):
        self.network, self._wanted = network, None if layers is None else list(layers)
        self._modalities = getattr(network, "num_modalities", 1)
        self._slices = getattr(network, "num_images", 1) // self._modalities
        self.channels = 0
        """Of the image."""
        self._hooks: list[Any] = []
        self._resolution: dict[tuple[int, ...], str] = {}
        self._image: Tensor | None = None
        self._by_channel: Tensor | None = None
        self._inside: Tensor | None = None
        self._found: dict[str, Tensor] = {}

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in the order of their first calls."""
        return list(self._resolution.values()) if self._wanted is None else self._wanted

    def __enter__(self) -> LayerStatistics:
        for name, module in self.network.named_modules():
            if isinstance(module, _ConvNd):
                self._hooks.append(module.register_forward_pre_hook(self._see_image))
            elif isinstance(module, _BatchNorm) and (self._wanted is None or name in self._wanted):
                self._hooks.append(module.register_forward_pre_hook(partial(self._see, name)))
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def clear(self) -> None:
        """Before the next batch."""
        self._image = self._by_channel = self._inside = None
        self._found = {}

    def _see_image(self, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if self._inside is not None or given[0].ndim < 4:
            return
        x = given[0].detach().float()
        self._inside = (x != 0).any(dim=1, keepdim=True).float()
        self._image = self._by_channel = _image_features(x, self._inside)
        if x.shape[1] == 1 and self._modalities > 1 and self._slices:
            x = x.unflatten(0, (-1, self._modalities, self._slices)).transpose(1, 2).flatten(0, 1).squeeze(2)
            self._by_channel = _image_features(x, (x != 0).any(dim=1, keepdim=True).float())
        self.channels = x.shape[1]

    def _see(self, name: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        x, inside = given[0].detach(), self._inside
        if name in self._found or inside is None or x.ndim != inside.ndim or len(x) != len(inside):
            return
        shape = tuple(x.shape[2:])
        if self._wanted is None and len(self._resolution) == RESOLUTIONS and shape not in self._resolution:
            return
        if self._wanted is None and self._resolution.setdefault(shape, name) != name:
            return
        pool = functional.adaptive_avg_pool2d if x.ndim == 4 else functional.adaptive_avg_pool3d
        weight = inside if inside.shape[2:] == x.shape[2:] else pool(inside, shape)
        self._found[name] = torch.cat(_moments(x.float(), weight), dim=1)

    def features(self, patients: int) -> list[np.ndarray] | None:
        """Features ``[B, p]`` float64 of each patient of the batch: of the image, and of each layer.

        Of several images of a patient, means over them. None: a layer was not called, or there is none.
        """
        if self._image is None or not self.layers or any(name not in self._found for name in self.layers):
            return None
        found = [self._image, *(self._found[name] for name in self.layers)]
        return [_by_patient(x, patients) for x in found]

    def by_channel(self, patients: int) -> np.ndarray:
        """Features ``[B, p]`` float64 of the image in the order of :func:`exchange_orders`.

        Where a patient's images are of several modalities (``num_modalities`` of the network, modality by modality),
        the modalities are the channels; the image's part of :meth:`features` is a mean over them.
        """
        if self._by_channel is None:
            raise ValueError("The network has not been called with an image.")
        return _by_patient(self._by_channel, patients)


def exchange_orders(channels: int) -> dict[tuple[int, int], np.ndarray]:
    """Of each two channels the order of the image's features that their exchange makes.

    Example:
        >>> exchange_orders(2)[0, 1].tolist()
        [1, 0, 3, 2, 5, 4, 7, 6, 8]
    """
    pairs = list(combinations(range(channels), 2))
    found = {}
    for a, b in pairs:
        new = [b if c == a else a if c == b else c for c in range(channels)]
        single = [part * channels + c for part in range(OF_CHANNEL) for c in new]
        of_two = [OF_CHANNEL * channels + pairs.index((min(new[c], new[d]), max(new[c], new[d]))) for c, d in pairs]
        found[a, b] = np.array(single + of_two)
    return found


def _image_features(x: Tensor, inside: Tensor) -> Tensor:
    squares = []
    for dim in range(2, x.ndim):
        both = inside.narrow(dim, 1, x.shape[dim] - 1) * inside.narrow(dim, 0, x.shape[dim] - 1)
        squares.append(_mean(x.diff(dim=dim).square(), both))
    gradient = torch.stack(squares).mean(dim=0).sqrt()
    mean, spread = _moments(x, inside)
    ones = [1] * (x.ndim - 2)
    z = (x - mean.reshape(*mean.shape, *ones)) / spread.exp().reshape(*mean.shape, *ones)
    # a contrast curve skews the values, another ratio of stains or sequences turns them in the space of channels
    together = [_mean(z[:, a : a + 1] * z[:, b : b + 1], inside) for a, b in combinations(range(x.shape[1]), 2)]
    return torch.cat([mean, spread, (gradient + _LEAST).log(), _mean(z**3, inside), *together], dim=1)


def _by_patient(x: Tensor, patients: int) -> np.ndarray:
    return x.unflatten(0, (patients, -1)).mean(dim=1).double().cpu().numpy()


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over all places, ``[N, C, ...]`` -> ``[N, C]``; 0 where no place counts."""
    total = weight.flatten(2).sum(dim=2)
    return torch.bmm(x.flatten(2), weight.flatten(2).mT)[..., 0] / total.where(total > 0, 1.0)  # no product in memory


def _moments(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    mean = _mean(x, weight)
    variance = _mean((x - mean.reshape(*mean.shape, *[1] * (x.ndim - 2))).square_(), weight)
    return mean, (variance.sqrt() + _LEAST).log()
