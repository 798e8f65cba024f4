"""BatchNorm over the batch of all processes on CPUs, where PyTorch's SyncBatchNorm does not run."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from shared.distributed.processes import world_size


class GatheredBatchNorm(_BatchNorm):
    """BatchNorm whose mean and variance, in training, are those of the images of all processes.

    For tests and CPU clusters; two sums cross the network a layer. In eval mode, or in one process, a plain BatchNorm.

    Shape:
        - x: ``[B, C, ...]``, B may differ between processes -> ``[B, C, ...]``

    Example:
        >>> import torch
        >>> net = GatheredBatchNorm.convert(nn.Sequential(nn.BatchNorm2d(3)))
        >>> net[0](torch.rand(2, 3, 4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """

    @classmethod
    def convert(cls, network: nn.Module) -> nn.Module:
        """Replace every BatchNorm of a network, in place, by one with the same weights."""
        if isinstance(network, _BatchNorm):
            options = {"eps": network.eps, "momentum": network.momentum, "affine": network.affine}
            new = cls(network.num_features, **options, track_running_stats=network.track_running_stats)
            new._parameters, new._buffers, new.training = network._parameters, network._buffers, network.training
            return new
        for name, child in network.named_children():
            setattr(network, name, cls.convert(child))
        return network

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"BatchNorm takes [B, C, ...], got {input.ndim} dimensions.")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise."""
        many = world_size() > 1
        if not (self.training and many):
            return super().forward(input)
        self._check_input_dim(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32)).transpose(0, 1).flatten(1)
        count = x.new_tensor([x.shape[1]])
        dist.all_reduce(count)
        mean = all_reduce(x.sum(dim=1)) / count
        x = x - mean[:, None]
        variance = all_reduce(x.square().sum(dim=1)) / count
        if self.track_running_stats:
            self._remember(mean.detach(), variance.detach() * (count / (count - 1).clamp(min=1)))
        x = x * (variance + self.eps).rsqrt()[:, None]
        if self.affine:
            x = x * self.weight[:, None] + self.bias[:, None]
        return x.unflatten(1, (len(input), *input.shape[2:])).transpose(0, 1).to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)
