"""The token mixers in float64 NumPy, one image, head, place or window at a time."""

import math

import numpy as np

from tests.oracles.vision._layers import conv2d, linear, norm, relu, softmax


def gelu(x):
    return x * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2))) / 2


def layer_norm(x, p):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-5) * p["scale"] + p["bias"]


def split_heads(x, p):
    """`[..., C]` by a kernel `[C, N, D]` -> `[..., N, D]`."""
    return np.tensordot(x, p["kernel"], axes=(-1, 0)) + p.get("bias", 0)


def join_heads(heads, p):
    """`[..., N, D]` by a kernel `[N, D, C]` -> `[..., C]`."""
    return np.tensordot(heads, p["kernel"], axes=([-2, -1], [0, 1])) + p.get("bias", 0)


def attend(query, key, value):
    """Of one head: `[T, D]`, `[S, D]`, `[S, D]` -> `[T, D]`."""
    return softmax(query @ key.T / math.sqrt(query.shape[-1])) @ value


def tokens(x):
    return x.reshape(x.shape[0], -1, x.shape[-1])


def multi_head(queries, keys, p):
    """Attention from tokens `[B, T, C]` to tokens `[B, S, C]`."""
    query = split_heads(queries, p["query"])
    key, value = split_heads(keys, p["key"]), split_heads(keys, p["value"])
    heads = np.zeros(query.shape)
    for b in range(query.shape[0]):
        for n in range(query.shape[2]):
            heads[b, :, n] = attend(query[b, :, n], key[b, :, n], value[b, :, n])
    return join_heads(heads, p["out"])


def cross_covariance_attention(x, p):
    query, key, value = (split_heads(tokens(x), p[name]) for name in ("query", "key", "value"))
    heads = np.zeros(value.shape)
    for b in range(query.shape[0]):
        for n, factor in enumerate(p["temperature"]):
            q, k = (
                a[b, :, n] / np.maximum(np.linalg.norm(a[b, :, n], axis=0), 1e-12)
                for a in (query, key)
            )
            heads[b, :, n] = value[b, :, n] @ softmax(factor * q.T @ k).T
    return join_heads(heads, p["out"]).reshape(x.shape)


def patches(x, size):
    """Each patch of size × size places as one place `[B, H // size, W // size, size² C]`."""
    images, height, width, channels = x.shape
    rows, columns = height // size, width // size
    out = np.zeros((images, rows, columns, size * size * channels))
    for i in range(rows):
        for j in range(columns):
            patch = x[:, size * i : size * (i + 1), size * j : size * (j + 1)]
            out[:, i, j] = patch.reshape(images, -1)
    return out


def adaptive_mean(x, size):
    """Means over size × size bins, as even as they can be; they overlap where they must."""
    images, height, width, channels = x.shape
    out = np.zeros((images, size, size, channels))
    for i in range(size):
        rows = slice(i * height // size, -(-(i + 1) * height // size))
        for j in range(size):
            columns = slice(j * width // size, -(-(j + 1) * width // size))
            out[:, i, j] = x[:, rows, columns].mean(axis=(1, 2))
    return out


def spatial_reduction_attention(x, p, pool_size=None, activation=None):
    seen = x if pool_size is None else adaptive_mean(x, pool_size)
    if "reduce" in p:
        size, _, channels, features = p["reduce"]["kernel"].shape
        kernel = p["reduce"]["kernel"].reshape(size * size * channels, features)
        seen = layer_norm(patches(seen, size) @ kernel + p["reduce"].get("bias", 0), p["norm"])
    seen = seen if activation is None else activation(seen)
    return multi_head(tokens(x), tokens(seen), p).reshape(x.shape)


def attention_pool(x, p):
    places = tokens(x)
    everything = np.concatenate([places.mean(axis=1, keepdims=True), places], axis=1)
    everything = everything + p["positions"]
    return multi_head(everything[:, :1], everything, p)[:, 0]


def separable_attention(x, p, patch_size=1):
    scores = linear(x, p["score"])[..., 0]
    key, value = linear(x, p["key"]), relu(linear(x, p["value"]))
    out = np.zeros(value.shape)
    for b in range(x.shape[0]):
        for i in range(patch_size):
            for j in range(patch_size):
                same = (b, slice(i, None, patch_size), slice(j, None, patch_size))
                weights = softmax(scores[same].ravel()).reshape(scores[same].shape)
                context = (weights[..., None] * key[same]).sum(axis=(0, 1))
                out[same] = value[same] * context
    return linear(out, p["out"])


def outlook_attention(x, p, num_heads=8, kernel_size=3, stride=1):
    images, height, width, channels = x.shape
    taps, reach, depth = kernel_size**2, kernel_size // 2, channels // num_heads
    value = linear(x, p["value"]).reshape(images, height, width, num_heads, depth)
    out = np.zeros(value.shape)
    for i in range(0, height, stride):
        for j in range(0, width, stride):
            pooled = x[:, i : i + stride, j : j + stride].mean(axis=(1, 2))
            scores = linear(pooled, p["score"]).reshape(images, num_heads, taps, taps)
            weights = softmax(scores / math.sqrt(depth))
            window = [
                (i + a - reach, j + b - reach)
                for a in range(kernel_size)
                for b in range(kernel_size)
            ]
            inside = [0 <= u < height and 0 <= v < width for u, v in window]
            for t, target in enumerate(window):
                for s, source in enumerate(window):
                    if inside[t] and inside[s]:
                        seen = weights[:, :, t, s, None] * value[:, source[0], source[1]]
                        out[:, target[0], target[1]] += seen
    return linear(out.reshape(x.shape), p["out"])


def focal_modulation(x, p, normalize_modulator=False):
    gates = linear(x, p["gate"])
    levels = gates.shape[-1] - 1
    context, modulator = linear(x, p["context"]), 0
    for level in range(levels):
        context = gelu(conv2d(context, p[f"conv_{level}"], groups=x.shape[-1]))
        modulator = modulator + gates[..., level : level + 1] * context
    everywhere = gelu(context.mean(axis=(1, 2), keepdims=True))
    modulator = modulator + gates[..., levels:] * everywhere
    if normalize_modulator:
        modulator = modulator / (levels + 1)
    return linear(linear(x, p["query"]) * linear(modulator, p["modulate"]), p["out"])


def lambda_layer(x, p):
    query = norm(linear(x, p["query"]), p["query_norm"])
    key = linear(x, p["key"])
    value = norm(linear(x, p["value"]), p["value_norm"])
    depth = key.shape[-1]
    num_heads = query.shape[-1] // depth
    out = np.zeros((*x.shape[:3], num_heads, value.shape[-1]))
    for b in range(x.shape[0]):
        weights = softmax(tokens(key)[b], axis=0)
        content = weights.T @ tokens(value)[b]
        for c in range(value.shape[-1]):
            plane = value[b : b + 1, ..., c : c + 1]
            lambdas = content[:, c] + conv2d(plane, p["position"])[0]
            for n in range(num_heads):
                q = query[b, ..., n * depth : (n + 1) * depth]
                out[b, ..., n, c] = (q * lambdas).sum(axis=-1)
    return out.reshape(*x.shape[:3], -1)
