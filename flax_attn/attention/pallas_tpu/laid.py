"""The arrays of a problem as the TPU kernels take them: heads before tokens, in whole blocks."""

from typing import Any

import jax
import jax.numpy as jnp

from flax_attn.attention._core.batch import merge_batch, split_batch, with_one_batch_axis
from flax_attn.attention._core.finite import finite
from flax_attn.attention._core.problem import Problem
from flax_attn.attention._core.scale import split_scale
from flax_attn.attention._staged.pairs import Given, Pairs
from flax_attn.attention._staged.program import Depends
from flax_attn.attention.pallas_tpu.grid import LANES, Grid, Operand, Rows
from flax_attn.attention.pallas_tpu.sizes import TileSizes


class Laid:
    """The arrays of a problem as operands.

    Attributes:
      problem: The problem, with one batch axis.
      pairs: Its pairs, on tiles.
      sizes: The sizes of blocks.
      lengths: T and S, rounded up to whole blocks.
      factor: What the dot products are multiplied by, after a part of the scale that costs no
        precision is in the queries; None = 1.
    """

    def __init__(self, problem: Problem, pairs: Pairs, sizes: TileSizes) -> None:
        self.batch = problem.batch
        self.problem, self.pairs, self.sizes = with_one_batch_axis(problem), pairs, sizes
        length_q, length_k, *self.heads = self.problem.sizes
        self.lengths = _whole(length_q, sizes.query), _whole(length_k, sizes.key)
        self.in_queries, self.factor = split_scale(problem)

    def grid(self, rows: Rows) -> Grid:
        """The grid of a kernel."""
        num_heads, num_kv_heads = self.heads
        (batch,) = self.problem.batch
        columns = self.sizes.columns(rows)
        block = self.sizes.query, self.sizes.key
        return Grid(rows, batch, (num_heads, num_kv_heads), self.lengths, block, columns)

    # ---- operands

    def queries(self, values: jax.Array) -> Operand:
        """Queries, or an array like them, `[*B, T, N, D]`, times a part of the scale."""
        operand = self.matrix(values, "btnd")
        factor = jnp.asarray(self.in_queries, operand.values.dtype)
        return operand._replace(values=operand.values * factor)

    def matrix(self, values: jax.Array, axes: str) -> Operand:
        """`[*B, T, N, D]` or `[*B, S, K, D]`, 0 where it is not finite behind a mask."""
        values = merge_batch(values, axes, self.batch)
        if self.problem.may_hide:
            values = finite(values)
        features = whole_lanes(values.shape[-1])
        values = jnp.pad(values, [(0, 0)] * 3 + [(0, features - values.shape[-1])])
        values = self._padded(jnp.swapaxes(values, 1, 2), 2, axes[1], mode="constant")
        return Operand(values, axes[0] + axes[2] + axes[1] + axes[3])

    def vector(self, values: jax.Array, fill: float) -> Operand:
        """One number for each query and head `[*B, T, N]`; `fill` for padding."""
        values = merge_batch(values, "btn", self.batch)
        values = jnp.swapaxes(values, 1, 2)
        return Operand(self._padded(values, 2, "t", mode="constant", constant_values=fill), "bnt")

    def flags(self, values: jax.Array, axes: str) -> Operand:
        """Flags of queries `[B, T, N]` or keys `[B, S, K]` as numbers."""
        values = jnp.swapaxes(values, 1, 2).astype(jnp.float32)
        values = self._padded(values, 2, axes[1], mode="constant")
        return Operand(values, axes[0] + axes[2] + axes[1])

    def given(self, arrays: list[jax.Array]) -> dict[str, Operand]:
        """The arrays that the pairs are given, or their tangents."""
        return {
            name_of_given(i): self.given_operand(given, values)
            for i, (given, values) in enumerate(zip(self.pairs.given, arrays, strict=True))
        }

    def given_operand(self, given: Given, values: jax.Array) -> Operand:
        """One of the arrays that the pairs are given, or its tangent."""
        dtype = values.dtype
        if dtype == jnp.bool_:
            values = values.astype(jnp.int8 if given.depends == Depends.PAIR else jnp.int32)
        elif given.depends != Depends.PAIR and jnp.issubdtype(dtype, jnp.floating):
            values = values.astype(jnp.float32)
        if given.by_distance:
            return Operand(values[:, :, 0], "bnw")
        for axis, letter in ((2, "t"), (3, "s")):
            if values.shape[axis] > 1:  # the padding is like the last token, so nothing overflows
                values = self._padded(values, axis, letter, mode="edge")
        match given.depends:
            case Depends.HEAD:
                return Operand(values[:, :, 0, 0], "bn")
            case Depends.QUERY:
                return Operand(values[:, :, :, 0], "bnt")
            case Depends.KEY:
                return Operand(values[:, :, 0], "bns")
        return Operand(values, "bnts")

    @property
    def distances(self) -> tuple[int, int]:
        """The first distance of a key and a query, and the number of distances."""
        return -self.lengths[0], sum(self.lengths)

    def _padded(self, values: jax.Array, axis: int, letter: str, **options: Any) -> jax.Array:
        missing = self.lengths["ts".index(letter)] - values.shape[axis]
        widths = [(0, missing if i == axis else 0) for i in range(values.ndim)]
        return jnp.pad(values, widths, **options)

    # ---- results

    def tokens(self, values: jax.Array, letter: str, features: int | None = None) -> jax.Array:
        """`[B, N, T, D]` or `[B, N, T]` of whole blocks, as `[*B, T, N, D]` or `[*B, T, N]`."""
        length = self.problem.sizes["ts".index(letter)]
        values = jnp.swapaxes(values[:, :, :length], 1, 2)
        return split_batch(values if features is None else values[..., :features], self.batch)

    def sums(self, sums: jax.Array, given: Given) -> jax.Array:
        """Sums for what the pairs are given `[B, N, T]`, `[B, N, S]` or `[B, N, distances]`.

        Returns:
          `[B, N, T, 1]`, `[B, N, 1, S]` or `[B, N, 1, distances]`.
        """
        length_q, length_k, _, _ = self.problem.sizes
        if given.by_distance:
            return sums[:, :, None]
        if given.depends == Depends.KEY:
            return sums[:, :, None, :length_k]
        return sums[:, :, :length_q, None]


def name_of_given(number: int) -> str:
    """The name of one of the arrays that the pairs are given."""
    return f"given {number}"


def _whole(length: int, size: int) -> int:
    """A length rounded up to whole blocks."""
    return -(-length // size) * size


def whole_lanes(features: int) -> int:
    """A number of features rounded up to whole lanes."""
    return _whole(features, LANES)
