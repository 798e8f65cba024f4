"""Naive views of one image in float64: scikit-image, SciPy and loops over samples, nothing batched."""

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from skimage.color import hed2rgb, rgb2hed, rgb2yiq, yiq2rgb
from skimage.measure import block_reduce

LUMA = np.array([0.299, 0.587, 0.114])


def brightness(image, factor):
    """``[H, W, 3]`` times a factor."""
    return image * factor


def contrast(image, factor):
    """Blend with the mean luma of the image."""
    return image * factor + (1 - factor) * (image @ LUMA).mean()


def saturation(image, factor):
    """I and Q times a factor."""
    return yiq2rgb(rgb2yiq(image) * [1, factor, factor])


def hue(image, turns):
    """I and Q rotated."""
    y, i, q = np.moveaxis(rgb2yiq(image), -1, 0)
    turned = (i + 1j * q) * np.exp(2j * np.pi * turns)
    return yiq2rgb(np.stack([y, turned.real, turned.imag], -1))


def stains(image, factors):
    """Haematoxylin, eosin and the third stain times factors."""
    return hed2rgb(rgb2hed(image) * factors)


def blur(image, sigma):
    """Gaussian of one channel ``[H, W]``, cut off at 3 sigma."""
    return gaussian_filter(image, sigma, mode="mirror", radius=int(np.ceil(3 * sigma)))


def resample(image, theta, size, block=1):
    """One channel ``[H, W]`` at the points of an affine map (coordinates from -1 to 1, edge to edge), bilinearly."""
    image = block_reduce(image, (block, block), np.mean)
    out = np.empty((size, size))
    for row in range(size):
        for column in range(size):
            x, y = theta @ [(2 * column + 1) / size - 1, (2 * row + 1) / size - 1, 1.0]
            where = [[((y + 1) * image.shape[0] - 1) / 2], [((x + 1) * image.shape[1] - 1) / 2]]
            out[row, column] = map_coordinates(image, where, order=1, mode="reflect")[0]
    return out


def view(image, draws, size):
    """All of it for one uint8 image ``[H, W, 3]``; ``draws`` as one sample's arrays."""
    theta = np.asarray(draws.theta, dtype=np.float64)
    step = np.array(image.shape[1::-1])[:, None] / size * theta[:, :2]
    block = 2 ** int(np.floor(np.log2(max(1, np.linalg.norm(step, axis=0).max()))))
    image = image.astype(np.float64) / 255
    image = np.stack([resample(image[..., c], theta, size, block) for c in range(3)], -1)
    image = brightness(image, float(draws.brightness))
    image = contrast(image, float(draws.contrast))
    image = saturation(image, float(draws.saturation))
    image = hue(image, float(draws.hue))
    if draws.greyscale:
        image = np.repeat((image @ LUMA)[..., None], 3, -1)
    if draws.sigma > 0:
        image = np.stack([blur(image[..., c], float(draws.sigma)) for c in range(3)], -1)
    return image.clip(0, 1)
