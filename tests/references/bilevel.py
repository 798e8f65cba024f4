"""The glioma paper's contrastive losses as it prints them (Eq. 1, 4 to 7): plain loops over numbers, in float64."""

import math

from tests.references.contrastive import cosine


def contrast(query, key, temperature, exclude=None, decoupled=True):
    """Eq. 1, 4, 5, 6: mean over i of -log exp(S_ii / tau) / sum over j (j != i where decoupled) of exp(S_ij / tau)."""
    losses = []
    for i, q in enumerate(query):
        scores = [cosine(q, k) / temperature for k in key]
        summed = [j for j in range(len(key)) if j != i and not (exclude and exclude[i][j])]
        if not decoupled:
            summed.append(i)
        top = max(scores[j] for j in summed)
        losses.append(math.log(sum(math.exp(scores[j] - top) for j in summed)) + top - scores[i])
    return sum(losses) / len(losses)


def bilevel(image, points, tumour, brain, temperature, weight, decoupled=True):
    """Eq. 7 of Eq. 4 (image to points), 5 (points to image) and 6 (brain to tumour)."""
    i2p = contrast(image, points, temperature, decoupled=decoupled)
    p2i = contrast(points, image, temperature, decoupled=decoupled)
    b2t = contrast(brain, tumour, temperature, decoupled=decoupled)
    return weight * (p2i + i2p) / 2 + (1 - weight) * b2t
