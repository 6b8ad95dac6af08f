"""The loop nest of the blockwise implementation: heads, blocks of queries, tiles of keys."""

import math
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn.attention.blockwise.schedule import Schedule
from flax_attn.attention.blockwise.storage import Place, Span, Storage
from flax_attn.attention.blockwise.tile import Rows, Tile

Carry = TypeVar("Carry")
Block = TypeVar("Block")
State = TypeVar("State")


class Equations(Generic[Carry, Block, State]):
    """What a sweep computes.

    `Carry` is folded over all heads and blocks of queries. `State` is folded over the tiles of one
    block of queries. `Block` is what all these tiles need of the block.
    """

    def zeros(self) -> Carry:
        """The carry that a sweep begins with."""
        raise NotImplementedError

    def begin_heads(self, place: Place, carry: Carry) -> Carry:
        """Before the blocks of queries of some heads."""
        del place
        return carry

    def begin(self, rows: Rows, carry: Carry) -> tuple[Block, State]:
        """Before the tiles of a block of queries."""
        raise NotImplementedError

    def step(self, tile: Tile, block: Block, state: State) -> State:
        """Update the state with one tile."""
        raise NotImplementedError

    def finish(self, rows: Rows, block: Block, state: State, carry: Carry) -> Carry:
        """After the tiles of a block of queries."""
        raise NotImplementedError

    def finish_heads(self, place: Place, carry: Carry) -> Carry:
        """After the blocks of queries of some heads."""
        del place
        return carry


def sweep(equations: Equations[Carry, Block, State], storage: Storage, schedule: Schedule) -> Carry:
    """Fold equations over all tiles of a schedule."""
    sizes, length_k = storage.sizes, storage.length_k
    ragged = length_k % sizes.key != 0
    num_blocks = math.ceil(storage.length_q / sizes.query)

    def some_heads(number: jax.Array | int, carry: Carry) -> Carry:
        place = storage.place(number)

        def query_block(index: jax.Array, carry: Carry) -> Carry:
            rows = Rows(storage, place, index)
            block, state = equations.begin(rows, carry)
            starts, ends = schedule.of_block(storage, place, index)
            first: jax.Array | int = 0
            for shape, (width, masked) in enumerate(sizes.shapes):
                size = min(width * sizes.key, length_k)

                def key_tile(
                    i: jax.Array, state: State, masked: bool = masked, size: int = size
                ) -> State:
                    wanted = starts[i] * sizes.key
                    start = jnp.minimum(wanted, length_k - size)  # the last tile ends with S
                    owned = None
                    if masked and ragged:
                        owned = start + lax.iota(jnp.int32, size) >= wanted
                    tile = Tile(rows, Span(start, size), masked=masked, owned_keys=owned)
                    return equations.step(tile, block, state)

                state = lax.fori_loop(first, ends[shape], key_tile, state)
                first = ends[shape]
            return equations.finish(rows, block, state, carry)

        carry = equations.begin_heads(place, carry)
        carry = lax.fori_loop(0, num_blocks, query_block, carry)
        return equations.finish_heads(place, carry)

    if not storage.sequential:
        return some_heads(0, equations.zeros())
    return lax.fori_loop(0, storage.num_steps, some_heads, equations.zeros())
