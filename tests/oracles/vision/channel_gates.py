"""The gates of channels by one map, by norms and by frequencies, and global context, in NumPy."""

import math

import numpy as np

from tests.oracles.vision._layers import linear, relu, sigmoid


def effective_squeeze_excite(x, p):
    projected = linear(x.mean(axis=(1, 2)), p["project"])
    return x * np.clip((projected + 3) / 6, 0, 1)[:, None, None, :]


def scse(x, p, combine="max"):
    hidden = relu(linear(x.mean(axis=(1, 2)), p["reduce"]))
    by_channel = x * sigmoid(linear(hidden, p["expand"]))[:, None, None, :]
    by_place = x * sigmoid(linear(x, p["project"]))
    return np.maximum(by_channel, by_place) if combine == "max" else by_channel + by_place


def global_context(x, p, combine="add"):
    out = np.zeros_like(x)
    for n, image in enumerate(x):
        places = image.reshape(-1, image.shape[-1])
        if "score" in p:
            exponentials = [math.exp(linear(place, p["score"]).item()) for place in places]
            weights = [e / sum(exponentials) for e in exponentials]
        else:
            weights = [1 / len(places)] * len(places)
        context = sum(weight * place for weight, place in zip(weights, places, strict=True))
        hidden = linear(context, p["reduce"])
        centred = hidden - hidden.mean()
        normal = centred / np.sqrt((centred**2).mean() + 1e-5)
        hidden = relu(normal * p["norm"]["scale"] + p["norm"]["bias"])
        term = linear(hidden, p["expand"])
        out[n] = image + term if combine == "add" else image * sigmoid(term)
    return out


def gated_channel_transform(x, p, epsilon=1e-5):
    out = np.zeros_like(x)
    for n, image in enumerate(x):
        channels = range(image.shape[-1])
        norms = [math.sqrt((image[:, :, c] ** 2).sum() + epsilon) for c in channels]
        e = [p["alpha"][c] * norms[c] for c in channels]
        mean = sum(embedding**2 for embedding in e) / len(e)
        for c in channels:
            normal = p["gamma"][c] / math.sqrt(mean + epsilon)
            out[n, :, :, c] = image[:, :, c] * (1 + math.tanh(e[c] * normal + p["beta"][c]))
    return out


# The ranking that the paper found, (u, v) as two digits.
BEST = (
    "00 01 60 05 02 10 12 40 50 16 30 04 06 03 35 22 "
    "46 63 33 53 55 21 61 52 54 32 31 41 23 20 65 13"
)


def frequency_channel_attention(x, p, frequencies=16, dct_size=(7, 7)):
    images, height, width, channels = x.shape
    pairs = [(int(uv[0]), int(uv[1])) for uv in BEST.split()[:frequencies]]
    rows, columns = dct_size
    bins = np.zeros((images, rows, columns, channels))
    for i in range(rows):
        for j in range(columns):
            top, bottom = math.floor(i * height / rows), math.ceil((i + 1) * height / rows)
            left, right = math.floor(j * width / columns), math.ceil((j + 1) * width / columns)
            bins[:, i, j] = x[:, top:bottom, left:right].mean(axis=(1, 2))
    coefficients = np.zeros((images, channels))
    for c in range(channels):
        u, v = pairs[c * len(pairs) // channels]
        for i in range(rows):
            for j in range(columns):
                basis = _cosine(u, i, rows) * _cosine(v, j, columns)
                coefficients[:, c] += basis * bins[:, i, j, c]
    gate = sigmoid(linear(relu(linear(coefficients, p["reduce"])), p["expand"]))
    return x * gate[:, None, None, :]


def _cosine(frequency, place, places):
    u = frequency * (places // 7)
    wave = math.cos(math.pi * u * (place + 0.5) / places) / math.sqrt(places)
    return wave if u == 0 else wave * math.sqrt(2)
