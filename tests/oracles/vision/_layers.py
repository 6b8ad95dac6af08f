"""Layers in float64 NumPy."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


def hard_swish(x):
    return x * np.clip(x + 3, 0, 6) / 6


def linear(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def norm(x, p):
    return (x - p["mean"]) / np.sqrt(p["var"] + 1e-5) * p["scale"] + p["bias"]


def conv2d(x, p, dilation=1, groups=1):
    """Cross-correlation with zeros around, one place and one tap at a time."""
    images, height, width, channels = x.shape
    rows, columns, depth, features = p["kernel"].shape
    out = np.zeros((images, height, width, features))
    for i in range(height):
        for j in range(width):
            for a in range(rows):
                for b in range(columns):
                    u = i + dilation * (a - rows // 2)
                    v = j + dilation * (b - columns // 2)
                    if 0 <= u < height and 0 <= v < width:
                        here = x[:, u, v].reshape(images, groups, depth)
                        taps = p["kernel"][a, b].reshape(depth, groups, features // groups)
                        product = np.einsum("ngd,dgf->ngf", here, taps)
                        out[:, i, j] += product.reshape(images, features)
    assert channels == groups * depth
    return out + p.get("bias", 0)


def softmax(x, axis=-1):
    weights = np.exp(x - x.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)
