"""NT-Xent as SimCLR prints it (Chen et al. 2020, Eq. 1 and Algorithm 1): plain loops over numbers, in float64."""

import math


def cosine(u, v):
    dot = sum(float(a) * float(b) for a, b in zip(u, v, strict=True))
    return dot / math.sqrt(sum(float(a) ** 2 for a in u)) / math.sqrt(sum(float(b) ** 2 for b in v))


def nt_xent(view_a, view_b, temperature):
    """L = 1/(2N) sum_k [l(2k - 1, 2k) + l(2k, 2k - 1)], the two views of sample k being rows 2k - 1 and 2k."""
    z = [row for pair in zip(view_a, view_b, strict=True) for row in pair]
    return sum(
        pair_loss(z, k, k + 1, temperature) + pair_loss(z, k + 1, k, temperature) for k in range(0, len(z), 2)
    ) / len(z)


def pair_loss(z, i, j, temperature):
    """l(i, j) = -log exp(s_ij / tau) / sum over k != i of exp(s_ik / tau), the largest exponent taken out of both."""
    scores = {k: cosine(z[i], z[k]) / temperature for k in range(len(z)) if k != i}
    top = max(scores.values())
    return math.log(sum(math.exp(score - top) for score in scores.values())) + top - scores[j]
