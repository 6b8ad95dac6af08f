"""A block of queries, and the walk over the tiles that its mask leaves."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn.attention._finite import finite
from flax_attn.attention._layout import QUERY, Layout
from flax_attn.attention._schedule import Schedule, make_schedule, walk
from flax_attn.attention._tile import Tile, dot
from flax_attn.attention._tiles import Place, Span, query_rows, rows_query
from flax_attn.masks.plan import FULL, PARTIAL, block_kinds

State = TypeVar("State")


class Rows:
    """The queries of one block for the heads of one place, as R = G · t rows."""

    def __init__(
        self,
        layout: Layout,
        schedule: Schedule,
        place: Place,
        index: jax.Array,
        active: tuple[int, ...] = (),
    ) -> None:
        self.layout, self.schedule, self.index, self.active = layout, schedule, index, active
        self.length = min(layout.blocks.query, layout.length_q)
        first = index * layout.blocks.query
        start = jnp.minimum(first, layout.length_q - self.length)  # the last block ends with T
        self.place = place._replace(queries=Span(start, self.length))
        ragged = layout.length_q % self.length != 0
        numbers = start + lax.iota(jnp.int32, self.length)
        # Of the last block, the rows that the block before it has had already do not count.
        fresh = jnp.tile(numbers >= first, layout.groups).reshape(1, 1, -1)
        self.fresh = fresh if ragged else None
        self.shape = (place.batch.size, place.heads.size, layout.groups * self.length)
        self.counts: jax.Array | None = None  # set by `given`
        rows = self.take(layout.leaves[QUERY].values, layout.problem.dtype)
        self.query = self.scaled(finite(rows) if layout.problem.hides else rows)

    def take(self, values: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """The rows `[b, k, R, d]` of an array `[B, T, N, d]` as stored."""
        tile = self.layout.cut(values, "btnd", self.place, dtype)
        return query_rows(tile, self.layout.groups)

    def write(self, values: jax.Array, rows: jax.Array) -> jax.Array:
        """Write rows `[b, k, R, d]` into an array `[B, T, N, d]` as stored."""
        dtype = self.layout.problem.dtype if values.dtype == jnp.uint16 else values.dtype
        rows = rows.astype(dtype)
        if self.fresh is not None:
            rows = jnp.where(self.fresh[..., None], rows, self.take(values, dtype))
        return self.layout.put(values, "btnd", self.place, rows_query(rows, self.layout.groups))

    def given(self, output: jax.Array, lse: jax.Array) -> tuple[jax.Array, jax.Array]:
        """O `[b, k, R, d]` and LSE `[b, k, R]` of these rows, from arrays as stored.

        A row that sees nothing, is undefined or does not count gets the LSE ∞, which makes all its
        weights 0, and the output 0.
        """
        problem = self.layout.problem
        o, lse = self.take(output, problem.output_dtype), self.take(lse, lse.dtype)[..., 0]
        if problem.hides:
            self.counts = ~jnp.isnan(o[..., 0]) & jnp.isfinite(lse)
            if self.fresh is not None:
                self.counts = self.counts & self.fresh
        elif self.fresh is not None:
            self.counts = jnp.broadcast_to(self.fresh, self.shape)
        if self.counts is not None:
            lse = jnp.where(self.counts, lse, jnp.inf)
        return self.counted(o), lse

    def counted(self, rows: jax.Array) -> jax.Array:
        """Rows with 0 for those that do not count."""
        return rows if self.counts is None else jnp.where(self.counts[..., None], rows, 0)

    def scaled(self, rows: jax.Array) -> jax.Array:
        """Rows times the part of the scale that costs no precision."""
        return rows * jnp.asarray(split_scale(self.layout)[0], rows.dtype)

    def products(self, key: jax.Array) -> jax.Array:
        """Q Kᵀ, without the part of the scale that comes after."""
        return dot("bkrd,bksd->bkrs", self.query, key, self.layout.problem)

    def dots(self, rows: jax.Array, key: jax.Array) -> jax.Array:
        """scale · Q Kᵀ for rows that are `scaled`."""
        products = dot("bkrd,bksd->bkrs", rows, key, self.layout.problem)
        factor = split_scale(self.layout)[1]
        return products if factor is None else products * jnp.asarray(factor, products.dtype)

    def times_scale(self, rows: jax.Array) -> jax.Array:
        """Rows times the scale."""
        return rows * jnp.asarray(self.layout.problem.scale, rows.dtype)

    def inner(self, rows: jax.Array) -> jax.Array:
        """Σ Q ∘ rows."""
        return jnp.sum(self.query.astype(rows.dtype) * rows)

    def walk(self, step: Callable[[State, Tile], State], state: State) -> State:
        """Fold over the tiles that somebody sees."""

        def at(state: State, place: Place, masked: bool, fresh: jax.Array | None) -> State:
            return step(state, Tile(self.layout, place, masked, fresh, self.active))

        batch, step_k = self.place.batch.start, self.place.heads.start // self.layout.heads
        b, k = self.schedule.starts.shape[:2]
        row = (batch if b != 1 else 0, step_k if k != 1 else 0, self.index)
        blocks, length = self.layout.blocks, self.layout.length_k
        return walk(self.schedule, blocks, self.place, row, length, at, state)


def split_scale(layout: Layout) -> tuple[float, Any]:
    """The scale as two factors: of the queries before the dot product, of the scores after it.

    A traced scale comes after, for its gradient. A known one goes into the queries, where it costs
    least; but half-precision queries only take a power of two, which rounds nothing.
    """
    scale = layout.problem.scale
    if not isinstance(scale, int | float):
        return 1.0, scale
    exact = layout.problem.dtype == layout.problem.scores_dtype or scale == 0
    if exact or abs(math.frexp(scale)[0]) == 0.5:
        return float(scale), None
    return 1.0, scale


def plan_tiles(layout: Layout) -> Schedule:
    """The tiles of all blocks of queries, from the mask's block map."""
    blocks, problem = layout.blocks, layout.problem
    count_q = math.ceil(layout.length_q / blocks.query)
    count_k = math.ceil(layout.length_k / blocks.key)
    if problem.plan is not None:
        kinds = problem.plan.values
    elif problem.hides:
        q, k = problem.records()
        # Where the mask is a constant of the program, XLA would find its blocks while it compiles,
        # with an interpreter: seconds for some thousands of tokens.
        mask = jax.tree.map(_kept_from_folding, problem.mask)
        kinds = block_kinds(mask, q, k, (blocks.query, blocks.key))
    else:
        kinds = jnp.full((1, 1, count_q, count_k), FULL, jnp.int8)
    kinds = kinds.astype(jnp.int32)
    # One list for all heads that a tile holds.
    b, n = kinds.shape[:2]
    if n > 1:
        heads = layout.heads * layout.groups
        kinds = _common(kinds.reshape(b, -1, heads, count_q, count_k), 2)
    if not layout.sequential:
        kinds = _common(kinds, 0)[None]
    if count_k > 1 and layout.length_k % blocks.key:  # its tile begins before it: see `walk`
        kinds = kinds.at[..., -1].min(PARTIAL)
    return make_schedule(kinds, blocks)


def _kept_from_folding(leaf: Any) -> Any:
    return lax.optimization_barrier(leaf) if isinstance(leaf, jax.Array) else leaf


def _common(kinds: jax.Array, axis: int) -> jax.Array:
    """The kind of several blocks taken as one."""
    same = jnp.all(kinds == lax.index_in_dim(kinds, 0, axis), axis=axis)
    return jnp.where(same, lax.index_in_dim(kinds, 0, axis, keepdims=False), PARTIAL)


def for_each_rows(
    layout: Layout,
    schedule: Schedule,
    place: Place,
    body: Callable[[Rows, State], State],
    state: State,
    active: tuple[int, ...] = (),
) -> State:
    """Fold over the blocks of queries of one place."""
    count = math.ceil(layout.length_q / layout.blocks.query)

    def one(index: jax.Array, state: State) -> State:
        return body(Rows(layout, schedule, place, index, active), state)

    return lax.fori_loop(0, count, one, state)
