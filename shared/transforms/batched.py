"""Operations on a batch of images in which every sample has parameters of its own; nothing here is random."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

LUMA = (0.299, 0.587, 0.114)
# ITU-R BT.601, the same numbers as skimage.color.rgb2yiq
YIQ = (LUMA, (0.59590059, -0.27455667, -0.32134392), (0.21153661, -0.52273617, 0.31119955))
# haematoxylin, eosin, DAB: optical densities of Ruifrok and Johnston 2001, as in skimage.color.rgb_from_hed
HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
BLUR_TRUNCATE = 3.0
# a CPU blurs so many channels at a time: a multiple of its vectors' width whose images stay in the cache
BLUR_CHANNELS = 32


def rotations(angle: Tensor, zoom: Tensor) -> Tensor:
    """Matrices ``[B, 2, 2]`` that rotate by ``angle`` (radians) and divide by ``zoom``, both ``[B]``.

    Example:
        >>> rotations(torch.tensor([math.pi / 2]), torch.tensor([2.0])).round(decimals=3).tolist()
        [[[-0.0, -0.5], [0.5, -0.0]]]
    """
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def affine_maps(angle: Tensor, shear: Tensor, shift: Tensor, zoom: Tensor) -> Tensor:
    """Maps ``[B, 2, 3]`` from output to input coordinates: rotation @ shear @ translation @ scaling, MONAI's order.

    Args:
        angle: in radians, from x to y.
        shear: how far x moves with y, and y with x, one after the other as in MONAI, so that areas are kept.
        shift: of x and y, where the side is 2.
        zoom: factor by which what is seen grows.

    Shape:
        - angle, zoom: ``[B]``; shear, shift: ``[B, 2]``

    Example:
        >>> one = torch.ones(1)
        >>> affine_maps(0 * one, torch.zeros(1, 2), torch.tensor([[0.5, 0.0]]), 2 * one).tolist()
        [[[0.5, 0.0, 0.5], [0.0, 0.5, 0.0]]]
    """
    a, b, one = shear[:, 0], shear[:, 1], torch.ones_like(angle)
    slanted = torch.stack([torch.stack([1 + a * b, a], 1), torch.stack([b, one], 1)], 1)
    turn = rotations(angle, one) @ slanted
    return torch.cat([turn / zoom[:, None, None], turn @ shift[:, :, None]], dim=2)


def crop_maps(maps: Tensor, sides: Tensor, centre: Tensor, flips: Tensor) -> Tensor:
    """The same maps followed by flips and a crop: what was the whole image is now a box of it.

    Args:
        maps: from coordinates of the output to those of the crop.
        sides: width and height of the crop as shares of the image's.
        centre: of the crop, in coordinates of the image from -1 to 1.
        flips: left-right, up-down.

    Shape:
        - maps: ``[B, 2, 3]``; sides, centre, flips: ``[B, 2]``
    """
    maps = maps * torch.where(flips, -sides, sides)[:, :, None]
    return torch.cat([maps[:, :, :2], maps[:, :, 2:] + centre[:, :, None]], dim=2)


def sample_affine(images: Tensor, theta: Tensor, size: int, *, padding_mode: str = "reflection") -> Tensor:
    """Resample every image by its own affine map, once, bilinearly and without aliasing.

    A sample whose points lie f >= 2 pixels apart is taken from its image averaged over blocks of 2^floor(log2 f) pixels
    (a mipmap level), so that every pixel of the source counts and small crops lose nothing.

    Args:
        images: uint8 or float.
        theta: maps from output to input coordinates, each in [-1, 1] from edge to edge.
        size: side of the output.
        padding_mode: what lies beyond the image, in the words of ``torch.nn.functional.grid_sample``.

    Shape:
        - images: ``[B, C, H, W]``; theta: ``[B, 2, 3]``, on the CPU; returns: float32 ``[B, C, size, size]``, in the
          images' own range of values

    Example:
        >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> sample_affine(x, torch.eye(2, 3)[None], 2)
        tensor([[[[ 2.5000,  4.5000],
                  [10.5000, 12.5000]]]])
    """
    height, width = images.shape[2:]
    step = theta[:, :, :2] * torch.tensor([[width / size], [height / size]])
    apart = step.norm(dim=1).amax(1).clamp(1, max(1, min(height, width)))
    levels = torch.log2(apart * (1 + 1e-6)).floor().long()  # the tolerance: 1.9999999 is a rounded 2
    theta = theta.to(images.device, torch.float32)
    kinds = levels.unique().tolist()
    if len(kinds) == 1:
        return _sample(_averaged(images, 2 ** kinds[0]), theta, size, padding_mode)
    out = torch.empty(*images.shape[:2], size, size, device=images.device)
    for level in kinds:
        index = torch.nonzero(levels == level)[:, 0].to(images.device)
        out[index] = _sample(_averaged(images[index], 2**level), theta[index], size, padding_mode)
    return out


def _sample(images: Tensor, theta: Tensor, size: int, padding_mode: str) -> Tensor:
    # points as complex numbers: a sum forty times as fast as affine_grid's matrix product
    line = (2 * torch.arange(size, device=theta.device) + 1) / size - 1
    across, down, shift = torch.complex(theta[:, 0], theta[:, 1])[:, :, None].unbind(1)
    grid = torch.view_as_real((across * line + shift)[:, None] + (down * line)[:, :, None])
    return functional.grid_sample(images, grid, padding_mode=padding_mode, align_corners=False)


def _averaged(images: Tensor, block: int) -> Tensor:
    """Means over blocks of a power of two; several times faster than ``avg_pool2d`` on a CPU."""
    images = images.float()
    height, width = images.shape[2:]
    if height % block or width % block:
        # adaptive blocks keep the edges where they are
        return functional.adaptive_avg_pool2d(images, (height // block, width // block))
    while block > 1:
        images = images[:, :, 0::2] + images[:, :, 1::2]
        images = (images[..., 0::2] + images[..., 1::2]) / 4
        block //= 2
    return images


def colour_maps(
    mean: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor, greyscale: Tensor
) -> tuple[Tensor, Tensor]:
    """Brightness, contrast, saturation, hue and greyscale, in this order, as one affine map of RGB a sample.

    With the luma ``Y = 0.299 R + 0.587 G + 0.114 B``: brightness ``b x``; contrast ``c x + (1 - c) mean(Y)``, the mean
    being the image's own; saturation ``s x + (1 - s) Y``; hue a rotation of I and Q about the grey axis of YIQ, which
    keeps Y (not the angle of HSV, whose map is not affine); greyscale: saturation 0. Nothing is clipped in between.

    Args:
        mean: the images' mean RGB.
        brightness: factors; 1: unchanged. So for contrast and saturation.
        contrast: factors.
        saturation: factors.
        hue: in full turns.
        greyscale: booleans.

    Shape:
        - mean: ``[B, 3]``; the others: ``[B]``; returns: matrix ``[B, 3, 3]``, offset ``[B, 3]``
    """
    yiq = torch.tensor(YIQ, dtype=torch.float64)
    luma, eye = yiq[0].float().to(mean.device), torch.eye(3, device=mean.device)
    turn = torch.zeros(len(hue), 3, 3, dtype=torch.float64, device=mean.device)
    turn[:, 0, 0] = 1
    turn[:, 1:, 1:] = rotations(hue.double() * 2 * math.pi, torch.ones_like(hue, dtype=torch.float64))
    turned = torch.linalg.inv(yiq).to(mean.device) @ turn @ yiq.to(mean.device)
    vivid = torch.where(greyscale, 0.0, saturation)[:, None, None]
    matrix = turned.float() @ (vivid * eye + (1 - vivid) * luma.expand(3, 3))
    offset = (1 - contrast) * brightness * (mean @ luma)
    # what the offset adds is grey, which hue and saturation leave alone
    return matrix * (contrast * brightness)[:, None, None], offset[:, None].expand(-1, 3)


def map_colours(images: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """``matrix @ rgb + offset`` at every pixel.

    Shape:
        - images: ``[B, 3, H, W]``; matrix: ``[B, 3, 3]``; offset: ``[B, 3]``
    """
    return torch.baddbmm(offset[:, :, None], matrix, images.flatten(2)).reshape(images.shape)


def scale_stains(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the amounts of haematoxylin, eosin and a third stain in every pixel (Tellez et al. 2018, section III.C).

    Shape:
        - images: ``[B, 3, H, W]`` in [0, 1]; factors: ``[B, 3]``
    """
    hed = torch.tensor(HED, dtype=torch.float64, device=images.device)
    # rgb = exp(-stains @ hed), so that log rgb' = log rgb @ hed^-1 @ diag(factors) @ hed
    between = torch.linalg.inv(hed) @ torch.diag_embed(factors.double()) @ hed
    density = torch.log(images.clamp(min=1e-6))
    return map_colours(density, between.transpose(1, 2).float(), torch.zeros_like(factors)).exp()


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur every image with its own Gaussian, cut off at 3 sigma; images whose sigma is 0 cost nothing.

    Two one-dimensional passes with mirrored borders, in chunks of similar sigma that fit a core's cache.

    Args:
        images: float32; changed in place.
        sigma: in pixels.

    Shape:
        - images: ``[B, C, H, W]``, contiguous; sigma: ``[B]``, on the CPU

    Example:
        >>> x = torch.zeros(2, 1, 9, 9)
        >>> x[..., 4, 4] = 1
        >>> gaussian_blur(x, torch.tensor([0.0, 1.0]))[:, 0, 4, 3:6]
        tensor([[0.0000, 1.0000, 0.0000],
                [0.0966, 0.1592, 0.0966]])
    """
    channels, height, width = images.shape[1:]
    planes, sigma = images.view(-1, height, width), sigma.repeat_interleave(channels).float()
    order = torch.argsort(sigma)[int((sigma <= 0).sum()) :]
    for index in order.split(BLUR_CHANNELS if images.device.type == "cpu" else len(planes)) if len(order) else ():
        own = sigma[index, None]
        # a mirror image has no more pixels than the image
        radius = min(math.ceil(BLUR_TRUNCATE * float(own.max())), height - 1, width - 1)
        steps = torch.arange(-radius, radius + 1.0)
        # each kernel ends at its own radius, whatever the others in the chunk
        kernel = torch.exp(-0.5 * (steps / own) ** 2) * (steps.abs() <= torch.ceil(BLUR_TRUNCATE * own))
        kernel = (kernel / kernel.sum(1, keepdim=True))[:, None, None].to(images.device)
        index = index.to(images.device)
        part = functional.pad(planes[index][None], (radius,) * 4, mode="reflect")
        part = functional.conv2d(part, kernel, groups=len(index))
        planes[index] = functional.conv2d(part, kernel.transpose(2, 3), groups=len(index))[0]
    return images
