"""Which blocks of pairs a kernel visits: for each block of rows, a list of blocks of columns.

A kernel that sums over keys has blocks of queries as rows, one that sums over queries has blocks of
keys. Empty blocks are in no list. A full block is visited without its mask.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn.attention._core.problem import GivenBlocks, Problem
from flax_attn.masks.plan import EMPTY, FULL, PARTIAL, block_kinds, in_common


class Visits(NamedTuple):
    """The blocks of columns that each block of rows visits.

    Attributes:
      blocks: 2 · block + (whether it needs the mask), `[B | 1, N | 1, rows, steps]`. The last visit
        is repeated to the end, so that nothing else is fetched there.
      counts: The number of visits `[B | 1, N | 1, rows]`.
    """

    blocks: jax.Array
    counts: jax.Array


def kinds_of_blocks(problem: Problem, block: tuple[int, int]) -> jax.Array:
    """EMPTY, PARTIAL or FULL for each block of pairs `[B | 1, N | 1, nq, nk]`.

    A block at the end of the keys that has fewer of them is at most PARTIAL.

    Args:
      problem: A problem with one batch axis.
      block: Numbers of queries and of keys in a block.
    """
    length_q, length_k, _, _ = problem.sizes
    counts = tuple(math.ceil(n / size) for n, size in zip((length_q, length_k), block, strict=True))
    if problem.plan is not None and serves(problem.plan, block):
        factors = [size // given for size, given in zip(block, problem.plan.block, strict=True)]
        kinds = coarsened(problem.plan.kinds.values, *factors)
    elif problem.may_hide:
        kinds = block_kinds(problem.mask, *problem.records(), block)
    else:
        kinds = jnp.full((1, 1, *counts), FULL, jnp.int8)
    if length_k % block[1]:
        kinds = kinds.at[..., -1].min(PARTIAL)
    return kinds


def serves(plan: GivenBlocks, block: tuple[int, int]) -> bool:
    """Whether a given block map tells the kinds of larger blocks: each is made of whole ones."""
    return all(size % given == 0 for size, given in zip(block, plan.block, strict=True))


def coarsened(kinds: jax.Array, rows: int, columns: int) -> jax.Array:
    """The kinds of larger blocks, of `rows` × `columns` blocks each."""
    *lead, nq, nk = kinds.shape
    for axis, (size, count) in ((-2, (rows, nq)), (-1, (columns, nk))):
        if (missing := -count % size) > 0:  # blocks beyond the end are of the kind of the last
            last = jnp.take(kinds, jnp.array([count - 1] * missing), axis=axis)
            kinds = jnp.concatenate([kinds, last], axis=axis)
    kinds = kinds.reshape(*lead, -(-nq // rows), rows, -(-nk // columns), columns)
    return in_common(in_common(kinds, -3), -1)


def visits(kinds: jax.Array) -> Visits:
    """The visits of each block of rows, from the kinds `[B | 1, N | 1, rows, columns]`."""
    empty = kinds == EMPTY
    order = jnp.argsort(empty, axis=-1, stable=True).astype(jnp.int32)
    needs_mask = jnp.take_along_axis(kinds, order, axis=-1) != FULL
    counts = jnp.sum(~empty, axis=-1, dtype=jnp.int32)
    steps = lax.broadcasted_iota(jnp.int32, kinds.shape, kinds.ndim - 1)
    last = jnp.minimum(steps, jnp.maximum(counts[..., None] - 1, 0))
    blocks = jnp.take_along_axis(2 * order + needs_mask.astype(jnp.int32), last, axis=-1)
    return Visits(blocks, counts)


def share_of_kinds(kinds: Any) -> dict[str, float]:
    """The shares of full, partial and empty blocks."""
    names = {"full": FULL, "partial": PARTIAL, "empty": EMPTY}
    return {name: float(jnp.mean(kinds == kind)) for name, kind in names.items()}
