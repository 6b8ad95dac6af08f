"""One block of queries, and one tile of its scores."""

import functools
import operator
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn.attention._core.finite import finite
from flax_attn.attention._core.heads import stack_groups, unstack_groups
from flax_attn.attention._core.problem import KEY, QUERY, VALUE, Problem
from flax_attn.attention._core.scale import split_scale
from flax_attn.attention.blockwise.storage import Place, Span, Storage, Stored
from flax_attn.attention.dropout import kept_share


def dot(spec: str, a: jax.Array, b: jax.Array, problem: Problem) -> jax.Array:
    """A dot product that accumulates in the dtype of scores."""
    return jnp.einsum(
        spec, a, b, precision=problem.precision, preferred_element_type=problem.scores_dtype
    )


class Rows:
    """The queries of one block for the query heads of one place, as R = G · t rows.

    Attributes:
      storage: The arrays.
      place: Where the block is, with all keys.
      shape: `[b, k, R]`.
      owned: Which rows belong to this block `[1, 1, R]`; None = all. The last block may overlap the
        one before. Rows in the overlap are ignored.
      query: The queries `[b, k, R, d]`, times the part of the scale that costs no precision.
    """

    def __init__(self, storage: Storage, place: Place, index: jax.Array) -> None:
        self.storage = storage
        length = min(storage.sizes.query, storage.length_q)
        first = index * storage.sizes.query
        start = jnp.minimum(first, storage.length_q - length)
        self.place = place._replace(queries=Span(start, length))
        self.shape = (place.batch.size, place.heads.size, storage.groups * length)
        self.owned = None
        if storage.length_q % length:
            owned = start + lax.iota(jnp.int32, length) >= first
            self.owned = jnp.tile(owned, storage.groups).reshape(1, 1, -1)
        query = self.take(storage.leaves[QUERY])
        self.query = self.scaled(finite(query) if storage.problem.may_hide else query)

    def take(self, stored: Stored) -> jax.Array:
        """The rows `[b, k, R, d]` of an array `[B, T, N, d]`."""
        tile = jnp.swapaxes(stored.tile(self.place), 1, 2)
        return stack_groups(tile, self.place.heads.size)

    def write(self, stored: Stored, rows: jax.Array) -> Stored:
        """An array `[B, T, N, d]` with these rows."""
        rows = rows.astype(stored.dtype)
        if self.owned is not None:
            rows = jnp.where(self.owned[..., None], rows, self.take(stored))
        heads = unstack_groups(rows, self.place.heads.size * self.storage.groups)
        return stored.with_tile(self.place, jnp.swapaxes(heads, 1, 2))

    def defined(self, output: jax.Array, lse: jax.Array) -> jax.Array | None:
        """Which rows see a key, are not NaN, and are owned `[b, k, R]`; None = all.

        Args:
          output: O `[b, k, R, d]`.
          lse: LSE `[b, k, R]`.
        """
        if not self.storage.problem.may_hide:
            return None if self.owned is None else jnp.broadcast_to(self.owned, self.shape)
        defined = ~jnp.isnan(output[..., 0]) & jnp.isfinite(lse)
        return defined if self.owned is None else defined & self.owned

    def scaled(self, rows: jax.Array) -> jax.Array:
        """Rows times the part of the scale that costs no precision."""
        return rows * jnp.asarray(split_scale(self.storage.problem)[0], rows.dtype)


class Tile:
    """The scores `[b, k, R, s]` of a block of queries and a few blocks of keys.

    Attributes:
      rows: The queries.
      place: Where the tile is.
      problem: The problem of the tile, without query, key and value.
      visible: Which pairs are visible `[b, k, G, t, s]`, with axes of size 1; None = all.
    """

    def __init__(
        self, rows: Rows, keys: Span, *, masked: bool, owned_keys: jax.Array | None
    ) -> None:
        """Cut a tile.

        Args:
          rows: The queries.
          keys: The keys.
          masked: Whether the mask may hide some of the pairs.
          owned_keys: Which keys do not belong to an earlier tile `[s]`; None = all.
        """
        self.rows, self.storage, self.masked = rows, rows.storage, masked
        self.place = rows.place._replace(keys=keys)
        self.problem = self.storage.tile_problem(self.place, {})
        parts = [] if owned_keys is None else [owned_keys.reshape(1, 1, 1, 1, -1)]
        if masked and self.problem.may_hide:
            parts.append(self.problem.visible())
        self.visible = functools.reduce(operator.and_, parts) if parts else None

    # ---- its keys and values

    @functools.cached_property
    def key(self) -> jax.Array:
        """`[b, k, s, d]`."""
        return self.take(self.storage.leaves[KEY])

    @functools.cached_property
    def value(self) -> jax.Array:
        """`[b, k, s, d]`."""
        return self.take(self.storage.leaves[VALUE])

    def take(self, stored: Stored) -> jax.Array:
        """The keys of the tile `[b, k, s, d]` of an array `[B, S, K, d]`, 0 where not finite."""
        tile = jnp.swapaxes(stored.tile(self.place), 1, 2)
        return finite(tile) if self.problem.may_hide else tile

    def leaf(self, leaf: int, stored: Stored | None = None) -> jax.Array:
        """The tile of a leaf, or of an array like it, as `[b, k, G, ...]`."""
        return self.storage.piece(leaf, self.place, stored)

    def add_keys(self, total: jax.Array, keys: jax.Array) -> jax.Array:
        """Add `[b, k, d, s]` to a sum over all keys `[b, k, d, S]`."""
        start, size = self.place.keys
        old = lax.dynamic_slice_in_dim(total, start, size, 3)
        return lax.dynamic_update_slice_in_dim(total, old + keys, start, 3)

    # ---- its scores

    def products(self, rows: jax.Array, key: jax.Array) -> jax.Array:
        """scale · Q Kᵀ for rows that are `scaled`."""
        products = dot("bkrd,bksd->bkrs", rows, key, self.storage.problem)
        factor = split_scale(self.storage.problem)[1]
        return products if factor is None else products * jnp.asarray(factor, products.dtype)

    def modify(self, scores: jax.Array, leaves: Mapping[int, jax.Array]) -> jax.Array:
        """The scores after the modifiers, with some leaves replaced."""
        problem = self.storage.tile_problem(self.place, leaves)
        if problem.score_mod is None:
            return scores
        return self._stacked(problem.modified(self._grouped(scores), self.visible))

    def mask(self, scores: jax.Array) -> jax.Array:
        """The scores, −∞ for invisible pairs."""
        if self.visible is None:
            return scores
        return self._stacked(jnp.where(self.visible, self._grouped(scores), -jnp.inf))

    def zero_if_hidden(self, derivative: jax.Array, scores: jax.Array) -> jax.Array:
        """The derivative, 0 where the score is −∞.

        The weight is 0 there, but what it is multiplied by may not be finite. A tile without mask
        and modifiers has no such score.
        """
        if not self.masked and self.problem.score_mod is None:
            return derivative
        return jnp.where(jnp.isneginf(scores), 0, derivative)

    def drop(self, weights: jax.Array) -> jax.Array:
        """The weights after dropout."""
        if self.problem.drop is None:
            return weights
        share = kept_share(self.problem.drop.rate, weights.dtype)
        kept = self._grouped(weights) / share
        return self._stacked(jnp.where(self.problem.kept_weights(), kept, 0))

    def _grouped(self, rows: jax.Array) -> jax.Array:
        """`[b, k, R, s]` -> `[b, k, G, t, s]`."""
        b, k, r, s = rows.shape
        return rows.reshape(b, k, self.place.groups, r // self.place.groups, s)

    def _stacked(self, tile: jax.Array) -> jax.Array:
        """`[b, k, G, t, s]` -> `[b, k, R, s]`."""
        b, k, g, t, s = tile.shape
        return tile.reshape(b, k, g * t, s)
