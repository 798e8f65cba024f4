"""Gated attention over a slide's tiles as loops in Python floats (float64): Ilse et al. 2018, Eq. 7 and 9."""

import math


def moments(slides):
    """Mean and spread of each feature over slides (lists of tiles, lists of features), each slide counting once.

    A feature that never changes has an infinite spread.
    """
    width = len(slides[0][0])
    mean, spread = [], []
    for k in range(width):
        first = sum(sum(tile[k] for tile in tiles) / len(tiles) for tiles in slides) / len(slides)
        second = sum(sum(tile[k] ** 2 for tile in tiles) / len(tiles) for tiles in slides) / len(slides)
        mean.append(first)
        wide = math.sqrt(max(second - first**2, 0.0))
        spread.append(math.inf if wide < 1e-4 else wide)
    return mean, spread


def slide_mil(tiles, mean, spread, value, gate, score, head):
    """Logits, attention and contributions of one slide.

    Args:
        tiles: features h of each tile.
        mean, spread: of each feature.
        value, gate, head: weight (rows of numbers) and bias of a layer.
        score: weight of the attention's last layer, which has no bias.
    """

    def layer(weight, bias, x):
        return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]

    x = [[(h - m) / s for h, m, s in zip(tile, mean, spread, strict=True)] for tile in tiles]
    scores = []
    for tile in x:
        passed = [1 / (1 + math.exp(-g)) for g in layer(*gate, tile)]
        scores.append(sum(w * math.tanh(v) * g for w, v, g in zip(score, layer(*value, tile), passed, strict=True)))
    total = sum(math.exp(s) for s in scores)
    attention = [math.exp(s) / total for s in scores]
    pooled = [sum(a * tile[k] for a, tile in zip(attention, x, strict=True)) for k in range(len(mean))]
    logits = layer(*head, pooled)
    contributions = [
        [a * sum(w * v for w, v in zip(row, tile, strict=True)) for row in head[0]]
        for a, tile in zip(attention, x, strict=True)
    ]
    return logits, attention, contributions
