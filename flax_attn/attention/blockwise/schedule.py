"""Which tiles of scores are computed, in what sizes: the block map made into loops.

Each block of queries walks over the runs of key blocks that its mask leaves, in tiles of 1, 2, 4,
... W key blocks. A tile of W full blocks needs no mask; every other tile is masked. So there are
few shapes of tile, one loop for each, and blocks that nobody sees cost nothing.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn.attention._tiles import Place, Span
from flax_attn.masks.plan import EMPTY, FULL

State = TypeVar("State")


class Blocks(NamedTuple):
    """How large tiles are.

    Attributes:
      query: Queries in a block.
      key: Keys in a block.
      width: W, how many key blocks a tile may have, a power of two.
      heads: Key heads that a tile holds where they are taken one after the other.
    """

    query: int
    key: int
    width: int
    heads: int = 1

    @property
    def shapes(self) -> tuple[tuple[int, bool], ...]:
        """How many key blocks each shape of tile has, and whether it is masked."""
        powers = [2**i for i in range(self.width.bit_length())]
        return ((self.width, False), *((power, True) for power in reversed(powers)))


class Schedule(NamedTuple):
    """The tiles of every block of queries.

    Attributes:
      starts: Key blocks at which tiles begin, sorted by shape `[b, k, nq, nk]`.
      ends: Where the tiles of each shape end in that list `[b, k, nq, shapes]`.
    """

    starts: jax.Array
    ends: jax.Array


def make_schedule(kinds: jax.Array, blocks: Blocks) -> Schedule:
    """Cut each row of a block map into tiles.

    A run of n blocks becomes n // W tiles of W, then one for each binary digit of the rest.

    Args:
      kinds: EMPTY, PARTIAL or FULL `[b, k, nq, nk]`.
      blocks: The sizes.
    """
    some, count, width = kinds != EMPTY, kinds.shape[-1], blocks.width
    index = jnp.broadcast_to(lax.iota(jnp.int32, count), kinds.shape)
    before = jnp.pad(some, [(0, 0)] * 3 + [(1, 0)])[..., :-1]
    run = lax.cummax(jnp.where(some & ~before, index, 0), axis=3)  # where the run of a block begins
    end = lax.cummin(jnp.where(some, count, index), axis=3, reverse=True)  # where it ends
    offset, length = index - run, end - run
    left = length - offset
    size = jnp.ones_like(left)
    for power in (2**i for i in range(1, width.bit_length())):
        size = jnp.where(left >= power, power, size)
    whole = offset < length // width * width
    begins = jnp.where(whole, offset % width == 0, offset == length & ~(2 * size - 1))
    size = jnp.where(whole, width, size)

    not_full = jnp.pad(jnp.cumsum(kinds != FULL, axis=-1, dtype=jnp.int32), [(0, 0)] * 3 + [(1, 0)])
    last = jnp.minimum(index + size, count)
    touched = jnp.take_along_axis(not_full, last, axis=-1) - not_full[..., :-1]
    # Of the shapes that fit, the first: the tile without a mask comes before those with one.
    fits = [(size == power) & (masked | (touched == 0)) for power, masked in blocks.shapes]
    shape = jnp.argmax(jnp.stack(fits, axis=-1), axis=-1).astype(jnp.int32)
    shape = jnp.where(some & begins, shape, len(blocks.shapes))
    numbers = lax.iota(jnp.int32, len(blocks.shapes)).reshape(1, 1, 1, 1, -1)
    ends = jnp.sum(shape[..., None] <= numbers, axis=-2, dtype=jnp.int32)
    return Schedule(jnp.argsort(shape, axis=-1, stable=True).astype(jnp.int32), ends)


def walk(
    schedule: Schedule,
    blocks: Blocks,
    place: Place,
    row: tuple[jax.Array | int, jax.Array | int, jax.Array],
    num_keys: int,
    step: Callable[[State, Place, bool, jax.Array | None], State],
    state: State,
) -> State:
    """Fold over the tiles of one block of queries.

    Args:
      schedule: The tiles.
      blocks: Their sizes.
      place: Where the block of queries is; its keys are replaced.
      row: Which list of the schedule: numbers along b, k and nq.
      num_keys: S.
      step: Called as `step(state, place, masked, fresh)`. A tile that is not `masked` is seen whole
        by everybody. `fresh` `[s]` is False for keys that an earlier tile has had already; None if
        there are no such keys.
      state: What is folded.
    """
    starts, ends = (array[row] for array in schedule)
    ragged = num_keys % blocks.key != 0
    begin: jax.Array | int = 0
    for shape, (width, masked) in enumerate(blocks.shapes):
        size = min(width * blocks.key, num_keys)

        def tile(i: jax.Array, state: State, masked: bool = masked, size: int = size) -> State:
            first = starts[i] * blocks.key
            start = jnp.minimum(first, num_keys - size)  # the last tile ends where the keys end
            fresh = start + lax.iota(jnp.int32, size) >= first if masked and ragged else None
            return step(state, place._replace(keys=Span(start, size)), masked, fresh)

        state = lax.fori_loop(begin, ends[shape], tile, state)
        begin = ends[shape]
    return state
