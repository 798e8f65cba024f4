"""IRCL's stage-I equations as loops in Python floats (float64), written from the paper and from nothing else."""

import math

import numpy as np

# VGG16, configuration D of Simonyan and Zisserman: number of the convolution in torchvision's `features` by its name.
VGG16_CONVOLUTIONS = {
    "conv1_1": 0,
    "conv1_2": 2,
    "conv2_1": 5,
    "conv2_2": 7,
    "conv3_1": 10,
    "conv3_2": 12,
    "conv3_3": 14,
    "conv4_1": 17,
    "conv4_2": 19,
    "conv4_3": 21,
    "conv5_1": 24,
    "conv5_2": 26,
    "conv5_3": 28,
}


def dot(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def unit(a):
    norm = math.sqrt(dot(a, a))
    return [float(x) / norm for x in a]


def softmax(scores):
    top = max(scores)
    weights = [math.exp(s - top) for s in scores]
    return [w / sum(weights) for w in weights]


def momentum_update(bank, indices, z, momentum):
    """m <- normalise(momentum m + (1 - momentum) z), one image after the other."""
    bank = [list(map(float, row)) for row in bank]
    for k, embedding in zip(indices, z, strict=True):
        bank[k] = unit([momentum * m + (1 - momentum) * float(e) for m, e in zip(bank[k], embedding, strict=True)])
    return bank


def similarity_matrix(bank, temperature):
    """Eq. 3: softmax of every row of M M^T / tau."""
    return [softmax([dot(a, b) / temperature for b in bank]) for a in bank]


def entropies(bank, temperature, include_self):
    """Eq. 4 for every row; without the row itself the distribution is over the others."""
    result = []
    for i, a in enumerate(bank):
        scores = [dot(a, b) / temperature for j, b in enumerate(bank) if include_self or j != i]
        result.append(-sum(p * math.log(p) for p in softmax(scores) if p > 0) if scores else 0.0)
    return result


def algorithm_1(bank, temperature, epoch, epochs, s, groups=None, include_self=False):
    """One update of Algorithm 1: the set N_i of each row, as a list, empty where the row was not selected."""
    similarity = similarity_matrix(bank, temperature)
    entropy = entropies(bank, temperature, include_self)
    size = len(bank)
    order = sorted(range(size), key=lambda k: entropy[k])
    positives = [[] for _ in range(size)]
    for i in order[: math.floor(size * min(1.0, epoch / epochs) + 1e-9)]:
        candidates = []
        for j in range(size):
            shared = groups is not None and {g for g in groups[i] if g >= 0} & {g for g in groups[j] if g >= 0}
            if j != i and not shared:
                candidates.append(j)
        positives[i] = sorted(candidates, key=lambda j, i=i: -similarity[i][j])[:s]
    return positives


def contrastive_loss(z, bank, indices, positives, temperature, exclude_self=False):
    """Eq. 5 with the logarithm inside the sum over k, averaged over the batch."""
    terms = []
    for embedding, k, listed in zip(z, indices, positives, strict=True):
        p = [math.exp(dot(embedding, m) / temperature) for m in bank]
        members = {int(j) for j in listed if j >= 0} | {int(k)}
        if exclude_self:
            members -= {int(k)}
            p[k] = 0.0
        if members:
            terms.append(-math.log(sum(p[j] for j in members) / sum(p)))
    return sum(terms) / len(terms) if terms else 0.0


def vgg16_features(image, weights, layers):
    """Outputs of VGG16's ReLUs for one image [H, W]; `weights` maps torchvision's keys to arrays."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x = np.stack([(np.asarray(image, dtype=np.float64) - m) / s for m, s in zip(mean, std, strict=True)])
    result = {}
    for name, number in VGG16_CONVOLUTIONS.items():
        if number in (5, 10, 17, 24):  # a pooling ends each stage
            h, w = x.shape[1] // 2, x.shape[2] // 2
            x = x[:, : 2 * h, : 2 * w].reshape(len(x), h, 2, w, 2).max(axis=(2, 4))
        kernel = np.asarray(weights[f"features.{number}.weight"], dtype=np.float64)
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        y = np.zeros((len(kernel), *x.shape[1:]))
        for i in range(3):
            for j in range(3):
                y += np.tensordot(kernel[:, :, i, j], padded[:, i : i + x.shape[1], j : j + x.shape[2]], axes=1)
        bias = np.asarray(weights[f"features.{number}.bias"], dtype=np.float64)
        x = np.maximum(y + bias[:, None, None], 0.0)
        result[name.replace("conv", "relu")] = x
        if all(layer in result for layer in layers):
            break
    return [result[layer] for layer in layers]


def reconstruction_loss(images, reconstructions, weights=None, layers=()):
    """Eq. 2 for images [B][H][W]: mean absolute error plus the layers' mean of the mean squared error of features."""
    images, reconstructions = np.asarray(images, np.float64), np.asarray(reconstructions, np.float64)
    total, count = 0.0, 0
    for image, reconstruction in zip(images, reconstructions, strict=True):
        for a, b in zip(image.flat, reconstruction.flat, strict=True):
            total, count = total + abs(a - b), count + 1
    loss = total / count
    for number in range(len(layers)):
        squares, elements = 0.0, 0
        for image, reconstruction in zip(images, reconstructions, strict=True):
            a = vgg16_features(image, weights, layers)[number]
            b = vgg16_features(reconstruction, weights, layers)[number]
            squares, elements = squares + ((a - b) ** 2).sum(), elements + a.size
        loss += squares / elements / len(layers)
    return loss
