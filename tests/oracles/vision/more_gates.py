"""Attention gates, gather-excite, polarized and efficient local attention in float64 NumPy."""

import math

import numpy as np

from tests.oracles.vision._layers import linear, norm, relu, sigmoid, softmax


def bilinear(x, height, width):
    """Each place from the (up to) four whose centres surround its own, the edge repeated."""
    images, rows, columns, channels = x.shape
    out = np.zeros((images, height, width, channels))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
            z = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            for a in {math.floor(y), math.ceil(y)}:
                for b in {math.floor(z), math.ceil(z)}:
                    out[:, i, j] += (1 - abs(y - a)) * (1 - abs(z - b)) * x[:, a, b]
    return out


def attention_gate(x, gating, p, strides=2):
    kernel = p["theta"]["kernel"]
    height, width = (1 + (size - strides) // strides for size in x.shape[1:3])
    grid = np.zeros((x.shape[0], height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            for a in range(strides):
                for b in range(strides):
                    grid[:, i, j] += x[:, strides * i + a, strides * j + b] @ kernel[a, b]
    hidden = relu(grid + bilinear(linear(gating, p["phi"]), height, width))
    return x * bilinear(sigmoid(linear(hidden, p["psi"])), *x.shape[1:3])


def gather_excite(x, p, extent=None):
    images, height, width, channels = x.shape
    if "conv_0" in p:
        gathered, i = x, 0
        while f"conv_{i}" in p:
            gathered = relu(gathered) if i else gathered
            gathered = norm(_halved(gathered, p[f"conv_{i}"]["kernel"]), p[f"norm_{i}"])
            i += 1
    elif extent is None:
        gathered = x.mean(axis=(1, 2))[:, None, None]
    else:
        rows, columns = -(-height // extent), -(-width // extent)
        gathered = np.zeros((images, rows, columns, channels))
        for i in range(rows):
            for j in range(columns):
                top, left = max(0, extent * (i - 1) + 1), max(0, extent * (j - 1) + 1)
                window = x[:, top : extent * (i + 1), left : extent * (j + 1)]
                gathered[:, i, j] = window.mean(axis=(1, 2))
    if "reduce" in p:
        rectified = relu(gathered) if "conv_0" in p else gathered
        gathered = linear(relu(linear(rectified, p["reduce"])), p["expand"])
    out = np.zeros_like(x)
    for i in range(height):
        for j in range(width):
            a, b = i * gathered.shape[1] // height, j * gathered.shape[2] // width
            out[:, i, j] = x[:, i, j] * sigmoid(gathered[:, a, b])
    return out


def _halved(x, kernel):
    """A depthwise 3×3 convolution of stride 2, one zero on each side."""
    images, height, width, channels = x.shape
    out = np.zeros((images, (height + 1) // 2, (width + 1) // 2, channels))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            for a in range(3):
                for b in range(3):
                    u, v = 2 * i + a - 1, 2 * j + b - 1
                    if 0 <= u < height and 0 <= v < width:
                        out[:, i, j] += x[:, u, v] * kernel[a, b, 0]
    return out


def polarized_attention(x, p, layout="parallel"):
    images, _, _, channels = x.shape

    def channel_gate(x):
        tokens = x.reshape(images, -1, channels)
        weights = softmax(linear(tokens, p["channel_query"]), axis=1)
        pooled = np.einsum("nti,ntr->nr", weights, linear(tokens, p["channel_value"]))
        return sigmoid(linear(pooled, p["channel_expand"]))[:, None, None]

    def spatial_gate(x):
        weights = softmax(linear(x, p["spatial_query"]).mean(axis=(1, 2)))
        mixed = np.einsum("nr,nhwr->nhw", weights, linear(x, p["spatial_value"]))
        return sigmoid(mixed)[..., None]

    if layout == "parallel":
        return channel_gate(x) * x + spatial_gate(x) * x
    gated = channel_gate(x) * x
    return spatial_gate(gated) * gated


def efficient_local_attention(x, p, num_groups=16):
    kernel = p["conv"]["kernel"]
    size, depth, channels = kernel.shape

    def gate(strip):
        length = strip.shape[1]
        convolved = np.zeros_like(strip)
        for i in range(length):
            for tap in range(size):
                u = i + tap - size // 2
                if 0 <= u < length:
                    for c in range(channels):
                        first = c // depth * depth
                        inputs = strip[:, u, first : first + depth]
                        convolved[:, i, c] += inputs @ kernel[tap, :, c]
        width = channels // num_groups
        for start in range(0, channels, width):
            group = convolved[:, :, start : start + width]
            mean = group.mean(axis=(1, 2), keepdims=True)
            variance = group.var(axis=(1, 2), keepdims=True)
            convolved[:, :, start : start + width] = (group - mean) / np.sqrt(variance + 1e-5)
        return sigmoid(convolved * p["norm"]["scale"] + p["norm"]["bias"])

    rows, columns = gate(x.mean(axis=2)), gate(x.mean(axis=1))
    return x * rows[:, :, None] * columns[:, None]
