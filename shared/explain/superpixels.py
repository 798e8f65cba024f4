"""LIME and SHAP of an image's superpixels: what an answer owes to each, by hiding many of them at once.

Ribeiro, Singh and Guestrin, "Why Should I Trust You?" (KDD 2016); Lundberg and Lee, A Unified Approach to Interpreting
Model Predictions (2017). Superpixels: Achanta et al., SLIC Superpixels (2012).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.errors import DataError

INSTALL = "pip install -r requirements-explain.txt"


def captum_module(name: str) -> Any:
    """A module of captum, an optional library.

    Raises:
        DataError: captum is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            f"LIME and integrated gradients need captum, which is not installed ({error}): {INSTALL}, or leave them "
            "out of --methods."
        ) from error


def superpixels(image: np.ndarray, *, count: int = 24, compactness: float = 0.1) -> np.ndarray:
    """SLIC superpixels of each image within what is not 0, numbered through all images.

    Args:
        image: grey images.
        count: superpixels of an image, about.
        compactness: weight of nearness against likeness of brightness, for brightness in [0, 1].

    Shape:
        - image: ``[m, H, W]``
        - returns: ``[m, H, W]`` int64, -1 where the image is 0

    Raises:
        DataError: all images are empty.

    Example:
        >>> image = np.zeros((2, 8, 8)); image[:, 2:6, 2:6] = 0.5
        >>> found = superpixels(image, count=4)
        >>> int(found.min()), len(np.unique(found[0])) - 1, len(np.intersect1d(found[0], found[1])) - 1
        (-1, 4, 0)
    """
    from skimage.segmentation import slic

    found = np.full(image.shape, -1, dtype=np.int64)
    for number, grey in enumerate(image):
        inside = grey != 0
        if not inside.any():
            continue
        pieces = slic(
            grey.astype(np.float64),
            n_segments=min(count, int(inside.sum())),
            compactness=compactness,
            mask=inside,
            channel_axis=None,
            start_label=0,
        )
        found[number][inside] = np.unique(pieces[inside], return_inverse=True)[1] + found.max() + 1
    if found.max() < 0:
        raise DataError("All images are empty: they have no superpixels.")
    return found


class SuperpixelGame:
    """An answer as a function of which superpixels are shown.

    Args:
        forward: ``[B, m, H, W] -> [B]``, say the log odds of a class.
        image: the images.
        hidden: what stands where a superpixel is hidden.
        pieces: superpixel of each pixel, from 0; -1: shown always.
        batch_size: images of ``forward`` at once.

    Shape:
        - image, hidden: ``[1, m, H, W]``, pieces: ``[m, H, W]``
        - called with ``[R, S]``, 1 shown, 0 hidden; returns ``[R]``

    Example:
        >>> image = torch.tensor([[[[4.0, 2.0]]]])
        >>> game = SuperpixelGame(lambda x: x.sum((1, 2, 3)), image, 0 * image, np.array([[[0, 1]]]))
        >>> game(torch.tensor([[1, 1], [0, 1]])).tolist()
        [6.0, 2.0]
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        image: Tensor,
        hidden: Tensor,
        pieces: np.ndarray,
        *,
        batch_size: int = 16,
    ):
        self.forward, self.image, self.hidden, self.batch_size = forward, image, hidden, batch_size
        self.pieces = torch.as_tensor(pieces, device=image.device)
        self.count = int(self.pieces.max()) + 1

    def __call__(self, shown: Tensor) -> Tensor:
        """The answer to each row, on its device."""
        device = shown.device
        shown = shown.to(self.image.device) > 0.5
        # what belongs to no superpixel is looked up in the last column
        shown = torch.cat([shown, torch.ones_like(shown[:, :1])], dim=1)
        with torch.no_grad():
            return torch.cat(
                [
                    self.forward(torch.where(rows[:, self.pieces], self.image, self.hidden))
                    for rows in shown.split(self.batch_size)
                ]
            ).to(device)

    def spread(self, values: Tensor | np.ndarray) -> Tensor:
        """A value of each superpixel at its pixels, divided by their number: the map adds up to the values' sum."""
        values = torch.as_tensor(np.asarray(values), dtype=torch.float32, device=self.image.device)
        inside = self.pieces >= 0
        area = torch.bincount(self.pieces[inside], minlength=self.count)
        maps = torch.zeros(self.pieces.shape, device=self.image.device)
        maps[inside] = (values / area)[self.pieces[inside]]
        return maps


def lime_values(game: SuperpixelGame, *, samples: int = 500, seed: int = 0, kernel_width: float = 0.25) -> Tensor:
    """LIME by captum: weights of a ridge regression on random superpixels, near ones counting more, ``[S]``.

    Distance and regression are those of LIME's authors for images (cosine, ridge of strength 1).

    Args:
        game: the answer by superpixels.
        samples: random choices of superpixels, each shown with probability 0.5.
        seed: of the choices; PyTorch's own generators are left as they were.
        kernel_width: of the exponential kernel over the distance.

    Raises:
        DataError: captum is not installed.

    Example:
        >>> image = torch.tensor([[[[4.0, -2.0]]]])
        >>> game = SuperpixelGame(lambda x: x.sum((1, 2, 3)), image, 0 * image, np.array([[[0, 1]]]))
        >>> [round(value) for value in lime_values(game, samples=200).tolist()]
        [4, -2]
    """
    attr, linear = captum_module("captum.attr"), captum_module("captum._utils.models.linear_model")
    lime_core = captum_module("captum.attr._core.lime")
    lime = attr.Lime(
        game,
        interpretable_model=linear.SkLearnRidge(alpha=1.0),
        similarity_func=lime_core.get_exp_kernel_similarity_function("cosine", kernel_width=kernel_width),
    )
    inputs = torch.ones(1, game.count)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return lime.attribute(inputs, n_samples=samples, perturbations_per_eval=game.batch_size)[0]


def shap_values(game: SuperpixelGame, *, evaluations: int = 500) -> Tensor:
    """SHAP by shap's PartitionExplainer: Owen values over a tree of superpixels, ``[S]``.

    The tree joins neighbours of an image first, images last. Values add up to the answer to the whole image minus that
    to the hidden one; where the budget ends, what is left of a branch is shared equally among its superpixels.

    Args:
        game: the answer by superpixels.
        evaluations: budget of answers.

    Example:
        >>> image = torch.tensor([[[[4.0, -2.0, 1.0]]]])
        >>> game = SuperpixelGame(lambda x: x.sum((1, 2, 3)), image, 0 * image, np.array([[[0, 1, 2]]]))
        >>> [round(value, 6) for value in shap_values(game).tolist()]
        [4.0, -2.0, 1.0]
    """
    import shap

    if game.count == 1:
        both = game(torch.tensor([[1.0], [0.0]]))
        return (both[:1] - both[1:]).cpu()
    masker = shap.maskers.Partition(np.zeros((1, game.count)), clustering=_tree(game.pieces.cpu().numpy()))

    def answer(rows: np.ndarray) -> np.ndarray:
        return game(torch.as_tensor(np.asarray(rows, dtype=np.float32))).double().cpu().numpy()

    explainer = shap.PartitionExplainer(answer, masker)
    found = explainer(np.ones((1, game.count)), max_evals=evaluations, batch_size=game.batch_size, silent=True)
    return torch.as_tensor(found.values[0], dtype=torch.float32)


def _tree(pieces: np.ndarray) -> np.ndarray:
    """Linkage of the superpixels' centres, images far apart."""
    from scipy.cluster.hierarchy import linkage

    places = np.argwhere(pieces >= 0).astype(np.float64)
    places[:, 0] *= 10 * max(pieces.shape[1:])
    number = pieces[pieces >= 0]
    area = np.bincount(number)
    centres = np.stack([np.bincount(number, weights=axis) / area for axis in places.T], axis=1)
    return linkage(centres, method="complete")
