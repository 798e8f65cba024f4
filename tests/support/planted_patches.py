"""Patches with a planted disc of the class's colour, and a network that sees exactly that."""

import numpy as np
import torch
from skimage.io import imsave
from torch import nn

CLASSES = ["green", "red"]


class ColourNetwork(nn.Module):
    """Class 1 is redder than green, class 0 greener than red, each summed over cells of 4 x 4 pixels."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.conv1 = nn.Conv2d(3, 2, 1)
        self.encoder.layer4 = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.AvgPool2d(4))
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.encoder.conv1.weight.copy_(torch.tensor([[-1.0, 1, 0], [1, -1, 0]])[:, :, None, None])
            self.encoder.layer4[0].weight.copy_(torch.eye(2)[:, :, None, None])
            self.head.weight.copy_(40 * torch.eye(2))
            for bias in (self.encoder.conv1.bias, self.encoder.layer4[0].bias, self.head.bias):
                bias.zero_()

    def forward(self, x):
        return self.head(self.encoder.layer4(self.encoder.conv1(x)).mean(dim=(2, 3)))

    def contributions(self, x):
        return torch.einsum("ck,bkhw->bchw", self.head.weight, self.encoder.layer4(self.encoder.conv1(x)))


def planted_patch(label, *, side=32, seed=0):
    """A grey noise patch uint8 ``[side, side, 3]`` with a disc of red (1) or green (0) as dark as its surroundings."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    centre, radius = random.uniform(0.25 * side, 0.75 * side, 2), 0.16 * side
    mask = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    patch = np.repeat(random.uniform(0.3, 0.7, (side, side, 1)), 3, axis=2)
    colour = np.array([0.8, 0.3, 0.5] if label else [0.3, 0.6, 0.5])
    patch[mask] = colour + random.uniform(-0.1, 0.1, (mask.sum(), 1))
    return (255 * patch).round().astype(np.uint8), mask


def write_planted(folder, count=6, *, side=32):
    """Entries of so many patches, two of each patient, written with their masks; the images ``[N, 3, side, side]``."""
    entries, images = [], []
    for i in range(count):
        patch, mask = planted_patch(i % 2, side=side, seed=i)
        name = f"{CLASSES[i % 2]}/image/p{i // 2}.png"  # the same stem in both classes
        entry = {"image": str(folder / name), "mask": str(folder / name.replace("image", "label"))}
        for path, values in ((entry["image"], patch), (entry["mask"], mask.astype(np.uint8) * 255)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            imsave(path, values, check_contrast=False)
        entries.append(entry | {"patient": f"P{i // 2}", "label": i % 2})
        images.append(torch.from_numpy(patch).permute(2, 0, 1))
    return entries, torch.stack(images)
