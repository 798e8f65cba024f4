"""Deletion and insertion against loops in float64, sums by hand and another library's numbers."""

import importlib

import numpy as np
import pytest
import torch
from torch import nn

from shared.errors import DataError
from shared.explain import BiomarkerMask, curve_area, filled, perturbation_curves, pointing_game
from shared.explain.perturbation import cell_order


def lively(m=2, height=8, width=8, *, empty=True, seed=0):
    """Images [1, m, H, W] in (0, 1), a border of them empty, and maps of them."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.1 + 0.9 * torch.rand(1, m, height, width, generator=generator, dtype=torch.float64)
    if empty:
        image[..., :1, :] = 0
        image[..., -1:] = 0
    return image, torch.randn(m, height, width, generator=generator, dtype=torch.float64)


def naive_curves(forward, image, maps, hidden, steps, cell):
    """Cells one by one, as the definition says."""
    image, maps, hidden = image[0].numpy(), maps.numpy(), hidden[0].numpy()
    m, height, width = image.shape
    cells = []
    for number in range(m):
        for top in range(0, height, cell):
            for left in range(0, width, cell):
                pixels = [
                    (number, y, x)
                    for y in range(top, min(top + cell, height))
                    for x in range(left, min(left + cell, width))
                    if image[number, y, x] != 0
                ]
                if pixels:
                    cells.append((np.mean([maps[p] for p in pixels]), pixels))
    cells.sort(key=lambda each: -each[0])
    deletion, insertion = [], []
    for step in range(steps + 1):
        taken = [p for _, pixels in cells[: round(len(cells) * step / steps)] for p in pixels]
        less, more = image.copy(), hidden.copy()
        for p in taken:
            less[p], more[p] = hidden[p], image[p]
        deletion.append(forward(less))
        insertion.append(forward(more))
    return np.array(deletion), np.array(insertion)


@pytest.mark.parametrize(("cell", "steps", "shape"), [(1, 7, (5, 6)), (4, 5, (8, 8)), (3, 4, (8, 7))])
@pytest.mark.parametrize("fill", ["mean", "blur"])
def test_curves_are_those_of_cells_replaced_one_by_one(cell, steps, shape, fill):
    image, maps = lively(3, *shape)
    weight = torch.randn(image.shape[1:], generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    hidden = filled(image, fill)

    def forward(x):
        return ((x * weight).sum((1, 2, 3)) + 0.1 * (x**2).sum((1, 2, 3))).sigmoid()

    found = perturbation_curves(forward, image, maps, hidden, steps=steps, cell=cell, batch_size=3)
    expected = naive_curves(
        lambda x: float(forward(torch.as_tensor(x)[None])), image, maps, hidden, steps=steps, cell=cell
    )
    np.testing.assert_allclose(found.deletion, expected[0], atol=1e-12)
    np.testing.assert_allclose(found.insertion, expected[1], atol=1e-12)


def test_of_an_additive_answer_the_true_map_gives_the_sums_by_hand():
    image = torch.tensor([[[[4.0, 1.0], [2.0, 3.0]]]])

    def total(x):
        return x.sum((1, 2, 3))

    curves = perturbation_curves(total, image, image[0], torch.zeros_like(image), steps=4, cell=1)
    assert curves.deletion.tolist() == [10, 6, 3, 1, 0] and curves.insertion.tolist() == [0, 4, 7, 9, 10]
    # (10 + 6) / 2 + (6 + 3) / 2 + (3 + 1) / 2 + 1 / 2 = 15, in steps of a quarter; its mirror image for insertion
    assert curve_area(curves.deletion) == 15 / 4 and curve_area(curves.insertion) == 25 / 4
    others = perturbation_curves(total, image, -image[0], torch.zeros_like(image), steps=4, cell=1)
    assert curve_area(others.deletion) == 25 / 4  # no order is worse


def test_equal_cells_come_in_an_order_of_their_own():
    shown = torch.ones(2, 12, 12)
    ranks = [cell_order(torch.zeros(2, 12, 12), shown, cell=4, seed=seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(ranks[0], ranks[1]) and not torch.equal(ranks[0], ranks[2])
    assert ranks[0][:, ::4, ::4].flatten().tolist() != list(range(18))
    # rounding makes no order among cells of equal values
    even = cell_order(torch.full((2, 12, 12), 0.1, dtype=torch.float64), shown, cell=4, seed=0)[0]
    assert torch.equal(ranks[0], even)


def test_what_is_empty_stays_empty_and_is_not_ranked():
    image, _ = lively()
    image[0, 1, :4, :4] = 0
    for fill in ("mean", "blur"):
        hidden = filled(image, fill)
        assert (hidden[image == 0] == 0).all() and (hidden[image != 0] > 0).all()
    means = [float(one[one != 0].mean()) for one in image[0]]
    hidden = filled(image, "mean")
    assert [float(one.max()) for one in hidden[0]] == pytest.approx(means) and means[0] != pytest.approx(means[1])
    rank, count = cell_order(image[0], image[0] != 0, cell=4)
    assert count == 7 and (rank[1, :4, :4] == -1).all()
    assert sorted(set(rank.flatten().tolist())) == list(range(-1, 7))


def test_the_blur_is_that_of_the_biomarker_masks():
    image, _ = lively(4)
    image = image.transpose(0, 1).float()
    expected = BiomarkerMask(fill="blur", blur=0.2)._filling(image)
    torch.testing.assert_close(filled(image, "blur", blur=0.2), expected)


def test_a_request_that_does_not_fit_is_refused():
    image, maps = lively()

    def total(x):
        return x.sum((1, 2, 3))

    with pytest.raises(DataError, match=r"maps \[m, H, W\]"):
        perturbation_curves(total, image, maps[..., :-1], image)
    with pytest.raises(DataError, match="finite"):
        perturbation_curves(total, image, maps / 0, image)
    with pytest.raises(DataError, match="empty"):
        perturbation_curves(total, 0 * image, maps, 0 * image)
    with pytest.raises(ValueError, match="blur, mean"):
        filled(image, "black")


# Quantus 0.6.0 as an oracle (pip install quantus==0.6.0 brings OpenCV, so that it is no requirement): where it is
# installed these numbers are made anew, see quantus_numbers.
QUANTUS = {
    "pointing": [1.0, 0.0, 1.0],
    "pixel_flipping": [
        [0.170971, 0.113627, 0.109566, 0.122526, 0.204391, 0.505333],
        [0.234373, 0.135849, 0.117579, 0.120196, 0.175531, 0.504915],
        [0.236216, 0.135561, 0.117113, 0.120466, 0.172237, 0.504826],
    ],
}


class Additive(nn.Module):
    """Logits 0 and the weighted sum of the pixels."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.2 * torch.sin(torch.arange(36.0) * 1.7).reshape(6, 6))

    def forward(self, x):
        score = (x * self.weight).sum((1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], dim=1)


def oracle_cases():
    """Three images, their true maps and a region of each."""
    number = torch.arange(3 * 36.0)
    images = (1.1 + torch.sin(number * 0.9)).reshape(3, 1, 6, 6)
    maps = (images * Additive().weight.detach()).float()
    truth = torch.zeros(3, 1, 6, 6)
    for i, place in enumerate(maps.flatten(1).argmax(dim=1).tolist()):
        truth[i].view(-1)[place if i != 1 else (place + 7) % 36] = 1
    return images, maps, truth


def quantus_numbers():
    """By Quantus: the pointing game, and the probability of class 1 while pixels are set to the image's least."""
    quantus = importlib.import_module("quantus")
    images, maps, truth = oracle_cases()
    given = {"model": Additive().eval(), "x_batch": images.numpy(), "y_batch": np.ones(3, int)}
    given |= {"a_batch": maps.numpy(), "device": "cpu", "channel_first": True}
    settings = {"disable_warnings": True, "normalise": False, "abs": False}
    pointing = quantus.PointingGame(**settings)(**given, s_batch=truth.numpy().astype(bool))
    flipping = quantus.PixelFlipping(**settings, features_in_step=6, perturb_baseline="black")(**given)
    return {"pointing": [float(x) for x in pointing], "pixel_flipping": np.array(flipping).round(6).tolist()}


def test_pointing_game_and_deletion_are_those_of_quantus():
    images, maps, truth = oracle_cases()
    assert pointing_game(maps.clamp(min=0), truth).tolist() == QUANTUS["pointing"]
    network = Additive()
    curves = [
        perturbation_curves(
            lambda x: network(x).softmax(dim=1)[:, 1],
            image[None],
            own,
            torch.full_like(image[None], float(image.min())),
            steps=6,
            cell=1,
        )
        for image, own in zip(images, maps, strict=True)
    ]
    # it does not keep the whole image's probability, our first value
    np.testing.assert_allclose([curve.deletion[1:] for curve in curves], QUANTUS["pixel_flipping"], atol=2e-6)


def test_quantus_still_says_so():
    pytest.importorskip("quantus")
    found = quantus_numbers()
    assert found["pointing"] == QUANTUS["pointing"]
    np.testing.assert_allclose(found["pixel_flipping"], QUANTUS["pixel_flipping"], atol=2e-6)


def test_one_map_of_a_colour_image_takes_its_channels_together():
    image = torch.rand(1, 3, 8, 8) * 0.5 + 0.5
    image[0, 0, :4] = 0  # no red above: still a pixel
    maps = torch.arange(64.0).reshape(1, 8, 8)
    hidden = torch.zeros_like(image)
    seen = []

    def forward(x):
        seen.append(x)
        return x.sum((1, 2, 3))

    curves = perturbation_curves(forward, image, maps, hidden, steps=4, cell=4)
    states = torch.cat(seen)
    # the first state of the deletion is the image, then cells go whole, from the lower right one on
    assert torch.equal(states[0], image[0]) and not states[1][:, 4:, 4:].any()
    assert torch.equal(states[1][:, :4], image[0, :, :4]) and torch.equal(states[2][:, :4], image[0, :, :4])
    assert not states[2][:, 4:].any() and not states[4].any()
    assert curves.deletion[0] == pytest.approx(float(image.sum()), rel=1e-5) and curves.deletion[-1] == 0
