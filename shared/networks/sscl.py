"""Encoder, projection head and classifier of SSCL, a SimCLR for histology patches.

Jain and Lynn, Interpretable self-supervised contrastive learning for colorectal cancer histopathology: GRADCAM
visualization (2025), after Chen et al., A Simple Framework for Contrastive Learning of Visual Representations (2020).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from shared.checkpoint import load_checkpoint, load_weights
from shared.errors import CheckpointError
from shared.networks.blocks import full_precision, mlp

EXPANSION = {"basic": 1, "bottleneck": 4}
IMAGENET_MEAN = (0.485, 0.456, 0.406)


class PatchEncoder(ResNet):
    """MONAI's 2D ResNet whose stages' average-pooled maps are the representation h.

    With the defaults it is torchvision's ResNet50 without its last layer, 23,508,032 parameters under the same names.

    Args:
        block: ``"basic"`` or ``"bottleneck"``.
        layers: blocks of each of the four stages.
        channels: their widths (before a bottleneck's fourfold expansion).
        stages: which stages make up h, concatenated; 4 is the last one.
        stride_in_1x1: where a bottleneck halves the image: in its first 1 x 1 convolution (the original ResNet,
            Keras's weights) instead of the 3 x 3 one (torchvision's); the names of the weights are the same.
        input_mean: colour that is subtracted from the image, so that the zeros around it mean this colour and not
            black; of no consequence but for ImageNet weights, see :func:`load_imagenet_weights`.

    Shape:
        - image: ``[B, 3, H, W]`` in [0, 1]
        - returns: h ``[B, D]``, D the sum of the stages' widths (2048 for ResNet50's last)

    Raises:
        ValueError: an unknown block or stage, or not four stages.

    Example:
        >>> net = PatchEncoder("basic", (1, 1, 1, 1), (8, 8, 16, 16), stages=(3, 4))
        >>> net(torch.rand(2, 3, 64, 64)).shape, net.width
        (torch.Size([2, 32]), 32)
    """

    def __init__(
        self,
        block: str = "bottleneck",
        layers: Sequence[int] = (3, 4, 6, 3),
        channels: Sequence[int] = (64, 128, 256, 512),
        *,
        stages: Sequence[int] = (4,),
        stride_in_1x1: bool = False,
        input_mean: Sequence[float] | None = None,
    ):
        if block not in EXPANSION:
            raise ValueError(f"block must be one of {', '.join(EXPANSION)}, got {block!r}.")
        if len(layers) != 4 or len(channels) != 4:
            raise ValueError(f"A ResNet has four stages; got layers {list(layers)} and channels {list(channels)}.")
        if not stages or len(set(stages)) != len(stages) or not set(stages) <= {1, 2, 3, 4}:
            raise ValueError(f"stages must name each of 1 to 4 at most once and at least one of them, got {stages}.")
        super().__init__(
            block,
            list(layers),
            list(channels),
            spatial_dims=2,
            n_input_channels=3,
            conv1_t_stride=2,
            no_max_pool=False,
            feed_forward=False,
            bias_downsample=False,
        )
        if stride_in_1x1 and block == "bottleneck":
            for stage in (self.layer2, self.layer3, self.layer4):
                stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        mean = None if input_mean is None else torch.tensor(list(input_mean)).reshape(3, 1, 1)
        self.register_buffer("input_mean", mean, persistent=False)
        self.stages = tuple(sorted(stages))
        self.widths = tuple(width * EXPANSION[block] for width in channels)
        self.width = sum(self.widths[stage - 1] for stage in self.stages)

    def maps(self, image: Tensor) -> list[Tensor]:
        """Feature maps of the chosen stages, ``[B, D_s, h_s, w_s]`` each, the finest first; their means are h."""
        image = image if self.input_mean is None else image - self.input_mean
        x = self.maxpool(self.act(self.bn1(self.conv1(image))))
        # one by one: TorchScript loops over no modules of different kinds
        maps = [self.layer1(x)]
        maps.append(self.layer2(maps[-1]))
        maps.append(self.layer3(maps[-1]))
        maps.append(self.layer4(maps[-1]))
        chosen = []
        for stage in self.stages:
            chosen.append(maps[stage - 1])
        return chosen

    def forward(self, image: Tensor) -> Tensor:
        """Representation h of the chosen stages."""
        pooled = []
        for found in self.maps(image):
            pooled.append(self.avgpool(found).flatten(1))
        return torch.cat(pooled, dim=1)


class ContrastiveNetwork(nn.Module):
    """Encoder and projection head of the pretraining.

    Args:
        encoder: settings of :class:`PatchEncoder` but for ``stages``: the loss sees the last stage.
        projection: widths of the head; one number is a single linear layer (the paper's), two are Linear-ReLU-Linear
            (SimCLR's).
        weights: an ImageNet state dict to start from, see :func:`load_imagenet_weights`; None: from scratch.

    Shape:
        - image: ``[B, 3, H, W]`` -> z ``[B, projection[-1]]``, not normalised: the loss does that

    Example:
        >>> settings = dict(block="basic", layers=(1, 1, 1, 1), channels=(8, 8, 16, 16))
        >>> ContrastiveNetwork(settings, projection=(16, 12))(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 12])
    """

    def __init__(
        self,
        encoder: Mapping[str, Any] | None = None,
        *,
        projection: Sequence[int] = (2048, 128),
        weights: str | os.PathLike | None = None,
    ):
        super().__init__()
        self.encoder = PatchEncoder(**dict(encoder or {}) | {"stages": (4,)})
        self.projection = mlp([self.encoder.width, *projection])
        if weights:
            load_imagenet_weights(self.encoder, weights)

    def forward(self, image: Tensor) -> Tensor:
        """Projection z of every image."""
        return self.projection(self.encoder(image))


class SSCLClassifier(nn.Module):
    """The fine-tuned network: a linear layer on the encoder's h (not on the projection).

    A frozen encoder stays in eval mode whatever ``train()`` is told: a BatchNorm in train mode would not be frozen.

    Args:
        encoder: settings of :class:`PatchEncoder`.
        num_classes: logits.
        dropout: of h, before the linear layer.
        freeze_encoder: train the linear layer only (linear probe).

    Shape:
        - image: ``[B, 3, H, W]`` in [0, 1] -> logits ``[B, num_classes]``

    Example:
        >>> settings = dict(block="basic", layers=(1, 1, 1, 1), channels=(8, 8, 16, 16))
        >>> net = SSCLClassifier(settings, freeze_encoder=True).train()
        >>> net(torch.rand(2, 3, 64, 64)).shape, net.encoder.training
        (torch.Size([2, 2]), False)
    """

    def __init__(
        self,
        encoder: Mapping[str, Any] | None = None,
        *,
        num_classes: int = 2,
        dropout: float = 0.0,
        freeze_encoder: bool = False,
    ):
        super().__init__()
        self.settings = {"encoder": dict(encoder or {}), "num_classes": num_classes, "dropout": dropout}
        self.encoder = PatchEncoder(**self.settings["encoder"])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.encoder.width, num_classes)
        self.freeze_encoder = freeze_encoder
        if freeze_encoder:
            self.encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> SSCLClassifier:
        """Set the mode; a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.freeze_encoder:
            self.encoder.eval()
        return self

    def parameter_groups(self, learning_rate: float, decay: float = 1.0) -> list[dict[str, Any]]:
        """Trainable parameters for an optimiser, with smaller steps towards the image (layer-wise learning rate decay).

        A pretrained encoder keeps what it learnt where that is general, near the image, and adapts near the head
        (Howard and Ruder, Universal language model fine-tuning, 2018, section 3.2, per layer; here per stage).

        Args:
            learning_rate: of the head and the last stage.
            decay: factor from each stage to the one before it, and from the first to the stem; 1: all learn alike.

        Returns:
            A group with ``params`` and ``lr`` for the stem, each stage and the head, those without a trainable
            parameter left out.

        Raises:
            ValueError: ``decay`` is not above 0 and at most 1.

        Example:
            >>> settings = dict(block="basic", layers=(1, 1, 1, 1), channels=(8, 8, 16, 16))
            >>> [group["lr"] for group in SSCLClassifier(settings).parameter_groups(1.0, 0.5)]
            [0.0625, 0.125, 0.25, 0.5, 1.0, 1.0]
        """
        if not 0 < decay <= 1:
            raise ValueError(f"The learning rate's factor between stages must be above 0 and at most 1, got {decay}.")
        encoder = self.encoder
        parts = [[encoder.conv1, encoder.bn1], [encoder.layer1], [encoder.layer2], [encoder.layer3], [encoder.layer4]]
        rates = [learning_rate * decay**below for below in (4, 3, 2, 1, 0, 0)]
        groups = []
        for modules, rate in zip([*parts, [self.head]], rates, strict=True):
            trained = [p for module in modules for p in module.parameters() if p.requires_grad]
            if trained:
                groups.append({"params": trained, "lr": rate})
        return groups

    def forward(self, image: Tensor) -> Tensor:
        """Logits of every image."""
        return self.head(self.dropout(self.encoder(image)))

    def contributions(self, image: Tensor) -> Tensor:
        r"""What each place adds to each logit: the linear layer at every place, before the pooling (Zhou et al., CAM).

        .. math:: y_c = b_c + \frac{1}{hw} \sum_{ij} M^c_{ij}, \qquad
                  M^c = \sum_s \mathrm{spread}\Big(\sum_k w^s_{ck} A^s_k\Big)

        Pooling and layer are linear, so nothing is approximated: the mean of a map and the bias are the logit (in eval
        mode, without dropout). Maps of later stages are spread over the finest stage's grid, see :func:`spread`.

        Args:
            image: the images.

        Shape:
            - image: ``[B, 3, H, W]`` in [0, 1]
            - returns: ``[B, num_classes, h, w]``, the finest stage's grid, float32 or better

        Example:
            >>> settings = dict(block="basic", layers=(1, 1, 1, 1), channels=(8, 8, 16, 16), stages=(3, 4))
            >>> net, image = SSCLClassifier(settings).eval(), torch.rand(2, 3, 72, 72)
            >>> found = net.contributions(image)
            >>> found.shape, torch.allclose(found.mean((2, 3)) + net.head.bias, net(image), atol=1e-5)
            (torch.Size([2, 2, 5, 5]), True)
        """
        maps = self.encoder.maps(image)
        weights = self.head.weight.split([found.shape[1] for found in maps], dim=1)
        height, width = maps[0].shape[2:]
        with torch.autocast(image.device.type, enabled=False):
            parts = [
                spread(torch.einsum("ck,bkhw->bchw", full_precision(weight), full_precision(found)), (height, width))
                for found, weight in zip(maps, weights, strict=True)
            ]
            return torch.stack(parts).sum(dim=0)


def spread(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps on another grid of the same area: of each new cell the mean over the old cells that it covers, by area.

    The mean of a map stays what it is, whatever the two sizes, which no bilinear interpolation keeps where one side is
    no multiple of the other.

    Args:
        maps: on the old grid.
        size: height and width of the new grid.

    Shape:
        - maps: ``[B, C, h, w]`` -> ``[B, C, *size]``

    Example:
        >>> spread(torch.tensor([[[[1.0, 4.0]]]]), (1, 3)).tolist()
        [[[[1.0, 2.5, 4.0]]]]
    """
    rows, columns = (_shares(old, new).to(maps) for old, new in zip(maps.shape[2:], size, strict=True))
    return rows @ maps @ columns.T


def _shares(old: int, new: int) -> Tensor:
    """Share of each new cell that each old cell covers, ``[new, old]``; rows sum to 1, columns to new / old."""
    if old == new:
        return torch.eye(old, dtype=torch.float64)
    # in units of 1 / (old * new) of the side: whole numbers, nothing is rounded
    begin, start = torch.arange(new)[:, None] * old, torch.arange(old)[None] * new
    overlap = torch.minimum(begin + old, start + new) - torch.maximum(begin, start)
    return overlap.clamp(min=0).double() / old


def load_imagenet_weights(encoder: PatchEncoder, path: str | os.PathLike) -> None:
    """Load an ImageNet state dict with torchvision's key names (``.pth``), its last layer left out.

    torchvision's networks were trained on standardised images, the encoder takes [0, 1]: the standardisation is folded
    into the first convolution. That is exact but for the border of the image, whose padding is then black and not mean
    grey (the last stage's h changes by a tenth); with ``input_mean=IMAGENET_MEAN`` it is exact there, too.

    Args:
        encoder: the network to fill.
        path: a state dict, loaded with ``weights_only=True``.

    Raises:
        CheckpointError: no such file, or its shapes are not the encoder's (ResNet18 weights for a ResNet50, say).
    """
    hint = "Give torchvision's ResNet weights (--pretrain#weights FILE); scripts/convert_keras_resnet50.py makes some."
    state = load_checkpoint(path, hint=hint)
    if not isinstance(state, Mapping) or "conv1.weight" not in state:
        raise CheckpointError(f"{path} is no state dict with torchvision's ResNet names (conv1.weight is missing).")
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor([0.229, 0.224, 0.225])
    if encoder.input_mean is not None:
        mean = mean - encoder.input_mean.flatten().cpu()
    kernel = state["conv1.weight"].float()
    if kernel.shape[1] != 3:
        raise CheckpointError(f"{path}: the first convolution takes {kernel.shape[1]} channels, RGB images have 3.")
    state["conv1.weight"] = kernel / std[:, None, None]
    # a shift of the input is a shift of the first convolution's output: it goes into the running mean of its BatchNorm
    shift = (kernel * (mean / std)[:, None, None]).sum(dim=(1, 2, 3))
    state["bn1.running_mean"] = state["bn1.running_mean"] + shift
    load_weights(encoder, state, Path(path))
