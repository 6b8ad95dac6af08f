"""How large the blocks of the TPU kernels are.

Published blocks of such kernels have 1024 to 4096 rows and columns, of which 256 to 512 columns are
computed at once (tokamax's autotuning database, 2026).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flax_attn.attention._core.problem import Problem
from flax_attn.attention._staged.blocks import in_common, kinds_of_blocks
from flax_attn.attention._staged.distances import tables_of
from flax_attn.attention.pallas_tpu.grid import LANES, Rows

USUAL = 1024
IF_SPARSE = 512
COMPUTE = 512
LARGEST = 4096

# Scalar memory is 1 MiB. A list of 384² blocks compiles, one of 512² does not.
MOST_VISITS = 384**2


class TileSizes(NamedTuple):
    """The sizes of blocks and tiles.

    Attributes:
      query: Queries in a block.
      key: Keys in a block.
      compute: Columns that are computed at once, at most.
    """

    query: int
    key: int
    compute: int

    def columns(self, rows: Rows) -> int:
        """Columns of a tile: the largest divisor of a block that is at most `compute`."""
        block = self.key if rows is Rows.QUERIES else self.query
        return max(d for d in range(LANES, min(block, self.compute) + 1, LANES) if block % d == 0)


def choose_sizes(
    problem: Problem, query: int | None, key: int | None, compute: int | None
) -> TileSizes:
    """The sizes for a problem with one batch axis. Blocks are larger where the lists are too long.

    Args:
      problem: The problem.
      query: Queries in a block, as the user wants it; None chooses.
      key: Keys in a block, as the user wants it; None chooses.
      compute: Columns that are computed at once, as the user wants it; None chooses.
    """
    length_q, length_k, _, _ = problem.sizes
    usual = IF_SPARSE if problem.sparse or tables_of(problem) else USUAL
    if tables_of(problem):  # an array over distances is read in blocks of one size
        query = key = query or key
    sizes = TileSizes(
        _at_most(query or usual, length_q), _at_most(key or usual, length_k), compute or COMPUTE
    )
    if tables_of(problem):
        block = max(sizes.query, sizes.key)
        sizes = sizes._replace(query=block, key=block)
    while query is None and key is None and too_many(problem, sizes):
        if max(sizes.query, sizes.key) >= LARGEST:
            break
        sizes = sizes._replace(query=2 * sizes.query, key=2 * sizes.key)
    return sizes


def _at_most(size: int, length: int) -> int:
    """A block size that is not much larger than a length."""
    return min(size, -(-length // LANES) * LANES)


def too_many(problem: Problem, sizes: TileSizes) -> bool:
    """Whether the lists of visits do not fit, even if all heads and batch elements share one."""
    *_, rows, columns = _shape(problem, sizes)
    return rows * columns > MOST_VISITS


def _shape(problem: Problem, sizes: TileSizes) -> tuple[int, ...]:
    return jax.eval_shape(lambda p: kinds_of_blocks(p, (sizes.query, sizes.key)), problem).shape


def kinds_that_fit(problem: Problem, sizes: TileSizes) -> jax.Array:
    """The kinds of blocks, taken together for all heads, and all batch elements, if need be."""
    kinds = kinds_of_blocks(problem, (sizes.query, sizes.key)).astype(jnp.int32)
    for axis in (1, 0):
        if kinds.size > MOST_VISITS:
            kinds = jnp.expand_dims(in_common(kinds, axis), axis)
    return kinds
