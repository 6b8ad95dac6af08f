"""One tile of scores: Q Kᵀ, what the modifiers do to it, and what the mask leaves."""

import functools
import operator

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn.attention._finite import finite
from flax_attn.attention._layout import KEY, VALUE, Layout
from flax_attn.attention._problem import Problem
from flax_attn.attention._tiles import Place, cut
from flax_attn.attention.dropout import kept_share
from flax_attn.coords import Aligned


def dot(spec: str, a: jax.Array, b: jax.Array, problem: Problem) -> jax.Array:
    """A dot product that accumulates in the dtype of scores."""
    return jnp.einsum(
        spec, a, b, precision=problem.precision, preferred_element_type=problem.scores_dtype
    )


class Tile:
    """The scores `[b, k, R, s]` of a block of queries and a few blocks of keys.

    Args:
      layout: Where the arrays are.
      place: Which tile.
      masked: Whether the mask hides anything in it.
      fresh: Which keys count `[s]`; None = all.
      active: Numbers of the leaves of modifiers and coordinates to be differentiated.
    """

    def __init__(
        self,
        layout: Layout,
        place: Place,
        masked: bool,
        fresh: jax.Array | None,
        active: tuple[int, ...],
    ) -> None:
        self.layout, self.place, self.masked = layout, place, masked
        self.extras = {index: layout.piece(index, place) for index in active}
        self.problem = layout.tile(place, {})
        self.seen = self._seen(fresh) if masked else None

    def _seen(self, fresh: jax.Array | None) -> jax.Array | None:
        """Who sees whom `[b, k, G, t, s]`, of size 1 where nothing varies; None = all see all."""
        parts = [] if fresh is None else [fresh.reshape(1, 1, 1, 1, -1)]
        if self.layout.problem.hides:
            parts.append(self.problem.visible())
        return functools.reduce(operator.and_, parts) if parts else None

    @functools.cached_property
    def key(self) -> jax.Array:
        """`[b, k, s, d]`."""
        return self._keys(KEY)

    @functools.cached_property
    def value(self) -> jax.Array:
        """`[b, k, s, d]`."""
        return self._keys(VALUE)

    def _keys(self, index: int) -> jax.Array:
        return self.keys_like(self.layout.leaves[index].values)

    def keys_like(self, values: jax.Array) -> jax.Array:
        """The tile of an array `[B, S, K, D]` kept like a leaf, `[b, k, s, d]`."""
        dtype = self.layout.problem.dtype
        tile = jnp.swapaxes(self.layout.cut(values, "bskd", self.place, dtype), 1, 2)
        return finite(tile) if self.layout.problem.hides else tile

    def add_keys(self, total: jax.Array, tile: jax.Array) -> jax.Array:
        """Add `[b, k, d, s]` to what is summed for all keys `[b, k, d, S]`."""
        start, size = self.place.keys
        old = lax.dynamic_slice_in_dim(total, start, size, 3)
        return lax.dynamic_update_slice_in_dim(total, old + tile, start, 3)

    def grouped(self, rows: jax.Array) -> jax.Array:
        """`[b, k, R, s]` -> `[b, k, G, t, s]`."""
        b, k, r, s = rows.shape
        return rows.reshape(b, k, self.place.groups, r // self.place.groups, s)

    def stacked(self, tile: jax.Array) -> jax.Array:
        """`[b, k, G, t, s]` -> `[b, k, R, s]`."""
        b, k, g, t, s = tile.shape
        return tile.reshape(b, k, g * t, s)

    def modify(self, scores: jax.Array, extras: dict[int, jax.Array]) -> jax.Array:
        """The score modifiers, with some leaves replaced. `[b, k, R, s]` -> the same."""
        problem = self.layout.tile(self.place, extras)
        if problem.score_mod is None:
            return scores
        return self.stacked(problem.modified(self.grouped(scores), self.seen))

    def mask(self, scores: jax.Array, fill: float) -> jax.Array:
        """`fill` where the query does not see the key."""
        if self.seen is None:
            return scores
        return self.stacked(jnp.where(self.seen, self.grouped(scores), fill))

    def seen_only(self, derivative: jax.Array, scores: jax.Array) -> jax.Array:
        """0 where the score is −∞: the weight is 0 there, but what it is multiplied by may not be.

        A tile that everybody sees and nothing modifies has no such score.
        """
        if not self.masked and self.problem.score_mod is None:
            return derivative
        return jnp.where(jnp.isneginf(scores), 0, derivative)

    def drop(self, weights: jax.Array) -> jax.Array:
        """Dropout of weights."""
        if self.problem.drop is None:
            return weights
        keep = self.problem.keep(self.problem.batch_ids.values[..., None, None])
        kept = self.grouped(weights) / kept_share(self.problem.drop[0], weights.dtype)
        return self.stacked(jnp.where(keep, kept, 0))

    def flags(self, keys: jax.Array) -> jax.Array:
        """The tile of flags `[B, S, K]` as `[b, k, 1, s]`."""
        return jnp.swapaxes(cut(Aligned(keys, "bsk"), self.place), 1, 2)[:, :, None, :]

    def visible_scores(self, rows: tuple[int, ...]) -> jax.Array:
        """Which scores `[b, k, R, s]` are not −∞, be it by the mask or by a modifier."""
        zeros = jnp.zeros((*rows, self.place.keys.size), self.layout.problem.scores_dtype)
        return ~jnp.isneginf(self.mask(self.modify(zeros, {}), -jnp.inf))
