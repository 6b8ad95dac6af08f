"""How large the blocks of the TPU kernels are, and how much vector memory they take.

The usual sizes are the fastest of the same kind of kernel in the autotuning database of tokamax
0.0.17 (`data/autotuning/tpu_v5, tpu_v6_lite, tpu7x`, 2026; there is none for v5e):

    causal, up to 4,096 tokens            1024 × 1024
    causal, from 8,192 tokens             2048 × 2048
    all keys visible, from 2,048 tokens   2048 × 2048, and up to 4096 × 4096
    columns computed at once              512; 256 on v5p
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flax_attn.attention._core.problem import Problem
from flax_attn.attention._staged.blocks import kinds_of_blocks
from flax_attn.attention._staged.distances import tables_of
from flax_attn.attention._staged.pairs import Given
from flax_attn.attention._staged.program import Depends
from flax_attn.attention.pallas_tpu.grid import LANES, Rows
from flax_attn.masks.plan import in_common

USUAL = 1024
IF_LONG = 2048
LONG = 8192
IF_SPARSE = 512
COMPUTE = 512
LARGEST = 4096

# Scalar memory is 1 MiB. A list of 384² blocks compiles, one of 512² does not.
MOST_VISITS = 384**2

MIB = 2**20
# Vector memory of a core in MiB, by the kind of device (jax/_src/tpu_info.py of JAX 0.12.0).
VECTOR_MEMORY = {
    "TPU v2": 16,
    "TPU v3": 16,
    "TPU v4": 16,
    "TPU v4 lite": 16,
    "TPU v5 lite": 128,
    "TPU v5e": 128,
    "TPU v5": 64,
    "TPU v5p": 64,
    "TPU v6 lite": 128,
    "TPU v6e": 128,
}
OTHER_MEMORY = 64  # of TPU 7 and 7x, and the least of all since v5
LEAST_MEMORY = 16  # what XLA reserves for any kernel that asks for nothing


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


def usable_memory(device: str | None) -> int:
    """Bytes of vector memory that a kernel may take: 13/16 of all.

    XLA keeps whole arrays in the rest. Kernels that ask for 15/16 do not always compile (v5p).

    Args:
      device: The kind of device; None = any since v5.
    """
    return VECTOR_MEMORY.get(device or "", OTHER_MEMORY) * MIB * 13 // 16


def choose_sizes(
    problem: Problem,
    given: Sequence[Given],
    asked: tuple[int | None, int | None, int | None],
    device: str | None,
) -> TileSizes:
    """The sizes for a problem with one batch axis.

    Blocks are larger where the lists of visits are too long, and smaller where vector memory is
    too small.

    Args:
      problem: The problem.
      given: What its pairs are given.
      asked: The user's numbers of queries and of keys in a block and of columns that are computed
        at once; None chooses.
      device: The kind of device; None if it is not known.
    """
    query, key, compute = asked
    length_q, length_k, _, _ = problem.sizes
    if compute is None:
        compute = COMPUTE // 2 if device in ("TPU v5", "TPU v5p") else COMPUTE
    usual = _usual(problem)
    if tables_of(problem):  # an array over distances is read in blocks of one size
        query = key = query or key
    sizes = TileSizes(_at_most(query or usual, length_q), _at_most(key or usual, length_k), compute)
    if tables_of(problem):
        block = max(sizes.query, sizes.key)
        sizes = sizes._replace(query=block, key=block)
    if query is not None or key is not None:
        return sizes
    while too_many(problem, sizes) and max(sizes.query, sizes.key) < LARGEST:
        sizes = sizes._replace(query=2 * sizes.query, key=2 * sizes.key)
    while _too_large(problem, given, sizes, device) and max(sizes.query, sizes.key) > LANES:
        query, key = (max(LANES, size // 2 // LANES * LANES) for size in sizes[:2])
        sizes = sizes._replace(query=query, key=key)
    return sizes


def _usual(problem: Problem) -> int:
    length = min(problem.sizes[:2])
    if problem.sparse or tables_of(problem):
        return IF_SPARSE
    return IF_LONG if length >= (LONG if problem.may_hide else IF_LONG) else USUAL


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


# ---- vector memory

KERNELS = {
    "output": 0.5,
    "tangents": 1.0,
    "dQ": 1.0,
    "dK and dV": 1.0,
}
"""The kernels by what they compute, and how many tiles of float32 numbers the compiler keeps.

These and those below are a little more than the least limits that compile (libtpu 0.0.52, v5e).
"""
TILES_OF_MASK = 0.75
TILES_OF_MODIFIERS = 2.25  # and again in derivatives
TILES_OF_DROPOUT = 2.25
TILES_OF_FLOAT32 = 1.5  # where matrices are multiplied in several passes


def vector_memory(problem: Problem, given: Sequence[Given], sizes: TileSizes) -> dict[str, int]:
    """Bytes of vector memory of each kernel, by the names of `KERNELS`.

    Blocks of operands and results count twice: one is computed while another is loaded or stored.
    Sums are float32. Vectors of tokens are stored as 8 rows.

    Args:
      problem: A problem with one batch axis.
      given: What its pairs are given.
      sizes: The sizes of blocks.
    """
    d, dv = (_whole_lanes(x.values.shape[-1]) for x in (problem.query, problem.value))
    over_pairs = sum(x.dtype.itemsize for x in given if x.depends == Depends.PAIR)
    size, length = problem.dtype.itemsize, sum(problem.sizes[:2])
    lines = 8 * 4 * length if tables_of(problem) else 0
    found = {}
    # Operands of rows and of columns, results, and sums: numbers for each row, or column.
    for name, (of_rows, of_columns, of_results, of_sums) in {
        "output": (d, d + dv, dv * size, dv + 2 * LANES),
        "tangents": (2 * d, 2 * (d + dv), dv * 4, dv + LANES),
        "dQ": (d + dv, d + dv, d * 4, d + LANES),
        "dK and dV": (d + dv, d + dv, (d + dv) * 4, d + dv + LANES),
    }.items():
        rows, columns = sizes.query, sizes.key
        tile = sizes.columns(Rows.QUERIES)
        if name == "dK and dV":
            rows, columns, tile = columns, rows, sizes.columns(Rows.KEYS)
        blocks = size * (rows * of_rows + columns * of_columns) + rows * of_results
        pairs = over_pairs * rows * columns * (2 if name == "tangents" else 1)
        vectors = 8 * 4 * (4 + len(given)) * (rows + columns)
        tiles = int(_tiles(problem, name) * 4 * rows * tile)
        found[name] = 2 * (blocks + pairs + vectors) + 4 * rows * of_sums + tiles
        found[name] += 2 * lines if name == "dQ" else 0
    return found


def _tiles(problem: Problem, name: str) -> float:
    """How many tiles a kernel keeps at once."""
    count = KERNELS[name]
    if problem.may_hide:
        count += TILES_OF_MASK
    if problem.score_mod is not None:
        count += TILES_OF_MODIFIERS * (1 if name == "output" else 2)
    if problem.drop is not None:
        count += TILES_OF_DROPOUT
    if problem.dtype.itemsize == 4:
        count += TILES_OF_FLOAT32
    return count


def memory_limit(needed: int, device: str | None) -> int:
    """The limit of vector memory that a kernel is compiled with, in bytes."""
    return min(usable_memory(device), max(LEAST_MEMORY * MIB, needed * 3 // 2))


def _too_large(
    problem: Problem, given: Sequence[Given], sizes: TileSizes, device: str | None
) -> bool:
    return max(vector_memory(problem, given, sizes).values()) > usable_memory(device)


def explain_too_large(
    problem: Problem, given: Sequence[Given], sizes: TileSizes, device: str | None
) -> str | None:
    """Why blocks do not fit into vector memory; None if they do."""
    if not _too_large(problem, given, sizes, device):
        return None
    needed = vector_memory(problem, given, sizes)
    name = max(needed, key=lambda x: needed[x])
    chip = device or "a TPU of which nothing is known"
    return (
        f"blocks of {sizes.query} × {sizes.key} with {sizes.compute} columns at once take "
        f"{needed[name] / MIB:.0f} MiB of vector memory in the kernel of the {name}, and {chip} "
        f"has {usable_memory(device) / MIB:.0f} MiB. Give smaller blocks, or leave out block_query "
        f"and block_key."
    )


def _whole_lanes(features: int) -> int:
    return -(-features // LANES) * LANES
