"""Federated averaging (McMahan et al., Communication-efficient learning of deep networks, 2017, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

Weights = Mapping[str, Tensor]


def weighted_mean(weights: Sequence[Weights], shares: Sequence[float]) -> dict[str, Tensor]:
    """Mean of several state dicts, weighted; counters (integers) are those of the first.

    Args:
        weights: of the sites, with the same keys.
        shares: for example the optimiser's steps of each site; they need not sum to 1.

    Raises:
        ValueError: no site, a share that is not above 0, or other keys.

    Example:
        >>> one, two = {"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}
        >>> weighted_mean([one, two], [3, 1])
        {'w': tensor([1.])}
    """
    if not weights or len(weights) != len(shares) or min(shares) <= 0:
        raise ValueError(f"Each of the sites needs a share above 0, got {len(weights)} sites, shares {list(shares)}.")
    if any(other.keys() != weights[0].keys() for other in weights[1:]):
        raise ValueError("All sites must train the same network, but their weights have other names.")
    total = float(sum(shares))
    mean = {}
    for key, first in weights[0].items():
        if first.is_floating_point():
            parts = [other[key].double() * (share / total) for other, share in zip(weights, shares, strict=True)]
            mean[key] = torch.stack(parts).sum(dim=0).to(first.dtype)
        else:
            mean[key] = first.clone()
    return mean


def fed_avg(sites: Sequence[Any], start: Weights, rounds: int) -> dict[str, Tensor]:
    """Rounds of local training and averaging in this process: each site by its optimiser's steps.

    Args:
        sites: a ``MonaiAlgo`` each, see :func:`shared.apps.fl.site_algo`.
        start: weights that all begin with.
        rounds: exchanges of weights.
    """
    from tqdm import tqdm

    weights = {key: value.clone() for key, value in start.items()}
    with tqdm(total=rounds * len(sites), desc="FedAvg", unit="site") as bar:
        for _ in range(rounds):
            found, steps = [], []
            for site in sites:
                # MONAI keeps and changes what it is given
                site.train(ExchangeObject(weights={key: value.clone() for key, value in weights.items()}))
                sent = site.get_weights()
                found.append({key: value.clone() for key, value in sent.weights.items()})
                steps.append(sent.statistics["num_executed_iterations"])
                bar.update()
            weights = weighted_mean(found, steps)
    return weights
