"""Which part of an image makes it look like its biomarker: a mask optimised per image (IRCL section 3.4, Eq. 10).

Rao et al., Learning Latent Imaging Biomarkers for Interpretable Microvascular Invasion Prediction in Hepatocellular
Carcinoma.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import trange

from shared.errors import DataError


@dataclass(frozen=True)
class MaskExplanation:
    """Masks of a batch and how well each one explains its biomarker.

    Attributes:
        mask: Q in [0, 1], ``[B, 1, H, W]``; 1 = kept, 0 = hidden.
        distance_before: L1 distance of the whole image's embedding to the biomarker, ``[B]``.
        distance_after: the same for what the mask keeps (image * Q): small if it is sufficient, ``[B]``.
        distance_removed: the same for what the mask hides (image * (1 - Q)): large if Q is necessary, ``[B]``.
        divergence: KL term of the final mask, ``[B]``.
        history: objective at every step and, last, of the returned mask, ``[steps + 1, B]``.
    """

    mask: Tensor
    distance_before: Tensor
    distance_after: Tensor
    distance_removed: Tensor
    divergence: Tensor
    history: Tensor


def gaussian_divergence(mask: Tensor, *, prior_mean: float, prior_std: float, eps: float = 1e-6) -> Tensor:
    r"""KL divergence of a mask's pixel distribution from its prior, the second term of Eq. 10, in closed form.

    .. math:: D_{KL}\big(\mathcal N(\mu_Q, \sigma_Q^2 + \epsilon) \| \mathcal N(\mu_0, \sigma_0^2)\big)

    Args:
        mask: Q.
        prior_mean: mu_0.
        prior_std: sigma_0.
        eps: added to the variance, which keeps a constant mask's divergence finite.

    Shape:
        - mask: ``[B, 1, H, W]``
        - returns: ``[B]``

    Example:
        >>> mask = torch.tensor([0.0, 0.0, 1.0, 1.0]).reshape(1, 1, 2, 2)
        >>> round(gaussian_divergence(mask, prior_mean=0.5, prior_std=0.5, eps=0.0).item(), 6)
        0.0
    """
    pixels = mask.flatten(1)
    variance = pixels.var(dim=1, correction=0) + eps
    excess = (variance + (pixels.mean(dim=1) - prior_mean) ** 2) / (2 * prior_std**2)
    return math.log(prior_std) - 0.5 * variance.log() + excess - 0.5


class BiomarkerMask:
    r"""Optimise, per image, the mask whose visible part still lies at the biomarker (Eq. 10).

    .. math:: \min_Q \|z(I \odot Q) - B\|_1 + D_{KL}(\mathcal N(\mu_Q, \sigma_Q^2) \| \mathcal N(\mu_0, \sigma_0^2)),
              \quad Q = \sigma(q)

    All images of a batch are optimised together; their objectives are summed, so each mask is what the image alone
    would get. The network is frozen and in eval mode meanwhile, and left as it was found. The paper gives neither the
    prior nor the optimiser's settings: the defaults are this project's.

    Args:
        steps: Adam steps.
        learning_rate: Adam's step size, in logits q.
        prior_mean: mu_0, the share of the image that a mask should keep.
        prior_std: sigma_0; ``sqrt(prior_mean * (1 - prior_mean))`` is that of a mask of zeros and ones.
        kl_weight: weight of the KL term; 1 in the paper.
        eps: added to the mask's variance in the KL term.
        start: value of Q before the first step, everywhere. Near 1 the search begins at the whole image, whose
            embedding lies at the biomarker; from 0.5 it begins at a dimmed image that the encoder has never seen.
        grid: side, or (height, width), of a coarser grid of logits, upsampled bilinearly to the image; None: one
            logit a pixel, as in the paper.
        total_variation: weight of the mean absolute difference between neighbouring pixels of Q; 0 in the paper.
        noise: standard deviation of a random start added to q (the same for every image); 0: none. The KL term's
            pull towards more variance amplifies it into speckle, so it is for studies of stability only.
        seed: seed of that noise.
        chunk: images optimised at once (memory); None: the whole batch.
        double: optimise in float64, two to four times slower. In float32 a convolution's rounding depends on the batch
            size, and Adam, blind to a gradient's size, amplifies that: masks then equal the image's alone on average
            to 1e-3 rather than to 1e-9.
        progress: show a progress bar.

    Raises:
        ValueError: a setting out of its range.

    Example:
        >>> class Encoder(nn.Module):
        ...     def forward(self, x):
        ...         return functional.normalize(nn.functional.avg_pool2d(x, 2).flatten(1) + 0.1, dim=1)
        >>> image = torch.rand(2, 1, 4, 4)
        >>> mask = BiomarkerMask(steps=5)(Encoder(), image, Encoder()(image))
        >>> mask.shape, bool(((mask >= 0) & (mask <= 1)).all())
        (torch.Size([2, 1, 4, 4]), True)
    """

    def __init__(
        self,
        *,
        steps: int = 200,
        learning_rate: float = 0.1,
        prior_mean: float = 0.1,
        prior_std: float = 0.3,
        kl_weight: float = 1.0,
        eps: float = 1e-6,
        start: float = 0.9,
        grid: int | tuple[int, int] | None = None,
        total_variation: float = 0.0,
        noise: float = 0.0,
        seed: int = 0,
        chunk: int | None = None,
        double: bool = False,
        progress: bool = False,
    ):
        positive = {"steps": steps, "learning_rate": learning_rate, "prior_std": prior_std, "eps": eps}
        wrong = [f"{name}={value}" for name, value in positive.items() if value <= 0]
        wrong += [
            f"{name}={value}" for name, value in {"start": start, "prior_mean": prior_mean}.items() if not 0 < value < 1
        ]
        weights = {"kl_weight": kl_weight, "total_variation": total_variation, "noise": noise}
        wrong += [f"{name}={value}" for name, value in weights.items() if value < 0]
        if wrong:
            raise ValueError(
                "steps, learning_rate, prior_std and eps must be positive, start and prior_mean lie between 0 and 1, "
                f"weights and noise must not be negative; got {', '.join(wrong)}."
            )
        self.steps = steps
        self.learning_rate = learning_rate
        self.prior_mean = prior_mean
        self.prior_std = prior_std
        self.kl_weight = kl_weight
        self.eps = eps
        self.start = start
        self.grid = (grid, grid) if isinstance(grid, int) else grid
        self.total_variation = total_variation
        self.noise = noise
        self.seed = seed
        self.chunk = chunk
        self.double = double
        self.progress = progress

    def __call__(self, network: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        """Masks of a batch; see ``explain``."""
        return self.explain(network, image, target).mask

    def explain(self, network: nn.Module, image: Tensor, target: Tensor) -> MaskExplanation:
        """Masks of a batch with the figures that say how far to trust them.

        Args:
            network: encoder that returns the embedding z, or a tuple whose last element is z. Pass the encoder rather
                than the autoencoder: the decoder would run at every step for nothing.
            image: images.
            target: the biomarker of each image, of unit length.

        Shape:
            - image: ``[B, 1, H, W]``, target: ``[B, E]``
            - mask: ``[B, 1, H, W]``

        Raises:
            DataError: shapes do not fit, or an image or biomarker is not finite.
        """
        _check(image, target)
        # callers may be inside no_grad or inference_mode; inference tensors must be cloned to take part in autograd
        with torch.inference_mode(False), torch.enable_grad(), _frozen(network):
            kind = torch.promote_types(image.dtype, torch.float32)
            if self.double:
                network = copy.deepcopy(network).double()
            image, target = (
                x.detach().as_subclass(Tensor).clone().to(torch.float64 if self.double else kind)
                for x in (image, target)
            )
            target = functional.normalize(target, dim=1)
            size = self.chunk or len(image)
            parts = [
                self._optimise(network, image[i : i + size], target[i : i + size]) for i in range(0, len(image), size)
            ]
        fields = {
            name: torch.cat([getattr(part, name) for part in parts], dim=1 if name == "history" else 0).to(kind)
            for name in MaskExplanation.__dataclass_fields__
        }
        return MaskExplanation(**fields)

    def _optimise(self, network: nn.Module, image: Tensor, target: Tensor) -> MaskExplanation:
        logits = self._start(image).requires_grad_(True)
        optimiser = torch.optim.Adam([logits], lr=self.learning_rate)
        history = []
        for _ in trange(self.steps, desc="Mask", leave=False, disable=not self.progress):
            mask = self._mask(logits, image)
            objective = self._objective(_distance(network, image * mask, target), mask)
            # only q gets a gradient: autograd.grad writes nothing into the network
            (logits.grad,) = torch.autograd.grad(objective.sum(), [logits])
            optimiser.step()
            history.append(objective.detach())
        with torch.no_grad():
            mask = self._mask(logits, image)
            after = _distance(network, image * mask, target)
            history.append(self._objective(after, mask))
            return MaskExplanation(
                mask=mask,
                distance_before=_distance(network, image, target),
                distance_after=after,
                distance_removed=_distance(network, image * (1 - mask), target),
                divergence=self._divergence(mask),
                history=torch.stack(history),
            )

    def _start(self, image: Tensor) -> Tensor:
        height, width = self.grid or image.shape[-2:]
        logits = torch.full((1, 1, height, width), math.log(self.start / (1 - self.start)), dtype=image.dtype)
        if self.noise > 0:
            generator = torch.Generator().manual_seed(self.seed)
            logits += self.noise * torch.randn(logits.shape, generator=generator, dtype=image.dtype)
        # one start for all images: an image's mask must not depend on its place in the batch
        return logits.repeat(len(image), 1, 1, 1).to(image.device)

    def _mask(self, logits: Tensor, image: Tensor) -> Tensor:
        if logits.shape[-2:] != image.shape[-2:]:
            logits = functional.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return logits.sigmoid()

    def _divergence(self, mask: Tensor) -> Tensor:
        return gaussian_divergence(mask, prior_mean=self.prior_mean, prior_std=self.prior_std, eps=self.eps)

    def _objective(self, distance: Tensor, mask: Tensor) -> Tensor:
        objective = distance + self.kl_weight * self._divergence(mask)
        if self.total_variation > 0:
            variation = mask.diff(dim=-1).abs().mean(dim=(1, 2, 3)) + mask.diff(dim=-2).abs().mean(dim=(1, 2, 3))
            objective = objective + self.total_variation * variation
        return objective


def _distance(network: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    """First term of Eq. 10: L1 distance, summed over the embedding's dimensions, of every image."""
    output = network(image)
    z = output[-1] if isinstance(output, (tuple, list)) else output
    if z.shape != target.shape:
        raise DataError(f"Biomarkers must be as wide as the embedding: {tuple(target.shape)} beside {tuple(z.shape)}.")
    return (z.to(target.dtype) - target).abs().sum(dim=1)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients for the network's parameters, undone afterwards module by module."""
    training = [(module, module.training) for module in network.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, required in gradients:
            parameter.requires_grad_(required)


def _check(image: Tensor, target: Tensor) -> None:
    if image.ndim != 4 or target.ndim != 2 or len(image) != len(target) or len(image) == 0:
        raise DataError(
            "A mask needs images [B, 1, H, W] and one biomarker [B, E] for each of them; got "
            f"{tuple(image.shape)} and {tuple(target.shape)}."
        )
    for name, value in (("image", image), ("biomarker", target)):
        bad = (~value.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
        if bad:
            raise DataError(f"A mask needs finite numbers; the {name} at position {bad} of the batch has NaN or Inf.")
