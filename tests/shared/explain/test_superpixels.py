"""Superpixels, and what LIME and SHAP say of answers whose parts are known."""

import numpy as np
import pytest
import torch

from shared.errors import DataError
from shared.explain import SuperpixelGame, exact_shapley, lime_values, shap_values
from shared.explain import superpixels as module
from shared.explain.superpixels import superpixels


def images(m=2, size=16):
    """Two halves of another brightness in a disc, in each image turned by a right angle."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    disc = np.hypot(y, x) < 0.45 * size
    return np.stack([np.where(axis > 0, 0.9, 0.3) * disc for axis in (y, x)][:m]).astype(np.float32)


def game_of(forward, *, count=6):
    image = torch.as_tensor(images())[None]
    pieces = superpixels(image[0].numpy(), count=count)
    return SuperpixelGame(forward, image, 0 * image, pieces, batch_size=5), pieces


def test_superpixels_are_those_of_one_image_and_cover_what_is_shown():
    image = images()
    found = superpixels(image, count=6)
    assert ((found >= 0) == (image != 0)).all()
    assert set(found[found >= 0]) == set(range(found.max() + 1)) and 8 <= found.max() + 1 <= 16
    assert not set(found[0][found[0] >= 0]) & set(found[1][found[1] >= 0])
    # none lies across the edge between the halves
    across = [len(np.unique(image[found == k])) for k in range(found.max() + 1)]
    assert across.count(1) > 0.8 * len(across)
    with pytest.raises(DataError, match="empty"):
        superpixels(0 * image)


def test_the_game_hides_whole_superpixels():
    weight = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    game, pieces = game_of(lambda x: (x * weight).sum((1, 2, 3)))
    shown = torch.rand(7, game.count, generator=torch.Generator().manual_seed(1)) > 0.5
    expected = []
    for row in shown.numpy():
        image = images()
        for k in range(game.count):
            if not row[k]:
                image[pieces == k] = 0
        expected.append(float((torch.as_tensor(image) * weight).sum()))
    np.testing.assert_allclose(game(shown), expected, rtol=1e-4, atol=1e-4)
    # what belongs to no superpixel is shown always
    outside = SuperpixelGame(lambda x: (x * weight).sum((1, 2, 3)), game.image + 1, game.image * 0, pieces)
    rest = float((weight * torch.as_tensor(pieces < 0)).sum())
    np.testing.assert_allclose(outside(torch.zeros(1, game.count)), [rest], rtol=1e-4, atol=1e-4)
    values = torch.arange(1.0, game.count + 1)
    spread = game.spread(values).numpy()
    np.testing.assert_allclose([spread[pieces == k].sum() for k in range(game.count)], values, rtol=1e-5)
    assert (spread[pieces < 0] == 0).all() and np.ptp(spread[pieces == 0]) == 0


def parts(weight, pieces):
    return np.array([float((images() * weight)[pieces == k].sum()) for k in range(pieces.max() + 1)])


def test_an_additive_answer_is_told_superpixel_by_superpixel():
    weight = np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32)
    game, pieces = game_of(lambda x: (x * torch.as_tensor(weight)).sum((1, 2, 3)))
    np.testing.assert_allclose(shap_values(game, evaluations=300), parts(weight, pieces), atol=1e-4)


def test_lime_finds_the_parts_of_an_additive_answer_and_leaves_the_generator():
    pytest.importorskip("captum")
    weight = np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32)
    game, pieces = game_of(lambda x: (x * torch.as_tensor(weight)).sum((1, 2, 3)))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = lime_values(game, samples=400, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(found, lime_values(game, samples=400, seed=3))
    assert not torch.equal(found, lime_values(game, samples=400, seed=4))
    expected = parts(weight, pieces)
    # the ridge shrinks them
    assert np.corrcoef(found, expected)[0, 1] > 0.99
    assert 0.7 < (found.numpy() @ expected) / (expected @ expected) < 1.02


def test_shap_is_shapley_where_superpixels_work_together_within_a_branch():
    image = torch.ones(1, 2, 1, 2)
    pieces = np.array([[[0, 1]], [[2, 3]]])

    def forward(x):
        # products within an image, a sum over images: the tree's branches are the images
        return x[:, 0, 0, 0] * x[:, 0, 0, 1] + 2 * x[:, 1, 0, 0] * (1 + x[:, 1, 0, 1])

    game = SuperpixelGame(forward, image, 0 * image, pieces)
    code = np.arange(16)
    members = torch.as_tensor((code[:, None] >> np.arange(4)) & 1)
    expected = exact_shapley(game(members).numpy())
    np.testing.assert_allclose(shap_values(game, evaluations=100), expected, atol=1e-6)
    alone = SuperpixelGame(lambda x: 3 * x.sum((1, 2, 3)), image, 0 * image, np.zeros((2, 1, 2), int))
    assert shap_values(alone).tolist() == [12]


def test_without_captum_it_is_said_what_to_install(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(module.importlib, "import_module", missing)
    game, _ = game_of(lambda x: x.sum((1, 2, 3)))
    with pytest.raises(DataError, match=r"captum.*requirements-explain.txt"):
        lime_values(game, samples=4)
