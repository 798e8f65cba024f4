"""Does a map depend on what the network has learnt: cascading randomisation of its weights.

Adebayo et al., Sanity Checks for Saliency Maps (2018), section 3.1: layers are randomised one after the other from the
top. A map that stays as it was explains the image (its edges, say), not the network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.errors import DataError
from shared.explain.grad_cam import GradCAM, frozen


@dataclass(frozen=True)
class RandomisationCheck:
    """Maps of the same images and classes while more and more of the network is randomised.

    Attributes:
        stages: what was randomised last, in order; the first, ``"original"``, is the untouched network.
        maps: ``[S, B, 1, H, W]`` float32, S stages.
        spearman: rank correlation of each map with the original one, ``[S, B]``; 0 where the map became constant, NaN
            where the original is constant (its similarity to anything means nothing).
        ssim: structural similarity, ``[S, B]``; NaN likewise.
        all_zero: whether a map is zero everywhere, ``[S, B]``.
    """

    stages: list[str]
    maps: np.ndarray
    spearman: np.ndarray
    ssim: np.ndarray
    all_zero: np.ndarray


def cascading_randomisation(
    network: nn.Module,
    images: Tensor,
    target_layer: str,
    *,
    stages: Sequence[str] | None = None,
    class_idx: int | Tensor | None = None,
    explain: Callable[[nn.Module], Any] | None = None,
    seed: int = 0,
    batch_size: int = 32,
) -> RandomisationCheck:
    """Randomise a copy of the network from the top, layer by layer, and compare its maps with the original ones.

    Modules are drawn anew by their own ``reset_parameters`` (running statistics of BatchNorm included); a parameter of
    a module without one is drawn from a normal distribution with its own mean and standard deviation.

    Args:
        network: gives logits ``[B, K]``; it is left untouched.
        images: the images.
        target_layer: where the maps are taken; what contains it is randomised part by part.
        stages: dotted names of the modules to randomise, in order; None: see ``randomisation_stages``.
        explain: makes of a network what makes its maps, called like :class:`shared.explain.GradCAM`; None: Grad-CAM.
        class_idx: the class that every map explains; None: what the untouched network predicts.
        seed: of the new weights; PyTorch's own generators are left as they were.
        batch_size: images at once.

    Shape:
        - images: ``[B, C, H, W]`` or ``[B, C, D, H, W]``

    Raises:
        DataError: a stage that is no module of the network or has no weights; see also ``GradCAM``.

    Example:
        >>> features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        >>> network = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> check = cascading_randomisation(network, torch.rand(2, 3, 16, 16), "0")
        >>> check.stages, check.spearman.shape
        (['original', '3', '0'], (3, 2))
    """
    shuffled = copy.deepcopy(network)
    cam = GradCAM(shuffled, target_layer) if explain is None else explain(shuffled)
    first = [cam.explain(part, _part(class_idx, i)) for i, part in _batches(images, batch_size)]
    target = torch.cat([part.target for part in first])
    names = randomisation_stages(network, images, target_layer) if stages is None else list(stages)
    known = _parts_torandomise(shuffled, names)
    maps = [torch.cat([part.map for part in first]).cpu()]
    with torch.random.fork_rng(devices=_devices(shuffled)):
        torch.manual_seed(_number(seed))  # see redraw
        for part in known:
            randomise(part)
            maps.append(torch.cat([cam(x, _part(target, i)) for i, x in _batches(images, batch_size)]).cpu())
    stacked = torch.stack(maps).float().numpy()
    similarity = np.array([[_similarity(a[0], b[0]) for a, b in zip(stacked[0], m, strict=True)] for m in stacked])
    all_zero = ~stacked.any(axis=tuple(range(2, stacked.ndim)))
    return RandomisationCheck(["original", *names], stacked, similarity[..., 0], similarity[..., 1], all_zero)


def randomisation_stages(network: nn.Module, images: Tensor, target_layer: str) -> list[str]:
    """The network's parts from the top (the logits) down to the image, by the order of a forward pass.

    A part is a child of the network; what contains the target layer is taken apart into its own children, so that an
    encoder counts as its stages. Parts without weights or without use in a forward pass are left out.

    Example:
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        >>> network = nn.Sequential(encoder, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> randomisation_stages(network, torch.rand(1, 3, 8, 8), "0.2")
        ['3', '0.2', '0.0']
    """
    parts = dict(_parts(network, target_layer))
    order: dict[str, None] = {}
    handles = [
        part.register_forward_pre_hook(lambda *_, name=name: order.setdefault(name)) for name, part in parts.items()
    ]
    try:
        with torch.no_grad(), frozen(network):
            network(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return list(reversed(order))


def _parts(network: nn.Module, target_layer: str, prefix: str = "") -> list[tuple[str, nn.Module]]:
    parts = []
    for child, module in network.named_children():
        name = prefix + child
        if target_layer.startswith(name + "."):
            parts += _parts(module, target_layer, name + ".")
        elif any(True for _ in module.parameters()):
            parts.append((name, module))
    return parts


def _parts_torandomise(network: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    known = dict(network.named_modules(remove_duplicate=False))
    problems = [f"{name!r} is no module of {type(network).__name__}" for name in names if name not in known]
    problems += [
        f"{name!r} has no weights"
        for name in names
        if name in known and not any(True for _ in known[name].parameters())
    ]
    if problems or not names:
        raise DataError(
            [f"What is randomised must be modules with weights: {problem}." for problem in problems or ["got none"]]
        )
    return [known[name] for name in names]


def randomise(module: nn.Module) -> None:
    """Draw a module's weights anew, in place, see :func:`cascading_randomisation`."""
    drawn: set[nn.Module] = set()
    for part in module.modules():
        if part in drawn:  # by the module that it is part of
            continue
        if callable(getattr(part, "reset_parameters", None)):
            part.reset_parameters()
            drawn.update(part.modules())
            continue
        for parameter in part.parameters(recurse=False):
            mean, std = parameter.detach().mean().item(), parameter.detach().std(correction=0).item()
            torch.nn.init.normal_(parameter, mean, std)


def redraw(modules: Iterable[nn.Module], *seed: int) -> None:
    """Draw the weights of modules anew, in place, by a seed of their own; PyTorch's generators stay as they were."""
    with torch.random.fork_rng(devices=[]):
        # not the seed itself: a network built after manual_seed(seed) would be drawn the very weights it began with
        torch.manual_seed(_number(*seed))
        for module in modules:
            randomise(module)


def _number(*seed: int) -> int:
    return int(np.random.SeedSequence([*seed, 2018]).generate_state(1)[0])


def _batches(images: Tensor, size: int) -> list[tuple[slice, Tensor]]:
    return [(slice(i, i + size), images[i : i + size]) for i in range(0, len(images), size)]


def _part(class_idx: int | Tensor | None, part: slice) -> int | Tensor | None:
    return class_idx[part] if isinstance(class_idx, Tensor) and class_idx.ndim else class_idx


def _devices(network: nn.Module) -> list[torch.device]:
    return sorted({p.device for p in network.parameters() if p.device.type == "cuda"}, key=str)


def _similarity(original: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Spearman's rank correlation and SSIM of two maps in [0, 1], or signed ones in [-1, 1]."""
    from scipy.stats import spearmanr
    from skimage.metrics import structural_similarity

    if np.ptp(original) == 0:
        return float("nan"), float("nan")
    rank = float(spearmanr(original, other, axis=None).statistic) if np.ptp(other) > 0 else 0.0
    span = 2.0 if min(original.min(), other.min()) < 0 else 1.0
    side = min(7, (min(original.shape) - 1) // 2 * 2 + 1)
    return rank, float(structural_similarity(original, other, data_range=span, win_size=side))
