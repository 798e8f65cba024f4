"""IRCL's stage-II equations (6-9) as loops in Python floats (float64), written from the paper and from nothing else."""

import math

from tests.references.ircl_losses import dot, softmax


def nearest_biomarker(z, biomarkers, allowed=None):
    """Eq. 6, read as the nearest: index and inner product of each image's biomarker, among those it is allowed."""
    chosen, similarity = [], []
    for j, embedding in enumerate(z):
        best, value = None, -math.inf
        for i, biomarker in enumerate(biomarkers):
            if (allowed is None or allowed[j][i]) and dot(biomarker, embedding) > value:
                best, value = i, dot(biomarker, embedding)
        chosen.append(best)
        similarity.append(value)
    return chosen, similarity


def prototypes(h, assignment, num_biomarkers):
    """Eq. 7 for one patient's images [m][D]: prototypes [K][D] and the images N_k of each."""
    width = len(h[0])
    means, counts = [], []
    for k in range(num_biomarkers):
        total, count = [0.0] * width, 0
        for i, features in enumerate(h):
            if assignment[i] == k:
                count += 1
                for d in range(width):
                    total[d] += float(features[d])
        means.append([value / count for value in total] if count else [0.0] * width)
        counts.append(count)
    return means, counts


def linear(rows, weight, bias):
    """W x + b of every row."""
    return [[dot(w, row) + float(b) for w, b in zip(weight, bias, strict=True)] for row in rows]


def attention_weights(query, key, num_heads, temperature, visible):
    """The softmax of Eq. 9, head by head [heads][m][K]; prototypes that are not visible are left out of it."""
    width = len(query[0]) // num_heads
    heads = []
    for head in range(num_heads):
        part = slice(head * width, (head + 1) * width)
        rows = []
        for q in query:
            shown = [k for k in range(len(key)) if visible[k]]
            shares = softmax([dot(q[part], key[k][part]) / (temperature * math.sqrt(width)) for k in shown])
            rows.append([shares[shown.index(k)] if k in shown else 0.0 for k in range(len(key))])
        heads.append(rows)
    return heads


def prototype_attention(h, assignment, num_biomarkers, parameters, num_heads, temperature, hidden=()):
    """Eq. 8 and 9 for one patient; ``parameters`` maps query, key, value, output to (weight, bias)."""
    means, counts = prototypes(h, assignment, num_biomarkers)
    visible = [count > 0 and k not in hidden for k, count in enumerate(counts)]
    query, key, value = linear(h, *parameters["query"]), *(linear(means, *parameters[n]) for n in ("key", "value"))
    weights = attention_weights(query, key, num_heads, temperature, visible) if any(visible) else None
    width, mixed = len(h[0]) // num_heads, []
    for j in range(len(h)):
        row = []
        for head in range(num_heads):
            for d in range(head * width, (head + 1) * width):
                row.append(sum(weights[head][j][k] * value[k][d] for k in range(len(value))) if weights else 0.0)
        mixed.append(row)
    return linear(mixed, *parameters["output"]), weights


def layer_norm(rows, weight, bias, eps=1e-5):
    """LayerNorm over the last axis with the biased variance."""
    result = []
    for row in rows:
        mean = sum(row) / len(row)
        spread = math.sqrt(sum((x - mean) ** 2 for x in row) / len(row) + eps)
        result.append([(x - mean) / spread * float(w) + float(b) for x, w, b in zip(row, weight, bias, strict=True)])
    return result


def gelu(x):
    return x * 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))


def add(a, b):
    return [[float(x) + float(y) for x, y in zip(p, q, strict=True)] for p, q in zip(a, b, strict=True)]


def prototype_transformer(h, assignment, num_biomarkers, state, *, num_layers, num_heads, temperature, groups=1):
    """Section 3.3 for one patient, without dropout: pre-norm blocks on tokens, LayerNorm and a linear head on means."""

    def pair(name):
        return state[f"{name}.weight"].tolist(), state[f"{name}.bias"].tolist()

    tokens = add(linear(h, *pair("input")), state["position"][0].tolist())
    for i in range(num_layers):
        block = f"blocks.{i}"
        parameters = {name: pair(f"{block}.attention.{name}") for name in ("query", "key", "value", "output")}
        normed = layer_norm(tokens, *pair(f"{block}.norm1"))
        update, _ = prototype_attention(normed, assignment, num_biomarkers, parameters, num_heads, temperature)
        tokens = add(tokens, update)
        inner = linear(layer_norm(tokens, *pair(f"{block}.norm2")), *pair(f"{block}.mlp.linear1"))
        tokens = add(tokens, linear([[gelu(x) for x in row] for row in inner], *pair(f"{block}.mlp.linear2")))
    pooled, size = [], len(tokens) // groups
    for group in range(groups):
        part = tokens[group * size : (group + 1) * size]
        mean = [sum(column) / size for column in zip(*part, strict=True)]
        pooled += layer_norm([mean], *pair("norm"))[0]
    return linear([pooled], *pair("head"))[0]
