"""IRCL's explanation written straight from the paper, in float64 loops: Eq. 10 and Shapley's definition."""

import math
from itertools import permutations


def mean_and_variance(pixels):
    """Mean and population variance of a flat list."""
    mean = 0.0
    for pixel in pixels:
        mean += pixel / len(pixels)
    variance = 0.0
    for pixel in pixels:
        variance += (pixel - mean) ** 2 / len(pixels)
    return mean, variance


def gaussian_kl(mean, variance, prior_mean, prior_std, eps):
    """KL(N(mean, variance + eps) || N(prior_mean, prior_std^2)), numerically from the densities' integral."""
    std = math.sqrt(variance + eps)
    total, steps, reach = 0.0, 40001, 14.0
    width = 2 * reach * std / (steps - 1)
    for i in range(steps):
        x = mean - reach * std + i * width
        log_p = -0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
        log_q = -0.5 * ((x - prior_mean) / prior_std) ** 2 - math.log(prior_std * math.sqrt(2 * math.pi))
        total += math.exp(log_p) * (log_p - log_q) * width
    return total


def mask_objective(encode, image, logits, target, *, prior_mean, prior_std, eps):
    """Eq. 10 of one image: ``encode(list of rows) -> list``, image and logits as lists of rows."""
    mask = [[1 / (1 + math.exp(-q)) for q in row] for row in logits]
    masked = [[pixel * keep for pixel, keep in zip(a, b, strict=True)] for a, b in zip(image, mask, strict=True)]
    distance = 0.0
    for z, b in zip(encode(masked), target, strict=True):
        distance += abs(z - b)
    mean, variance = mean_and_variance([keep for row in mask for keep in row])
    return distance + gaussian_kl(mean, variance, prior_mean, prior_std, eps)


def shapley_by_permutations(worth, players):
    """Mean marginal contribution over all orders in which the players can join; ``worth(frozenset) -> float``."""
    values = [0.0] * players
    orders = list(permutations(range(players)))
    for order in orders:
        joined = frozenset()
        for player in order:
            values[player] += (worth(joined | {player}) - worth(joined)) / len(orders)
            joined = joined | {player}
    return values


def auc_by_pairs(labels, probability):
    """Share of (positive, negative) pairs ranked right, ties half."""
    pairs = [
        (p, n)
        for p, a in zip(probability, labels, strict=True)
        if a
        for n, b in zip(probability, labels, strict=True)
        if not b
    ]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)
