"""The loop nest of the TPU kernels: a grid of blocks of rows, each with its list of columns.

A kernel whose rows are queries sums over keys: a point of its grid is a block of queries of one
head and a block of keys. A kernel whose rows are keys sums over queries: each block of keys of a
key head meets blocks of queries of all query heads that share it.

    grid = (batch elements, heads, blocks of rows, query heads of a key head, visits)

The lists of visits are prefetched into scalar memory, from where the addresses of the next block
are read while one is computed.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from flax_attn.attention._staged.blocks import Visits
from flax_attn.attention.pallas_tpu.cost import cost_of
from flax_attn.attention.pallas_tpu.grid import (
    LANES,
    Cut,
    Grid,
    Index,
    Operand,
    Result,
    Rows,
    names_of,
    stored,
)
from flax_attn.attention.pallas_tpu.tile import Tile

Refs = Mapping[str, Any]


class Equations:
    """What a sweep computes. Its sums live in scratch memory while a block of rows is visited.

    Attributes:
      rows: What the rows are.
      most_unrolled: Tiles of a block are unrolled in the text of a kernel while they have at most
        so many pairs. More text compiles more slowly; less leaves less to schedule together.
    """

    rows: Rows = Rows.QUERIES
    most_unrolled: int = 2**20

    def operands(self) -> dict[str, Operand]:
        """What it reads, by name."""
        raise NotImplementedError

    def results(self) -> dict[str, Result]:
        """What it writes, by name."""
        raise NotImplementedError

    def sums(self) -> dict[str, tuple[int, int]]:
        """The shapes of its sums, by name. All are float32."""
        raise NotImplementedError

    def features(self) -> int:
        """The multiplications for each pair in its matrix products."""
        raise NotImplementedError

    def begin_heads(self, refs: Refs) -> None:
        """Before the visits of a block of rows, for all query heads of a key head."""

    def begin(self, refs: Refs) -> None:
        """Before those of one query head."""

    def step(self, tile: Tile) -> None:
        """Add a tile to the sums."""
        raise NotImplementedError

    def finish(self, refs: Refs) -> None:
        """After the visits of one query head."""

    def finish_heads(self, refs: Refs) -> None:
        """After those of all query heads of a key head."""


class Settings(NamedTuple):
    """How a kernel is compiled.

    Attributes:
      masks: Whether a block may need its mask.
      interpret: Whether JAX computes it operation by operation, on any platform.
      share: The share of blocks that are visited, as far as it is known.
      vmem_limit: How much vector memory it may take, in bytes.
    """

    masks: bool
    interpret: bool
    share: float
    vmem_limit: int | None


def sweep(
    equations: Equations, grid: Grid, visits: Visits, settings: Settings
) -> dict[str, jax.Array]:
    """The results of equations, by name.

    Args:
      equations: The equations.
      grid: The sizes.
      visits: The blocks of columns that each block of rows visits.
      settings: How the kernel is compiled.
    """
    operands, results, sums = equations.operands(), equations.results(), equations.sums()
    axes = {name: x.axes for name, x in operands.items()}
    axes |= {name: x.axes for name, x in results.items()}
    batch, heads, rows, most = visits.blocks.shape
    cut = Cut(grid, (batch, heads, rows, most))
    names = [*names_of(operands), *results, *sums]
    by_distance = [name for name, x in results.items() if x.axes == "bnw"]
    # Interpreted grids have constant bounds.
    steps = visits.blocks.shape[-1] if settings.interpret else jnp.max(visits.counts)

    def kernel(blocks: Any, counts: Any, *memory: Any) -> None:
        refs = dict(zip(names, memory, strict=True))
        at = Index(*(pl.program_id(axis) for axis in range(5)))
        first, last = at.step == 0, at.step == pl.num_programs(4) - 1
        pl.when(first & (at.member == 0))(lambda: equations.begin_heads(refs))
        pl.when(first)(lambda: equations.begin(refs))
        for name in by_distance:
            pl.when(first & (at.row == 0))(functools.partial(_clear, refs[name]))
        row = cut.row(at)
        is_visit = at.step < counts[row]
        needs_mask = lax.rem(blocks[row * cut.lists[-1] + at.step], 2) == 1

        def visit(*, masked: bool) -> None:
            def step(start: Any) -> None:
                block = cut.block(at, blocks)
                equations.step(Tile(refs, axes, cut, block, start, masked=masked))

            most = equations.most_unrolled // (2 if masked else 1) // math.prod(grid.tile)
            if "bnw" in axes.values():  # a tile of diagonals starts at a known place
                most = len(grid.starts)
            _for_each(grid.starts, step, most=most)

        if settings.masks:
            pl.when(is_visit & needs_mask)(lambda: visit(masked=True))
        pl.when(is_visit & ~needs_mask)(lambda: visit(masked=False))
        pl.when(last)(lambda: equations.finish(refs))
        pl.when(last & (at.member == grid.outer[3] - 1))(lambda: equations.finish_heads(refs))

    call = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(*grid.outer, steps),
            in_specs=[s for x in operands.values() for s in cut.specs(x.axes, x.values.shape)],
            out_specs=[cut.result_spec(x) for x in results.values()],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in sums.values()],
        ),
        out_shape=[cut.result_shape(x) for x in results.values()],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", *("arbitrary",) * 3),
            vmem_limit_bytes=settings.vmem_limit,
        ),
        cost_estimate=cost_of(cut, operands, results, equations.features(), settings.share),
        interpret=settings.interpret,
    )
    arrays = [array for x in operands.values() for array in stored(x)]
    lists = [visits.blocks.reshape(-1), visits.counts.reshape(-1)]
    with jax.enable_x64(False):  # TPUs index by 32 bits, also where the user computes in 64
        found = call(*lists, *arrays)
    return {
        name: array.reshape(result.shape)
        for (name, result), array in zip(results.items(), found, strict=True)
    }


def _for_each(starts: range, step: Callable[[Any], None], *, most: int) -> None:
    """Call a function with each of some numbers, in a loop of which some steps are unrolled.

    Args:
      starts: The numbers.
      step: The function.
      most: The largest number of steps that are unrolled.
    """
    count = len(starts)
    unrolled = max(n for n in range(1, count + 1) if count % n == 0 and n <= max(1, most))
    if unrolled == count:
        for start in starts:
            step(start)
        return

    def several(i: jax.Array, nothing: tuple[()]) -> tuple[()]:
        for part in range(unrolled):
            step(pl.multiple_of((i * unrolled + part) * starts.step, LANES))
        return nothing

    lax.fori_loop(0, count // unrolled, several, ())


def _clear(ref: Any) -> None:
    ref[...] = jnp.zeros_like(ref)
