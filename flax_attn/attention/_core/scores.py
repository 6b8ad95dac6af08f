"""All scores of a problem at once: for the dense output, and for weights as pictures."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flax_attn.attention._core.finite import finite, not_finite, sees
from flax_attn.attention._core.heads import stack_groups, unstack_groups
from flax_attn.attention._core.problem import Problem
from flax_attn.attention._core.products import Blocks, key_product


class Scores(NamedTuple):
    """Modified and masked scores.

    Attributes:
      values: `[*B, N, T, S]` in float32 (float64 for float64 inputs), −∞ where masked.
      visible: Which pairs are visible `[*B, N, T, S]`, of size 1 where nothing varies; None = all.
    """

    values: jax.Array
    visible: jax.Array | None


def scores_of(
    problem: Problem, *, assume_finite: bool = False, blocks: Blocks | None = None
) -> Scores:
    """s = scale · q·k, modified, −∞ for invisible pairs.

    If the problem may hide pairs, 0 replaces queries and keys that are not finite.

    Args:
      problem: The problem.
      assume_finite: If True, queries and keys are read as they are. Scores of those that are not
        finite are NaN.
      blocks: How keys are read. Those of the problem may be more; the rest of it must not be.
    """
    query, key = problem.query.values, problem.key.values
    _, _, num_heads, num_kv_heads = problem.sizes
    visible = problem.visible() if problem.may_hide else None
    if visible is not None and not assume_finite:
        query, key = finite(query), finite(key)
    products_BKRS = key_product(
        problem,
        stack_groups(jnp.swapaxes(query, -3, -2), num_kv_heads),
        jnp.swapaxes(key, -3, -2),
        blocks,
    )
    products = unstack_groups(products_BKRS, num_heads)
    scores = _scaled(products, problem.scale)
    if assume_finite:
        scores = jnp.where(jnp.isfinite(scores), scores, jnp.nan)
    scores = problem.modified(scores, visible)
    if visible is not None:
        scores = jnp.where(visible, scores, -jnp.inf)
        if problem.score_mod is not None:  # a modifier hides by −∞
            visible = ~jnp.isneginf(scores)
            scores = jnp.where(visible, scores, -jnp.inf)  # which has no derivative there
    return Scores(scores, visible)


def _scaled(products: jax.Array, scale: float | jax.Array) -> jax.Array:
    if isinstance(scale, int | float):
        return products * jnp.asarray(scale, products.dtype)
    scale = jnp.asarray(scale, products.dtype)
    # The gradient of a traced scale sums over all products. A product that overflowed, perhaps for
    # an invisible pair, has no gradient.
    is_finite = jnp.isfinite(products)
    overflow = jax.lax.stop_gradient(products * scale)
    return jnp.where(is_finite, jnp.where(is_finite, products, 0) * scale, overflow)


def undefined(problem: Problem, visible: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Queries `[*B, N, T]` whose scores are undefined, and queries whose output is.

    A score is undefined where a query that sees any key is not finite, or sees a key that is not.
    An output is undefined where a score is, or where the query sees a value that is not finite.
    """
    bad_query_BNT = jnp.swapaxes(not_finite(problem.query.values), -1, -2)
    bad_key_BNS, bad_value_BNS = (
        _per_query_head(problem, not_finite(x.values)) for x in (problem.key, problem.value)
    )
    sees_key, sees_value = sees(visible, bad_key_BNS, bad_value_BNS)
    scores = sees_key | (bad_query_BNT & jnp.any(visible, axis=-1))
    return scores, scores | sees_value


def _per_query_head(problem: Problem, flags_BSK: jax.Array) -> jax.Array:
    """Flags of key heads, for query heads: `[*B, S, K]` -> `[*B, N, S]`."""
    _, _, num_heads, num_kv_heads = problem.sizes
    flags_BKS = jnp.swapaxes(flags_BSK, -1, -2)
    *batch, _, length = flags_BKS.shape
    flags_BKGS = jnp.broadcast_to(
        flags_BKS[..., None, :], (*batch, num_kv_heads, num_heads // num_kv_heads, length)
    )
    return flags_BKGS.reshape(*batch, num_heads, length)
