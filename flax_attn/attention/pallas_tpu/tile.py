"""A tile of pairs in a TPU kernel."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from flax_attn.attention.pallas_tpu.grid import LANES, Block, Cut, Rows, second


class Tile:
    """The rows of a block, and some of its columns.

    Attributes:
      refs: The memory of operands, results and sums, by name.
      masked: Whether some pairs may be invisible.
      shape: Numbers of rows and columns.
    """

    def __init__(
        self,
        refs: Mapping[str, Any],
        axes: Mapping[str, str],
        cut: Cut,
        block: Block,
        start: Any,
        *,
        masked: bool,
    ) -> None:
        """Look at a part of a block.

        Args:
          refs: The memory of operands, results and sums, by name.
          axes: The letters of the operands, by name.
          cut: How they are cut.
          block: Which block it is.
          start: The first of its columns.
          masked: Whether some pairs may be invisible.
        """
        self.refs, self.masked, self.shape = refs, masked, cut.grid.tile
        self._axes, self._cut, self._block, self._start = axes, cut, block, start
        self._columns = pl.ds(start, cut.grid.columns)

    def matrix(self, name: str) -> jax.Array:
        """The rows or columns of an operand `[rows | columns, d]`."""
        return self.refs[name][...] if self._is_of_rows(name) else self.refs[name][self._columns, :]

    def over_pairs(self, name: str) -> jax.Array:
        """An operand as a tile `[rows, columns]`; a number as it is."""
        ref = self.refs[name]
        match self._axes[name]:
            case "bn":
                b, n = self._block.place("bn", ref.shape)
                return ref[b, n]
            case "bnw":
                return self._diagonals(ref[...], self.refs[second(name)][...])
            case "bnts" if self._cut.grid.rows is Rows.QUERIES:
                return ref[:, self._columns]
            case "bnts":
                return jnp.transpose(ref[self._columns, :], (1, 0))
        if self._is_of_rows(name):
            return jnp.broadcast_to(jnp.transpose(ref[...], (1, 0)), self.shape)
        return jnp.broadcast_to(ref[:, self._columns], self.shape)

    def key_numbers(self) -> jax.Array:
        """The index of the key of each pair."""
        by_query = self._cut.grid.rows is Rows.QUERIES
        first = self._block.key * self._cut.grid.block[1] + (self._start if by_query else 0)
        return first + lax.broadcasted_iota(jnp.int32, self.shape, int(by_query))

    def _is_of_rows(self, name: str) -> bool:
        return self._cut.grid.rows.value in self._axes[name]

    # ---- arrays over distances

    def _diagonals(self, first: jax.Array, last: jax.Array) -> jax.Array:
        """Pair (i, j) of a block of b × b pairs has element b + j − i of 2 b distances."""
        strip = jnp.concatenate([first, last], axis=1)
        by_query = self._cut.grid.rows is Rows.QUERIES
        queries, keys = self.shape if by_query else self.shape[::-1]
        begin = first.shape[1] + (self._start if by_query else -self._start)
        rows = []
        for row in range(0, queries, LANES):  # row i of these is shifted by i
            part = strip[:, begin - row - LANES : begin - row + keys]
            wide = jnp.broadcast_to(part, (LANES, LANES + keys))
            rows.append(pltpu.roll(wide, 0, 1, stride=1, stride_axis=0)[:, LANES:])
        tile = jnp.concatenate(rows, axis=0)
        return tile if by_query else jnp.transpose(tile, (1, 0))

    def add_to_diagonals(self, name: str, tile: jax.Array) -> None:
        """Add a tile, whose rows are queries, to sums over distances."""
        queries, keys = self.shape
        width = LANES + keys
        begin = (self._cut.first_distance(self._block) + 1) * queries + self._start
        for row in range(0, queries, LANES):
            part = tile[row : row + LANES]
            wide = jnp.concatenate([jnp.zeros((LANES, LANES), tile.dtype), part], axis=1)
            place = pl.ds(pl.multiple_of(begin - row - LANES, LANES), width)
            total = jnp.sum(_each_row_to_the_left(wide), axis=0, keepdims=True)
            self.refs[name][:, place] += total


def _each_row_to_the_left(wide: jax.Array) -> jax.Array:
    """Rotate row i by i places, by the binary digits of i.

    `roll` with a stride rotates to the right. A stride that wraps round does not compile (libtpu
    0.0.52).
    """
    count, width = wide.shape
    row = lax.broadcasted_iota(jnp.int32, wide.shape, 0)
    for power in (2**i for i in range((count - 1).bit_length())):
        wide = jnp.where(row & power != 0, pltpu.roll(wide, width - power, 1), wide)
    return wide
