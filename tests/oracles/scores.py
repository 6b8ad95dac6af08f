"""Score modifiers in float64 NumPy, one score at a time."""

import math

import numpy as np


def modify(rule, scores, query, key, head_ids, **parameters):
    """The rule at every score `[B, N, T, S]`.

    `query` and `key` are dictionaries of features `[B, T]`, or `[B, T, N]` where they differ
    between heads; a rule sees them as dictionaries of single numbers.
    """
    out = np.zeros(scores.shape)
    batch, heads, length_q, length_k = scores.shape
    for b in range(batch):
        for n in range(heads):
            rows = [{x: _pick(v, b, t, n) for x, v in query.items()} for t in range(length_q)]
            cols = [{x: _pick(v, b, s, n) for x, v in key.items()} for s in range(length_k)]
            for t, i in enumerate(rows):
                for s, j in enumerate(cols):
                    place = {"h": int(head_ids[n]), "at": (b, n, t, s)}
                    out[b, n, t, s] = rule(float(scores[b, n, t, s]), i, j, place, **parameters)
    return out


def _pick(values, b, token, head):
    values = values[b if values.shape[0] > 1 else 0, token]
    return (values if values.ndim == 0 else values[head]).item()


def _of_head(values, place):
    return values[place["h"]] if np.ndim(values) else values


def scale(s, i, j, place, factor):
    return s * _of_head(factor, place)


def temperature(s, i, j, place, attn_scale, floor_scale):
    step = math.floor((i["positions"] + 1) / floor_scale)
    return s * (math.log(step + 1) * attn_scale + 1)


def soft_cap(s, i, j, place, cap):
    return cap * math.tanh(s / cap)


def alibi(s, i, j, place, slopes):
    return s - _of_head(slopes, place) * abs(i["positions"] - j["positions"])


def alibi_slopes(heads):
    """The recipe of the paper's code."""

    def of_power(n):
        start = 2.0 ** -(2.0 ** -(math.log2(n) - 3))
        return [start * start**x for x in range(n)]

    if math.log2(heads).is_integer():
        return of_power(heads)
    below = 2 ** math.floor(math.log2(heads))
    return of_power(below) + alibi_slopes(2 * below)[0::2][: heads - below]


def relative(s, i, j, place, table):
    reach = (len(table) - 1) // 2
    row = min(max(j["positions"] - i["positions"], -reach), reach) + reach
    return s + table[row, place["h"]]


def relative_2d(s, i, j, place, table, window):
    height, width = window
    down = min(max(i["row"] - j["row"], 1 - height), height - 1)
    right = min(max(i["col"] - j["col"], 1 - width), width - 1)
    return s + table[(down + height - 1) * (2 * width - 1) + right + width - 1, place["h"]]


def t5_bucket(distance, num_buckets, max_distance, bidirectional):
    """As T5's code: key minus query, logarithms in float32."""
    bucket = 0
    if bidirectional:
        num_buckets //= 2
        if distance > 0:
            bucket += num_buckets
        distance = abs(distance)
    else:
        distance = -min(distance, 0)
    max_exact = num_buckets // 2
    if distance < max_exact:
        return bucket + distance
    steps = np.log(np.float32(distance) / np.float32(max_exact))
    steps = steps / np.float32(math.log(max_distance / max_exact))
    steps = int(steps * np.float32(num_buckets - max_exact))
    return bucket + min(max_exact + steps, num_buckets - 1)


def t5(s, i, j, place, table, max_distance, bidirectional):
    distance = j["positions"] - i["positions"]
    return s + table[t5_bucket(distance, len(table), max_distance, bidirectional), place["h"]]


def distance(s, i, j, place, weight, axes):
    square = sum((i[axis] - j[axis]) ** 2 for axis in axes)
    return s - _of_head(weight, place) * math.sqrt(square)


def forget(s, i, j, place, feature):
    return s + i[feature] - j[feature]


def bias(s, i, j, place, values):
    values = values.reshape((1,) * (4 - values.ndim) + values.shape)
    at = tuple(x if size > 1 else 0 for x, size in zip(place["at"], values.shape, strict=True))
    return s + values[at]
