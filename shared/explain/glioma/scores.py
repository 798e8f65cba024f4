"""Do explanations of a phantom glioma point at what was planted in its volume, surface and tracts; and do controls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt, zoom

from shared.data.brain.atlas import TractAtlas
from shared.errors import DataError
from shared.explain.localisation import energy_ratio, pointing_game


def volume_scores(
    maps: Mapping[str, np.ndarray], truth: np.ndarray, tumour: np.ndarray, support: np.ndarray
) -> dict[str, dict[str, float]]:
    """Pointing game and energy of maps on a tumour's crop, every map scaled to [0, 1] within the support alike.

    Args:
        maps: by name, importance.
        truth: what was planted.
        tumour: the tumour; within it alone, finding the tumour earns nothing.
        support: voxels that a map may speak of, those that are not empty.

    Shape:
        - all arrays ``[S, S, S]``
        - returns: by map ``pointing``, ``energy_ratio`` (1 is chance within the support), ``energy_ratio_in_tumour``

    Raises:
        DataError: nothing was planted within the tumour.

    Example:
        >>> truth = np.zeros((4, 4, 4), bool); truth[1, 1, 1] = True
        >>> volume_scores({"a": truth * 1.0}, truth, np.ones_like(truth), np.ones_like(truth))
        {'a': {'pointing': 1.0, 'energy_ratio': 64.0, 'energy_ratio_in_tumour': 64.0}}
    """
    truth, tumour = (truth != 0) & support, (tumour != 0) & support
    if not (truth & tumour).any():
        raise DataError("A map of the tumour can only be scored where something was planted within the tumour.")
    found = {}
    for name, values in maps.items():
        scaled = _scaled(values, support)[None, None]
        found[name] = {
            "pointing": float(pointing_game(scaled, truth[None, None])[0]),
            "energy_ratio": float(energy_ratio(scaled, truth[None, None], region=support[None, None])[0]),
            "energy_ratio_in_tumour": float(energy_ratio(scaled, truth[None, None], region=tumour[None, None])[0]),
        }
    return found


def volume_controls(
    image: np.ndarray, tumour: np.ndarray, *, grid: int, sequences: Sequence[str] = (), seed: int = 0
) -> dict[str, np.ndarray]:
    """Maps that know nothing of a network: a blob, the whole tumour, noise, brightness of each sequence and darkness.

    Args:
        image: the crop.
        tumour: its mask.
        grid: voxels a side of the layer that the map comes from, for noise as coarse as it.
        sequences: names of the channels.
        seed: of the noise.

    Shape:
        - image: ``[C, S, S, S]``, tumour: ``[S, S, S]``; each map ``[S, S, S]``

    Example:
        >>> list(volume_controls(np.ones((1, 4, 4, 4)), np.ones((4, 4, 4)), grid=2, sequences=["T1"]))
        ['tumour centre', 'tumour', 'random map', 'coarse random map', 'bright T1', 'dark T1']
    """
    rng = np.random.default_rng(seed)
    inside = np.argwhere(tumour)
    radius = (3 * len(inside) / (4 * np.pi)) ** (1 / 3)
    away = sum((axis - c) ** 2 for axis, c in zip(np.indices(tumour.shape, sparse=True), inside.mean(0), strict=True))
    coarse = zoom(rng.random((grid,) * 3), tumour.shape[0] / grid, order=1, mode="nearest", grid_mode=True)
    maps = {
        # half of the radius: falls to an eighth at the tumour's edge
        "tumour centre": np.exp(-0.5 * away / (0.5 * max(radius, 1)) ** 2),
        "tumour": (tumour != 0).astype(np.float64),
        "random map": rng.random(tumour.shape),
        "coarse random map": coarse,
    }
    for number, channel in enumerate(image):
        name = sequences[number] if number < len(sequences) else f"sequence {number}"
        maps |= {f"bright {name}": channel, f"dark {name}": channel.max() - channel}
    return maps


def surface_scores(
    values: Mapping[str, np.ndarray],
    points: np.ndarray,
    planted: np.ndarray,
    tumour: np.ndarray,
    affine: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Scores of values at the points of the surface, beside noise and the distance to the centre.

    Args:
        values: by name, ``[P]``, not negative.
        points: ``[P, 3]``, mm in the planted map's world.
        planted: what was planted in the shape (spicules), ``[X, Y, Z]``; a point counts whose nearest voxel of the
            tumour is one of it.
        tumour: the tumour, on the same grid.
        affine: of the planted map.
        groups: number ``[P]`` of the points that share one value of the attention; the distance is then scored as
            coarse as that, too.
        seed: of the noise.

    Returns:
        by map ``pointing``, ``energy_ratio``, ``average_precision`` (of the points' order alone), and ``truth_share``;
        empty where no point lies on anything planted.
    """
    from sklearn.metrics import average_precision_score

    nearest = distance_transform_edt(tumour == 0, return_distances=False, return_indices=True)
    near = (planted != 0)[tuple(nearest)]
    voxel = np.rint((points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T).astype(int)
    voxel = np.clip(voxel, 0, np.subtract(planted.shape, 1))
    truth = near[tuple(voxel.T)]
    if not truth.any() or truth.all():
        return {}
    away = np.linalg.norm(points - points.mean(axis=0), axis=1)
    controls = {"random": np.random.default_rng(seed).random(len(points)), "far from the centre": away}
    if groups is not None:
        means = np.bincount(groups, weights=away) / np.maximum(np.bincount(groups), 1)
        controls["far from the centre, as coarse"] = means[groups]
    shape, found = (1, 1, 1, len(points)), {}
    for name, value in {**values, **controls}.items():
        given = [np.asarray(value, np.float64).reshape(shape), truth.reshape(shape)]
        found[name] = {
            "pointing": float(pointing_game(*given)[0]),
            "energy_ratio": float(energy_ratio(*given)[0]),
            "average_precision": float(average_precision_score(truth, value)),
            "truth_share": float(truth.mean()),
        }
    return found


def tract_overlap(atlas: TractAtlas, tumour: np.ndarray) -> np.ndarray:
    """Share of each tract that lies within the tumour, weighted by its probabilities, ``[E]``."""
    inside = atlas.matrix @ (np.asarray(tumour).ravel() != 0).astype(np.float64)
    return inside / np.maximum(atlas.matrix.sum(axis=1), 1e-12)


def tract_scores(
    mask: np.ndarray, kept: np.ndarray, planted: Iterable[int], controls: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """How well rankings of the tracts find the infiltrated ones.

    Args:
        mask: of the tracts, from the explanation, ``[E]``.
        kept: those above its threshold, ``[E]`` bool.
        planted: numbers of the infiltrated tracts.
        controls: other rankings, ``[E]`` each; a random one is added as what is expected of it.

    Returns:
        by ranking ``precision_kept`` (among as many first ones as the explanation keeps), ``precision_planted`` (among
        as many as were planted) and ``average_precision``.

    Example:
        >>> scores = tract_scores(np.array([0.9, 0.1, 0.2]), np.array([1, 0, 0]) > 0, [0], {})
        >>> scores["GNNExplainer"]["average_precision"], round(scores["random"]["precision_kept"], 3)
        (1.0, 0.333)
    """
    from sklearn.metrics import average_precision_score

    truth = np.zeros(len(mask), bool)
    truth[list(planted)] = True
    count, keep = int(truth.sum()), int(kept.sum())
    if not count:
        raise DataError("Rankings of tracts can only be scored where tracts were planted.")
    found = {}
    for name, ranking in {"GNNExplainer": mask, **controls}.items():
        order = np.asarray(ranking, np.float64)
        found[name] = {
            "precision_kept": _precision(order, truth, keep),
            "precision_planted": _precision(order, truth, count),
            "average_precision": float(average_precision_score(truth, order)),
        }
    share = count / len(truth)
    found["random"] = {
        "precision_kept": share if keep else 0.0,
        "precision_planted": share,
        "average_precision": _chance_average_precision(count, len(truth)),
    }
    return found


def _chance_average_precision(count: int, size: int) -> float:
    """What average precision a random order of ``size`` with ``count`` hits has in the mean."""
    # the n-th place hits with probability count / size; given that, the other count - 1 hits are spread evenly
    places = np.arange(1, size + 1)
    before = (places - 1) * (count - 1) / max(size - 1, 1)
    return float(((1 + before) / places).mean())


def _precision(ranking: np.ndarray, truth: np.ndarray, first: int) -> float:
    """Share of hits among the first ones; equal ranks count with their expected share."""
    if not first:
        return 0.0
    level = np.sort(ranking)[::-1][first - 1]
    above, tied = ranking > level, ranking == level
    return float(truth[above].sum() + (first - above.sum()) * truth[tied].mean()) / first


def _scaled(values: np.ndarray, support: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    low, high = values[support].min(), values[support].max()
    return np.where(support, (values - low) / (high - low) if high > low else float(high > 0), 0.0)
