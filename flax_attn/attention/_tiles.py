"""Tiles of arrays whose axes follow batch, heads, queries and keys."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn.coords import Aligned


class Span(NamedTuple):
    """Numbers start ... start + size − 1 of an axis."""

    start: jax.Array | int
    size: int


class Place(NamedTuple):
    """Where a tile is: which batch elements, key heads, queries and keys.

    A query head belongs to the place of its key head: `groups` of them share one.
    """

    batch: Span
    heads: Span
    queries: Span
    keys: Span
    groups: int

    def span(self, letter: str) -> Span | None:
        """The numbers along an axis of that letter; None = all."""
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


def cut(array: Aligned, place: Place) -> jax.Array:
    """The tile of an array with a single batch axis, as stored; axes of size 1 stay."""
    values = array.values
    for axis, letter in enumerate(array.axes):
        span = place.span(letter)
        if span is not None and values.shape[axis] not in (1, span.size):
            values = lax.dynamic_slice_in_dim(values, span.start, span.size, axis)
    return values


def split_heads(tile: jax.Array, axes: str, groups: int) -> jax.Array:
    """Bring a tile to `[b, k, G, ...]`, the axes of a tile of scores before t and s."""
    if "b" not in axes:
        tile = tile[None]
    if "n" not in axes:
        return tile[:, None, None]
    heads = tile.shape[1]
    shape = (heads // groups, groups) if heads > 1 or groups == 1 else (1, 1)
    return tile.reshape(tile.shape[0], *shape, *tile.shape[2:])


def query_rows(tile: jax.Array, groups: int) -> jax.Array:
    """The heads of a group as rows: `[b, t, k G, d]` -> `[b, k, G t, d]`."""
    b, t, n, d = tile.shape
    return (
        tile.reshape(b, t, n // groups, groups, d)
        .transpose(0, 2, 3, 1, 4)
        .reshape(b, n // groups, groups * t, d)
    )


def rows_query(rows: jax.Array, groups: int) -> jax.Array:
    """The inverse of `query_rows`."""
    b, k, r, d = rows.shape
    return (
        rows.reshape(b, k, groups, r // groups, d)
        .transpose(0, 3, 1, 2, 4)
        .reshape(b, r // groups, k * groups, d)
    )


def put(values: jax.Array, axes: str, place: Place, tile: jax.Array) -> jax.Array:
    """Write a tile."""
    starts = [_start(values, axis, letter, place) for axis, letter in enumerate(axes)]
    return lax.dynamic_update_slice(values, tile.astype(values.dtype), starts)


def add(values: jax.Array, axes: str, place: Place, tile: jax.Array) -> jax.Array:
    """Add to a tile."""
    return put(values, axes, place, cut(Aligned(values, axes), place) + tile)


def _start(values: jax.Array, axis: int, letter: str, place: Place) -> jax.Array:
    span = place.span(letter)
    start = 0 if span is None or values.shape[axis] in (1, span.size) else span.start
    return jnp.asarray(start, jnp.int32)
