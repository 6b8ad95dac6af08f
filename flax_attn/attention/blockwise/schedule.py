"""Which tiles of scores are computed, in what sizes: the block map made into loops.

Each block of queries visits the runs of key blocks that its mask leaves, in tiles of 1, 2, 4, ... W
key blocks. A tile of W full blocks needs no mask; every other tile is masked. So there are few
shapes of tile, one loop for each, and empty blocks cost nothing.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn.attention.blockwise.sizes import TileSizes
from flax_attn.attention.blockwise.storage import Place, Storage
from flax_attn.masks.plan import EMPTY, FULL, PARTIAL, block_kinds, in_common


class Schedule(NamedTuple):
    """The tiles of every block of queries.

    Attributes:
      starts: Key blocks at which tiles begin, sorted by shape `[b, k, nq, nk]`.
      ends: Where the tiles of each shape end in that list `[b, k, nq, shapes]`.
    """

    starts: jax.Array
    ends: jax.Array

    def of_block(
        self, storage: Storage, place: Place, index: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Starts and ends of a block of queries `[nk]`, `[shapes]`."""
        b, k = self.starts.shape[:2]
        batch = place.batch.start if b != 1 else 0
        heads = place.heads.start // storage.heads if k != 1 else 0
        return self.starts[batch, heads, index], self.ends[batch, heads, index]


def make_schedule(storage: Storage) -> Schedule:
    """The tiles of all blocks of queries, from the block map of the mask."""
    sizes, problem = storage.sizes, storage.problem
    count_q = math.ceil(storage.length_q / sizes.query)
    count_k = math.ceil(storage.length_k / sizes.key)
    if problem.plan is not None:
        kinds = problem.plan.kinds.values
    elif problem.may_hide:
        # Where the mask is a constant of the program, XLA would find its blocks while it compiles,
        # with an interpreter. With an array as mask of 4,096 tokens the whole compilation takes 2.2
        # times as long with jaxlib 0.12.0, and 13 times as long with 0.10.2.
        mask = jax.tree.map(_not_folded, problem.mask)
        kinds = block_kinds(mask, *problem.records(), (sizes.query, sizes.key))
    else:
        kinds = jnp.full((1, 1, count_q, count_k), FULL, jnp.int8)
    kinds = kinds.astype(jnp.int32)
    b, n = kinds.shape[:2]
    if n > 1:  # one list of tiles for all heads of a tile
        heads = storage.heads * storage.groups
        kinds = in_common(kinds.reshape(b, -1, heads, count_q, count_k), 2)
    if not storage.sequential:
        kinds = in_common(kinds, 0)[None]
    if count_k > 1 and storage.length_k % sizes.key:  # the last tile overlaps the one before
        kinds = kinds.at[..., -1].min(PARTIAL)
    return _cut_into_tiles(kinds, sizes)


def _not_folded(leaf: Any) -> Any:
    return lax.optimization_barrier(leaf) if isinstance(leaf, jax.Array) else leaf


def _cut_into_tiles(kinds: jax.Array, sizes: TileSizes) -> Schedule:
    """Cut each row of a block map into tiles.

    A run of n blocks becomes n // W tiles of W, then one for each binary digit of the rest.

    Args:
      kinds: EMPTY, PARTIAL or FULL `[b, k, nq, nk]`.
      sizes: The sizes of tiles.
    """
    some, count, width = kinds != EMPTY, kinds.shape[-1], sizes.width
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
    fits = [(size == power) & (masked | (touched == 0)) for power, masked in sizes.shapes]
    shape = jnp.argmax(jnp.stack(fits, axis=-1), axis=-1).astype(jnp.int32)
    shape = jnp.where(some & begins, shape, len(sizes.shapes))
    numbers = lax.iota(jnp.int32, len(sizes.shapes)).reshape(1, 1, 1, 1, -1)
    ends = jnp.sum(shape[..., None] <= numbers, axis=-2, dtype=jnp.int32)
    return Schedule(jnp.argsort(shape, axis=-1, stable=True).astype(jnp.int32), ends)
