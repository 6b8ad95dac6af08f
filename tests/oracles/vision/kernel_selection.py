"""Large kernels, and the choice between kernels, in float64 NumPy."""

import numpy as np

from tests.oracles.vision._layers import conv2d, linear, norm, relu, sigmoid, softmax


def selective_kernel(x, p, dilations=(1, 2), stride=1):
    features, inputs = p["conv_0"]["kernel"].shape[-1], p["conv_0"]["kernel"].shape[-2]
    groups = x.shape[-1] // inputs
    paths = []
    for i, dilation in enumerate(dilations):
        convolved = conv2d(x, p[f"conv_{i}"], dilation=dilation, groups=groups)
        paths.append(relu(norm(convolved[:, ::stride, ::stride], p[f"conv_norm_{i}"])))
    pooled = sum(paths).mean(axis=(1, 2))
    hidden = relu(norm(linear(pooled, p["reduce"]), p["reduce_norm"]))
    logits = linear(hidden, p["select"])
    out = np.zeros_like(paths[0])
    for c in range(features):
        weights = softmax(logits[:, c::features], axis=1)
        for i, path in enumerate(paths):
            out[..., c] += weights[:, i, None, None] * path[..., c]
    return out


def split_attention(x, p, radix=2, groups=1, stride=1):
    convolved = conv2d(x, p["conv"], groups=radix * groups)[:, ::stride, ::stride]
    splits = np.split(relu(norm(convolved, p["conv_norm"])), radix, axis=-1)
    pooled = sum(splits).mean(axis=(1, 2), keepdims=True)
    hidden = relu(norm(conv2d(pooled, p["reduce"], groups=groups), p["reduce_norm"]))
    logits = conv2d(hidden, p["expand"], groups=groups)[:, 0, 0]
    features = splits[0].shape[-1]
    width = features // groups
    out = np.zeros_like(splits[0])
    for c in range(features):
        group, within = divmod(c, width)
        places = [group * radix * width + s * width + within for s in range(radix)]
        weights = sigmoid(logits[:, places]) if radix == 1 else softmax(logits[:, places])
        for s, split in enumerate(splits):
            out[..., c] += weights[:, s, None, None] * split[..., c]
    return out


def _depthwise(x, p, dilation=1):
    return conv2d(x, p, dilation=dilation, groups=x.shape[-1])


def large_kernel_attention(x, p):
    near = _depthwise(x, p["local_conv"])
    return x * linear(_depthwise(near, p["dilated_conv"], dilation=3), p["project"])


def separable_large_kernel_attention(x, p, dilation=3):
    near = _depthwise(_depthwise(x, p["local_row"]), p["local_column"])
    far = _depthwise(near, p["dilated_row"], dilation)
    return x * linear(_depthwise(far, p["dilated_column"], dilation), p["project"])


def large_selective_kernel(x, p):
    near = _depthwise(x, p["conv_0"])
    far = _depthwise(near, p["conv_1"], dilation=3)
    scales = [linear(near, p["reduce_0"]), linear(far, p["reduce_1"])]
    channels = np.concatenate(scales, axis=-1)
    pooled = np.stack([channels.mean(axis=-1), channels.max(axis=-1)], axis=-1)
    masks = sigmoid(conv2d(pooled, p["select"]))
    selected = scales[0] * masks[..., :1] + scales[1] * masks[..., 1:]
    return x * linear(selected, p["project"])


def context_anchor_attention(x, p):
    def silu_norm(u, name):
        if name not in p:
            return u
        norm = p[name]
        normed = (u - norm["mean"]) / np.sqrt(norm["var"] + 1e-3) * norm["scale"] + norm["bias"]
        return normed * sigmoid(normed)

    pooled = np.zeros_like(x)
    height, width = x.shape[1:3]
    for i in range(height):
        for j in range(width):
            window = x[:, max(i - 3, 0) : i + 4, max(j - 3, 0) : j + 4]
            pooled[:, i, j] = window.sum(axis=(1, 2)) / 49
    context = silu_norm(linear(pooled, p["project_in"]), "norm_in")
    strips = _depthwise(_depthwise(context, p["row"]), p["column"])
    return x * sigmoid(silu_norm(linear(strips, p["project_out"]), "norm_out"))
