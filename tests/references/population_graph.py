"""The glioma paper's Eq. 8 and a graph attention layer as loops in Python floats (float64), from the papers alone."""

import math
import statistics

from tests.references.ircl_losses import dot, softmax


def correlation(a, b):
    """Pearson's r of two patients' features; None where one of them does not vary."""
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)
    return None if spread == 0 else covariance / math.sqrt(spread)


def edge_weights(features, bank=None, theta=0.5):
    """Eq. 8 [T][S]: the correlation where it reaches theta, else 0; without a bank nobody is joined to himself."""
    rows = []
    for i, mine in enumerate(features):
        row = []
        for j, other in enumerate(features if bank is None else bank):
            r = None if bank is None and i == j else correlation(mine, other)
            row.append(r if r is not None and r >= theta else 0.0)
        rows.append(row)
    return rows


def compress(rows, bank):
    """asinh of the distance from the bank's median in interquartile ranges, column by column."""
    columns = []
    for column, known in zip(zip(*rows, strict=True), zip(*bank, strict=True), strict=True):
        low, middle, high = statistics.quantiles(known, n=4, method="inclusive")
        columns.append([math.asinh((x - middle) / (high - low)) for x in column])
    return [list(row) for row in zip(*columns, strict=True)]


def standardise(rows, bank):
    """Every column by the bank's mean and SD (n - 1)."""
    columns = list(zip(*bank, strict=True))
    means = [sum(column) / len(column) for column in columns]
    spreads = [
        math.sqrt(sum((x - m) ** 2 for x in column) / (len(column) - 1))
        for column, m in zip(columns, means, strict=True)
    ]
    return [[(x - m) / s for x, m, s in zip(row, means, spreads, strict=True)] for row in rows]


def attention_layer(targets, sources, joined, attributes, parameters, heads, slope=0.2):
    """Velickovic Eq. 1-4, edge attributes in the attention, a self-loop with the mean attribute at every target.

    ``joined`` [T][S] says who listens to whom; ``attributes`` [T][S][D]; ``parameters`` maps GATConv's names to lists.
    """
    width = len(parameters["bias"]) // heads
    flat = {name: [x for head in parameters[name][0] for x in head] for name in ("att_src", "att_dst", "att_edge")}

    def linear(name, x):
        return [dot(row, x) for row in parameters[name]]

    def share(name, vector, head):
        return dot(flat[name][head * width : (head + 1) * width], vector[head * width : (head + 1) * width])

    result = []
    for t, target in enumerate(targets):
        own, near = linear("lin.weight", target), [s for s in range(len(sources)) if joined[t][s]]
        values = [linear("lin.weight", sources[s]) for s in near] + [own]
        edges = [attributes[t][s] for s in near]
        count = len(attributes[t][0]) if attributes[t] else len(parameters["lin_edge.weight"][0])
        edges.append([sum(edge[d] for edge in edges) / max(len(near), 1) for d in range(count)])
        row = []
        for head in range(heads):
            scores = []
            for value, edge in zip(values, edges, strict=True):
                score = share("att_dst", own, head) + share("att_src", value, head)
                score += share("att_edge", linear("lin_edge.weight", edge), head)
                scores.append(score if score > 0 else slope * score)
            weights = softmax(scores)
            for c in range(head * width, (head + 1) * width):
                row.append(sum(w * value[c] for w, value in zip(weights, values, strict=True)))
        if "res.weight" in parameters:
            row = [y + r for y, r in zip(row, linear("res.weight", target), strict=True)]
        result.append([y + b for y, b in zip(row, parameters["bias"], strict=True)])
    return result
