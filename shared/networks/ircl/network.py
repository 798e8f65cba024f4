"""IRCL: the stage I autoencoder and the whole network of stage II.

Rao et al., Learning Latent Imaging Biomarkers for Interpretable Microvascular Invasion Prediction in Hepatocellular
Carcinoma: section 3.2 (representation), Eq. 6 (nearest biomarker), section 3.3 (prediction).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.networks.nets.basic_unet import Down, TwoConv, UpCat
from torch import Tensor, nn
from torch.nn import functional

from shared.networks.blocks import check_views, turned
from shared.networks.ircl.additive import BiomarkerClassifier
from shared.networks.ircl.prototype_attention import PrototypeTransformer

_RELU = ("relu", {"inplace": True})


class IRCLEncoder(nn.Module):
    """Convolutional encoder with a projection head (section 3.2).

    One ``TwoConv`` (two conv-BN-ReLU) a level, 2 x 2 max pooling between levels, average pooling of the last, then the
    projection MLP whose output is L2-normalised.

    Args:
        channels: feature channels of the levels; the last is the width of the representation h.
        embedding_dim: width of the embedding z.
        in_channels: channels of an image.

    Shape:
        - x: ``[B, 1, H, W]``
        - returns: h ``[B, channels[-1]]``, z ``[B, embedding_dim]`` of unit length (float32)

    Example:
        >>> h, z = IRCLEncoder((8, 16), embedding_dim=4)(torch.rand(2, 1, 16, 16))
        >>> h.shape, z.shape
        (torch.Size([2, 16]), torch.Size([2, 4]))
    """

    def __init__(
        self, channels: Sequence[int] = (64, 128, 256, 512), *, embedding_dim: int = 128, in_channels: int = 1
    ):
        super().__init__()
        widths = [in_channels, *channels]
        self.levels = nn.ModuleList(
            [
                (TwoConv if i == 0 else Down)(2, widths[i], widths[i + 1], _RELU, "batch", True)
                for i in range(len(channels))
            ]
        )
        self.projection = nn.Sequential(
            nn.Linear(widths[-1], widths[-1]), nn.ReLU(), nn.Linear(widths[-1], embedding_dim)
        )

    def features(self, x: Tensor, last: int = -1) -> list[Tensor]:
        """Feature maps of the levels up to ``last``, the finest first, ``[B, channels[i], H/2^i, W/2^i]``."""
        maps: list[Tensor] = []
        count = last % len(self.levels) + 1
        for i, level in enumerate(self.levels):
            if i < count:
                x = level(x)
                maps.append(x)
        return maps

    def embed(self, bottleneck: Tensor) -> tuple[Tensor, Tensor]:
        """Representation h and embedding z of the last feature map."""
        h = bottleneck.mean(dim=(2, 3))
        # unit length in float32 also under autocast: the memory bank relies on it
        return h, functional.normalize(self.projection(h).float(), dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Representation h and embedding z."""
        return self.embed(self.features(x)[-1])


class IRCLAutoencoder(nn.Module):
    """Stage I: the encoder and a transposed-convolution decoder with skips (section 3.2), 7.7 M parameters by default.

    Args:
        channels: feature channels of the levels.
        embedding_dim: width of the embedding z.
        in_channels: channels of an image.

    Shape:
        - x: ``[B, 1, 64, 64]`` (sides divisible by ``2 ** (len(channels) - 1)``)
        - returns: reconstruction ``[B, 1, 64, 64]``, h ``[B, 512]``, z ``[B, 128]``

    Raises:
        ValueError: a side of the image is not divisible.

    Example:
        >>> reconstruction, h, z = IRCLAutoencoder((8, 16, 32, 64))(torch.rand(2, 1, 64, 64))
        >>> reconstruction.shape, h.shape, z.shape
        (torch.Size([2, 1, 64, 64]), torch.Size([2, 64]), torch.Size([2, 128]))
    """

    def __init__(
        self, channels: Sequence[int] = (64, 128, 256, 512), *, embedding_dim: int = 128, in_channels: int = 1
    ):
        super().__init__()
        self.encoder = IRCLEncoder(channels, embedding_dim=embedding_dim, in_channels=in_channels)
        self.decoder = nn.ModuleList(
            [
                UpCat(2, channels[i], channels[i - 1], channels[i - 1], _RELU, "batch", True)
                for i in range(len(channels) - 1, 0, -1)
            ]
        )
        self.final = nn.Conv2d(channels[0], in_channels, kernel_size=1)
        self.divisor = 2 ** (len(channels) - 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, representation h and embedding z."""
        if x.shape[-1] % self.divisor or x.shape[-2] % self.divisor:
            raise ValueError(
                f"Sides of an image must be divisible by {self.divisor}, got {x.shape[-2]} x {x.shape[-1]}."
            )
        maps = self.encoder.features(x)
        h, z = self.encoder.embed(maps[-1])
        y = maps[-1]
        for i, up in enumerate(self.decoder):
            y = up(y, maps[len(maps) - 2 - i])
        return self.final(y), h, z


class IRCLClassifier(nn.Module):
    """The whole of IRCL at inference: frozen encoder, biomarkers and prototype transformer (section 3.3).

    Beside it stands, with ``additive``, a :class:`BiomarkerClassifier` on the same encoder, whose prediction is a sum
    over places; ``answer`` says which of the two the network gives.

    The encoder stays in eval mode and without gradients whatever ``train()`` is told: a BatchNorm in train mode would
    not be frozen.

    Args:
        num_images: m, images per patient (slices x modalities, modality by modality).
        num_biomarkers: K of the K-means; per modality when ``per_modality``.
        num_modalities: modalities the images come from.
        per_modality: biomarkers belong to one modality each and images are only assigned to their own modality's.
        channels: feature channels of the encoder.
        embedding_dim: width of embeddings and biomarkers.
        dim: token width of the transformer.
        num_layers: transformer blocks.
        num_heads: attention heads.
        mlp_dim: hidden width of the blocks' MLP.
        dropout: dropout of the transformer.
        attention: from a patient's images to its biomarkers' ``"prototype"`` (Eq. 8); ``"self"``: to the images
            themselves (Table 3, "w/o Prototype"), so that biomarkers play no part in the prediction.
        attention_temperature: tau_a of Eq. 9.
        num_classes: logits.
        num_covariates: clinical covariates joined at the head.
        pooling: ``"mean"`` of all tokens or ``"modality"`` (means per modality, concatenated).
        bottleneck: the prediction sees the patient through biomarkers only, see :class:`PrototypeTransformer`.
        views: 1, or 2 to 8 flips and right-angle rotations over which h and z of an image are averaged.
        additive: arguments of the :class:`BiomarkerClassifier`: ``num_biomarkers``, ``level``, ``measure``, ``views``,
            ``members`` (encoders; the first is this network's own); None: there is none.
        answer: ``"prototype"`` or ``"additive"``.

    Shape:
        - image: ``[B, m, H, W]``, covariates: ``[B, C]`` or None (taken as the training cohort's mean)
        - returns: logits ``[B, num_classes]``

    Raises:
        ValueError: the number of images does not fit.

    Example:
        >>> net = IRCLClassifier(num_images=3, channels=(8, 16), dim=16, num_layers=1, num_heads=2, mlp_dim=16)
        >>> net(torch.rand(2, 3, 16, 16)).shape, net.biomarkers.shape
        (torch.Size([2, 2]), torch.Size([6, 128]))
    """

    def __init__(
        self,
        num_images: int,
        num_biomarkers: int = 6,
        *,
        num_modalities: int = 1,
        per_modality: bool = False,
        channels: Sequence[int] = (64, 128, 256, 512),
        embedding_dim: int = 128,
        dim: int = 512,
        num_layers: int = 6,
        num_heads: int = 8,
        mlp_dim: int = 2048,
        dropout: float = 0.5,
        attention: str = "prototype",
        attention_temperature: float = 0.5,
        num_classes: int = 2,
        num_covariates: int = 0,
        pooling: str = "mean",
        bottleneck: bool = False,
        views: int = 1,
        additive: Mapping[str, Any] | None = None,
        answer: str = "prototype",
    ):
        settings = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        super().__init__()
        self.settings = settings
        check_views(views)
        if answer not in ("prototype", "additive") or (answer == "additive" and additive is None):
            raise ValueError(f'answer must be "prototype" or, where `additive` is given, "additive"; got {answer!r}.')
        self.views, self.answer = views, answer
        total = num_biomarkers * num_modalities if per_modality else num_biomarkers
        self.num_images, self.num_modalities = num_images, num_modalities
        self.encoder = IRCLEncoder(channels, embedding_dim=embedding_dim).requires_grad_(False)
        self.register_buffer("biomarkers", torch.zeros(total, embedding_dim))
        self.predictor = PrototypeTransformer(
            channels[-1],
            num_images,
            total,
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            dropout=dropout,
            attention=attention,
            temperature=attention_temperature,
            num_classes=num_classes,
            num_covariates=num_covariates,
            num_modalities=num_modalities,
            pooling=pooling,
            bottleneck=bottleneck,
        )
        self.additive: BiomarkerClassifier | None = None
        if additive is not None:
            places = {"members": 1, "level": -1, **additive}
            more = [IRCLEncoder(channels, embedding_dim=embedding_dim) for _ in range(1, places.pop("members"))]
            self.additive = BiomarkerClassifier(
                [self.encoder, *more],
                num_images,
                num_modalities=num_modalities,
                width=channels[places["level"]],
                num_classes=num_classes,
                num_covariates=num_covariates,
                **places,
            )
        modality = torch.arange(num_images) // (num_images // num_modalities)
        owner = torch.arange(total) // num_biomarkers if per_modality else torch.full((total,), -1)
        # which biomarker an image may be assigned to: [m, K]
        allowed = (owner[None] == modality[:, None]) | (owner[None] < 0)
        self.register_buffer("allowed", allowed, persistent=False)
        self.register_buffer("biomarker_modality", owner, persistent=False)

    def train(self, mode: bool = True) -> IRCLClassifier:
        """Set the predictor's mode; the frozen encoder stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Representation h ``[B, m, D]`` and embedding z ``[B, m, E]`` of every image."""
        if image.shape[1] != self.num_images:
            raise ValueError(f"The network takes {self.num_images} images per patient, got {image.shape[1]}.")
        x = image.flatten(0, 1).unsqueeze(1)
        h, z = self.encoder(x)
        for view in range(1, self.views):
            more_h, more_z = self.encoder(turned(x, view))
            h, z = h + more_h, z + more_z
        h, z = h / self.views, functional.normalize(z, dim=1)
        return h.unflatten(0, (-1, self.num_images)), z.unflatten(0, (-1, self.num_images))

    def assign(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Nearest biomarker of each image and its cosine similarity, both ``[B, m]`` (Eq. 6).

        The paper writes argmin, which on unit vectors is the farthest biomarker; the nearest is the argmax.
        """
        similarity = torch.matmul(z, self.biomarkers.to(z.dtype).t()).masked_fill(~self.allowed, -2.0)
        value, index = similarity.max(dim=-1)
        return index, value

    @torch.jit.unused
    def rivals(self) -> Tensor:
        """Biomarkers each image of a patient may be assigned to, ``[m, R, E]``."""
        return torch.stack([self.biomarkers[allowed] for allowed in self.allowed])

    def forward(self, image: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Logits of each patient, of the answer."""
        if self.additive is not None and self.answer == "additive":
            return self.additive(image, covariates)
        return self.prototype_logits(image, covariates)

    def prototype_logits(self, image: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Logits of the prototype transformer."""
        h, z = self.encode(image)
        assignment, _ = self.assign(z)
        return self.predictor(h, assignment, covariates)

    @torch.jit.unused
    def answers(self, image: Tensor, covariates: Tensor | None = None) -> dict[str, Tensor]:
        """Logits of every predictor by its name."""
        found = {"prototype": self.prototype_logits(image, covariates)}
        return found if self.additive is None else found | {"additive": self.additive(image, covariates)}
