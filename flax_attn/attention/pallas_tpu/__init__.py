"""Attention in Pallas kernels for TPUs, for any composition of masks and modifiers.

call         a problem on its way through kernels
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
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from flax_attn._checks import as_integer
from flax_attn.attention import _registry
from flax_attn.attention._core.batch import abstract_with_one_batch_axis, with_one_batch_axis
from flax_attn.attention._core.implementation import Implementation, Results, Target
from flax_attn.attention._core.problem import Problem
from flax_attn.attention._figures import reason_to_defer
from flax_attn.attention._staged.blocks import serves
from flax_attn.attention._staged.pairs import Pairs, pairs_of
from flax_attn.attention._staged.program import NotStagedError
from flax_attn.attention.pallas_tpu.call import Call
from flax_attn.attention.pallas_tpu.grid import LANES
from flax_attn.attention.pallas_tpu.sizes import (
    MOST_VISITS,
    TileSizes,
    choose_sizes,
    explain_too_large,
    kinds_that_fit,
    too_many,
)
from flax_attn.masks import Plan

FEW_QUERIES = 16
DTYPES = ("bfloat16", "float32")
# Sums over distances are kept in vector memory while the blocks of a head are visited.
MOST_DISTANCES = 2**18


@dataclasses.dataclass(frozen=True)
class PallasTPU(Implementation):
    """Attention in one kernel for TPUs: forward, tangent, and transpose in two kernels.

    The mask, the score modifiers and dropout are computed inside, whatever they are made of. Blocks
    that the mask hides are not visited, and full ones are computed without it.

    The gradient of an array over pairs (a bias, or an array in a modifier) is computed by the best
    other implementation.

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
            pairs = pairs_of(problem)
        except NotStagedError as error:
            return f"a tile cannot compute the mask or a score modifier: {error}"
        wide = sorted(x.name for x in pairs.dtypes if x.itemsize > 4)
        if wide:
            return f"the mask or a score modifier computes in {wide[0]}, which TPUs do not have."
        return self._too_large(problem, pairs, target)

    def _too_large(self, problem: Problem, pairs: Pairs, target: Target) -> str | None:
        merged = abstract_with_one_batch_axis(problem)
        asked = {self.block_query, self.block_key} - {None}
        if any(x.by_distance for x in pairs.given) and len(asked) > 1:
            return (
                f"a bias that is looked up by distance takes blocks of as many queries as keys, "
                f"got block_query={self.block_query} and block_key={self.block_key}. Give one."
            )
        sizes = self._sizes(problem, target)
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
        return explain_too_large(merged, pairs.given, sizes, target.device)

    def defers(self, problem: Problem, target: Target) -> str | None:
        """It is left alone for few queries, as a block of them is computed anyway."""
        length_q = problem.sizes[0]
        if length_q <= FEW_QUERIES:
            return f"it computes blocks of {LANES} queries, and there are {length_q}."
        return reason_to_defer(self.name, "blockwise", problem, target)

    def block_map(self, problem: Problem, target: Target) -> Plan | None:
        """The blocks of pairs that it computes."""
        sizes = self._sizes(problem, target)
        kinds = kinds_that_fit(with_one_batch_axis(problem), sizes)
        batch = problem.batch if len(kinds) > 1 else (1,) * len(problem.batch)
        length_q, length_k, _, _ = problem.sizes
        return Plan(
            kinds.reshape(*batch, *kinds.shape[1:]).astype(jnp.int8),
            (sizes.query, sizes.key),
            (length_q, length_k),
        )

    def remarks(self, problem: Problem, target: Target) -> list[str]:
        """Who computes what it leaves to others, and whether it uses a plan."""
        lines = []
        if any(x.is_over_pairs and x.is_float for x in pairs_of(problem).given):
            other = _registry.other_than(self, problem, target).name
            lines.append(f"gradients of arrays over pairs by {other}")
        sizes = self._sizes(problem, target)
        if problem.plan is not None and not serves(problem.plan, (sizes.query, sizes.key)):
            lines.append(
                f"a block map of its own, as its blocks are no multiples of the plan's "
                f"{problem.plan.block[0]} × {problem.plan.block[1]}"
            )
        return lines

    def _sizes(self, problem: Problem, target: Target) -> TileSizes:
        asked = self.block_query, self.block_key, self.block_compute
        merged, given = abstract_with_one_batch_axis(problem), pairs_of(problem).given
        return choose_sizes(merged, given, asked, target.device)

    def forward(self, problem: Problem, target: Target) -> Results:
        """Output and LSE."""
        return self._call(problem, target).forward()

    def tangent(
        self,
        problem: Problem,
        target: Target,
        results: Results,
        tangents: Mapping[int, jax.Array],
    ) -> Results:
        """The derivatives of output and LSE along tangents of some leaves."""
        return self._call(problem, target).tangent(results, tangents)

    def transpose(
        self,
        problem: Problem,
        target: Target,
        results: Results,
        cotangents: Results,
        active: tuple[int, ...],
    ) -> Sequence[jax.Array]:
        """The cotangents of the leaves `active`."""
        call = self._call(problem, target)
        if call.needs_pairs(active):
            other = _registry.other_than(self, problem, target)
            return other.transpose(problem, target, results, cotangents, active)
        return call.transpose(results, cotangents, active)

    def _call(self, problem: Problem, target: Target) -> Call:
        sizes = self._sizes(problem, target)
        return Call(problem, target, pairs_of(problem), sizes, interpret=self.interpret)
