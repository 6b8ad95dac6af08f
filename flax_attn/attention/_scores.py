"""Masked scores of a request: what is common to the dense output and the weights for pictures."""

import functools
import operator

import jax
import jax.numpy as jnp

from flax_attn.attention._finite import finite, not_finite
from flax_attn.attention._request import Request

Rows = jax.Array


def masked_scores(
    request: Request, rows: Rows | None = None, cols: Rows | None = None
) -> jax.Array:
    """s = scale · q·k + bias, −∞ where the query may not see the key.

    NaN and infinity behind a mask stay behind it, in value and gradient: the dot product reads 0
    for numbers that are not finite, and a query, key or value that holds one gives the score +∞ to
    those that may see it, of which the normaliser makes NaN rows.

    Args:
      request: The problem. Of its value only the places of NaN and infinity are read.
      rows: Numbers of the queries `[T']`; None = all.
      cols: Numbers of the keys `[S']`; None = all.

    Returns:
      Scores `[*B, N, T', S']` in float32 (float64 for float64 inputs).
    """
    query = _take(request.query, rows, -3)
    key = _take(request.key, cols, -3)
    num_heads, head_dim = query.shape[-2:]
    num_kv_heads = key.shape[-2]
    groups = num_heads // num_kv_heads
    hides = hides_keys(request)
    if hides:
        bad_query_BNT = jnp.swapaxes(not_finite(query), -1, -2)
        bad_key_BSK = not_finite(key)
        if request.value is not None:
            bad_key_BSK |= not_finite(_take(request.value, cols, -3))
        query, key = finite(query), finite(key)

    scores_BKGTS = jnp.einsum(
        "...tkgd,...skd->...kgts",
        query.reshape(*query.shape[:-2], num_kv_heads, groups, head_dim),
        key,
        precision=request.precision,
        preferred_element_type=request.scores_dtype,
    )
    scores = scores_BKGTS.reshape(*request.batch, num_heads, *scores_BKGTS.shape[-2:])
    scores = scores * jnp.asarray(request.scale, scores.dtype)
    if request.bias is not None:
        scores = scores + _window(request.bias, rows, cols).astype(scores.dtype)
    if hides:
        bad_query_BKGT = bad_query_BNT.reshape(scores_BKGTS.shape[:-1])
        bad_key_BK11S = jnp.swapaxes(bad_key_BSK, -1, -2)[..., :, None, None, :]
        bad_BNTS = (bad_query_BKGT[..., None] | bad_key_BK11S).reshape(scores.shape)
        scores = jnp.where(bad_BNTS & ~jnp.isneginf(scores), jnp.inf, scores)
    permitted = allowed(request, rows, cols)
    return scores if permitted is None else jnp.where(permitted, scores, -jnp.inf)


def allowed(request: Request, rows: Rows | None, cols: Rows | None) -> jax.Array | None:
    """Who may see whom, `[*B, N, T', S']`, of size 1 where nothing varies; None = all see all."""
    ndim = len(request.batch) + 3
    row = jnp.arange(request.query.shape[-3]) if rows is None else rows
    col = jnp.arange(request.key.shape[-3]) if cols is None else cols
    row = row.astype(jnp.int32).reshape((1,) * (ndim - 2) + (-1, 1))
    col = col.astype(jnp.int32).reshape((1,) * (ndim - 2) + (1, -1))
    parts = []
    if request.mask is not None:
        parts.append(_window(request.mask, rows, cols))
    if request.is_causal:
        parts.append(col <= row)
    if request.window is not None:
        left, right = request.window
        if left is not None:
            parts.append(row - col <= left)
        if right is not None:
            parts.append(col - row <= right)
    if request.query_seq_lengths is not None:
        parts.append(row < request.query_seq_lengths[..., None, None, None])
    if request.key_value_seq_lengths is not None:
        parts.append(col < request.key_value_seq_lengths[..., None, None, None])
    return functools.reduce(operator.and_, parts) if parts else None


def hides_keys(request: Request) -> bool:
    """Whether some query may not see some key, by a mask or a bias of −∞."""
    return bool(
        request.mask is not None
        or request.bias is not None
        or request.is_causal
        or request.window is not None
        or request.query_seq_lengths is not None
        or request.key_value_seq_lengths is not None
    )


def _take(array: jax.Array, ids: Rows | None, axis: int) -> jax.Array:
    return array if ids is None else jnp.take(array, ids, axis=axis)


def _window(array: jax.Array, rows: Rows | None, cols: Rows | None) -> jax.Array:
    """Rows and columns of `[..., T | 1, S | 1]`; axes of size 1 are left for broadcasting."""
    array = array if array.shape[-2] == 1 else _take(array, rows, -2)
    return array if array.shape[-1] == 1 else _take(array, cols, -1)
