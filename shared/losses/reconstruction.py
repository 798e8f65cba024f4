"""Reconstruction loss of IRCL's stage I: L1 plus the distance of VGG16 features (Eq. 2)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from shared.errors import CheckpointError
from shared.io import disguise

_LOG = logging.getLogger(__name__)
_CHANNELS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, as VGG16 was trained


def _feature_layers() -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return VGG16's feature layers without weights under torchvision's keys, and each ReLU's key by its usual name."""
    layers: dict[str, nn.Module] = {}
    names, stage, conv, last = {}, 1, 1, 3
    for channels in _CHANNELS:
        if channels == "pool":
            layers[str(len(layers))] = nn.MaxPool2d(2)
            stage, conv = stage + 1, 1
            continue
        layers[str(len(layers))] = nn.Conv2d(last, channels, 3, padding=1, device="meta")
        names[f"relu{stage}_{conv}"] = str(len(layers))
        layers[str(len(layers))] = nn.ReLU()
        conv, last = conv + 1, channels
    return layers, names


class PerceptualReconstructionLoss(nn.Module):
    r"""Mean absolute error plus the mean, over VGG16 layers, of the features' mean squared error, IRCL Eq. 2.

    .. math:: L = \mathrm{mean}|I - \hat I| + \frac{1}{|S|} \sum_{i \in S} \mathrm{mean}(f_i(I) - f_i(\hat I))^2

    Both terms are means over the batch too. One channel is repeated to three and normalised as ImageNet was. The image
    is the target and gets no gradient. VGG16 is frozen and always in eval mode; its weights move with the module, but
    are neither parameters nor part of its state dict.

    Args:
        vgg_weights: torchvision's ``vgg16-397923af.pth`` (or its ``features.*`` entries), never downloaded here. None
            leaves the feature term out, with a logged warning.
        layers: outputs compared, ``relu1_1`` to ``relu5_3``; nothing beyond the deepest one is computed.

    Shape:
        - image, reconstruction: :math:`(B, 1, H, W)` in [0, 1], H and W at least 2 for each pooling before the deepest
          layer (8 for ``relu4_3``); three channels are taken as they are.
        - Output: scalar, float32.

    Raises:
        ValueError: unknown or no layers, or images whose shapes differ.
        CheckpointError: the file is missing or does not hold VGG16's weights.

    Example:
        >>> loss = PerceptualReconstructionLoss()
        >>> loss(torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), 0.25))
        tensor(0.2500)
    """

    def __init__(
        self,
        vgg_weights: str | os.PathLike | None = None,
        layers: Sequence[str] = ("relu1_2", "relu2_2", "relu3_3", "relu4_3"),
    ):
        super().__init__()
        modules, names = _feature_layers()
        unknown = [layer for layer in layers if layer not in names]
        if unknown or not layers:
            raise ValueError(f"layers of VGG16 to compare are some of {', '.join(names)}; got {list(layers)}")
        self._outputs = {int(names[layer]) for layer in layers}
        self.features: nn.Sequential | None = None
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)
        if vgg_weights is None:
            _LOG.warning(
                "vgg_weights is not set: the reconstruction loss is L1 only, without the VGG16 features of Eq. 2"
            )
            return
        self.features = nn.Sequential(*list(modules.values())[: max(self._outputs) + 1]).eval()
        _load(self.features, Path(vgg_weights))

    def train(self, mode: bool = True) -> PerceptualReconstructionLoss:
        """Switch the loss's mode; VGG16 stays in eval mode."""
        super().train(mode)
        if self.features is not None:
            self.features.eval()
        return self

    def forward(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the loss of a batch."""
        if image.shape != reconstruction.shape or image.ndim != 4 or image.shape[1] not in (1, 3):
            raise ValueError(
                "image and reconstruction must be [B, 1, H, W] (or three channels) of one shape, got "
                f"{list(image.shape)} and {list(reconstruction.shape)}"
            )
        image = image.detach()
        loss = nn.functional.l1_loss(reconstruction.float(), image.float())
        if self.features is None:
            return loss
        with torch.no_grad():
            targets = self._features(image)
        outputs = self._features(reconstruction)
        # The means are taken in float32, whatever precision autocast gave the features.
        distances = [nn.functional.mse_loss(a.float(), b.float()) for a, b in zip(outputs, targets, strict=True)]
        return loss + torch.stack(distances).mean()

    def _features(self, image: Tensor) -> list[Tensor]:
        x = (image.expand(-1, 3, -1, -1) - self.mean) / self.std
        outputs = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self._outputs:
                outputs.append(x)
        return outputs


def _load(features: nn.Sequential, path: Path) -> None:
    """Put the file's weights into the convolutions, as buffers outside the state dict."""
    expected = {f"features.{key}": tuple(value.shape) for key, value in features.state_dict().items()}
    wanted = (
        f"VGG16 weights must be torchvision's vgg16-397923af.pth, a state dict with the keys {', '.join(expected)}; "
        f"{path} "
    )
    remedy = " Download https://download.pytorch.org/models/vgg16-397923af.pth, or leave vgg_weights unset for L1 only."
    if not path.is_file():
        raise CheckpointError(f"{wanted}is {'a folder' if path.is_dir() else 'not there'}.{remedy}")
    if found := disguise(path):
        raise CheckpointError(f"{path} {found}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its zip, tar and pickle readers do
        raise CheckpointError(f"{wanted}cannot be read as one ({type(error).__name__}).{remedy}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{wanted}holds a {type(state).__name__}.{remedy}")
    found = {key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}
    wrong = [
        f"{key} is {'x'.join(map(str, found[key]))} instead of {'x'.join(map(str, shape))}" if key in found else key
        for key, shape in expected.items()
        if found.get(key) != shape
    ]
    if wrong:
        arrived = ", ".join(map(str, list(state)[:8])) + (", ..." if len(state) > 8 else "")
        raise CheckpointError(
            f"{wanted}holds {arrived or 'nothing'}; missing or misshapen: {', '.join(wrong)}.{remedy}"
        )
    for number, layer in features.named_children():
        for name in list(layer._parameters):
            del layer._parameters[name]
            layer.register_buffer(name, state[f"features.{number}.{name}"].float(), persistent=False)
