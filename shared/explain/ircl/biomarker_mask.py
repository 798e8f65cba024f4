"""Which part of an image makes it look like its biomarker: a mask optimised per image (IRCL section 3.4, Eq. 10).

Rao et al., Learning Latent Imaging Biomarkers for Interpretable Microvascular Invasion Prediction in Hepatocellular
Carcinoma.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import trange

from shared.errors import DataError
from shared.explain.grad_cam import frozen
from shared.explain.perturbation import filled
from shared.networks.blocks import turned


@dataclass(frozen=True)
class MaskExplanation:
    """Masks of a batch and how well each one explains its biomarker.

    Attributes:
        mask: Q in [0, 1], ``[B, 1, H, W]``; 1 = kept, 0 = hidden.
        distance_before: L1 distance of the whole image's embedding to the biomarker, ``[B]``.
        distance_after: the same for what the mask keeps: small if it is sufficient, ``[B]``.
        distance_removed: the same for what the mask hides: large if Q is necessary, ``[B]``.
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
        distance_weight: weight of the L1 term; 1 in the paper.
        contrast: weight of a cross-entropy term that asks for this biomarker rather than its rivals; 0 in the
            paper. The L1 term alone keeps whatever makes the image look as it does, the tumour's outline above all;
            what tells one biomarker from the others is where the pattern lies.
        removal: weight of the same cross-entropy, negated, of what the mask hides: the rest should no longer show the
            biomarker; 0 in the paper.
        temperature: of both cross-entropies.
        hide_zeros: set the finished mask to 0 where the image is 0: there the masked image is the same whatever Q, and
            only the prior has set it.
        fill: what stands where the mask hides: ``"zero"``, the paper's image * Q, or ``"blur"``, the image itself
            without its detail (Fong and Vedaldi, Interpretable Explanations of Black Boxes by Meaningful Perturbation,
            2017). A black hole is a pattern of its own, which an encoder takes for a biomarker as readily as the real
            one; what is blurred looks like a tumour without the pattern.
        blur: standard deviation of that blur, as a share of the image's height. Zeros take no part in it.
        turn: show the encoder another of the eight flips and right-angle rotations at each step, drawn by ``seed``: a
            biomarker is assigned by the mean over them, and a mask that suits one only is an artefact.

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
        distance_weight: float = 1.0,
        contrast: float = 0.0,
        removal: float = 0.0,
        temperature: float = 0.1,
        hide_zeros: bool = False,
        fill: Literal["zero", "blur"] = "zero",
        blur: float = 0.125,
        turn: bool = False,
    ):
        positive = {"steps": steps, "learning_rate": learning_rate, "prior_std": prior_std, "eps": eps}
        positive |= {"temperature": temperature, "blur": blur}
        wrong = [f"{name}={value}" for name, value in positive.items() if value <= 0]
        wrong += [
            f"{name}={value}" for name, value in {"start": start, "prior_mean": prior_mean}.items() if not 0 < value < 1
        ]
        weights = {"kl_weight": kl_weight, "total_variation": total_variation, "noise": noise}
        weights |= {"distance_weight": distance_weight, "contrast": contrast, "removal": removal}
        wrong += [f"{name}={value}" for name, value in weights.items() if value < 0]
        if wrong:
            raise ValueError(
                "steps, learning_rate, prior_std, eps, temperature and blur must be positive, start and prior_mean lie "
                f"between 0 and 1, weights and noise must not be negative; got {', '.join(wrong)}."
            )
        if fill not in ("zero", "blur"):
            raise ValueError(f"fill must be 'zero' (the paper's) or 'blur', got {fill!r}.")
        self.steps, self.learning_rate, self.seed = steps, learning_rate, seed
        self.prior_mean, self.prior_std, self.kl_weight, self.eps = prior_mean, prior_std, kl_weight, eps
        self.start, self.noise = start, noise
        self.grid = (grid, grid) if isinstance(grid, int) else grid
        self.distance_weight, self.total_variation = distance_weight, total_variation
        self.contrast, self.removal, self.temperature = contrast, removal, temperature
        self.hide_zeros, self.fill, self.blur, self.turn = hide_zeros, fill, blur, turn
        self.chunk, self.double, self.progress = chunk, double, progress

    def __call__(self, network: nn.Module, image: Tensor, target: Tensor, rivals: Tensor | None = None) -> Tensor:
        """Masks of a batch; see ``explain``."""
        return self.explain(network, image, target, rivals).mask

    def explain(
        self, network: nn.Module, image: Tensor, target: Tensor, rivals: Tensor | None = None
    ) -> MaskExplanation:
        """Masks of a batch with the figures that say how far to trust them.

        Args:
            network: encoder that returns the embedding z, or a tuple whose last element is z. Pass the encoder rather
                than the autoencoder: the decoder would run at every step for nothing.
            image: images.
            target: the biomarker of each image, of unit length.
            rivals: all biomarkers the image could have been assigned to, its own among them; needed by ``contrast`` and
                ``removal``. An image with its own only gets neither term.

        Shape:
            - image: ``[B, 1, H, W]``, target: ``[B, E]``, rivals: ``[B, R, E]``
            - mask: ``[B, 1, H, W]``

        Raises:
            DataError: shapes do not fit, or an image or biomarker is not finite.
        """
        _check(image, target)
        if rivals is None:
            rivals = target[:, None]
        # callers may be inside no_grad or inference_mode; inference tensors must be cloned to take part in autograd
        with torch.inference_mode(False), torch.enable_grad(), frozen(network):
            kind = torch.promote_types(image.dtype, torch.float32)
            if self.double:
                network = copy.deepcopy(network).double()
            image, target, rivals = (
                x.detach().as_subclass(Tensor).clone().to(torch.float64 if self.double else kind)
                for x in (image, target, rivals)
            )
            target = functional.normalize(target, dim=1)
            size = self.chunk or len(image)
            parts = [
                self._optimise(network, image[i : i + size], target[i : i + size], rivals[i : i + size])
                for i in range(0, len(image), size)
            ]
        fields = {
            name: torch.cat([getattr(part, name) for part in parts], dim=1 if name == "history" else 0).to(kind)
            for name in MaskExplanation.__dataclass_fields__
        }
        return MaskExplanation(**fields)

    def _optimise(self, network: nn.Module, image: Tensor, target: Tensor, rivals: Tensor) -> MaskExplanation:
        logits = self._start(image).requires_grad_(True)
        optimiser = torch.optim.Adam([logits], lr=self.learning_rate)
        own = torch.matmul(rivals, target[:, :, None]).squeeze(2).argmax(dim=1)
        filling = self._filling(image)
        turns = torch.randint(8, (self.steps,), generator=torch.Generator().manual_seed(self.seed)).tolist()
        history = []
        for step in trange(self.steps, desc="Mask", leave=False, disable=not self.progress):
            mask = self._mask(logits, image)
            turn = turns[step] if self.turn else 0
            objective = self._objective(network, image, filling, mask, target, rivals, own, turn)
            # only q gets a gradient: autograd.grad writes nothing into the network
            (logits.grad,) = torch.autograd.grad(objective.sum(), [logits])
            optimiser.step()
            history.append(objective.detach())
        with torch.no_grad():
            mask = self._mask(logits, image)
            history.append(self._objective(network, image, filling, mask, target, rivals, own))
            kept, rest = _blend(image, filling, mask), _blend(filling, image, mask)
            return MaskExplanation(
                mask=mask * (image != 0) if self.hide_zeros else mask,
                distance_before=_distance(_embed(network, image, target), target),
                distance_after=_distance(_embed(network, kept, target), target),
                distance_removed=_distance(_embed(network, rest, target), target),
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

    def _filling(self, image: Tensor) -> Tensor:
        """What stands where the mask hides; 0 where the image is 0."""
        if self.fill == "zero":
            return torch.zeros_like(image)
        return filled(image, "blur", blur=self.blur)

    def _objective(
        self,
        network: nn.Module,
        image: Tensor,
        filling: Tensor,
        mask: Tensor,
        target: Tensor,
        rivals: Tensor,
        own: Tensor,
        turn: int = 0,
    ) -> Tensor:
        z = _embed(network, turned(_blend(image, filling, mask), turn), target)
        objective = self.distance_weight * _distance(z, target) + self.kl_weight * self._divergence(mask)
        if self.total_variation > 0:
            variation = mask.diff(dim=-1).abs().mean(dim=(1, 2, 3)) + mask.diff(dim=-2).abs().mean(dim=(1, 2, 3))
            objective = objective + self.total_variation * variation
        if self.contrast > 0:
            objective = objective + self.contrast * self._surprise(z, rivals, own)
        if self.removal > 0:
            hidden = _embed(network, turned(_blend(filling, image, mask), turn), target)
            # bounded: once the rest shows another biomarker, no more is asked
            objective = objective - self.removal * self._surprise(hidden, rivals, own).clamp(max=5.0)
        return objective

    def _surprise(self, z: Tensor, rivals: Tensor, own: Tensor) -> Tensor:
        """Cross-entropy of the embedding's own biomarker among its rivals, ``[B]``."""
        similarity = torch.matmul(rivals, z[:, :, None]).squeeze(2) / self.temperature
        return functional.cross_entropy(similarity, own, reduction="none")


def _embed(network: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    """Embedding z of images, in the target's type."""
    output = network(image)
    z = output[-1] if isinstance(output, (tuple, list)) else output
    if z.shape != target.shape:
        raise DataError(f"Biomarkers must be as wide as the embedding: {tuple(target.shape)} beside {tuple(z.shape)}.")
    return z.to(target.dtype)


def _blend(shown: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
    """``shown`` where the mask is 1, ``hidden`` where it is 0."""
    return hidden + mask * (shown - hidden)


def _distance(z: Tensor, target: Tensor) -> Tensor:
    """First term of Eq. 10: L1 distance, summed over the embedding's dimensions, of every image."""
    return (z - target).abs().sum(dim=1)


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
