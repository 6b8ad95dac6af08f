"""What a TPU kernel costs, as XLA plans with it: operations, and bytes of device memory.

Pallas loads a block of an operand when its place differs from that of the step before, and stores a
block of a result when its place is about to change. The number of loads therefore follows from the
innermost axis of the grid on which the place depends: it is the number of steps of this axis and
all outer ones.
"""

import math
from collections.abc import Mapping

import numpy as np
from jax.experimental import pallas as pl

from flax_attn.attention.pallas_tpu.grid import Cut, Grid, Operand, Result, Rows

# Which axis of the grid moves along an axis of an array, see `grid.Grid.outer`; 4 are the visits.
BY_QUERY = {"b": 0, "n": 1, "k": 1, "t": 2, "s": 4, "w": 4}
BY_KEY = {"b": 0, "k": 1, "s": 2, "n": 3, "t": 4, "w": 4}


def cost_of(
    cut: Cut,
    operands: Mapping[str, Operand],
    results: Mapping[str, Result],
    features: int,
    share: float = 1.0,
) -> pl.CostEstimate:
    """The cost of a kernel.

    Args:
      cut: How arrays are cut.
      operands: What it reads.
      results: What it writes.
      features: Multiplications for each pair, in all its matrix products.
      share: The share of blocks that are visited, where it is known.
    """
    grid = cut.grid
    visited = share * math.prod(grid.outer) * grid.counts[1 if grid.rows is Rows.QUERIES else 0]
    pairs = visited * math.prod(grid.block)
    moved = sum(_bytes_of_operand(cut, x, visited) for x in operands.values())
    moved += sum(_bytes_of_result(cut, x) for x in results.values())
    return pl.CostEstimate(
        flops=int(2 * features * pairs), transcendentals=int(pairs), bytes_accessed=int(moved)
    )


def _bytes_of_operand(cut: Cut, operand: Operand, visited: float) -> int | float:
    values, axes = operand
    if axes == "bn":  # in scalar memory, whole
        return values.size * values.dtype.itemsize
    specs = cut.specs(axes, values.shape)
    loads = _changes(cut.grid, axes, values.shape, visited)
    return sum(_size(spec) * values.dtype.itemsize * loads for spec in specs)


def _bytes_of_result(cut: Cut, result: Result) -> int:
    return math.prod(result.shape) * np.dtype(result.dtype).itemsize


def _changes(grid: Grid, axes: str, shape: tuple[int, ...], visited: float) -> int | float:
    """How often the place of a block of an array changes."""
    table = BY_QUERY if grid.rows is Rows.QUERIES else BY_KEY
    moving = [table[x] for x, size in zip(axes, shape, strict=True) if size > 1 and x in table]
    innermost = max(moving, default=-1)
    return visited if innermost == 4 else math.prod(grid.outer[: innermost + 1])


def _size(spec: pl.BlockSpec) -> int:
    """The number of elements of a block."""
    return math.prod(size for size in spec.block_shape or () if isinstance(size, int))
