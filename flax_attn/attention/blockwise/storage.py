"""The arrays of a problem, laid out so that tiles can be cut from them and added to them."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn.attention._problem import Problem, Static, leaf_axes, thaw
from flax_attn.attention._schedule import Blocks
from flax_attn.attention._tiles import Place, Span, add, cut, put, split_heads
from flax_attn.coords import Aligned

State = TypeVar("State")
QUERY, KEY, VALUE, SCALE = range(4)


class Layout:
    """The leaves of a problem with a single batch axis.

    On a CPU the batch elements are taken one after the other, and so are the key heads, or a few of
    them at a time (`sequential`).
    Half-precision arrays are then kept as integers of their bits: XLA would otherwise convert a
    whole array to float32 before it cuts a tile from it in a loop.

    Attributes:
      problem: The whole problem, with one batch axis.
      leaves: Its leaves, as stored, with their axes (empty for what is never cut).
      blocks: Sizes of blocks.
      sequential: Whether batch elements and key heads are taken one after the other.
      heads: Key heads that are taken together.
    """

    def __init__(
        self,
        leaves: list[jax.Array],
        tree: Any,
        *,
        blocks: Blocks,
        sequential: bool,
    ) -> None:
        self.axes = leaf_axes(tree)
        self.tree, self.blocks, self.sequential = tree, blocks, sequential
        self.dtypes = [leaf.dtype for leaf in leaves]
        self.batch = leaves[QUERY].shape[:-3]
        self.shapes = [leaf.shape for leaf in leaves]
        self.scale = -1 if isinstance(tree.unflatten(leaves).scale, Static) else SCALE
        merged = [self.merge(x, axes) for x, axes in zip(leaves, self.axes, strict=True)]
        self.leaves = [
            Aligned(self.store(x), axes) for x, axes in zip(merged, self.axes, strict=True)
        ]
        self.problem: Problem = thaw(tree.unflatten(merged))
        self.length_q, self.length_k, self.num_heads, self.num_kv_heads = self.problem.sizes
        self.groups = self.num_heads // self.num_kv_heads
        self.size = math.prod(self.batch)
        self.heads = blocks.heads if sequential else self.num_kv_heads

    def merge(self, values: jax.Array, axes: str) -> jax.Array:
        """All batch axes as one."""
        if "b" not in axes:
            return values
        batch, rest = values.shape[: len(self.batch)], values.shape[len(self.batch) :]
        if any(size != 1 for size in batch) and batch != self.batch:
            values = jnp.broadcast_to(values, (*self.batch, *rest))
            batch = self.batch
        return values.reshape(math.prod(batch), *rest)

    def take_in(self, values: jax.Array, axes: str) -> jax.Array:
        """An array from outside, as stored."""
        return self.store(self.merge(values, axes))

    def give_out(self, values: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """An array `[B, ...]` as stored, with all batch axes."""
        values = self.restore(values, dtype)
        return values.reshape(*self.batch, *values.shape[1:])

    def give_out_like(self, values: jax.Array, index: int) -> jax.Array:
        """An array like a leaf, in the leaf's shape and dtype."""
        values = self.restore(values, self.dtypes[index]) if index < SCALE else values
        shape = self.shapes[index]
        if math.prod(shape) != values.size:  # batch axes of size 1 among others that are full
            values = values.reshape(*self.batch, *values.shape[1:])
            axes = tuple(i for i, size in enumerate(shape) if size != values.shape[i])
            values = jnp.sum(values, axis=axes, keepdims=True)
        return values.reshape(shape).astype(self.dtypes[index])

    def store(self, values: jax.Array) -> jax.Array:
        """An array as it is kept while tiles are cut from it."""
        half = values.dtype in (jnp.bfloat16, jnp.float16)
        return lax.bitcast_convert_type(values, jnp.uint16) if half and self.sequential else values

    def restore(self, values: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """The inverse of `store`."""
        return values if values.dtype == dtype else lax.bitcast_convert_type(values, dtype)

    def piece(self, index: int, place: Place, values: jax.Array | None = None) -> jax.Array:
        """The tile `[b, k, G, ...]` of a leaf, or of another array like it, as stored."""
        axes = self.axes[index]
        values = self.leaves[index].values if values is None else values
        if not axes:
            return self.restore(values, self.dtypes[index])
        return split_heads(self.cut(values, axes, place, self.dtypes[index]), axes, self.groups)

    def add_piece(self, values: jax.Array, index: int, place: Place, piece: jax.Array) -> jax.Array:
        """Add what has the shape of `piece` to an array like a leaf."""
        axes = self.axes[index]
        if not axes:
            return values + piece.astype(values.dtype)
        shape = cut(Aligned(values, axes), place).shape
        return add(values, axes, place, piece.astype(values.dtype).reshape(shape))

    def keys_shape(self, index: int, place: Place) -> tuple[int, ...]:
        """The shape `[b, k, d, S]` in which gradients of a place's keys or values are summed."""
        features = self.shapes[index][-1]
        return place.batch.size, place.heads.size, features, self.length_k

    def cut(self, values: jax.Array, axes: str, place: Place, dtype: jnp.dtype) -> jax.Array:
        """The tile of an array as stored."""
        return self.restore(cut(Aligned(values, axes), place), dtype)

    def put(self, values: jax.Array, axes: str, place: Place, tile: jax.Array) -> jax.Array:
        """Write a tile into an array as stored."""
        return put(values, axes, place, self.store(tile))

    def tile(self, place: Place, replaced: dict[int, jax.Array]) -> Problem:
        """The problem of a tile, without its query, key and value."""
        pieces: list[Any] = []
        for index in range(len(self.axes)):
            if index in replaced:
                pieces.append(replaced[index])
            else:
                apart = index in (QUERY, KEY, VALUE)
                pieces.append(None if apart else self.piece(index, place))
        return thaw(self.tree.unflatten(pieces))

    def for_each(self, body: Callable[[Place, State], State], state: State) -> State:
        """Fold over batch elements and key heads; all at once unless `sequential`."""
        queries, keys = Span(0, self.length_q), Span(0, self.length_k)
        if not self.sequential:
            everything = Span(0, self.size), Span(0, self.num_kv_heads)
            return body(Place(*everything, queries, keys, self.groups), state)

        steps = self.num_kv_heads // self.heads

        def one(i: jax.Array, state: State) -> State:
            batch, heads = Span(i // steps, 1), Span(i % steps * self.heads, self.heads)
            return body(Place(batch, heads, queries, keys, self.groups), state)

        return lax.fori_loop(0, self.size * steps, one, state)
