"""The gates in float64 NumPy."""

import numpy as np

from tests.oracles.vision._layers import conv2d, hard_swish, linear, norm, relu, sigmoid


def squeeze_excite(x, p):
    pooled = x.mean(axis=(1, 2))
    gate = sigmoid(linear(relu(linear(pooled, p["reduce"])), p["expand"]))
    return x * gate[:, None, None, :]


def channel_attention(x, p):
    def perceptron(pooled):
        return linear(relu(linear(pooled, p["reduce"])), p["expand"])

    gate = sigmoid(perceptron(x.mean(axis=(1, 2))) + perceptron(x.max(axis=(1, 2))))
    return x * gate[:, None, None, :]


def spatial_attention(x, p):
    pooled = np.stack([x.mean(axis=-1), x.max(axis=-1)], axis=-1)
    convolved = conv2d(pooled, p["conv"])
    return x * sigmoid(norm(convolved, p["norm"]) if "norm" in p else convolved)


def cbam(x, p):
    return spatial_attention(channel_attention(x, p["channel"]), p["spatial"])


def eca(x, p):
    kernel = p["conv"]["kernel"][:, 0, 0]
    reach = len(kernel) // 2
    pooled = x.mean(axis=(1, 2))
    channels = pooled.shape[1]
    gate = np.zeros_like(pooled)
    for c in range(channels):
        for tap, weight in enumerate(kernel):
            neighbour = c + tap - reach
            if 0 <= neighbour < channels:
                gate[:, c] += weight * pooled[:, neighbour]
    return x * sigmoid(gate)[:, None, None, :]


def bam(x, p):
    pooled = x.mean(axis=(1, 2))
    hidden = relu(norm(linear(pooled, p["reduce"]), p["reduce_norm"]))
    channel = linear(hidden, p["expand"])
    places = relu(norm(linear(x, p["conv_0"]), p["conv_norm_0"]))
    for i in (1, 2):
        places = relu(norm(conv2d(places, p[f"conv_{i}"], dilation=4), p[f"conv_norm_{i}"]))
    spatial = linear(places, p["project"])
    return x + x * sigmoid(channel[:, None, None, :] + spatial)


def coordinate_attention(x, p):
    height = x.shape[1]
    strips = np.concatenate([x.mean(axis=2), x.mean(axis=1)], axis=1)
    joint = hard_swish(norm(linear(strips, p["reduce"]), p["norm"]))
    rows = sigmoid(linear(joint[:, :height], p["expand_height"]))
    columns = sigmoid(linear(joint[:, height:], p["expand_width"]))
    return x * rows[:, :, None, :] * columns[:, None, :, :]


def simam(x, p):
    del p
    out = np.zeros_like(x)
    for n in range(x.shape[0]):
        for c in range(x.shape[3]):
            plane = x[n, :, :, c]
            deviation = (plane - plane.mean()) ** 2
            variance = deviation.sum() / (plane.size - 1)
            out[n, :, :, c] = plane * sigmoid(deviation / (4 * (variance + 1e-4)) + 0.5)
    return out
