"""Mechanisms that mix all places (or channels) of an image, one place at a time."""

import numpy as np

from tests.oracles.vision._layers import linear, norm, relu, softmax


def places(x):
    """Every place of every image: its number and its coordinates."""
    images, height, width, _ = x.shape
    return [(n, i, j) for n in range(images) for i in range(height) for j in range(width)]


def non_local(x, p):
    q, k, v = (linear(x, p[name]) for name in ("query", "key", "value"))
    mixed = np.zeros_like(v)
    for n, i, j in places(x):
        scores = np.sum(k[n] * q[n, i, j], axis=-1) / np.sqrt(q.shape[-1])
        weights = softmax(scores.ravel()).reshape(scores.shape)
        mixed[n, i, j] = np.sum(weights[..., None] * v[n], axis=(0, 1))
    return norm(linear(mixed, p["out"]), p["norm"]) + x


def position_attention(x, p):
    q, k, v = (linear(x, p[name]) for name in ("query", "key", "value"))
    out = np.zeros_like(x)
    for n, i, j in places(x):
        scores = np.sum(k[n] * q[n, i, j], axis=-1)
        weights = softmax(scores.ravel()).reshape(scores.shape)
        mixed = np.sum(weights[..., None] * v[n], axis=(0, 1))
        out[n, i, j] = p["gamma"] * mixed + x[n, i, j]
    return out


def channel_affinity_attention(x, p):
    out = np.zeros_like(x)
    images, _, _, channels = x.shape
    for n in range(images):
        for c in range(channels):
            energy = np.array([np.sum(x[n, ..., c] * x[n, ..., d]) for d in range(channels)])
            weights = softmax(energy.max() - energy)
            out[n, ..., c] = p["gamma"] * (x[n] @ weights) + x[n, ..., c]
    return out


def criss_cross_attention(x, p):
    for _ in range(2):
        x = criss_cross_step(x, p)
    return x


def criss_cross_step(x, p):
    q, k, v = (linear(x, p[name]) for name in ("query", "key", "value"))
    _, height, width, _ = x.shape
    out = np.zeros_like(x)
    for n, i, j in places(x):
        cross = [(u, j) for u in range(height) if u != i] + [(i, w) for w in range(width)]
        weights = softmax(np.array([k[n, u, w] @ q[n, i, j] for u, w in cross]))
        mixed = sum(a * v[n, u, w] for a, (u, w) in zip(weights, cross, strict=True))
        out[n, i, j] = p["gamma"] * mixed + x[n, i, j]
    return out


def external_attention(x, p):
    scores = linear(linear(x, p["query"]), p["key"])
    weights = np.zeros_like(scores)
    for n in range(x.shape[0]):
        for s in range(scores.shape[-1]):
            slot = scores[n, ..., s]
            weights[n, ..., s] = softmax(slot.ravel()).reshape(slot.shape)
    for n, i, j in places(x):
        weights[n, i, j] /= 1e-9 + weights[n, i, j].sum()
    mixed = linear(linear(weights, p["value"]), p["out"])
    return relu(norm(mixed, p["norm"]) + x)


def double_attention(x, p):
    features, gather, distribute = (
        linear(x, p[name]) for name in ("value", "gather", "distribute")
    )
    mixed = np.zeros_like(features)
    for n in range(x.shape[0]):
        descriptors = []
        for s in range(gather.shape[-1]):
            weights = softmax(gather[n, ..., s].ravel()).reshape(gather.shape[1:3])
            descriptors.append(np.sum(weights[..., None] * features[n], axis=(0, 1)))
        for i, j in np.ndindex(*x.shape[1:3]):
            weights = softmax(distribute[n, i, j])
            mixed[n, i, j] = sum(w * d for w, d in zip(weights, descriptors, strict=True))
    return linear(mixed, p["out"]) + x
