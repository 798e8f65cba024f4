"""A folder of small slides with one label each: phantom glands, those of class 1 redder, in slides of class 1 alone."""

import csv

import numpy as np
import torch

from shared.bundle.settings import save_settings
from shared.networks import ContrastiveNetwork
from tests.support.tiny_slides import painted, write_png

SIZE, MPP = 64, 2.0
ENCODER = {"block": "basic", "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stages": [3, 4]}
# what finds the tissue of such slides, of stains of any colour
CHOICE = {"overview_mpp": 4.0, "tissue#pen": 60}


def write_slides(folder, count=12):
    """Slides of 4 x 3 patches on glass, every second one of class 1 with 3 such patches; corners of these, by slide."""
    folder.mkdir()
    planted, table = {}, [("slide", "label", "patient")]
    for number in range(count):
        positive, random = number % 2, np.random.default_rng(number)
        kinds = np.zeros(12, int)
        kinds[random.choice(12, 3 * positive, replace=False)] = 1
        pixels, where = painted(
            kinds.reshape(3, 4).tolist(), size=SIZE, height=320, width=384, corner=(SIZE, SIZE), seed=number
        )
        for x, y, kind in where:
            part = pixels[y : y + SIZE, x : x + SIZE].astype(int)
            part[..., 2] -= 50 * kind
            pixels[y : y + SIZE, x : x + SIZE] = np.clip(part, 0, 255)
        write_png(folder / f"s{number:02d}.png", pixels, MPP)
        planted[f"s{number:02d}"] = {(x, y) for x, y, kind in where if kind}
        table.append((f"s{number:02d}", "serrated" if positive else "hyperplastic", f"P{number // 4}{number % 2}"))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)
    return planted


def write_encoder(folder):
    """What a pretraining on patches of 64 pixels of 2 micrometres leaves, with random weights."""
    folder.mkdir()
    torch.manual_seed(0)
    network = ContrastiveNetwork({key: ENCODER[key] for key in ("block", "layers", "channels")}, projection=(8,))
    torch.save({"network": network.state_dict()}, folder / "pretrain.pt")
    save_settings(folder, network={"encoder": ENCODER}, size=SIZE, cache_size=None, mpp=MPP, patch_size=SIZE)
    return folder / "pretrain.pt"
