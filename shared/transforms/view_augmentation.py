"""Random views of RGB images for contrastive learning (SimCLR, Chen et al. 2020, appendix A), a whole batch at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from shared.transforms.batched import (
    affine_maps,
    colour_maps,
    crop_maps,
    gaussian_blur,
    map_colours,
    sample_affine,
    scale_stains,
)

PROBABILITIES = (
    "horizontal_flip",
    "vertical_flip",
    "affine_probability",
    "jitter_probability",
    "greyscale_probability",
    "blur_probability",
)
LARGEST = {
    "rotation": 180,
    "translation": 1,
    "shear": 1,
    "zoom": math.inf,
    "brightness": 1,
    "contrast": 1,
    "saturation": 1,
    "hue": 0.5,
    "stain": 1,
}
RANGES = {"crop_scale": 1.0, "crop_ratio": math.inf, "blur_sigma": math.inf}
CPU_PIXELS = 2**18


class ViewDraws(NamedTuple):
    """What was drawn for each sample of a batch; tensors on the CPU, the sample first."""

    theta: Tensor  # [B, 2, 3], from coordinates of the view to coordinates of the image, each in [-1, 1]
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    greyscale: Tensor
    stains: Tensor  # [B, 3]
    sigma: Tensor  # 0: no blur


@dataclass(eq=False, kw_only=True)
class ViewAugmentation:
    """A random view of every image: crop, flips, affine map, colour jitter, greyscale, blur, each sample its own draw.

    Crop, flips and affine map are one bilinear resampling of the source, free of aliasing; what the affine map brings
    in from beyond the crop is the image's true surroundings, and a mirror image beyond its border. Stains apart, all
    colour changes are one affine map of RGB in the order brightness, contrast, saturation, hue; SimCLR's random order
    and its clipping in between are dropped. The draws come from a generator of its own on the CPU, so that a run
    repeats on any device; its state belongs into a checkpoint.

    Args:
        size: side of the views.
        crop_scale: the crop's share of the image's area, drawn between these.
        crop_ratio: its width to its height, drawn on a log scale between these, as far as the crop fits the image.
        horizontal_flip: probability of a left-right flip.
        vertical_flip: probability of an up-down flip.
        affine_probability: probability of the affine map.
        rotation: largest rotation in degrees, to either side.
        translation: largest shift along each axis, as a share of the view's side.
        shear: largest shear factor along each axis (MONAI's ``shear_range``).
        zoom: largest relative change of size; drawn on a log scale between ``1 / (1 + zoom)`` and ``1 + zoom``.
        jitter_probability: probability of the colour jitter, stains included.
        brightness: largest relative change; the factor is drawn from ``1 - brightness`` to ``1 + brightness``.
        contrast: likewise, about the image's own mean luma.
        saturation: likewise.
        hue: largest change in full turns about the grey axis of YIQ.
        stain: largest relative change of the amount of each stain (haematoxylin, eosin, third); 0: none.
        greyscale_probability: probability of losing all colour.
        blur_probability: probability of the Gaussian blur.
        blur_sigma: its standard deviation in pixels of the view, drawn between these.
        seed: of the generator.

    Shape:
        - images: uint8, or float in [0, 1], ``[B, 3, H, W]`` -> float ``[B, 3, size, size]`` in [0, 1], float32 for
          uint8, else of the images' type

    Raises:
        ValueError: a setting is out of its range, or the images are not RGB.

    Example:
        >>> x = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
        >>> augmentation = ViewAugmentation(16, seed=0)
        >>> one, two = augmentation(x), augmentation(x)
        >>> one.shape, bool((one == two).all()), bool((ViewAugmentation(16, seed=0)(x) == one).all())
        (torch.Size([4, 3, 16, 16]), False, True)
    """

    size: int = field(kw_only=False)
    crop_scale: Sequence[float] = (0.2, 1.0)
    crop_ratio: Sequence[float] = (3 / 4, 4 / 3)
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.5
    affine_probability: float = 0.5
    rotation: float = 90.0
    translation: float = 0.1
    shear: float = 0.1
    zoom: float = 0.1
    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    stain: float = 0.0
    greyscale_probability: float = 0.2
    blur_probability: float = 0.5
    blur_sigma: Sequence[float] = (0.1, 2.0)
    seed: int = 0

    def __post_init__(self) -> None:
        if int(self.size) != self.size or self.size < 1:
            raise ValueError(f"size is the side of the views in pixels, got {self.size}.")
        for name, highest in (dict.fromkeys(PROBABILITIES, 1) | LARGEST).items():
            if not 0 <= getattr(self, name) <= highest:
                raise ValueError(f"{name} must lie between 0 and {highest}, got {getattr(self, name)}.")
        for name, highest in RANGES.items():
            values = tuple(getattr(self, name))
            if len(values) != 2 or not 0 < values[0] <= values[1] <= highest:
                raise ValueError(f"{name} must be (low, high) with 0 < low <= high <= {highest}, got {values}.")
        self.generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, images: Tensor) -> Tensor:
        """A view of every image."""
        return self.apply(images, self.draw(len(images), *images.shape[-2:]))

    @torch.autocast("cpu", enabled=False)
    def draw(self, count: int, height: int, width: int) -> ViewDraws:
        """Draws for ``count`` images of ``height`` by ``width`` pixels."""
        draws = iter(torch.rand(count, 24, generator=self.generator).unbind(1))

        def happens(probability: float) -> Tensor:
            return next(draws) < probability

        def between(low: Tensor | float, high: Tensor | float) -> Tensor:
            return low + next(draws) * (high - low)

        def around(largest: float, share: Tensor) -> Tensor:
            return between(-largest, largest) * share

        # shares of the image's sides; their ratio is drawn from those that fit, which lie between area and 1 / area
        area = between(*self.crop_scale)
        fit = torch.log(area), -torch.log(area)
        limits = (torch.full_like(area, math.log(ratio * height / width)) for ratio in self.crop_ratio)
        ratio = torch.exp(between(*(limit.clamp(*fit) for limit in limits)))
        sides = torch.stack([torch.sqrt(area * ratio), torch.sqrt(area / ratio)], 1)
        centre = torch.stack([around(1.0, 1 - sides[:, 0]), around(1.0, 1 - sides[:, 1])], 1)
        flips = torch.stack([happens(self.horizontal_flip), happens(self.vertical_flip)], 1)

        moved = happens(self.affine_probability)
        affine = affine_maps(
            torch.deg2rad(around(self.rotation, moved)),
            torch.stack([around(self.shear, moved), around(self.shear, moved)], 1),
            torch.stack([around(2 * self.translation, moved), around(2 * self.translation, moved)], 1),
            torch.exp(around(math.log1p(self.zoom), moved)),
        )

        jittered = happens(self.jitter_probability)
        return ViewDraws(
            crop_maps(affine, sides, centre, flips),
            1 + around(self.brightness, jittered),
            1 + around(self.contrast, jittered),
            1 + around(self.saturation, jittered),
            around(self.hue, jittered),
            happens(self.greyscale_probability),
            1 + torch.stack([around(self.stain, jittered) for _ in range(3)], 1),
            happens(self.blur_probability) * between(*self.blur_sigma),
        )

    @torch.no_grad()
    def apply(self, images: Tensor, draws: ViewDraws) -> Tensor:
        """The views that these draws make of these images."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"Views are made of RGB images [B, 3, H, W], got {list(images.shape)}.")
        views = torch.empty(len(images), 3, self.size, self.size, device=images.device)
        count = max(1, len(images))
        if images.device.type == "cpu":  # as many as fit its cache
            count = max(1, CPU_PIXELS // max(self.size**2, images.shape[2] * images.shape[3]))
        with torch.autocast(images.device.type, enabled=False):
            for start in range(0, len(images), count):
                chunk = slice(start, start + count)
                views[chunk] = self._resampled(images[chunk], ViewDraws(*(values[chunk] for values in draws)))
            views = gaussian_blur(views, draws.sigma).clamp_(0, 1)
        return views.to(images.dtype) if images.is_floating_point() else views

    def _resampled(self, images: Tensor, draws: ViewDraws) -> Tensor:
        """Views but for their blur."""
        views = sample_affine(images, draws.theta, self.size)
        if not images.is_floating_point():
            views *= 1 / 255
        if self.stain:
            views = scale_stains(views, draws.stains.to(views.device))
        changes = [values.to(views.device) for values in draws[1:6]]
        return map_colours(views, *colour_maps(views.mean((2, 3)), *changes))
