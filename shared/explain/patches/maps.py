"""The maps that can explain a patch, by the names of the key ``explanation``.

All are called alike and give one map of one class. A signed map speaks of the class's logit less the mean of the other
classes' (of two classes the log odds): above 0 what speaks for the class, below 0 what speaks against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.errors import DataError
from shared.explain.grad_cam import CAMExplanation, GradCAM, explained_classes, frozen
from shared.explain.perturbation import filled
from shared.explain.superpixels import captum_module

TITLES = {
    "additive": "additive map",
    "grad_cam": "Grad-CAM",
    "layer_cam": "LayerCAM",
    "integrated_gradients": "integrated gradients",
}
SIGNED = ("additive", "integrated_gradients")


def patch_maps(network: nn.Module, explanation: str, target_layer: str) -> AdditiveMap | GradCAM | IntegratedGradients:
    """What makes the maps of a network.

    Args:
        network: image to logits ``[B, K]``.
        explanation: one of ``TITLES``.
        target_layer: of Grad-CAM and LayerCAM.

    Raises:
        DataError: the network has no such layer, or its answer is no sum over places.
        ValueError: an unknown explanation.

    Example:
        >>> from shared.networks import SSCLClassifier
        >>> net = SSCLClassifier(dict(block="basic", layers=(1, 1, 1, 1), channels=(8, 8, 8, 8)))
        >>> patch_maps(net, "additive", "")(torch.rand(2, 3, 64, 64), class_idx=1).shape
        torch.Size([2, 1, 64, 64])
    """
    kinds: dict[str, Callable[[], AdditiveMap | GradCAM | IntegratedGradients]] = {
        "additive": lambda: AdditiveMap(network),
        "grad_cam": lambda: GradCAM(network, target_layer),
        "layer_cam": lambda: GradCAM(network, target_layer, local=True),
        "integrated_gradients": lambda: IntegratedGradients(network),
    }
    if explanation not in kinds:
        raise ValueError(f"explanation must be one of {', '.join(kinds)}, got {explanation!r}.")
    return kinds[explanation]()


def class_margin(values: Tensor, target: Tensor) -> Tensor:
    """Of each row the target class's values less the mean of the other classes'.

    Args:
        values: logits, or what each place adds to them.
        target: class of each row.

    Shape:
        - values: ``[B, K, *]``, target: ``[B]`` long
        - returns: ``[B, 1, *]``

    Example:
        >>> class_margin(torch.tensor([[1.0, 5.0, 2.0]]), torch.tensor([1])).tolist()
        [[3.5]]
    """
    own = values[torch.arange(len(values), device=values.device), target][:, None]
    others = values.shape[1] - 1
    return own - (values.sum(dim=1, keepdim=True) - own) / others if others else own


class AdditiveMap:
    """The classifier applied at every place before pooling: the map is the prediction.

    The mean of ``raw`` and the class's bias (less the mean of the others') are the class's logit less the mean of the
    others': nothing is approximated, and no gradient is needed; see ``contributions`` of
    :class:`shared.networks.SSCLClassifier`.

    Args:
        network: has ``contributions(image) -> [B, K, h, w]`` and a linear layer ``head``; means of the former and the
            latter's bias are the logits.

    Shape:
        - x: ``[B, 3, H, W]`` -> ``[B, 1, H, W]`` in [-1, 1], see :func:`resize_signed`

    Raises:
        DataError: the network has no contributions; a class that is none; images that are not finite.
    """

    def __init__(self, network: nn.Module):
        if not callable(getattr(network, "contributions", None)):
            raise DataError(
                f"The answer of {type(network).__name__} is no sum over places: it has no additive map; give another "
                f"explanation ({', '.join(name for name in TITLES if name != 'additive')})."
            )
        self.network = network

    def __call__(self, x: Tensor, class_idx: int | Tensor | None = None) -> Tensor:
        """Maps of a batch; see ``explain``."""
        return self.explain(x, class_idx).map

    def explain(self, x: Tensor, class_idx: int | Tensor | None = None) -> CAMExplanation:
        """Maps of a batch, of a class for all, of one each, or (None) of the predicted one."""
        with torch.no_grad(), frozen(self.network):
            found = self.network.contributions(x)
            logits = found.mean(dim=(2, 3)) + self.network.head.bias
            if not logits.isfinite().all():
                raise DataError("The additive map holds NaN or Inf: check that images and weights do not.")
            target = explained_classes(class_idx, logits, x)
            raw = class_margin(found, target)
            return CAMExplanation(resize_signed(raw, x.shape[2:]), raw, logits, target)


class IntegratedGradients:
    """Integrated gradients by captum, from each image's mean colour (Sundararajan et al., 2017, Eq. 1).

    Explained is the class's logit less the mean of the others'; a pixel's channels are added.

    Args:
        network: image to logits.
        steps: of the integral, at the middles of equal parts.
        batch_size: images at once.

    Shape:
        - x: ``[B, 3, H, W]`` -> ``[B, 1, H, W]`` in [-1, 1], see :func:`resize_signed`

    Raises:
        DataError: captum is not installed; a class that is none.
    """

    def __init__(self, network: nn.Module, *, steps: int = 32, batch_size: int = 32):
        self.network, self.steps, self.batch_size = network, steps, batch_size
        self._attr = captum_module("captum.attr")

    def __call__(self, x: Tensor, class_idx: int | Tensor | None = None) -> Tensor:
        """Maps of a batch; see ``explain``."""
        return self.explain(x, class_idx).map

    def explain(self, x: Tensor, class_idx: int | Tensor | None = None) -> CAMExplanation:
        """Maps of a batch, of a class for all, of one each, or (None) of the predicted one."""
        with torch.inference_mode(False), torch.enable_grad(), frozen(self.network):
            x = x.detach().as_subclass(Tensor).clone()
            with torch.no_grad():
                logits = self.network(x)
            target = explained_classes(class_idx, logits, x)
            found = self._attr.IntegratedGradients(lambda x, t: class_margin(self.network(x), t)[:, 0]).attribute(
                x,
                baselines=filled(x, "mean"),
                additional_forward_args=(target,),
                n_steps=self.steps,
                method="riemann_middle",
                internal_batch_size=max(self.batch_size, len(x)),
            )
        raw = found.detach().sum(dim=1, keepdim=True)
        return CAMExplanation(resize_signed(raw, x.shape[2:]), raw, logits, target)


def resize_signed(raw: Tensor, size: Sequence[int]) -> Tensor:
    """Signed maps at another size, bilinear, each divided by its largest absolute value: 0 stays 0.

    Shape:
        - raw: ``[B, 1, h, w]`` -> ``[B, 1, *size]`` in [-1, 1]

    Example:
        >>> resize_signed(torch.tensor([[[[-4.0, 2.0]]]]), (1, 2)).tolist()
        [[[[-1.0, 0.5]]]]
    """
    maps = functional.interpolate(raw, tuple(size), mode="bilinear", align_corners=False)
    largest = maps.abs().amax(dim=(1, 2, 3), keepdim=True)
    return maps / torch.where(largest > 0, largest, torch.ones_like(largest))
