"""Where in an image a network sees its class: gradient-weighted class activation maps.

Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization (2017), Eq. 1-2.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.errors import DataError


class CAMExplanation(NamedTuple):
    """Maps of a batch with what they were made from.

    Attributes:
        map: hot = important, at the images' size: ``[B, 1, H, W]`` (3D: ``[B, 1, D, H, W]``).
        raw: Eq. 2 at the target layer's own size, not scaled, ``[B, 1, h, w]``; all zero where nothing speaks for it.
        logits: the network's output, ``[B, K]``.
        target: class that each map explains, ``[B]`` long.
    """

    map: Tensor
    raw: Tensor
    logits: Tensor
    target: Tensor


class GradCAM:
    r"""Class activation maps from the gradient of a class's logit (Eq. 1 and 2).

    .. math:: \alpha_k^c = \frac{1}{Z} \sum_{ij} \frac{\partial y^c}{\partial A_{ij}^k}, \qquad
              L^c = \mathrm{ReLU}\Big(\sum_k \alpha_k^c A^k\Big)

    Nothing is recorded up to the target layer: its output is cut off from what came before, and gradients flow through
    the layers after it only, so that a map costs little more than a forward pass. The network is in eval mode
    meanwhile and left as it was found; an image's map does not depend on the rest of the batch.

    Args:
        network: gives logits ``[B, K]``. A single logit (K = 1) is explained as it is, whatever its sign.
        target_layer: dotted name of the layer whose output is A, a feature map, e.g. ``"encoder.layer4"``.
        normalise: min-max of each upsampled map to [0, 1]; else the map is Eq. 2, upsampled.
        local: weigh every place of a feature map by the positive part of its own gradient instead of the gradient's
            mean (LayerCAM, Jiang et al., IEEE TIP 2021, Eq. 6-7). Where the head flattens instead of pooling, a channel
            means different things in different places; and early layers become usable, whose maps are finer.
        forward: ``(network, x) -> logits`` for networks that take more than the image; None: ``network(x)``.

    Shape:
        - x: ``[B, C, H, W]`` or ``[B, C, D, H, W]``
        - returns: ``[B, 1, H, W]`` or ``[B, 1, D, H, W]`` float32 (float64 for a network in float64)

    Raises:
        DataError: no such layer, or one that gives no feature map, is not used once, or does not reach the logits; a
            class that is none; an image or a network whose map is not finite.

    Example:
        >>> features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        >>> network = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> maps = GradCAM(network, "0")(torch.rand(2, 3, 16, 16), class_idx=1)
        >>> maps.shape, bool(maps.min() >= 0), bool(maps.max() <= 1)
        (torch.Size([2, 1, 16, 16]), True, True)
    """

    def __init__(
        self,
        network: nn.Module,
        target_layer: str,
        *,
        normalise: bool = True,
        local: bool = False,
        forward: Callable[[nn.Module, Tensor], Tensor] | None = None,
    ):
        self.network, self.target_layer = network, target_layer
        self.normalise, self.local, self.forward = normalise, local, forward
        self._layer = _find(network, target_layer)

    def __call__(self, x: Tensor, class_idx: int | Tensor | None = None) -> Tensor:
        """Maps of a batch; see ``explain``."""
        return self.explain(x, class_idx).map

    def explain(self, x: Tensor, class_idx: int | Tensor | None = None) -> CAMExplanation:
        """Maps of a batch, with the raw maps, the logits and the classes.

        Args:
            x: images.
            class_idx: the class to explain: of all images, or ``[B]`` one each; None: the predicted one.
        """
        if x.ndim not in (4, 5):
            raise DataError(f"Grad-CAM takes images [B, C, H, W] or [B, C, D, H, W], got {tuple(x.shape)}.")
        # callers may be inside no_grad or inference_mode; inference tensors must be cloned to take part in autograd
        with torch.inference_mode(False), torch.enable_grad(), frozen(self.network), self._tapped() as outputs:
            x = x.detach().as_subclass(Tensor)
            x = x.clone() if x.is_inference() else x
            logits = self.network(x) if self.forward is None else self.forward(self.network, x)
            activation = self._activation(outputs, x)
            target = explained_classes(class_idx, logits, x)
            score = logits.gather(1, target[:, None]).sum()
            if not score.requires_grad:
                raise self._unused()
            (gradient,) = torch.autograd.grad(score, [activation], allow_unused=True)
        if gradient is None:
            raise self._unused()
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            raw = _weighted_sum(activation.detach(), gradient, self.local)
            bad = (~raw.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
            if bad:
                raise DataError(
                    f"Grad-CAM gives NaN or Inf for the images at position {bad} of the batch: check that they and "
                    "the network's weights are finite."
                )
            maps = resize_cam(raw, x.shape[2:], normalise=self.normalise)
        return CAMExplanation(maps, raw, logits.detach(), target)

    @contextmanager
    def _tapped(self) -> Iterator[list]:
        """The target layer's outputs while the block lasts, each cut off from what made it."""
        outputs: list = []

        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
            if not isinstance(output, Tensor):
                outputs.append(output)
                return None
            # a network may run a frozen part under no_grad: from here on gradients are needed
            torch.set_grad_enabled(True)
            outputs.append(output.detach().requires_grad_(output.is_floating_point()))
            # a copy goes on, since the next layer may work in place
            return outputs[-1].clone()

        handle = self._layer.register_forward_hook(hook)
        try:
            yield outputs
        finally:
            handle.remove()

    def _activation(self, outputs: list, x: Tensor) -> Tensor:
        if len(outputs) != 1:
            raise DataError(
                f"The target layer must run once in a forward pass, {self.target_layer!r} runs {len(outputs)} times: "
                "choose a layer that is not shared."
            )
        (found,) = outputs
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if not isinstance(found, Tensor) or found.ndim != x.ndim or len(found) != len(x):
            raise DataError(
                f"The target layer must give a feature map with the {x.ndim} axes of the images {tuple(x.shape)}, "
                f"{self.target_layer!r} gives {shape}: choose a convolutional stage before the pooling."
            )
        return found

    def _unused(self) -> DataError:
        return DataError(
            f"The logits do not depend on the target layer {self.target_layer!r}: choose one between the image and "
            "the classifier, and do not detach its output in the network."
        )


def resize_cam(raw: Tensor, size: Sequence[int], *, normalise: bool = True) -> Tensor:
    """Raw maps at another size, bilinear (3D: trilinear), each scaled to [0, 1] by its own minimum and maximum.

    An all-zero map stays all zero; a map that is positive and the same everywhere becomes 1 everywhere.

    Args:
        raw: maps, not negative.
        size: height and width, of the source image, say.
        normalise: scale; else resize only.

    Shape:
        - raw: ``[B, 1, h, w]`` or ``[B, 1, d, h, w]``
        - returns: ``[B, 1, *size]``

    Example:
        >>> resize_cam(torch.tensor([[[[0.0, 3.0]]]]), (1, 4)).tolist()
        [[[[0.0, 0.25, 0.75, 1.0]]]]
        >>> resize_cam(torch.zeros(1, 1, 2, 2), (3, 3)).sum().item()
        0.0
    """
    mode = "bilinear" if raw.ndim == 4 else "trilinear"
    maps = functional.interpolate(raw, tuple(size), mode=mode, align_corners=False)
    if not normalise or maps.numel() == 0:
        return maps
    axes = tuple(range(1, maps.ndim))
    low, high = maps.amin(axes, keepdim=True), maps.amax(axes, keepdim=True)
    # interpolating a constant leaves rounding errors, which must not be blown up to a pattern
    flat = high - low <= 16 * torch.finfo(maps.dtype).eps * high
    scaled = (maps - low) / torch.where(flat, torch.ones_like(high), high - low)
    return torch.where(flat, (high > 0).to(maps.dtype), scaled.clamp(0, 1))


def _weighted_sum(activation: Tensor, gradient: Tensor, local: bool) -> Tensor:
    """Eq. 1 and 2, in float32 or better."""
    kind = torch.promote_types(activation.dtype, torch.float32)
    activation, gradient = activation.to(kind), gradient.to(kind)
    if local:
        return (gradient.relu() * activation).sum(dim=1, keepdim=True).relu()
    alpha = gradient.flatten(2).mean(dim=2)
    summed = torch.matmul(alpha[:, None], activation.flatten(2))
    return summed.reshape(len(activation), 1, *activation.shape[2:]).relu()


def _find(network: nn.Module, name: str) -> nn.Module:
    layers = dict(network.named_modules(remove_duplicate=False))
    layers.pop("", None)
    if name in layers:
        return layers[name]
    last = str(name).rpartition(".")[2]
    near = [other for other in layers if other.rpartition(".")[2] == last]
    near += [other for other in difflib.get_close_matches(str(name), layers, n=5) if other not in near]
    hint = (
        f"near it: {', '.join(near[:5])}"
        if near
        else f"at the top: {', '.join(n for n, _ in network.named_children())}"
    )
    raise DataError(f"The network {type(network).__name__} has no layer {name!r} for Grad-CAM; {hint}.")


def explained_classes(class_idx: int | Tensor | None, logits: Tensor, x: Tensor) -> Tensor:
    """The class that each map explains, ``[B]`` long: as given, for all or one each, else (None) the predicted one.

    Raises:
        DataError: logits that are not ``[B, K]``, or a class that is none.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        arrived = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise DataError(
            f"Grad-CAM needs logits [B, K] of a batch of {len(x)}, the network gives {arrived}: pass `forward`, which "
            "picks them."
        )
    if class_idx is None:
        return logits.detach().argmax(dim=1)
    given = torch.as_tensor(class_idx, device=logits.device)
    count = logits.shape[1]
    if given.shape not in ((), (len(logits),)) or given.is_floating_point() or given.dtype == torch.bool:
        raise DataError(
            f"class_idx must be a class or [B] classes, one for each of {len(logits)} images, as integers; got "
            f"{given.dtype} of shape {tuple(given.shape)}."
        )
    if ((given < 0) | (given >= count)).any():
        raise DataError(f"class_idx must lie in 0 ... {count - 1}, got {sorted(set(given.flatten().tolist()))}.")
    return given.long().expand(len(logits)).clone()


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
