"""Attention in Pallas kernels for TPUs, for any composition of masks and modifiers.

equations    what the forward kernel computes, tile by tile
derivatives  the tangent, and its transpose in two sweeps; rows that see what is not finite
sweep        the loop nest: one kernel
grid         its grid, and how arrays are cut into blocks
cost         its operations and the bytes that it moves
tile         what a kernel reads of a block
laid         the arrays of a problem as the kernels take them
sizes        how large the blocks are, and the vector memory that they take

Mask, modifiers and dropout come from `_staged`: a kernel computes of them what depends on pairs.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from flax_attn._checks import as_integer
from flax_attn.attention._core.batch import abstract_with_one_batch_axis
from flax_attn.attention._core.finite import finite, not_finite
from flax_attn.attention._core.implementation import Implementation, Results, Target
from flax_attn.attention._core.problem import KEY, QUERY, VALUE, Problem, Structure
from flax_attn.attention._staged.blocks import visits
from flax_attn.attention._staged.pairs import Pairs
from flax_attn.attention._staged.program import Depends, NotStagedError
from flax_attn.attention.blockwise import Blockwise
from flax_attn.attention.pallas_tpu.derivatives import (
    GivenRows,
    OfKeys,
    OfQueries,
    Tangent,
    Undefined,
    cotangent_of,
)
from flax_attn.attention.pallas_tpu.equations import Forward
from flax_attn.attention.pallas_tpu.grid import LANES, Rows
from flax_attn.attention.pallas_tpu.laid import Laid
from flax_attn.attention.pallas_tpu.sizes import (
    MOST_VISITS,
    TileSizes,
    choose_sizes,
    explain_too_large,
    kinds_that_fit,
    memory_limit,
    too_many,
    vector_memory,
)
from flax_attn.attention.pallas_tpu.sweep import Equations, Settings, sweep
from flax_attn.masks.plan import EMPTY

DTYPES = ("bfloat16", "float32")
# Sums over distances are kept in vector memory while the blocks of a head are visited.
MOST_DISTANCES = 2**18


@dataclasses.dataclass(frozen=True)
class PallasTPU(Implementation):
    """Attention in one kernel for TPUs: forward, tangent, and transpose in two kernels.

    The mask, the score modifiers and dropout are computed inside, whatever they are made of. Blocks
    that the mask hides are not visited, and full ones are computed without it.

    The cotangent of an array over pairs (a bias, or an array in a modifier) is computed by
    `blockwise` attention.

    Attributes:
      block_query: Number of queries in a block, a multiple of 128; None chooses.
      block_key: Number of keys in a block, a multiple of 128; None chooses.
      block_compute: Largest number of columns of a block that are computed at once, a multiple of
        128; None chooses.
      interpret: Whether JAX computes the kernels operation by operation, on any platform. It is
        slow, and is for tests.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import attention
      >>> x = jnp.ones((1, 256, 2, 8))
      >>> kernel = attention.PallasTPU(block_query=128, block_key=128, interpret=True)
      >>> attention.dot_product_attention(x, x, x, implementation=kernel).shape
      (1, 256, 2, 8)

    References:
      Dao, Fu, Ermon, Rudra, Ré, "FlashAttention: Fast and Memory-Efficient Exact Attention with
      IO-Awareness", NeurIPS 2022, arXiv:2205.14135.
    """

    block_query: int | None = None
    block_key: int | None = None
    block_compute: int | None = None
    interpret: bool = False
    name: ClassVar[str] = "pallas_tpu"

    def __post_init__(self) -> None:
        for field in ("block_query", "block_key", "block_compute"):
            size = getattr(self, field)
            if size is None:
                continue
            size = as_integer("PallasTPU", field, size)
            if size < 1 or size % LANES:
                raise ValueError(
                    f"PallasTPU: {field} must be a multiple of {LANES}, the lanes of a TPU, got "
                    f"{size}."
                )
            object.__setattr__(self, field, size)

    def declines(self, problem: Problem, target: Target) -> str | None:
        """Declines other platforms, programs that XLA divides, and what no tile can compute."""
        if target.platform not in (None, "tpu") and not self.interpret:
            return f"it runs on TPUs, and this program is for {target.platform}."
        if target.partitioned and not self.interpret:
            return (
                "XLA divides the program among devices, and cannot divide a kernel. Put the call "
                "within jax.shard_map, or give placement=sharded.Heads(axis) or another."
            )
        if not problem.normalizer.folds:
            name = type(problem.normalizer).__name__
            return f"the normaliser {name} needs whole rows of scores. Use 'dense'."
        if problem.dtype.name not in DTYPES:
            return f"it computes {' and '.join(DTYPES)}, got {problem.dtype}. Use 'blockwise'."
        if not all(isinstance(size, int) for size in problem.sizes):
            return "it cuts sequences into blocks, and a length is symbolic. Use 'dense'."
        if 0 in (*problem.batch, *problem.sizes, problem.value.values.shape[-1]):
            return "there is nothing to take block by block: an axis has size 0. Use 'dense'."
        try:
            pairs = _pairs_of(problem)
        except NotStagedError as error:
            return f"a tile cannot compute the mask or a score modifier: {error}"
        wide = [x.dtype for x in pairs.given if x.dtype.itemsize > 4]
        if wide:
            return f"the mask or a score modifier computes in {wide[0]}, which TPUs do not have."
        return self._too_large(problem, pairs, target.device)

    def _too_large(self, problem: Problem, pairs: Pairs, device: str | None) -> str | None:
        merged = abstract_with_one_batch_axis(problem)
        sizes = self._sizes(merged, pairs, device)
        length_q, length_k, _, _ = problem.sizes
        if too_many(merged, sizes):
            return (
                f"the lists of blocks must have at most {MOST_VISITS:,} entries, which fit in the "
                f"scalar memory of a TPU: {length_q} queries and {length_k} keys in blocks of "
                f"{sizes.query} × {sizes.key} have more. Use larger blocks, PallasTPU(block_query="
                f"...), or split the sequence over devices, placement=sharded.Ring(axis)."
            )
        if any(x.by_distance for x in pairs.given) and length_q + length_k > MOST_DISTANCES:
            return (
                f"a bias that is looked up by distance must have at most {MOST_DISTANCES:,} "
                f"distances T + S, got {length_q + length_k:,}. Use 'blockwise'."
            )
        if self.interpret:
            return None
        return explain_too_large(merged, pairs.given, sizes, device)

    def defers(self, problem: Problem, target: Target) -> str | None:
        """Interpreted kernels are for tests."""
        del problem, target
        return "interpreted kernels are for tests." if self.interpret else None

    def blocks(self, problem: Problem, target: Target) -> tuple[int, int] | None:
        """Numbers of queries and of keys in a block."""
        merged = abstract_with_one_batch_axis(problem)
        sizes = self._sizes(merged, _pairs_of(problem), target.device)
        return sizes.query, sizes.key

    def _sizes(self, problem: Problem, pairs: Pairs, device: str | None) -> TileSizes:
        asked = self.block_query, self.block_key, self.block_compute
        return choose_sizes(problem, pairs.given, asked, device)

    # ---- forward

    def forward(self, problem: Problem, target: Target) -> Results:
        """Output and LSE."""
        work = _Work(self, problem, target)
        found = work.sweep(Forward(work.laid, work.given))
        output = work.laid.tokens(found["o"], "t", problem.value.values.shape[-1])
        return self._mark_undefined(work, output, work.laid.tokens(found["lse"], "t"))

    def _mark_undefined(self, work: "_Work", output: jax.Array, lse: jax.Array) -> Results:
        """Output and LSE with NaN where a query sees what is not finite."""
        problem = work.laid.problem
        if not problem.may_hide:
            return output, lse
        arrays = {QUERY: problem.query, KEY: problem.key, VALUE: problem.value}
        bad = {i: not_finite(x.values) for i, x in arrays.items()}
        anything = jnp.any(jnp.stack([jnp.any(flags) for flags in bad.values()]))
        no = jnp.zeros(lse.shape, bool)

        def find() -> tuple[jax.Array, jax.Array]:
            found = work.sweep(Undefined(work.laid, work.given, bad))
            of_scores, of_values = (work.laid.tokens(x, "t") > 0 for x in found.values())
            return of_scores, of_values

        of_scores, of_values = jax.lax.cond(anything, find, lambda: (no, no))
        output = jnp.where((of_scores | of_values)[..., None], jnp.nan, output)
        return output, jnp.where(of_scores, jnp.nan, lse)

    # ---- derivatives

    def tangent(
        self,
        problem: Problem,
        target: Target,
        results: Results,
        tangents: Mapping[int, jax.Array],
    ) -> Results:
        """The derivatives of output and LSE along tangents of some leaves."""
        work = _Work(self, problem, target)
        output, lse = results
        rows = GivenRows.of(work.laid, output, lse)
        others = work.others(tuple(tangents))
        _, moved = jax.jvp(
            work.given_of(others),
            [work.leaves[i] for i in others],
            [tangents[i] for i in others],
        )
        numbers = work.pairs.moved_by(problem, others)
        scale = work.structure.scale
        found = work.sweep(
            Tangent(
                work.laid,
                work.given,
                rows,
                {i: tangents[i] for i in (QUERY, KEY, VALUE) if i in tangents},
                {i: moved[i] for i in numbers},
                tangents.get(scale) if scale is not None else None,
            )
        )
        change = work.laid.tokens(found["change"], "t", output.shape[-1])
        of_lse = work.laid.tokens(found["change of lse"], "t")
        if problem.normalizer.coupled:
            change = change - of_lse[..., None] * rows.where_defined(output).astype(change.dtype)
        else:  # the LSE does not make the weights 0 where a row is not defined
            change, of_lse = rows.where_defined(change), jnp.zeros_like(of_lse)
        return change.astype(output.dtype), of_lse.astype(lse.dtype)

    def transpose(
        self,
        problem: Problem,
        target: Target,
        results: Results,
        cotangents: Results,
        active: tuple[int, ...],
    ) -> Sequence[jax.Array]:
        """The cotangents of the leaves `active`."""
        work = _Work(self, problem, target)
        others = work.others(active)
        moved = work.pairs.moved_by(problem, others)
        given = work.pairs.given
        if any(given[i].depends == Depends.PAIR and not given[i].by_distance for i in moved):
            return Blockwise().transpose(problem, target, results, cotangents, active)
        output, lse = results
        rows = GivenRows.of(work.laid, output, lse)
        d_output = rows.where_defined(cotangents[0]).astype(jnp.float32)
        delta = jnp.sum(d_output * rows.where_defined(output).astype(jnp.float32), axis=-1)
        delta = delta - rows.where_defined(cotangents[1])
        d_output = d_output.astype(problem.dtype)
        shared = (work.laid, work.given, rows, d_output, delta, moved)
        dtypes = [jnp.dtype(jnp.float32) if target.is_part else problem.dtype] * 3

        found: dict[str, jax.Array] = {}
        scale = problem.scale
        is_number = isinstance(scale, int | float)
        if {QUERY, work.structure.scale}.intersection(active) or any(
            not given[i].depends & Depends.KEY or given[i].by_distance for i in moved
        ):
            known = (float(scale), dtypes[0]) if is_number else (1.0, jnp.dtype(jnp.float32))
            found |= work.sweep(OfQueries(*shared, scale=known[0], dtype=known[1]))
        if {KEY, VALUE}.intersection(active) or any(given[i].depends == Depends.KEY for i in moved):
            found |= work.sweep(OfKeys(*shared, dtypes=(dtypes[1], dtypes[2])))

        gradients = work.gradients_of_others(found, moved, others, is_part=target.is_part)
        features = problem.query.values.shape[-1]
        if "d query" in found:
            d_query = work.laid.tokens(found["d query"], "t", features)
            if not is_number:
                query = finite(problem.query.values) if problem.may_hide else problem.query.values
                total = jnp.sum(query.astype(d_query.dtype) * d_query)
                gradients[work.structure.scale] = total.astype(scale.dtype).reshape(scale.shape)
                d_query = (d_query * scale).astype(dtypes[0])
            gradients[QUERY] = d_query
        if "d key" in found:
            gradients[KEY] = work.laid.tokens(found["d key"], "s", features)
            width = problem.value.values.shape[-1]
            gradients[VALUE] = work.laid.tokens(found["d value"], "s", width)
        return [gradients[i] for i in active]


@functools.lru_cache(maxsize=256)
def _cached_pairs(structure: Structure, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> Pairs:
    return Pairs(structure.problem(leaves))


def _pairs_of(problem: Problem) -> Pairs:
    leaves, structure = Structure.of(problem)
    return _cached_pairs(structure, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves))


class _Work:
    """A problem on its way through kernels.

    Attributes:
      laid: Its arrays.
      pairs: Its pairs.
      given: What the pairs are given.
      leaves: The leaves of the problem.
      structure: The rest of it.
    """

    def __init__(self, implementation: PallasTPU, problem: Problem, target: Target) -> None:
        self.implementation, self.problem = implementation, problem
        self.leaves, self.structure = Structure.of(problem)
        self.pairs = _pairs_of(problem)
        merged, given = abstract_with_one_batch_axis(problem), self.pairs.given
        self.sizes = implementation._sizes(merged, self.pairs, target.device)
        needed = max(vector_memory(merged, given, self.sizes).values())
        self._vmem_limit = memory_limit(needed, target.device)
        self.laid = Laid(problem, self.pairs, self.sizes)
        self.given = self.laid.given_arrays()
        self._kinds = kinds_that_fit(self.laid.problem, self.sizes)

    def sweep(self, equations: Equations) -> dict[str, jax.Array]:
        """Run a kernel."""
        by_query = equations.rows is Rows.QUERIES
        kinds = self._kinds if by_query else jnp.swapaxes(self._kinds, -1, -2)
        is_ragged = self.laid.lengths[1] != self.problem.sizes[1]
        is_traced = isinstance(self._kinds, jax.core.Tracer)
        settings = Settings(
            masks=self.problem.may_hide or is_ragged,
            interpret=self.implementation.interpret,
            share=1.0 if is_traced else float(jnp.mean(self._kinds != EMPTY)),
            vmem_limit=self._vmem_limit,
        )
        return sweep(equations, self.laid.grid(equations.rows), visits(kinds), settings)

    def others(self, active: tuple[int, ...]) -> tuple[int, ...]:
        """The leaves among some that are not query, key, value or scale."""
        return tuple(i for i in active if i not in (QUERY, KEY, VALUE, self.structure.scale))

    def given_of(self, leaves: tuple[int, ...]) -> Any:
        """What the pairs are given, as a function of some leaves."""

        def given(*values: jax.Array) -> list[jax.Array]:
            replaced = dict(zip(leaves, values, strict=True))
            every = [replaced.get(i, x) for i, x in enumerate(self.leaves)]
            return self.pairs.outside(self.structure.problem(every), self.laid.distances)

        return given

    def gradients_of_others(
        self,
        found: Mapping[str, jax.Array],
        moved: Sequence[int],
        others: tuple[int, ...],
        *,
        is_part: bool,
    ) -> dict[Any, jax.Array]:
        """The cotangents of leaves, from the sums of kernels."""
        if not others:
            return {}
        values = [self.leaves[i] for i in others]
        if is_part:
            values = [x.astype(jnp.float32) for x in values]
        arrays, pull_back = jax.vjp(self.given_of(others), *values)
        cotangents = [
            jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else _no(x) for x in arrays
        ]
        for i in moved:
            total = self._like(found[cotangent_of(i)], i)
            axes = tuple(a for a, size in enumerate(arrays[i].shape) if size != total.shape[a])
            cotangents[i] = jnp.sum(total, axes, keepdims=True).astype(arrays[i].dtype)
        return dict(zip(others, pull_back(cotangents), strict=True))

    def _like(self, sums: jax.Array, number: int) -> jax.Array:
        """Sums of a kernel as `[B, N, T, 1]`, `[B, N, 1, S]` or `[B, N, 1, distances]`."""
        given = self.pairs.given[number]
        if given.by_distance:
            return sums[:, :, None]
        length_q, length_k, _, _ = self.problem.sizes
        if given.depends == Depends.KEY:
            return sums[:, :, None, :length_k]
        return sums[:, :, :length_q, None]


def _no(x: jax.Array) -> Any:
    """The cotangent of an array that has none."""
    import numpy as np

    return np.zeros(x.shape, jax.dtypes.float0)
