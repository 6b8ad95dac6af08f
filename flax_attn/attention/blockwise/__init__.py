"""Blockwise attention: O(T + S) memory, hidden blocks skipped, on any platform.

equations   what each pass computes: begin, tile step and finish
sweep       the loop nest
schedule    which tiles are computed
sizes       how large they are
storage     the arrays from which tiles are cut
tile        a block of queries, and a tile of its scores
undefined   NaN for queries that see something that is not finite
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax

from flax_attn._checks import as_integer
from flax_attn.attention._core.implementation import Implementation, Results, Target
from flax_attn.attention._core.problem import Problem
from flax_attn.attention.blockwise.equations import Forward, Tangent, Transpose
from flax_attn.attention.blockwise.schedule import make_schedule
from flax_attn.attention.blockwise.sizes import TileSizes, choose_sizes
from flax_attn.attention.blockwise.storage import Storage
from flax_attn.attention.blockwise.sweep import sweep
from flax_attn.attention.blockwise.undefined import mark_undefined
from flax_attn.masks import Plan
from flax_attn.masks.plan import block_kinds

# Of one head. Measured by `examples/benchmarks/attention.py --threshold`: up to 256 × 256 scores
# a head all heads at once are faster, forward and backward, from 512 × 512 on they are slower; and
# the scores of a head are then at most four times as large as its 256 queries of 64 features.
DENSE_SCORES = 2**16


@dataclasses.dataclass(frozen=True)
class Blockwise(Implementation):
    """Attention tile by tile, with memory O(T + S), skipping the blocks that the mask hides.

    Attributes:
      block_query: Number of queries in a block; None chooses.
      block_key: Number of keys in a block; None chooses.
      blocks_per_tile: Largest number of key blocks that are computed at once, a power of two; None
        chooses. A plan decides about both block sizes, not about this.
      heads_per_tile: Largest number of key heads that are computed at once on CPUs; None chooses.
        Other platforms compute all at once.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import attention
      >>> x = jnp.ones((1, 1024, 2, 8))
      >>> blockwise = attention.Blockwise(block_query=256, block_key=512)
      >>> attention.dot_product_attention(x, x, x, implementation=blockwise).shape
      (1, 1024, 2, 8)

    References:
      Rabe, Staats, "Self-attention Does Not Need O(n²) Memory", 2021, arXiv:2112.05682; Dao, Fu,
      Ermon, Rudra, Ré, "FlashAttention: Fast and Memory-Efficient Exact Attention with
      IO-Awareness", NeurIPS 2022, arXiv:2205.14135.
    """

    block_query: int | None = None
    block_key: int | None = None
    blocks_per_tile: int | None = None
    heads_per_tile: int | None = None
    name: ClassVar[str] = "blockwise"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            size = getattr(self, field.name)
            if size is None:
                continue
            size = as_integer("Blockwise", field.name, size)
            power = field.name != "blocks_per_tile" or size & (size - 1) == 0
            if size < 1 or not power:
                kind = "at least 1" if power else "a power of two"
                raise ValueError(f"Blockwise: {field.name} must be {kind}, got {size}.")
            object.__setattr__(self, field.name, size)

    def declines(self, problem: Problem, target: Target) -> str | None:
        """Declines unless the normaliser folds, all lengths are known, and no axis is empty."""
        del target
        if not problem.normalizer.folds:
            name = type(problem.normalizer).__name__
            return f"the normaliser {name} needs whole rows of scores. Use 'dense'."
        return self.cannot_cut(problem)

    def cannot_cut(self, problem: Problem) -> str | None:
        """Why the sequences of a problem cannot be cut into blocks; None if they can."""
        if not all(isinstance(size, int) for size in problem.sizes):
            return "it cuts sequences into blocks, and a length is symbolic. Use 'dense'."
        if 0 in (*problem.batch, *problem.sizes, problem.value.values.shape[-1]):
            return "there is nothing to take block by block: an axis has size 0. Use 'dense'."
        return None

    def defers(self, problem: Problem, target: Target) -> str | None:
        """Dense attention is faster for few scores."""
        del target
        length_q, length_k, _, _ = problem.sizes
        if length_q * length_k <= DENSE_SCORES:
            return f"{length_q} × {length_k} scores a head are few enough to be computed at once."
        return None

    def forward(self, problem: Problem, target: Target) -> Results:
        """Output and LSE."""
        storage = self._storage(problem, target)
        schedule = make_schedule(storage)
        stored = sweep(Forward(storage), storage, schedule)
        marked = mark_undefined(storage, schedule, *(x.whole() for x in stored))
        output, lse = (x.reshape(*problem.batch, *x.shape[1:]) for x in marked)
        return output, lse[..., 0]

    def tangent(
        self,
        problem: Problem,
        target: Target,
        results: Results,
        tangents: Mapping[int, jax.Array],
    ) -> Results:
        """The derivatives of output and LSE along tangents of some leaves."""
        storage = self._storage(problem, target)
        equations = Tangent(storage, results, tangents)
        stored = sweep(equations, storage, make_schedule(storage))
        d_output, d_lse = map(storage.result, stored)
        return d_output, d_lse[..., 0]

    def transpose(
        self,
        problem: Problem,
        target: Target,
        results: Results,
        cotangents: Results,
        active: tuple[int, ...],
    ) -> Sequence[jax.Array]:
        """The cotangents of the leaves `active`."""
        storage = self._storage(problem, target, gradients=True)
        equations = Transpose(storage, results, cotangents, active)
        found = sweep(equations, storage, make_schedule(storage))
        gradients = found.written | found.sums.others
        return [storage.gradient(gradients[leaf], leaf) for leaf in active]

    def block_map(self, problem: Problem, target: Target) -> Plan | None:
        """The blocks of pairs that it computes; None if the sequences cannot be cut."""
        if self.cannot_cut(problem):
            return None
        length_q, length_k, _, _ = problem.sizes
        sizes = self.sizes(problem, target)
        block = sizes.query, sizes.key
        if problem.plan is not None:
            kinds = problem.plan.kinds.values
        else:
            kinds = block_kinds(problem.mask, *problem.records(), block)
        return Plan(kinds=kinds, block=block, lengths=(length_q, length_k))

    def sizes(self, problem: Problem, target: Target, *, gradients: bool = False) -> TileSizes:
        """The sizes of the tiles."""
        return choose_sizes(
            problem,
            sequential=_is_sequential(target),
            gradients=gradients,
            block_query=self.block_query,
            block_key=self.block_key,
            blocks_per_tile=self.blocks_per_tile,
            heads_per_tile=self.heads_per_tile,
        )

    def _storage(self, problem: Problem, target: Target, *, gradients: bool = False) -> Storage:
        sizes = self.sizes(problem, target, gradients=gradients)
        return Storage(problem, sizes, sequential=_is_sequential(target), is_part=target.is_part)


def _is_sequential(target: Target) -> bool:
    """Whether to loop over batch elements and key heads: on a CPU, for its caches."""
    return target.platform == "cpu" and not target.partitioned
