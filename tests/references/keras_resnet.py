"""Keras's first ResNet50, layer by layer in float64 NumPy, from its own weights and its own input.

He et al., Deep Residual Learning for Image Recognition (2016), as keras-applications 1.0.7 builds it: the stride of a
stage in the first 1 x 1 convolution, biases in all convolutions, BatchNorms with an epsilon of their own.
"""

import numpy as np

BLOCKS = {2: "abc", 3: "abcd", 4: "abcdef", 5: "abc"}


def preprocess(rgb):
    """[H, W, 3] from 0 to 255 to blue, green, red less ImageNet's mean."""
    return np.asarray(rgb, float)[..., ::-1] - [103.939, 116.779, 123.68]


def convolve(x, kernel, bias, *, stride=1, pad=0):
    """x [H, W, C], kernel [h, w, C, D], padded with zeros."""
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    side = kernel.shape[0]
    rows, columns = ((length - side) // stride + 1 for length in x.shape[:2])
    out = np.empty((rows, columns, kernel.shape[3]))
    for i in range(rows):
        for j in range(columns):
            window = x[i * stride : i * stride + side, j * stride : j * stride + side]
            out[i, j] = np.tensordot(window, kernel, axes=3) + bias
    return out


def resnet50(rgb, weights, epsilon):
    """Pooled features and class probabilities of an image [H, W, 3] of 0 to 255."""

    def conv_norm(x, conv, norm, **settings):
        x = convolve(x, weights[f"{conv}/kernel"], weights[f"{conv}/bias"], **settings)
        scaled = (x - weights[f"{norm}/moving_mean"]) / np.sqrt(weights[f"{norm}/moving_variance"] + epsilon)
        return scaled * weights[f"{norm}/gamma"] + weights[f"{norm}/beta"]

    def relu(x):
        return np.maximum(x, 0)

    x = relu(conv_norm(preprocess(rgb), "conv1", "bn_conv1", stride=2, pad=3))
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    side = (padded.shape[0] - 3) // 2 + 1
    x = np.array(
        [[padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max(axis=(0, 1)) for j in range(side)] for i in range(side)]
    )
    for stage, blocks in BLOCKS.items():
        for block in blocks:
            stride = 2 if block == "a" and stage > 2 else 1
            name = f"{stage}{block}_branch"
            y = relu(conv_norm(x, f"res{name}2a", f"bn{name}2a", stride=stride))
            y = relu(conv_norm(y, f"res{name}2b", f"bn{name}2b", pad=1))
            y = conv_norm(y, f"res{name}2c", f"bn{name}2c")
            shortcut = conv_norm(x, f"res{name}1", f"bn{name}1", stride=stride) if block == "a" else x
            x = relu(y + shortcut)
    pooled = x.mean(axis=(0, 1))
    logits = pooled @ weights["fc1000/kernel"] + weights["fc1000/bias"]
    return pooled, np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
