"""The glioma paper's sections 3.3 and 4.3 as loops in Python floats (float64), written from the paper alone."""

import math

from tests.references.ircl_losses import dot, softmax
from tests.references.ircl_networks import linear


def distance(a, b):
    return math.sqrt(sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)))


def farthest_points(points, count, start=None):
    """Indices: each the farthest from all chosen before; the first is the farthest from the mean unless given."""
    if start is None:
        middle = [sum(float(p[axis]) for p in points) / len(points) for axis in range(3)]
        start = max(range(len(points)), key=lambda i: distance(points[i], middle))
    chosen = [start]
    while len(chosen) < count:
        chosen.append(max(range(len(points)), key=lambda i: min(distance(points[i], points[c]) for c in chosen)))
    return chosen


def neighbours_within(points, radius, limit):
    """For each point the others within the radius, the nearest first, at most so many."""
    found = []
    for i, point in enumerate(points):
        others = sorted((distance(point, other), j) for j, other in enumerate(points) if j != i)
        found.append([(j, apart) for apart, j in others[:limit] if apart <= radius])
    return found


def nn_conv(x, neighbours, edge_weight, edge_bias, root, bias, mean):
    """NNConv with the edge network d -> d A + B, the matrix of every edge made: ``neighbours`` [P] of (j, d)."""
    width, out = len(x[0]), len(bias)
    result = []
    for i, own in enumerate(x):
        total = [0.0] * out
        for j, apart in neighbours[i]:
            matrix = [
                [apart * float(edge_weight[r * out + c]) + float(edge_bias[r * out + c]) for c in range(out)]
                for r in range(width)
            ]
            for c in range(out):
                total[c] += sum(float(x[j][r]) * matrix[r][c] for r in range(width))
        count = max(len(neighbours[i]), 1) if mean else 1
        result.append([total[c] / count + dot(root[c], own) + float(bias[c]) for c in range(out)])
    return result


def gat(nodes, edges, pairs, state, factor=None):
    """One-headed graph attention over undirected edges, with a self-loop that has the mean of its edges' attributes."""
    value = linear(nodes, state["lin.weight"], [0.0] * len(state["lin.weight"]))
    source, target, along = (state[f"att_{name}"][0][0] for name in ("src", "dst", "edge"))
    result = []
    for i in range(len(nodes)):
        listened = []
        for number, (a, b) in enumerate(pairs):
            if i in (a, b):
                listened.append((b if i == a else a, edges[number], 1.0 if factor is None else float(factor[number])))
        width = len(edges[0])
        mean = [sum(float(edge[f]) for _, edge, _ in listened) / max(len(listened), 1) for f in range(width)]
        listened.append((i, mean, 1.0))
        scores = []
        for j, edge, _ in listened:
            mapped = linear([edge], state["lin_edge.weight"], [0.0] * len(state["lin_edge.weight"]))[0]
            score = dot(source, value[j]) + dot(target, value[i]) + dot(along, mapped)
            scores.append(score if score > 0 else 0.2 * score)
        shares = softmax(scores)
        result.append(
            [
                sum(s * f * value[j][c] for s, (j, _, f) in zip(shares, listened, strict=True))
                + float(state["bias"][c])
                for c in range(len(value[0]))
            ]
        )
    return result


def edge_attention(point_attention, crossing, num_tracts):
    """Eq. 2 for one patient: the mean attention of the points that each tract crosses, 0 where there are none."""
    result = []
    for tract in range(num_tracts):
        crossed = [float(point_attention[k]) for k, tracts in enumerate(crossing) if tract in tracts]
        result.append(sum(crossed) / len(crossed) if crossed else 0.0)
    return result


def node_attention(projected_nodes, projected_tumour):
    """Eq. 3 for one patient with the cosine as similarity."""
    length = math.sqrt(dot(projected_tumour, projected_tumour))
    return [dot(z, projected_tumour) / (math.sqrt(dot(z, z)) * length) for z in projected_nodes]


def mlp(row, layers):
    """Linear maps (weight, bias) with a ReLU between any two."""
    for number, (weight, bias) in enumerate(layers):
        row = linear([row], weight, bias)[0]
        row = [max(v, 0.0) for v in row] if number < len(layers) - 1 else row
    return row
