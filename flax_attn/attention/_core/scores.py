"""Scores of a whole problem: what is common to the dense output and the weights for pictures."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flax_attn.attention._core.finite import finite, not_finite, sees
from flax_attn.attention._core.problem import Problem


class Scores(NamedTuple):
    """Modified and masked scores.

    Attributes:
      values: `[*B, N, T, S]` in float32 (float64 for float64 inputs), −∞ where masked.
      seen: Who sees whom `[*B, N, T, S]`, of size 1 where nothing varies; None = all see all.
    """

    values: jax.Array
    seen: jax.Array | None


def scores_of(problem: Problem) -> Scores:
    """s = scale · q·k, modified, −∞ where the query may not see the key.

    If the problem hides keys, queries and keys count as 0 where they are not finite.
    """
    query, key = problem.query.values, problem.key.values
    _, _, num_heads, num_kv_heads = problem.sizes
    seen = problem.visible() if problem.hides else None
    if seen is not None:
        query, key = finite(query), finite(key)
    scores_BKRS = jnp.einsum(
        "...krd,...skd->...krs",
        stack_groups(jnp.swapaxes(query, -3, -2), num_kv_heads),
        key,
        precision=problem.precision,
        preferred_element_type=problem.scores_dtype,
    )
    scores = unstack_groups(scores_BKRS, num_heads)
    scores = problem.modified(_scaled(scores, problem.scale), seen)
    if seen is not None:
        scores = jnp.where(seen, scores, -jnp.inf)
        if problem.score_mod is not None:  # a modifier hides by −∞
            seen = ~jnp.isneginf(scores)
            scores = jnp.where(seen, scores, -jnp.inf)  # which has no derivative there
    return Scores(scores, seen)


def _scaled(products: jax.Array, scale: float | jax.Array) -> jax.Array:
    if isinstance(scale, int | float):
        return products * jnp.asarray(scale, products.dtype)
    scale = jnp.asarray(scale, products.dtype)
    # The gradient of a traced scale sums over all products. One that overflowed, perhaps where
    # nobody sees it, has no gradient.
    finite = jnp.isfinite(products)
    overflow = jax.lax.stop_gradient(products * scale)
    return jnp.where(finite, jnp.where(finite, products, 0) * scale, overflow)


def undefined(problem: Problem, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Queries `[*B, N, T]` whose scores are undefined, and queries whose output is.

    A score is undefined where a query sees something and is not finite, or sees a key that is not.
    An output is undefined where a score is, or where the query sees a value that is not finite.
    """
    bad_query_BNT = jnp.swapaxes(not_finite(problem.query.values), -1, -2)
    of_key, of_value = (
        _per_head(problem, not_finite(x.values)) for x in (problem.key, problem.value)
    )
    sees_key, sees_value = sees(seen, of_key, of_value)
    scores = sees_key | (bad_query_BNT & jnp.any(seen, axis=-1))
    return scores, scores | sees_value


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


def _per_head(problem: Problem, flags_BSK: jax.Array) -> jax.Array:
    """Of key heads to of query heads: `[*B, S, K]` -> `[*B, N, S]`."""
    _, _, num_heads, num_kv_heads = problem.sizes
    flags_BKS = jnp.swapaxes(flags_BSK, -1, -2)
    *batch, _, length = flags_BKS.shape
    flags_BKGS = jnp.broadcast_to(
        flags_BKS[..., None, :], (*batch, num_kv_heads, num_heads // num_kv_heads, length)
    )
    return flags_BKGS.reshape(*batch, num_heads, length)
