"""Networks that IRCL is compared with (its Tables 1 and 2), on the same images and trained from scratch.

Ilse et al., Attention-based Deep Multiple Instance Learning (ICML 2018); Shi et al., Loss-Based Attention for Deep
Multiple Instance Learning (AAAI 2020); Pang et al., Interpretable 2.5D network by hierarchical attention and
consistency learning for 3D MRI classification (Pattern Recognition 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from monai.networks.blocks import ResidualUnit
from torch import Tensor, nn

from shared.networks.blocks import GatedAttention


class BagOutput(NamedTuple):
    """What :class:`AttentionMIL` says of patients.

    Attributes:
        logits: of the patients, ``[B, C]``.
        instances: logits of the single images, ``[B, m, C]``.
        attention: weights of a patient's images, ``[B, m]``; they add up to 1.
    """

    logits: Tensor
    instances: Tensor
    attention: Tensor


class BranchOutput(NamedTuple):
    """What :class:`HierarchicalAttentionNetwork` says of patients.

    Attributes:
        logits: of the patients, ``[B, C]``.
        planar: weights of a patient's images in the 2D branch, ``[B, m]``; they add up to 1.
        spatial: the same of the 3D branch.
    """

    logits: Tensor
    planar: Tensor
    spatial: Tensor


class SliceEncoder(nn.Module):
    """Residual CNN (He et al. 2016) whose last feature map is averaged over each image.

    Args:
        channels: of the levels; each but the first halves the image's sides.
        spatial_dims: 2: images by themselves; 3: stacks of slices, convolved across slices and kept apart.

    Shape:
        - x: ``[N, 1, H, W]``, or ``[N, 1, k, H, W]``
        - returns: ``[N, channels[-1]]``, or ``[N, channels[-1], k]``

    Example:
        >>> import torch
        >>> SliceEncoder((4, 8), spatial_dims=3)(torch.rand(2, 1, 5, 16, 16)).shape
        torch.Size([2, 8, 5])
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64, 128), *, spatial_dims: int = 2):
        super().__init__()
        widths = [1, *channels]
        halved = [2] * spatial_dims if spatial_dims == 2 else [1, 2, 2]
        self.levels = nn.Sequential(
            *[
                ResidualUnit(spatial_dims, widths[i], widths[i + 1], halved if i else 1, act="RELU", norm="BATCH")
                for i in range(len(channels))
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mean feature of each image."""
        return self.levels(x).mean(dim=(-2, -1))


class AttentionMIL(nn.Module):
    r"""Multiple-instance learning: a patient is a bag of images, of which only the patient's label is known.

    One encoder gives h of every image, the weights of the images mix these to one feature (Ilse et al. 2018, Eq. 7),
    and one linear layer gives the logits. With loss-based attention the same layer, applied to the single images, gives
    the weights, too:

    .. math:: \alpha_i = \sum_c \exp(w_c^\top h_i + b_c) \Big/ \sum_j \sum_c \exp(w_c^\top h_j + b_c)

    Of Shi et al. the abstract, the caption of Figure 1 and the authors' code (``MIL``) were read, not the equations;
    :class:`shared.losses.LossAttentionLoss` is what it is trained with.

    Args:
        num_images: m, images per patient.
        channels: of the encoder's levels.
        attention: ``"loss"`` (Shi et al.) or ``"gated"`` (Ilse et al., see :class:`GatedAttention`).
        num_classes: logits.

    Shape:
        - image: ``[B, m, H, W]`` -> logits ``[B, num_classes]``

    Raises:
        ValueError: an unknown ``attention``.

    Example:
        >>> import torch
        >>> net = AttentionMIL(3, channels=(4, 8))
        >>> net(torch.rand(2, 3, 16, 16)).shape, net.details(torch.rand(2, 3, 16, 16)).attention.shape
        (torch.Size([2, 2]), torch.Size([2, 3]))
    """

    def __init__(
        self,
        num_images: int,
        *,
        channels: Sequence[int] = (16, 32, 64, 128),
        attention: str = "loss",
        num_classes: int = 2,
    ):
        settings = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        super().__init__()
        if attention not in ("loss", "gated"):
            raise ValueError(f'attention must be "loss" or "gated", got {attention!r}.')
        self.settings = {"class": "shared.networks.AttentionMIL", **settings}
        self.num_images = num_images
        self.encoder = SliceEncoder(channels)
        self.gated = GatedAttention(channels[-1]) if attention == "gated" else None
        self.head = nn.Linear(channels[-1], num_classes)

    def details(self, image: Tensor) -> BagOutput:
        """Logits of patients and images, and the images' weights."""
        h = self.encoder(image.flatten(0, 1).unsqueeze(1)).unflatten(0, (-1, self.num_images))
        instances = self.head(h)
        attention = instances.logsumexp(dim=-1).softmax(dim=-1) if self.gated is None else self.gated(h)
        logits = self.head((attention.unsqueeze(-1) * h).sum(dim=1))
        return BagOutput(logits, instances, attention)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of each patient."""
        return self.details(image).logits


class HierarchicalAttention(nn.Module):
    """A patient's feature from those of its images: attention to a modality's slices, then to the modalities.

    Args:
        dim: width of the features.

    Shape:
        - h: ``[B, M, k, dim]``
        - returns: feature ``[B, dim]``, weights of the images ``[B, M * k]`` (slice's times modality's)
    """

    def __init__(self, dim: int):
        super().__init__()
        self.slices = GatedAttention(dim)
        self.modalities = GatedAttention(dim)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Feature and weights."""
        of_slices = self.slices(h)
        h = (of_slices.unsqueeze(-1) * h).sum(dim=2)
        of_modalities = self.modalities(h)
        feature = (of_modalities.unsqueeze(-1) * h).sum(dim=1)
        return feature, (of_modalities.unsqueeze(-1) * of_slices).flatten(1)


class HierarchicalAttentionNetwork(nn.Module):
    """A 2.5D network of two branches with hierarchical attention, after HA_CSL (Pang et al. 2025).

    One branch encodes each slice by itself, the other convolves across a modality's slices. In each, attention weighs a
    modality's slices, then the modalities. One linear layer classifies the mean of both features. While it is trained,
    :class:`shared.losses.AttentionConsistencyLoss` aligns the branches' weights.

    Only IRCL's description was read ("a dual-branch deep multiple instance learning framework that extracts 2D and 3D
    image features via Hierarchical Attention and Consistency Learning modules ... aligns the attention weights of the
    two branches"), not Pang et al.: encoder, levels of the attention and loss are chosen here, and the figures are not
    HA_CSL's.

    Args:
        num_slices: k, slices per modality.
        num_modalities: images come modality by modality.
        channels: of the encoders' levels.
        num_classes: logits.

    Shape:
        - image: ``[B, num_modalities * num_slices, H, W]`` -> logits ``[B, num_classes]``

    Example:
        >>> import torch
        >>> net = HierarchicalAttentionNetwork(3, 2, channels=(4, 8))
        >>> net(torch.rand(2, 6, 16, 16)).shape, net.details(torch.rand(2, 6, 16, 16)).planar.shape
        (torch.Size([2, 2]), torch.Size([2, 6]))
    """

    def __init__(
        self,
        num_slices: int,
        num_modalities: int = 1,
        *,
        channels: Sequence[int] = (16, 32, 64, 128),
        num_classes: int = 2,
    ):
        settings = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        super().__init__()
        self.settings = {"class": "shared.networks.HierarchicalAttentionNetwork", **settings}
        self.num_slices, self.num_modalities = num_slices, num_modalities
        self.planar = SliceEncoder(channels)
        self.spatial = SliceEncoder(channels, spatial_dims=3)
        self.planar_attention = HierarchicalAttention(channels[-1])
        self.spatial_attention = HierarchicalAttention(channels[-1])
        self.head = nn.Linear(channels[-1], num_classes)

    def details(self, image: Tensor) -> BranchOutput:
        """Logits of the patients, and the images' weights in both branches."""
        stacks = image.unflatten(1, (self.num_modalities, self.num_slices))
        planar = self.planar(stacks.flatten(0, 2).unsqueeze(1))
        planar = planar.unflatten(0, (-1, self.num_modalities, self.num_slices))
        spatial = self.spatial(stacks.flatten(0, 1).unsqueeze(1)).transpose(1, 2)
        spatial = spatial.unflatten(0, (-1, self.num_modalities))
        one, planar_weights = self.planar_attention(planar)
        other, spatial_weights = self.spatial_attention(spatial)
        return BranchOutput(self.head((one + other) / 2), planar_weights, spatial_weights)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of each patient."""
        return self.details(image).logits


class DetailedTraining(nn.Module):
    """A network in training: what its loss needs beside the logits.

    Args:
        network: with a method ``details``, whose weights these are.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """All that the network says of patients."""
        return self.network.details(image)
