"""What a prediction loses when a map's best places are taken away, and gains when they come back.

Deletion and insertion: Petsiuk et al., RISE: Randomized Input Sampling for Explanation of Black-box Models (BMVC 2018),
section 4.1; here by square cells instead of single pixels, since a lone pixel that is replaced is noise to a network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from monai.networks.layers import GaussianFilter
from torch import Tensor
from torch.nn import functional

from shared.errors import DataError

FILLS = ("blur", "mean")


class PerturbationCurves(NamedTuple):
    """What a forward pass says while cells are deleted from, or inserted into, an image in the order of a map.

    Attributes:
        deletion: from the whole image (first) to the fill alone (last), ``[steps + 1]`` float64.
        insertion: from the fill alone to the whole image, ``[steps + 1]`` float64.
    """

    deletion: Tensor
    insertion: Tensor


def filled(image: Tensor, fill: str, *, blur: float = 0.125) -> Tensor:
    """What stands where an image is hidden; 0 where the image is 0, so that an empty background stays empty.

    Args:
        image: the images.
        fill: ``"mean"``: the mean of each image's pixels that are not 0; ``"blur"``: the image without its detail.
        blur: standard deviation of the blur, as a share of the height.

    Shape:
        - image: ``[B, C, H, W]`` -> ``[B, C, H, W]``

    Raises:
        ValueError: an unknown fill.

    Example:
        >>> filled(torch.tensor([[[[0.0, 1.0, 3.0]]]]), "mean").tolist()
        [[[[0.0, 2.0, 2.0]]]]
    """
    content = (image != 0).to(image.dtype)
    if fill == "mean":
        return content * image.sum(dim=(2, 3), keepdim=True) / content.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    if fill != "blur":
        raise ValueError(f"fill must be one of {', '.join(FILLS)}, got {fill!r}.")
    smooth = GaussianFilter(2, blur * image.shape[-2]).to(image)
    return smooth(image) / smooth(content).clamp(min=1e-3) * content


def cell_order(maps: Tensor, shown: Tensor, *, cell: int = 4, seed: int = 0) -> tuple[Tensor, int]:
    """Rank of each pixel's cell, 0 for the one of the largest mean of the map over its shown pixels.

    Cells of equal means (a box, a saturated mask) come in a random order: reading order would be an order of its own.

    Args:
        maps: importance, signed or not.
        shown: which pixels there are; cells without one are not ranked.
        cell: side of a cell in pixels; the last row and column of cells are smaller where the side does not fit.
        seed: of the order among equals.

    Shape:
        - maps, shown: ``[m, H, W]``
        - returns: rank ``[m, H, W]`` long, -1 where not shown, and the number of ranked cells

    Example:
        >>> rank, count = cell_order(torch.tensor([[[1.0, 3.0, 0.0, 2.0]]]), torch.ones(1, 1, 4), cell=1)
        >>> rank.tolist(), count
        ([[[2, 0, 3, 1]]], 4)
    """
    shown = (shown != 0).to(maps.device)
    inside = shown.to(torch.float64)
    height, width = maps.shape[-2:]
    padding = (0, -width % cell, 0, -height % cell)
    # sums over the cell; padding adds nothing
    total, number = (
        functional.avg_pool2d(functional.pad(x, padding)[None], cell)[0] * cell**2 for x in (maps * inside, inside)
    )
    # equal means must be equal bits: rounding differs with the place
    mean = (total / number.clamp(min=1)).float().flatten()
    ranked = (number > 0.5).flatten().nonzero().flatten()
    # drawn on the CPU: the same on every device
    shuffled = ranked[torch.randperm(len(ranked), generator=torch.Generator().manual_seed(seed)).to(ranked.device)]
    order = shuffled[mean[shuffled].argsort(descending=True, stable=True)]
    rank = torch.full_like(mean, -1, dtype=torch.long)
    rank[order] = torch.arange(len(order), device=rank.device)
    rank = rank.reshape(number.shape).repeat_interleave(cell, dim=1).repeat_interleave(cell, dim=2)
    return torch.where(shown, rank[:, :height, :width], -1), len(order)


def perturbation_curves(
    forward: Callable[[Tensor], Tensor],
    image: Tensor,
    maps: Tensor,
    hidden: Tensor,
    *,
    steps: int = 20,
    cell: int = 4,
    seed: int = 0,
    batch_size: int = 16,
) -> PerturbationCurves:
    """Delete and insert the cells of all images of a patient together, in the order of their maps.

    Args:
        forward: ``[B, m, H, W] -> [B]``, say the probability of the predicted class.
        image: the patient's images; pixels that are 0 in the image and in ``hidden`` are empty and not ranked.
        maps: importance of each pixel, the largest first; signed or not; of each image, or one map of all of them (the
            channels of a colour image).
        hidden: what stands in the place of what is deleted, see :func:`filled`.
        steps: in which all cells are deleted, each as many as the others but for rounding.
        cell: side of a cell in pixels.
        seed: of the order among equal cells.
        batch_size: images of ``forward`` at once.

    Shape:
        - image, hidden: ``[1, m, H, W]``, maps: ``[m, H, W]`` or ``[1, H, W]``

    Raises:
        DataError: shapes do not fit, a map that is not finite, or nothing to delete.

    Example:
        >>> image, hidden = torch.tensor([[[[4.0, 2.0]]]]), torch.zeros(1, 1, 1, 2)
        >>> curves = perturbation_curves(lambda x: x.sum((1, 2, 3)), image, image[0], hidden, steps=2, cell=1)
        >>> curves.deletion.tolist(), curves.insertion.tolist()
        ([6.0, 2.0, 0.0], [0.0, 4.0, 6.0])
    """
    fits = maps.shape in (image.shape[1:], (1, *image.shape[2:]))
    if image.ndim != 4 or len(image) != 1 or not fits or hidden.shape != image.shape:
        raise DataError(
            "Deletion needs an image and its fill [1, m, H, W] and maps [m, H, W] or [1, H, W]; got "
            f"{tuple(image.shape)}, {tuple(hidden.shape)} and {tuple(maps.shape)}."
        )
    if not maps.isfinite().all():
        raise DataError("A map that orders cells must be finite.")
    shown = (image[0] != 0) | (hidden[0] != 0)
    shown = shown if len(maps) == len(shown) else shown.any(dim=0, keepdim=True)
    rank, count = cell_order(maps, shown, cell=cell, seed=seed)
    if not count:
        raise DataError("The image is empty: there is nothing to delete.")
    # how many cells are gone after each step
    gone = [round(count * step / steps) for step in range(steps + 1)]
    states = [(place, number) for place in range(2) for number in gone]

    def state(place: int, number: int) -> Tensor:
        first = (rank >= 0) & (rank < number)
        return torch.where(first, *((hidden, image) if place == 0 else (image, hidden)))

    with torch.no_grad():
        parts = [
            forward(torch.cat([state(*each) for each in states[i : i + batch_size]])).double()
            for i in range(0, len(states), batch_size)
        ]
    deletion, insertion = torch.cat(parts).cpu().split(len(gone))
    return PerturbationCurves(deletion, insertion)


def perturbation_areas(
    forward: Callable[[Tensor], Tensor], image: Tensor, maps: Tensor, **settings: int
) -> dict[str, float]:
    """Areas under deletion and insertion, ``deletion_blur`` and so on, with each of ``FILLS`` in turn.

    Args:
        forward, image, maps, settings: of :func:`perturbation_curves`.
    """
    areas = {}
    for fill in FILLS:
        curves = perturbation_curves(forward, image, maps, filled(image, fill), **settings)
        areas |= {f"deletion_{fill}": curve_area(curves.deletion), f"insertion_{fill}": curve_area(curves.insertion)}
    return areas


def curve_area(curve: Tensor) -> float:
    """Area under a curve over 0 ... 1 in equal steps, by trapezoids.

    Example:
        >>> curve_area(torch.tensor([1.0, 0.5, 0.0]))
        0.5
    """
    return float(torch.trapezoid(curve.double(), dx=1 / (len(curve) - 1)))
