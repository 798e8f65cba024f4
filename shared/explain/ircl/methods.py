"""The maps that IRCL's Fig. 5 compares, each of a patient's images at once, beside maps that know no network.

Every method is called with a trained network, a patient's images and covariates, and gives a map of each image. A
signed map speaks of the positive class's log odds: above 0 for the class, below 0 against it.
"""

from __future__ import annotations

import copy
import weakref
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.errors import DataError
from shared.explain.controls import centred_box_map, random_map
from shared.explain.grad_cam import frozen
from shared.explain.ircl.biomarker_mask import BiomarkerMask
from shared.explain.perturbation import filled
from shared.explain.randomisation import redraw
from shared.explain.superpixels import SuperpixelGame, captum_module, lime_values, shap_values, superpixels
from shared.networks.blocks import turned, turned_back

CONTRIBUTIONS, MASKS, CAM, UNTRAINED = "contributions", "biomarker masks", "Grad-CAM", "untrained network"
SHAP, LIME, GRADIENTS = "SHAP", "LIME", "integrated gradients"
NEED_CAPTUM = (LIME, GRADIENTS)

Explain = Callable[[nn.Module, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class ExplanationMethod:
    """One way to make maps.

    Attributes:
        name: as tables have it.
        explain: ``(network, image [1, m, H, W], covariates [1, C] or None) -> [m, H, W]``, on the network's device.
        signed: whether the map tells evidence for the positive class from evidence against it; else it only says where
            something is, whatever the class.
        control: knows nothing that was learnt.
        learnt: depends on the network's weights.
    """

    name: str
    explain: Explain
    signed: bool = True
    control: bool = False
    learnt: bool = True

    def evidence(self, maps: Tensor, positive: bool = True) -> Tensor:
        """What a map says for a class, not negative: for the positive class, or for the other.

        Of a signed map it is the part above 0 (for the other class: of its negative). The absolute value would count
        evidence against a class as evidence for it, although planted patterns all speak for the positive class.
        """
        return self.order(maps, positive).clamp(min=0)

    def order(self, maps: Tensor, positive: bool = True) -> Tensor:
        """A map whose largest values speak most for a class; what speaks against it comes last."""
        return maps if positive or not self.signed else -maps


def log_odds(network: nn.Module, image: Tensor, covariates: Tensor | None = None, *, positive: int = 1) -> Tensor:
    """Log odds of the positive class, ``[B]``; covariates of one patient go with every row."""
    if covariates is not None:
        covariates = covariates.expand(len(image), -1)
    log_probability = network(image, covariates).log_softmax(dim=1)
    others = [i for i in range(log_probability.shape[1]) if i != positive]
    return log_probability[:, positive] - log_probability[:, others].logsumexp(dim=1)


def explanation_methods(
    mask: BiomarkerMask | None = None,
    *,
    names: Sequence[str] | None = None,
    samples: int = 500,
    integration_steps: int = 32,
    pieces: int = 24,
    seed: int = 0,
) -> list[ExplanationMethod]:
    """The methods of the comparison, in the order of its tables.

    Args:
        mask: optimiser of Eq. 10's masks; None: the paper's.
        names: some of them; None: all.
        samples: answers that LIME and SHAP ask of the network, each.
        integration_steps: of integrated gradients.
        pieces: superpixels of an image, about.
        seed: of LIME's samples, the random map and the untrained network's weights.

    Raises:
        DataError: a name that is none, or captum is needed and not installed.

    Example:
        >>> [method.name for method in explanation_methods(names=["centred box", "contributions"])]
        ['contributions', 'centred box']
    """

    optimiser = mask or BiomarkerMask()

    def masks(network: nn.Module, image: Tensor, covariates: Tensor | None) -> Tensor:
        # where the image shows the biomarker it was assigned to; of no class
        with torch.no_grad(), frozen(network):
            assignment, _ = network.assign(network.encode(image)[1])
        target = network.biomarkers[assignment[0]]
        return optimiser.explain(network.encoder, image[0, :, None], target, network.rivals()).mask[:, 0]

    def game(network: nn.Module, image: Tensor, covariates: Tensor | None) -> SuperpixelGame:
        found = superpixels(image[0].cpu().numpy(), count=pieces)
        return SuperpixelGame(lambda x: log_odds(network, x, covariates), image, filled(image, "mean"), found)

    def lime(network: nn.Module, image: Tensor, covariates: Tensor | None) -> Tensor:
        played = game(network, image, covariates)
        return played.spread(lime_values(played, samples=samples, seed=seed))

    def shap(network: nn.Module, image: Tensor, covariates: Tensor | None) -> Tensor:
        played = game(network, image, covariates)
        return played.spread(shap_values(played, evaluations=samples))

    def gradients(network: nn.Module, image: Tensor, covariates: Tensor | None) -> Tensor:
        return integrated_gradients(network, image, covariates, steps=integration_steps)

    def box(network: nn.Module, image: Tensor, covariates: Tensor | None) -> Tensor:
        return torch.from_numpy(centred_box_map((len(image[0]), 1, *image.shape[2:]))[:, 0]).to(image.device)

    def noise(network: nn.Module, image: Tensor, covariates: Tensor | None) -> Tensor:
        # the image is part of the seed: no two patients get the same map, and one always the same
        content = zlib.crc32(np.ascontiguousarray(image.cpu().numpy()).tobytes())
        drawn = random_map((len(image[0]), 1, *image.shape[2:]), seed=(seed, content))
        return torch.from_numpy(drawn[:, 0]).to(image.device)

    def brightness(network: nn.Module, image: Tensor, covariates: Tensor | None) -> Tensor:
        return image[0].abs()

    control = {"signed": False, "control": True, "learnt": False}
    known = [
        ExplanationMethod(CONTRIBUTIONS, contribution_map),
        ExplanationMethod(MASKS, masks, signed=False),
        ExplanationMethod(CAM, grad_cam_of_views),
        ExplanationMethod(SHAP, shap),
        ExplanationMethod(LIME, lime),
        ExplanationMethod(GRADIENTS, gradients),
        ExplanationMethod(UNTRAINED, _Untrained(seed), control=True),
        ExplanationMethod("brightness", brightness, **control),
        ExplanationMethod("centred box", box, **control),
        ExplanationMethod("random map", noise, **control),
    ]
    wanted = [method.name for method in known] if names is None else list(names)
    unknown = sorted(set(wanted) - {method.name for method in known})
    if unknown:
        raise DataError(
            f"No explanation is called {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(repr(method.name) for method in known)}."
        )
    if set(wanted) & set(NEED_CAPTUM):
        captum_module("captum.attr")
    return [method for method in known if method.name in wanted]


def contribution_map(network: nn.Module, image: Tensor, covariates: Tensor | None = None) -> Tensor:
    """What each place adds to the log odds, resized to the image, of an additive network; ``[m, H, W]``.

    Raises:
        DataError: the network's answer is no sum over places.
    """
    predictor = _sum_over_places(network)
    if predictor is None:
        raise DataError(f"The answer of {type(network).__name__} is no sum over places: it has no contributions.")
    with torch.no_grad(), frozen(network):
        found = predictor.contributions(image)
    return functional.interpolate(found, image.shape[2:], mode="bilinear", align_corners=False)[0]


def _sum_over_places(network: nn.Module) -> nn.Module | None:
    """The predictor that answers, if its answer is a sum over places."""
    if getattr(network, "answer", None) == "additive":
        network = network.additive
    return network if callable(getattr(network, "contributions", None)) else None


def integrated_gradients(
    network: nn.Module, image: Tensor, covariates: Tensor | None = None, *, steps: int = 32, batch_size: int = 16
) -> Tensor:
    """Integrated gradients of the log odds by captum, from each image's mean (Sundararajan et al., 2017, Eq. 1).

    Args:
        network: gives logits.
        image: the images, ``[1, m, H, W]``.
        covariates: of the patient; they stay as they are along the path.
        steps: of the integral, at the middles of equal parts.
        batch_size: images at once.

    Returns:
        ``[m, H, W]``.

    Raises:
        DataError: captum is not installed, or the answer has no gradient.
    """
    attr = captum_module("captum.attr")
    with torch.inference_mode(False), torch.enable_grad(), frozen(network):
        image = image.detach().clone()
        try:
            return (
                attr.IntegratedGradients(lambda x: log_odds(network, x, covariates))
                .attribute(
                    image,
                    baselines=filled(image, "mean"),
                    n_steps=steps,
                    method="riemann_middle",
                    internal_batch_size=batch_size,
                )[0]
                .detach()
            )
        except RuntimeError as error:
            raise _without_gradient(error) from error


def grad_cam_of_views(network: nn.Module, image: Tensor, covariates: Tensor | None = None) -> Tensor:
    """Grad-CAM of the log odds at the encoder's last level, without its ReLU, resized to the images.

    The part above 0 is the map of the positive class, the part below 0 that of the other (Selvaraju et al., Eq. 1-2:
    the other class's log odds are the negative, and so are its gradients). A network that averages over flips and
    rotations has a feature map of each; their maps are turned back and added.

    Args:
        network: has ``encoder.levels``.
        image: the images, ``[1, m, H, W]``.
        covariates: of the patient.

    Returns:
        ``[m, H, W]``.

    Raises:
        DataError: the answer has no gradient with respect to the feature maps.
    """
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def before(module: nn.Module, given: tuple) -> None:
        inputs.append(given[0].detach())

    def after(module: nn.Module, given: tuple, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        outputs.append(output.detach().requires_grad_())
        return outputs[-1].clone()

    levels = network.encoder.levels
    with torch.inference_mode(False), torch.enable_grad(), frozen(network):
        handles = [levels[0].register_forward_pre_hook(before), levels[-1].register_forward_hook(after)]
        try:
            score = log_odds(network, image.detach().clone(), covariates).sum()
            gradients = torch.autograd.grad(score, outputs)
        except RuntimeError as error:
            raise _without_gradient(error) from error
        finally:
            for handle in handles:
                handle.remove()
    total = torch.zeros_like(image[0])
    plane = image[0, :, None]
    for given, activation, gradient in zip(inputs, outputs, gradients, strict=True):
        weight = gradient.mean(dim=(2, 3), keepdim=True)
        raw = (weight * activation.detach()).sum(dim=1, keepdim=True)
        maps = turned_back(raw, _view_of(given, plane))
        total += functional.interpolate(maps, image.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return total


def _view_of(given: Tensor, plane: Tensor) -> int:
    """Which flip or rotation of the images the encoder was given."""
    for view in range(8):
        if torch.equal(turned(plane, view), given):
            return view
    raise DataError(
        f"The encoder was given {tuple(given.shape)}, none of the eight flips and rotations of the patient's images "
        f"{tuple(plane.shape)}: its map cannot be laid over them."
    )


def _without_gradient(error: RuntimeError) -> DataError:
    return DataError(
        "The answer has no gradient: its places are assigned to the nearest biomarker, which is a step "
        f"({str(error).splitlines()[0]})."
    )


class _Untrained:
    """The contributions, else Grad-CAM, of a network of the same build with weights drawn anew."""

    def __init__(self, seed: int):
        self.seed, self.drawn = seed, 0
        self.known: weakref.WeakKeyDictionary[nn.Module, nn.Module] = weakref.WeakKeyDictionary()

    def __call__(self, network: nn.Module, image: Tensor, covariates: Tensor | None = None) -> Tensor:
        if network not in self.known:
            self.known[network] = copy.deepcopy(network)
            # of each trained network another one: their maps are compared with one another
            redraw([self.known[network]], self.seed, self.drawn)
            self.drawn += 1
        other = self.known[network]
        return (grad_cam_of_views if _sum_over_places(other) is None else contribution_map)(other, image, covariates)
