"""The glioma paper's Algorithm 1 after the tumour's two encoders, as loops in Python floats (float64)."""

import math

from tests.references.bilevel import bilevel
from tests.references.glioma_networks import edge_attention, gat, mlp, node_attention


def brain_features(nodes, edges, pairs, point_attention, crossing, z_tumour, layers, head_a, head):
    """u^B and a^N of one patient: x^B * a^E (Eq. 2), e^N, a^N (Eq. 3), the mean over e^N * a^N, the feed-forward."""
    factor = edge_attention(point_attention, crossing, len(pairs))
    attended = [[f * value for value in edge] for f, edge in zip(factor, edges, strict=True)]
    x = nodes
    for number, layer in enumerate(layers):
        x = [[v if v > 0 else math.expm1(v) for v in row] for row in x] if number else x
        x = gat(x, attended, pairs, layer)
    attention = node_attention([mlp(row, head_a) for row in x], z_tumour)
    pooled = [sum(a * row[c] for a, row in zip(attention, x, strict=True)) / len(x) for c in range(len(x[0]))]
    return mlp(pooled, head), attention


def multi_modal_loss(u_image, u_points, u_brain, heads, temperature=0.1, weight=0.8):
    """L_multi (Eq. 4 to 7) of a batch's embeddings; ``heads``: g_I, g_P, g_T, g_B by name."""
    z_image = [mlp(row, heads["image"]) for row in u_image]
    z_points = [mlp(row, heads["points"]) for row in u_points]
    z_tumour = [mlp([*a, *b], heads["tumour"]) for a, b in zip(u_image, u_points, strict=True)]
    z_brain = [mlp(row, heads["brain"]) for row in u_brain]
    return bilevel(z_image, z_points, z_tumour, z_brain, temperature, weight)
