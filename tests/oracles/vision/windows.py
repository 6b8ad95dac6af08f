"""Attention in windows of a picture in float64 NumPy, one query at a time."""

import numpy as np

from tests.oracles.vision._layers import softmax


def _heads(x, p):
    return np.einsum("...c,cnd->...nd", x, p["kernel"]) + p.get("bias", 0)


def _joined(heads, p):
    return np.einsum("...nd,ndc->...c", heads, p["kernel"]) + p["bias"]


def _neighbours_in_window(i, j, size, window, shift):
    """Places of the same shifted window and the same side of the border: they are contiguous."""
    ranges = []
    for place, length, width, s in zip((i, j), size, window, shift, strict=True):
        first = (place - s) // width * width + s  # windows start at s, s + width, ...
        ranges.append(range(max(first, 0), min(first + width, length)))
    return [(u, v) for u in ranges[0] for v in ranges[1]]


def _with_bias(x, p, window, neighbours, offset):
    """Attention of each place to its neighbours; `offset` from query to key is looked up."""
    q, k, v = (_heads(x, p[name]) for name in ("query", "key", "value"))
    out = np.zeros_like(v)
    for n in range(x.shape[0]):
        for i in range(x.shape[1]):
            for j in range(x.shape[2]):
                seen = neighbours(i, j)
                for h in range(q.shape[3]):
                    scores = []
                    for u, w in seen:
                        score = q[n, i, j, h] @ k[n, u, w, h] / np.sqrt(q.shape[4])
                        if "relative_bias" in p:
                            down, right = offset(i - u, j - w)
                            row = (down + window[0] - 1) * (2 * window[1] - 1)
                            score += p["relative_bias"][row + right + window[1] - 1, h]
                        scores.append(score)
                    weights = softmax(np.array(scores))
                    for weight, (u, w) in zip(weights, seen, strict=True):
                        out[n, i, j, h] += weight * v[n, u, w, h]
    return _joined(out, p["out"])


def window_attention(x, p, window=(3, 2), shift=(1, 1)):
    def neighbours(i, j):
        return _neighbours_in_window(i, j, x.shape[1:3], window, shift)

    return _with_bias(x, p, window, neighbours, lambda down, right: (down, right))


def grid_attention(x, p, grid=(2, 3)):
    steps = [n // g for n, g in zip(x.shape[1:3], grid, strict=True)]

    def neighbours(i, j):
        rows, columns = range(i % steps[0], x.shape[1], steps[0]), range(x.shape[2])
        return [(u, w) for u in rows for w in columns if (w - j) % steps[1] == 0]

    return _with_bias(
        x, p, grid, neighbours, lambda down, right: (down // steps[0], right // steps[1])
    )


def bottleneck_attention(x, p, scale_positions=True):
    height, width = x.shape[1:3]
    q, k, v = (_heads(x, p[name]) for name in ("query", "key", "value"))
    root = np.sqrt(q.shape[4])
    out = np.zeros_like(v)
    for n, i, j, h in np.ndindex(*q.shape[:4]):
        query, scores = q[n, i, j, h], np.zeros((height, width))
        for u in range(height):
            for w in range(width):
                position = query @ p["relative_height"][u - i + height - 1]
                position += query @ p["relative_width"][w - j + width - 1]
                content = query @ k[n, u, w, h] / root
                scores[u, w] = content + (position / root if scale_positions else position)
        weights = softmax(scores.ravel()).reshape(height, width)
        out[n, i, j, h] = np.einsum("uw,uwd->d", weights, v[n, :, :, h])
    return out.reshape(*x.shape[:3], -1)


def halo_attention(x, p, block=2, halo=3, scale_positions=True, mask_padding=False):
    size, span = x.shape[1:3], block + 2 * halo
    q, k, v = (_heads(x, p[name]) for name in ("query", "key", "value"))
    root = np.sqrt(q.shape[4])
    out = np.zeros_like(v)
    for n, i, j, h in np.ndindex(*q.shape[:4]):
        query, scores, values = q[n, i, j, h], [], []
        for a in range(span):
            for b in range(span):
                u, w = i // block * block + a - halo, j // block * block + b - halo
                inside = 0 <= u < size[0] and 0 <= w < size[1]
                if mask_padding and not inside:
                    continue
                position = query @ p["relative_height"][a - i % block + span - 1]
                position += query @ p["relative_width"][b - j % block + span - 1]
                content = query @ k[n, u, w, h] / root if inside else 0.0
                scores.append(content + (position / root if scale_positions else position))
                values.append(v[n, u, w, h] if inside else np.zeros(v.shape[4]))
        out[n, i, j, h] = softmax(np.array(scores)) @ np.array(values)
    return out.reshape(*x.shape[:3], -1)
