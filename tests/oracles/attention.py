"""Attention in float64 NumPy, one query and one head at a time."""

import numpy as np


def dot_product_attention(
    query,
    key,
    value,
    bias=None,
    mask=None,
    *,
    scale=None,
    is_causal=False,
    query_seq_lengths=None,
    key_value_seq_lengths=None,
    local_window_size=None,
    sink=None,
    keep=None,
    rate=0.0,
):
    """Returns the output `[B, T, N, Dv]`, the LSE `[B, T, N]` and the weights `[B, N, T, S]`."""
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    batch, length_q, num_heads, head_dim = query.shape
    length_k, num_kv_heads = key.shape[1:3]
    full = (batch, num_heads, length_q, length_k)
    bias = np.zeros(full) if bias is None else np.broadcast_to(bias, full)
    mask = np.ones(full, bool) if mask is None else np.broadcast_to(mask, full)
    sink = np.broadcast_to(-np.inf if sink is None else sink, (num_heads,))
    scale = 1 / np.sqrt(head_dim) if scale is None else scale
    if isinstance(local_window_size, int):
        local_window_size = (local_window_size, local_window_size)

    def sees(b, n, t, s):
        if not mask[b, n, t, s] or (is_causal and s > t):
            return False
        if local_window_size is not None:
            left, right = local_window_size
            if (left is not None and s < t - left) or (right is not None and s > t + right):
                return False
        if query_seq_lengths is not None and t >= query_seq_lengths[b]:
            return False
        return key_value_seq_lengths is None or s < key_value_seq_lengths[b]

    output = np.zeros((batch, length_q, num_heads, value.shape[-1]))
    lse = np.full((batch, length_q, num_heads), -np.inf)
    weights = np.zeros(full)
    for b in range(batch):
        for n in range(num_heads):
            k = n // (num_heads // num_kv_heads)
            for t in range(length_q):
                seen = [s for s in range(length_k) if sees(b, n, t, s)]
                scores = [scale * query[b, t, n] @ key[b, s, k] + bias[b, n, t, s] for s in seen]
                everything = np.array([*scores, sink[n]])
                peak = everything.max()
                if peak == -np.inf:
                    continue
                lse[b, t, n] = peak + np.log(np.exp(everything - peak).sum())
                for s, score in zip(seen, scores, strict=True):
                    weights[b, n, t, s] = np.exp(score - lse[b, t, n])
                    kept = keep is None or np.broadcast_to(keep, full)[b, n, t, s]
                    output[b, t, n] += weights[b, n, t, s] * kept / (1 - rate) * value[b, s, k]
    return output, lse, weights


def additive_attention(query, key, value, w_query, w_key, w_score, mask=None):
    """Bahdanau's attention for one batch element at a time; `w_score` is a vector."""
    batch, length_q = query.shape[:2]
    length_k = key.shape[1]
    output = np.zeros((batch, length_q, value.shape[-1]))
    weights = np.zeros((batch, length_q, length_k))
    mask = np.ones(weights.shape, bool) if mask is None else np.broadcast_to(mask, weights.shape)
    for b in range(batch):
        for t in range(length_q):
            seen = np.flatnonzero(mask[b, t])
            if not len(seen):
                continue
            scores = [w_score @ np.tanh(query[b, t] @ w_query + key[b, s] @ w_key) for s in seen]
            exponentials = np.exp(np.array(scores) - max(scores))
            weights[b, t, seen] = exponentials / exponentials.sum()
            output[b, t] = weights[b, t] @ value[b]
    return output, weights


def attend(scores, value, seen, *, normalizer="softmax", sink=None, length=1, keep=True, rate=0.0):
    """Attention of given scores, all at once.

    Args:
      scores: Scaled and modified `[B, N, T, S]`.
      value: `[B, S, K, Dv]`.
      seen: Who sees whom, broadcasts to the scores.
      normalizer: `"softmax"`, `"sigmoid"` or `"relu"`.
      sink: Of the softmax, one per head `[N]`.
      length: Of `"relu"`.
      keep: What dropout keeps.
      rate: Of dropout.

    Returns:
      The output `[B, T, N, Dv]` and the LSE `[B, T, N]`.
    """
    scores, value = np.asarray(scores, np.float64), np.asarray(value, np.float64)
    seen, keep = (np.broadcast_to(np.asarray(x), scores.shape) for x in (seen, keep))
    lse = np.zeros(scores.shape[:-1])
    if normalizer == "softmax":
        # A sink is a key that every query sees, and whose value is 0.
        first = -np.inf if sink is None else np.asarray(sink, np.float64)[:, None, None]
        first = np.broadcast_to(first, (*scores.shape[:-1], 1))
        everything = np.concatenate([np.where(seen, scores, -np.inf), first], axis=-1)
        peak = np.max(everything, axis=-1)
        some = np.isfinite(peak)
        exponentials = np.exp(everything - np.where(some, peak, 0)[..., None])
        total = np.where(some, np.sum(exponentials, axis=-1), 1)
        weights = exponentials[..., :-1] / total[..., None]
        lse = np.where(some, peak + np.log(total), -np.inf)
    elif normalizer == "sigmoid":
        weights = np.where(seen, 1 / (1 + np.exp(-scores)), 0)
    else:
        weights = np.where(seen, np.maximum(scores, 0) / length, 0)
    weights = weights * keep / (1 - float(rate))
    groups = scores.shape[1] // value.shape[2]
    output = np.einsum("bnts,bsnd->btnd", weights, np.repeat(value, groups, axis=2))
    return output, np.swapaxes(lse, 1, 2)
