"""The tumour image's encoder: a plain 3D CNN.

Wei et al., Multi-modal learning for predicting the genotype of glioma (IEEE TMI, 2023), section 4.3, image encoder.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shared.networks.blocks import full_precision, mlp


class ImageEncoder(nn.Module):
    """Five times convolution, batch normalisation, ReLU and max pooling, then three linear layers.

    With 120 voxels a side it has 7.0 M parameters. Weights fit the crop they were made for, but with ``global_pool``.

    Args:
        in_channels: sequences of the MRI.
        size: side of the crop.
        channels: of the convolutions, each followed by a pooling by two.
        hidden: widths between the last feature map and the embedding.
        embedding_dim: width of u^I.
        global_pool: mean of the last feature map instead of all of its voxels.
        bf16: compute in bfloat16 under autocast; the embedding is float32 all the same. TorchScript is float32.
        channels_last: memory order of the convolutions; with bfloat16 about twice as fast.
        checkpointing: compute the blocks again in the backward pass instead of keeping what they gave.

    Shape:
        - image: ``[B, in_channels, S, S, S]`` -> u^I ``[B, embedding_dim]``

    Raises:
        ValueError: a crop that cannot be halved so often, or an image of another shape.

    Example:
        >>> net = ImageEncoder(4, 16, channels=(4, 8), hidden=(16,), embedding_dim=8)
        >>> net(torch.rand(2, 4, 16, 16, 16)).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        in_channels: int = 4,
        size: int = 64,
        *,
        channels: Sequence[int] = (64, 128, 128, 256, 256),
        hidden: Sequence[int] = (512, 256),
        embedding_dim: int = 32,
        global_pool: bool = False,
        bf16: bool = False,
        channels_last: bool = False,
        checkpointing: bool = False,
    ):
        super().__init__()
        last = size // 2 ** len(channels)
        if last < 1:
            raise ValueError(
                f"{len(channels)} poolings halve a side {len(channels)} times: the crop must have at least "
                f"{2 ** len(channels)} voxels a side, got {size}."
            )
        self.shape = [in_channels, size, size, size]
        self.global_pool, self.bf16, self.checkpointing = global_pool, bf16, checkpointing
        self.memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
        self.blocks = nn.ModuleList(
            _block(before, after) for before, after in itertools.pairwise([in_channels, *channels])
        )
        features = channels[-1] * (1 if global_pool else last**3)
        self.head = mlp([features, *hidden, embedding_dim])
        self.to(memory_format=self.memory_format)

    def forward(self, image: Tensor) -> Tensor:
        """Embedding u^I of each tumour."""
        if list(image.shape[1:]) != self.shape:
            raise ValueError(
                f"The image encoder was made for images {self.shape} (sequences and crop), got {list(image.shape[1:])}."
            )
        return self._embedding(image) if torch.jit.is_scripting() else self._autocast_embedding(image)

    def _embedding(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self._pooled(x)

    def _pooled(self, x: Tensor) -> Tensor:
        x = x.mean(dim=(2, 3, 4)) if self.global_pool else x.flatten(1)
        return full_precision(self.head(x))

    @torch.jit.unused
    def _autocast_embedding(self, image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.bf16 or _autocasting(image)):
            x = image.contiguous(memory_format=self.memory_format)
            if not (self.checkpointing and self.training and torch.is_grad_enabled()):
                return self._embedding(x)
            for block in self.blocks:
                # the second pass must not update the running statistics again
                contexts = partial(_contexts, block.norm)
                x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
            return self._pooled(x)


BACKBONES = ("resnet34", "densenet121")


def image_backbone(name: str, in_channels: int, embedding_dim: int) -> nn.Module:
    """MONAI's 3D-ResNet34 or 3D-DenseNet121 in the image encoder's place, the paper's benchmarks; in float32.

    Raises:
        ValueError: another name.

    Example:
        >>> image_backbone("densenet121", 4, 8)(torch.rand(2, 4, 32, 32, 32)).shape
        torch.Size([2, 8])
    """
    from monai.networks import nets

    if name == "resnet34":
        return nets.resnet34(spatial_dims=3, n_input_channels=in_channels, num_classes=embedding_dim)
    if name == "densenet121":
        return nets.DenseNet121(3, in_channels, embedding_dim)
    raise ValueError(f"backbone must be one of {BACKBONES}, got {name!r}.")


def _block(before: int, after: int) -> nn.Sequential:
    # pooling first gives what ReLU first gives, and leaves it an eighth of the voxels
    parts = {
        "conv": nn.Conv3d(before, after, 3, padding=1, bias=False),
        "norm": nn.BatchNorm3d(after),
        "pool": nn.MaxPool3d(2),
        "act": nn.ReLU(inplace=True),
    }
    return nn.Sequential(OrderedDict(parts))


def _autocasting(x: Tensor) -> bool:
    """Whether a caller's bfloat16 autocast is on, which this module's own switch must not undo."""
    return torch.is_autocast_enabled(x.device.type) and torch.get_autocast_dtype(x.device.type) == torch.bfloat16


def _contexts(norm: nn.BatchNorm3d) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _statistics_kept(norm)


@contextmanager
def _statistics_kept(norm: nn.BatchNorm3d) -> Iterator[None]:
    momentum, count, norm.momentum = norm.momentum, norm.num_batches_tracked.clone(), 0.0
    try:
        yield
    finally:
        norm.momentum = momentum
        norm.num_batches_tracked.copy_(count)
