"""Gates of planes and of groups of channels in float64 NumPy, one plane or group at a time."""

import numpy as np

from tests.oracles.vision._layers import conv2d, linear, norm, sigmoid, softmax


def triplet_attention(x, p):
    """Each branch as in the paper: the pooled axis first, the plane of the two others behind."""
    planes = {"cw": (1, 3, 2), "hc": (2, 1, 3), "hw": (3, 1, 2)}
    branches = []
    for name, axes in planes.items():
        if f"conv_{name}" not in p:
            continue
        order = (0, *axes)
        rotated = x.transpose(order)
        z = np.stack([rotated.max(axis=1), rotated.mean(axis=1)], axis=-1)
        gate = sigmoid(norm(conv2d(z, p[f"conv_{name}"]), p[f"norm_{name}"]))[..., 0]
        scaled = rotated * gate[:, None]
        branches.append(scaled.transpose(np.argsort(order)))
    return sum(branches) / len(branches)


def spatial_group_enhance(x, p):
    out = np.zeros_like(x)
    size = x.shape[3] // len(p["scale"])
    for n in range(len(x)):
        for g, (scale, bias) in enumerate(zip(p["scale"], p["bias"], strict=True)):
            own = slice(g * size, (g + 1) * size)
            group = x[n, :, :, own]
            likeness = group @ group.mean(axis=(0, 1))
            deviation = likeness - likeness.mean()
            std = np.sqrt((deviation**2).sum() / (likeness.size - 1))
            gate = sigmoid(scale * deviation / (std + 1e-5) + bias)
            out[n, :, :, own] = group * gate[:, :, None]
    return out


def shuffle_attention(x, p):
    part = len(p["channel_scale"])
    channels = x.shape[3]
    scaled = np.zeros_like(x)
    for n in range(len(x)):
        for c in range(channels):
            plane, i = x[n, :, :, c], c % part
            if c % (2 * part) < part:
                judged = p["channel_scale"][i] * plane.mean() + p["channel_bias"][i]
            else:
                standard = _standardized(plane) * p["norm_scale"][i] + p["norm_bias"][i]
                judged = p["spatial_scale"][i] * standard + p["spatial_bias"][i]
            scaled[n, :, :, c] = plane * sigmoid(judged)
    out = np.zeros_like(x)
    for c in range(channels):
        half, place = divmod(c, channels // 2)
        out[..., 2 * place + half] = scaled[..., c]
    return out


def efficient_multi_scale_attention(x, p):
    out = np.zeros_like(x)
    size, height = len(p["norm_scale"]), x.shape[1]
    for n in range(len(x)):
        for start in range(0, x.shape[3], size):
            group = x[n, :, :, start : start + size]
            strips = np.concatenate([group.mean(axis=1), group.mean(axis=0)])
            mixed = sigmoid(linear(strips, p["pointwise"]))
            first = group * mixed[:height, None] * mixed[None, height:]
            for c in range(size):
                first[..., c] = _standardized(first[..., c])
            first = first * p["norm_scale"] + p["norm_bias"]
            second = conv2d(group[None], p["conv"])[0]
            joint = second @ softmax(first.mean(axis=(0, 1)))
            joint += first @ softmax(second.mean(axis=(0, 1)))
            out[n, :, :, start : start + size] = group * sigmoid(joint)[:, :, None]
    return out


def _standardized(plane):
    return (plane - plane.mean()) / np.sqrt(plane.var() + 1e-5)
