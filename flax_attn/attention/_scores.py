"""Masked scores of a request: what is common to the dense output and the weights for pictures."""

import functools
import operator

import jax
import jax.numpy as jnp

from flax_attn.attention._finite import finite, not_finite, sees
from flax_attn.attention._request import Request

Rows = jax.Array


def masked_scores(
    request: Request, rows: Rows | None = None, cols: Rows | None = None
) -> jax.Array:
    """s = scale · q·k + bias, −∞ where the query may not see the key.

    Args:
      request: The problem. If it hides keys, queries and keys count as 0 where they are not finite.
      rows: Numbers of the queries `[T']`; None = all.
      cols: Numbers of the keys `[S']`; None = all.

    Returns:
      Scores `[*B, N, T', S']` in float32 (float64 for float64 inputs).
    """
    query, key = _take(request.query, rows, -3), _take(request.key, cols, -3)
    seen = visible(request, rows, cols)
    if seen is not None:
        query, key = finite(query), finite(key)
    num_heads, num_kv_heads = query.shape[-2], key.shape[-2]
    scores_BKRS = jnp.einsum(
        "...krd,...skd->...krs",
        stack_groups(jnp.swapaxes(query, -3, -2), num_kv_heads),
        key,
        precision=request.precision,
        preferred_element_type=request.scores_dtype,
    )
    scores = unstack_groups(scores_BKRS, num_heads)
    if seen is not None and not isinstance(request.scale, float | int):
        # The gradient of a scale sums over all products, an overflow behind the mask included.
        scores = jnp.where(seen, scores, 0)
    scores = scores * jnp.asarray(request.scale, scores.dtype)
    if request.bias is not None:
        scores = scores + _window(request.bias, rows, cols).astype(scores.dtype)
    return scores if seen is None else jnp.where(seen, scores, -jnp.inf)


def stack_groups(rows: jax.Array, num_kv_heads: int) -> jax.Array:
    """The G heads that share a key head, as rows of one: `[*B, N, T, X]` -> `[*B, K, G T, X]`.

    Dot products then need no repeated keys, and no transposed scores.
    """
    *batch, num_heads, length, features = rows.shape
    groups = num_heads // num_kv_heads
    rows_BKGTX = rows.reshape(*batch, num_kv_heads, groups, length, features)
    return rows_BKGTX.reshape(*batch, num_kv_heads, groups * length, features)


def unstack_groups(rows: jax.Array, num_heads: int) -> jax.Array:
    """The inverse of `stack_groups`: `[*B, K, G T, X]` -> `[*B, N, T, X]`."""
    *batch, num_kv_heads, stacked, features = rows.shape
    groups = num_heads // num_kv_heads
    rows_BKGTX = rows.reshape(*batch, num_kv_heads, groups, stacked // groups, features)
    return rows_BKGTX.reshape(*batch, num_heads, stacked // groups, features)


def visible(
    request: Request, rows: Rows | None = None, cols: Rows | None = None
) -> jax.Array | None:
    """Who sees whom, `[*B, N, T', S']`, of size 1 where nothing varies; None = all see all.

    A bias of −∞ hides a key as a mask does.
    """
    ndim = len(request.batch) + 3
    row = jnp.arange(request.query.shape[-3]) if rows is None else rows
    col = jnp.arange(request.key.shape[-3]) if cols is None else cols
    row = row.astype(jnp.int32).reshape((1,) * (ndim - 2) + (-1, 1))
    col = col.astype(jnp.int32).reshape((1,) * (ndim - 2) + (1, -1))
    parts = []
    if request.mask is not None:
        parts.append(_window(request.mask, rows, cols))
    if request.bias is not None:
        parts.append(~jnp.isneginf(_window(request.bias, rows, cols)))
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


def undefined_scores(request: Request, seen: jax.Array, rows: Rows | None = None) -> jax.Array:
    """Queries `[*B, N, T']` that see something and are not finite, or see a key that is not."""
    bad_query_BNT = jnp.swapaxes(not_finite(_take(request.query, rows, -3)), -1, -2)
    bad_key_BNS = _per_head(request, not_finite(request.key))
    return sees(seen, bad_key_BNS) | (bad_query_BNT & jnp.any(seen, axis=-1))


def undefined_values(request: Request, seen: jax.Array) -> jax.Array:
    """Queries `[*B, N, T]` that see a value that is not finite."""
    assert request.value is not None
    return sees(seen, _per_head(request, not_finite(request.value)))


def _per_head(request: Request, flags_BSK: jax.Array) -> jax.Array:
    """Of key heads to of query heads: `[*B, S, K]` -> `[*B, N, S]`."""
    num_heads, num_kv_heads = request.query.shape[-2], flags_BSK.shape[-1]
    flags_BKS = jnp.swapaxes(flags_BSK, -1, -2)
    *batch, _, length = flags_BKS.shape
    flags_BKGS = jnp.broadcast_to(
        flags_BKS[..., None, :], (*batch, num_kv_heads, num_heads // num_kv_heads, length)
    )
    return flags_BKGS.reshape(*batch, num_heads, length)


def _take(array: jax.Array, ids: Rows | None, axis: int) -> jax.Array:
    return array if ids is None else jnp.take(array, ids, axis=axis)


def _window(array: jax.Array, rows: Rows | None, cols: Rows | None) -> jax.Array:
    """Rows and columns of `[..., T | 1, S | 1]`; axes of size 1 are left for broadcasting."""
    array = array if array.shape[-2] == 1 else _take(array, rows, -2)
    return array if array.shape[-1] == 1 else _take(array, cols, -1)
