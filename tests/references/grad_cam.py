"""Grad-CAM written straight from Selvaraju et al. (2017), Eq. 1 and 2, one image at a time, in loops and float64."""

import torch


def grad_cam(features, head, image, target):
    """Eq. 2 of one image ``[C, ...]`` as nested lists flattened: ``(values, shape)``; both parts are in float64."""
    activation = features(image[None].double()).detach().requires_grad_()
    head(activation.clone())[0, target].backward()
    maps, gradients = activation.detach()[0], activation.grad[0]
    shape = tuple(maps.shape[1:])
    cells = [0.0] * maps[0].numel()
    for channel, gradient in zip(maps.flatten(1).tolist(), gradients.flatten(1).tolist(), strict=True):
        alpha = 0.0
        for value in gradient:
            alpha += value / len(gradient)
        for i, value in enumerate(channel):
            cells[i] += alpha * value
    return [max(0.0, cell) for cell in cells], shape


def bilinear(cells, shape, size):
    """A map ``[h, w]`` (flat list) at another size: pixel centres at half pixels, the edge continued."""
    (h, w), (height, width) = shape, size
    rows = []
    for y in range(height):
        row = []
        for x in range(width):
            v = min(max((y + 0.5) * h / height - 0.5, 0), h - 1)
            u = min(max((x + 0.5) * w / width - 0.5, 0), w - 1)
            y0, x0 = int(v), int(u)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            fy, fx = v - y0, u - x0
            top = (1 - fx) * cells[y0 * w + x0] + fx * cells[y0 * w + x1]
            bottom = (1 - fx) * cells[y1 * w + x0] + fx * cells[y1 * w + x1]
            row.append((1 - fy) * top + fy * bottom)
        rows.append(row)
    return rows


def min_max(rows):
    """A map scaled to [0, 1]; one that is zero everywhere stays so."""
    low, high = min(map(min, rows)), max(map(max, rows))
    return [[(value - low) / (high - low) if high > low else 0.0 for value in row] for row in rows]


def explained(features, head, images, targets):
    """Grad-CAM of a batch of images ``[B, C, H, W]``, ``[B, 1, H, W]``."""
    size = tuple(images.shape[-2:])
    maps = [
        min_max(bilinear(*grad_cam(features, head, image, target), size))
        for image, target in zip(images, targets, strict=True)
    ]
    return torch.tensor(maps, dtype=torch.float64)[:, None]
