"""The arrays of a problem, stored so that tiles can be cut from them and added to them."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._cpu.half_precision_loops import from_bits, to_bits
from flax_attn._pytree import pytree, static
from flax_attn.attention._core.batch import merge_batch, split_batch
from flax_attn.attention._core.problem import KEY, QUERY, VALUE, Problem, Structure
from flax_attn.attention.blockwise.sizes import TileSizes


class Span(NamedTuple):
    """Indices start ... start + size − 1 of an axis."""

    start: jax.Array | int
    size: int


class Place(NamedTuple):
    """Where a tile is: its batch elements, key heads, queries and keys.

    Query heads follow their key heads: `groups` of them share one.
    """

    batch: Span
    heads: Span
    queries: Span
    keys: Span
    groups: int

    def span(self, letter: str) -> Span | None:
        """The indices along an axis of that letter; None = all."""
        heads = self.heads
        match letter:
            case "b":
                return self.batch
            case "n":
                return Span(heads.start * self.groups, heads.size * self.groups)
            case "k":
                return heads
            case "t":
                return self.queries
            case "s":
                return self.keys
        return None


@pytree
class Stored:
    """An array with one batch axis, from which tiles are cut.

    Attributes:
      values: The array; for half precision on a CPU its bits, see `_cpu.half_precision_loops`.
      axes: One letter per axis; empty for an array that is never cut.
      dtype: The dtype of the array.
    """

    values: jax.Array
    axes: str = static()
    dtype: jnp.dtype = static()

    @classmethod
    def of(cls, array: jax.Array, axes: str, *, as_bits: bool) -> "Stored":
        """Store an array, as bits if it is of half precision."""
        values = to_bits(array) if as_bits else array
        return cls(values, axes, array.dtype)

    def whole(self) -> jax.Array:
        """The array."""
        return from_bits(self.values, self.dtype)

    def tile(self, place: Place) -> jax.Array:
        """The tile at a place. Axes of size 1 are kept whole."""
        values = self.values
        for axis, letter in enumerate(self.axes):
            span = place.span(letter)
            if span is not None and values.shape[axis] not in (1, span.size):
                values = lax.dynamic_slice_in_dim(values, span.start, span.size, axis)
        return from_bits(values, self.dtype)

    def with_tile(self, place: Place, tile: jax.Array) -> "Stored":
        """The array with another tile at a place."""
        tile = tile.astype(self.dtype)
        if self.values.dtype != self.dtype:
            tile = to_bits(tile)
        starts = [self._start(axis, place) for axis in range(len(self.axes))]
        values = lax.dynamic_update_slice(self.values, tile, starts)
        return dataclasses.replace(self, values=values)

    def plus(self, place: Place, tile: jax.Array) -> "Stored":
        """The array with something added to the tile at a place."""
        if not self.axes:
            return dataclasses.replace(self, values=self.values + tile.astype(self.dtype))
        old = self.tile(place)
        return self.with_tile(place, old + tile.astype(self.dtype).reshape(old.shape))

    def _start(self, axis: int, place: Place) -> jax.Array:
        span = place.span(self.axes[axis])
        whole = span is None or self.values.shape[axis] in (1, span.size)
        return jnp.asarray(0 if span is None or whole else span.start, jnp.int32)


class Storage:
    """The leaves of a problem, stored with one batch axis.

    Attributes:
      problem: The whole problem, with one batch axis.
      structure: Its structure.
      leaves: Its leaves.
      sizes: The sizes of tiles.
      sequential: Whether batch elements and key heads are taken one after the other, as on CPUs,
        where a tile then stays in the cache.
      heads: Number of key heads that are taken together.
      is_part: See `Target`.
    """

    def __init__(
        self, problem: Problem, sizes: TileSizes, *, sequential: bool, is_part: bool
    ) -> None:
        arrays, self.structure = Structure.of(problem)
        self.sizes, self.sequential, self.is_part = sizes, sequential, is_part
        self.batch = problem.batch
        self.shapes = [array.shape for array in arrays]
        letters = self.structure.letters
        merged = [merge_batch(x, axes, self.batch) for x, axes in zip(arrays, letters, strict=True)]
        self.leaves = [
            Stored.of(x, axes, as_bits=sequential) for x, axes in zip(merged, letters, strict=True)
        ]
        self.problem = self.structure.problem(merged)
        self.length_q, self.length_k, num_heads, self.num_kv_heads = self.problem.sizes
        self.groups = num_heads // self.num_kv_heads
        self.heads = sizes.heads if sequential else self.num_kv_heads

    # ---- whole arrays

    def store(self, array: jax.Array, axes: str) -> Stored:
        """Store another array of the problem's batch."""
        return Stored.of(merge_batch(array, axes, self.batch), axes, as_bits=self.sequential)

    def zeros(self, features: int, dtype: jnp.dtype) -> Stored:
        """Zeros for a result `[B, T, N, features]`."""
        shape = (*self.problem.query.values.shape[:-1], features)
        return Stored.of(jnp.zeros(shape, dtype), "btnd", as_bits=self.sequential)

    def zeros_like(self, leaf: int, dtype: jnp.dtype) -> Stored:
        """Zeros for the gradient of a leaf."""
        like = self.leaves[leaf]
        return Stored.of(jnp.zeros(like.values.shape, dtype), like.axes, as_bits=self.sequential)

    def result(self, stored: Stored) -> jax.Array:
        """A result `[B, ...]` with all batch axes."""
        return split_batch(stored.whole(), self.batch)

    def gradient(self, stored: Stored, leaf: int) -> jax.Array:
        """The gradient of a leaf, in the leaf's shape, and in its dtype unless it is a part."""
        values = split_batch(stored.whole(), self.batch, self.shapes[leaf])
        return values.astype(self.gradient_dtype(leaf))

    def gradient_dtype(self, leaf: int) -> jnp.dtype:
        """The dtype of the gradient of a leaf."""
        return self.problem.scores_dtype if self.is_part else self.leaves[leaf].dtype

    # ---- tiles

    def place(self, step: jax.Array | int) -> Place:
        """All queries and keys of one step of the loop over batch elements and key heads."""
        batch, heads = Span(0, math.prod(self.batch)), Span(0, self.num_kv_heads)
        if self.sequential:
            per_element = self.num_kv_heads // self.heads
            batch = Span(step // per_element, 1)
            heads = Span(step % per_element * self.heads, self.heads)
        return Place(batch, heads, Span(0, self.length_q), Span(0, self.length_k), self.groups)

    @property
    def num_steps(self) -> int:
        """Number of steps of the loop over batch elements and key heads."""
        return math.prod(self.batch) * self.num_kv_heads // self.heads if self.sequential else 1

    def piece(self, leaf: int, place: Place, stored: Stored | None = None) -> jax.Array:
        """The tile of a leaf, or of an array like it, as `[b, k, G, ...]`."""
        stored = self.leaves[leaf] if stored is None else stored
        tile = stored.tile(place)
        return split_heads(tile, stored.axes, self.groups) if stored.axes else tile

    def tile_problem(self, place: Place, replaced: Mapping[int, jax.Array]) -> Problem:
        """The problem of a tile, with some leaves replaced, without query, key and value."""
        pieces: list[Any] = []
        for leaf in range(len(self.leaves)):
            if leaf in replaced:
                pieces.append(replaced[leaf])
            else:
                pieces.append(None if leaf in (QUERY, KEY, VALUE) else self.piece(leaf, place))
        return self.structure.problem(pieces)


def split_heads(tile: jax.Array, axes: str, groups: int) -> jax.Array:
    """Bring a tile to `[b, k, G, ...]`, the axes of a tile of scores before t and s."""
    if "b" not in axes:
        tile = tile[None]
    if "n" not in axes:
        return tile[:, None, None]
    heads = tile.shape[1]
    shape = (heads // groups, groups) if heads > 1 or groups == 1 else (1, 1)
    return tile.reshape(tile.shape[0], *shape, *tile.shape[2:])
