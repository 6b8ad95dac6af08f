"""Latent attention in float64 NumPy: keys and values of one head and one token at a time."""

import numpy as np

from tests.oracles import rotary


def rms_norm(x, scale, epsilon=1e-6):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale


def latent_attention(
    x,
    weights,
    *,
    positions=None,
    frequencies=(),
    seen=None,
    scale=None,
    attention_factor=1.0,
):
    """Returns the output `[B, T, Mo]`.

    Args:
      x: `[B, T, M]`.
      weights: `query`, `kv_down`, `key_up`, `value_up`, `out`; `query_down`, `query_norm` and
        `kv_norm` (scales) if there are any.
      positions: `[T]`.
      frequencies: Of the rotary features, which are interleaved.
      seen: Which tokens each token sees `[T, T]`.
      scale: Of the scores.
      attention_factor: Of cosines and sines.
    """
    w = {name: np.asarray(a, np.float64) for name, a in weights.items()}
    x = np.asarray(x, np.float64)
    batch, length, _ = x.shape
    rank, num_heads, nope = w["key_up"].shape
    positions = np.arange(length) if positions is None else positions
    seen = np.ones((length, length), bool) if seen is None else seen

    def turned(a):  # [T, features]
        factor = {"layout": "interleaved", "attention_factor": attention_factor}
        return rotary.rotate(a[:, None], positions, frequencies, **factor)[:, 0]

    output = np.zeros((batch, length, w["out"].shape[-1]))
    for b in range(batch):
        latent = x[b] @ w["kv_down"]
        compressed, rotary_key = latent[:, :rank], turned(latent[:, rank:])
        if "kv_norm" in w:
            compressed = rms_norm(compressed, w["kv_norm"])
        low = x[b] @ w["query_down"] if "query_down" in w else x[b]
        low = rms_norm(low, w["query_norm"]) if "query_norm" in w else low
        for n in range(num_heads):
            query = low @ w["query"][:, n]
            query_rope = turned(query[:, nope:])
            keys = np.concatenate([compressed @ w["key_up"][:, n], rotary_key], axis=-1)
            values = compressed @ w["value_up"][:, n]
            for t in range(length):
                q = np.concatenate([query[t, :nope], query_rope[t]])
                scores = keys[seen[t]] @ q * (1 / np.sqrt(q.size) if scale is None else scale)
                p = np.exp(scores - scores.max())
                output[b, t] += p / p.sum() @ values[seen[t]] @ w["out"][n]
    return output
