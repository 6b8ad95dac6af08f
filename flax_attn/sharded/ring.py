"""Ring attention: the blocks of keys go round the devices, and each attends to all of them."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from flax_attn._jax import vary_together
from flax_attn.attention import Partial, merge
from flax_attn.attention._core.implementation import Results, Target
from flax_attn.attention._core.problem import Problem, Structure
from flax_attn.sharded._placement import AxisPlacement, Needed

STAYS, MOVES, CUT = "stays", "moves", "is cut"


@dataclasses.dataclass(frozen=True, repr=False)
class Ring(AxisPlacement):
    """Attention to keys that are split over devices, which pass them on from one to the next.

    Device i has a block of queries and a block of keys. In step j it attends to the keys of device
    i − j, while the next block is on its way. The partial results are merged by their LSE:

        LSE = log Σ_j exp(LSE_j),  O = Σ_j exp(LSE_j − LSE) O_j

    Each device sends all keys and values once, to its neighbour. The backward pass is given the
    merged O and LSE, so that the gradients of the blocks add up. They go round with their keys, in
    float32.

    The letters of an array decide what happens to it. One with a key axis and no query axis moves:
    keys, values, their coordinates. One with both is cut where the visiting keys are: a bias, a
    boolean mask. Everything else stays. So every mask and score modifier works, and no line of code
    knows them. Where a block of pairs is hidden, nothing is computed.

    The cost of a causal mask is even if tokens are in the order of `coords.zigzag`.

    Attributes:
      axis: The mesh axis along which queries and keys are split.
      inner: The implementation of one block, or another placement: `Ring("far",
        inner=Ring("near"))` is a ring of rings. None chooses the best.
      shifts: The steps that are done, sorted; None = all. Step j must be among them if a query of
        any device i sees a key of device i − j. `needed_shifts` finds them, and `on(mesh)` asks it
        where mask and positions are known.

    Example:
      >>> import functools, jax, jax.numpy as jnp
      >>> from flax_attn import Coords, dot_product_attention, sharded
      >>> from jax.sharding import PartitionSpec as P
      >>> mesh = jax.make_mesh((8,), ("seq",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> def part(q, k, v):
      ...     here = Coords.arange(4, offset=4 * jax.lax.axis_index("seq"))
      ...     coords = dict(query_coords=here, key_coords=here)
      ...     ring = sharded.Ring("seq")
      ...     return dot_product_attention(q, k, v, is_causal=True, placement=ring, **coords)
      >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 32, 2, 8))
      >>> spec = P(None, "seq")
      >>> out = jax.shard_map(part, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec)(q, k, v)
      >>> bool(jnp.allclose(out, dot_product_attention(q, k, v, is_causal=True), atol=1e-5))
      True

    References:
      Liu, Zaharia, Abbeel, "Ring Attention with Blockwise Transformers for Near-Infinite Context",
      ICLR 2024, arXiv:2310.01889; Brandon et al., "Striped Attention: Faster Ring Attention for
      Causal Transformers", 2023, arXiv:2311.09431.
    """

    shifts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shifts is None:
            return
        is_sequence = isinstance(self.shifts, list | tuple | range)
        shifts = tuple(self.shifts) if is_sequence else ()
        if not shifts or any(type(x) is not int for x in shifts):
            raise TypeError(
                f"Ring: shifts must be whole numbers in a tuple, got {self.shifts!r}. "
                f"needed_shifts(mask, coords, shards=...) finds them."
            )
        if list(shifts) != sorted(set(shifts)) or shifts[0] < 0:
            raise ValueError(
                f"Ring: shifts must be different numbers from 0 on, sorted, got {self.shifts}. "
                f"needed_shifts(mask, coords, shards=...) finds them."
            )
        object.__setattr__(self, "shifts", shifts)

    def axes(self, letters: str) -> dict[str, tuple[str, ...]]:
        """Queries and keys are split; an array with both has all keys."""
        inner = self.within.axes(letters) if self.within else {}
        own = {"t": (self.axis,), "s": () if "t" in letters else (self.axis,)}
        return inner | {letter: own[letter] + inner.get(letter, ()) for letter in own}

    def with_shifts(self, needed: Needed, mesh: Mesh) -> "Ring":
        """The same ring without the steps that the mask does not need."""
        if self.within or self.shifts is not None:
            return self
        return dataclasses.replace(self, shifts=needed(mesh.shape[self.axis]))

    def widened(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """An array bias or mask of a device has all keys."""
        *rest, length_k = shape
        return (*rest, length_k * self.size)

    def arrived(self, problem: Problem) -> Problem:
        """The problem with the first block of keys."""
        leaves, structure = Structure.of(problem)
        return structure.problem(Blocks(self, problem).at(leaves, range(len(leaves)), None, 0))

    def remarks(self, problem: Problem, target: Target) -> list[str]:
        """Which steps are done."""
        del problem, target
        if self.shifts is None:
            return [f"ring over {self.axis!r}: all {self.size} steps"]
        return [f"ring over {self.axis!r}: {len(self.shifts)} of {self.size} steps, {self.shifts}"]

    def declines(self, problem: Problem, target: Target) -> str | None:
        """Declines normalisers whose parts cannot be merged."""
        del target
        if not problem.normalizer.folds:
            name = type(problem.normalizer).__name__
            return (
                f"rows of the normaliser {name} cannot be merged from blocks of keys. Gather the "
                f"keys: AllGather({self.axis!r})."
            )
        return None

    def check_problem(self, function: str, problem: Problem) -> None:
        """Raise if the ring cannot compute a problem."""
        super().check_problem(function, problem)
        if self.shifts is not None and self.shifts[-1] >= self.size:
            raise ValueError(
                f"{function}: shifts of Ring must be below the number of devices {self.size}, got "
                f"{self.shifts}."
            )
        if reason := self.declines(problem, Target(None)):
            raise NotImplementedError(f"{function}: {self!r} declines: {reason}")

    def forward(self, problem: Problem, target: Target) -> Results:
        """O and LSE, merged over the blocks."""
        leaves, structure = Structure.of(problem)
        blocks, coupled = Blocks(self, problem), problem.normalizer.coupled
        dtype = problem.scores_dtype

        def step(block: list[jax.Array], source: Any, state: Results) -> tuple[list, Results]:
            del source
            part = structure.problem(block).with_output(dtype)
            found = self.compute(part, target).forward(part, target)
            parts = [Partial(o, lse if coupled else None) for o, lse in (state, found)]
            merged = merge(parts)
            return [], (merged.output, state[1] if merged.lse is None else merged.lse)

        rows = problem.query.values.shape[:-1]
        statistics = problem.normalizer.begin(rows, dtype)
        _, lse = problem.normalizer.finish(statistics)
        output = jnp.zeros((*rows, problem.value.values.shape[-1]), dtype)
        _, (output, lse) = blocks.fold(step, leaves, range(len(leaves)), [], (output, lse))
        return output.astype(problem.output_dtype), lse

    def tangent(
        self,
        problem: Problem,
        target: Target,
        results: Results,
        tangents: Mapping[int, jax.Array],
    ) -> Results:
        """Ȯ and LSĖ, summed over the blocks."""
        leaves, structure = Structure.of(problem)
        blocks, target = Blocks(self, problem), target._replace(is_part=True)
        given = results[0].astype(problem.scores_dtype), results[1]
        numbers = [*range(len(leaves)), *tangents]

        def step(block: list[jax.Array], source: Any, state: Results) -> tuple[list, Results]:
            del source
            x, moving = block[: len(leaves)], block[len(leaves) :]
            part = structure.problem(x).with_output(problem.scores_dtype)
            inner = self.compute(part, target)
            found = inner.tangent(part, target, given, dict(zip(tangents, moving, strict=True)))
            return [], (state[0] + found[0], state[1] + found[1])

        zeros = jnp.zeros_like(given[0]), jnp.zeros_like(given[1])
        arrays = [*leaves, *tangents.values()]
        _, (d_output, d_lse) = blocks.fold(step, arrays, numbers, [], zeros)
        return d_output.astype(results[0].dtype), d_lse

    def transpose(
        self,
        problem: Problem,
        target: Target,
        results: Results,
        cotangents: Results,
        active: tuple[int, ...],
    ) -> Sequence[jax.Array]:
        """The cotangents of the leaves: those of leaves that move go round with them."""
        leaves, structure = Structure.of(problem)
        blocks, target = Blocks(self, problem), target._replace(is_part=True)
        travel = [i for i in active if blocks.fate[i] == MOVES]
        rest = [i for i in active if blocks.fate[i] != MOVES]

        def step(
            block: list[jax.Array], source: Any, state: list[jax.Array]
        ) -> tuple[list[jax.Array], list[jax.Array]]:
            part = structure.problem(block)
            inner = self.compute(part, target)
            gradients = inner.transpose(part, target, results, cotangents, active)
            found = dict(zip(active, gradients, strict=True))
            state = [blocks.add(x, found[i], i, source) for i, x in zip(rest, state, strict=True)]
            return [found[i] for i in travel], state

        dtype = problem.scores_dtype
        zeros = {i: jnp.zeros(leaves[i].shape, dtype) for i in active}
        sums = [zeros[i] for i in travel]
        state = [zeros[i] for i in rest]
        sums, state = blocks.fold(step, leaves, range(len(leaves)), sums, state)
        total = dict(zip((*travel, *rest), (*sums, *state), strict=True))
        return [total[i] for i in active]


Step = Callable[[list[jax.Array], Any, Any], tuple[list[jax.Array], Any]]
"""`step(block, source, state)` returns (terms of the sums that travel with the keys, state)."""


class Blocks:
    """The blocks of keys of all devices, as they go round.

    Attributes:
      fate: Whether each leaf of the problem stays, moves or is cut.
      length: Number of keys of a device.
      part: Number of keys of a device in an array of pairs, which is cut.
    """

    def __init__(self, ring: Ring, problem: Problem) -> None:
        leaves, structure = Structure.of(problem)
        self.axis, self.count, self.letters = ring.axis, ring.size, structure.letters
        length_q, self.length, num_heads, _ = problem.sizes
        all_keys = ring.spread((num_heads, length_q, self.length))[-1]  # of an array with both
        self.part = all_keys // self.count
        steps = range(self.count) if ring.shifts is None else ring.shifts
        self.runs = [(run[0], len(run)) for run in _runs(steps)]
        self.fate = [self._fate(x, axes) for x, axes in zip(leaves, self.letters, strict=True)]

    def _fate(self, x: jax.Array, letters: str) -> str:
        """What happens to a leaf. One whose key axis is broadcast stays."""
        if "s" not in letters:
            return STAYS
        length = x.shape[_key_axis(letters)]
        if "t" in letters:
            return CUT if length == self.part * self.count and self.count > 1 else STAYS
        return MOVES if length == self.length else STAYS

    def at(
        self, arrays: Sequence[Any], numbers: Sequence[int], moved: list[Any] | None, source: Any
    ) -> list[Any]:
        """The arrays of the problem with the keys of the device `source`.

        Args:
          arrays: Arrays like the leaves `numbers`.
          numbers: The numbers of these leaves.
          moved: In place of the arrays that move, those that are here now; None = the own ones.
          source: The device.
        """
        here = iter([] if moved is None else moved)
        block = []
        for x, i in zip(arrays, numbers, strict=True):
            if self.fate[i] == MOVES and moved is not None:
                x = next(here)
            elif self.fate[i] == CUT:
                axis = x.ndim + _key_axis(self.letters[i])
                x = lax.dynamic_slice_in_dim(x, source * self.part, self.part, axis)
            block.append(x)
        return block

    def add(self, total: jax.Array, term: jax.Array, number: int, source: Any) -> jax.Array:
        """Add what belongs to a leaf with the keys of the device `source`."""
        if self.fate[number] != CUT:
            return total + term
        axis, start = total.ndim + _key_axis(self.letters[number]), source * self.part
        old = lax.dynamic_slice_in_dim(total, start, self.part, axis)
        return lax.dynamic_update_slice_in_dim(total, old + term, start, axis)

    def fold(
        self,
        step: Step,
        arrays: Sequence[jax.Array],
        numbers: Sequence[int],
        sums: list[jax.Array],
        state: Any,
    ) -> tuple[list[jax.Array], Any]:
        """Fold `step` over the blocks, each of which arrives while the one before is computed.

        Args:
          step: What is done with a block.
          arrays: Arrays like the leaves `numbers`.
          numbers: The numbers of these leaves.
          sums: Sums that travel with the keys. In the end they are back at their device.
          state: What stays at the device.
        """
        moved = [x for x, i in zip(arrays, numbers, strict=True) if self.fate[i] == MOVES]
        me = lax.axis_index(self.axis)
        sums, state = self._varying(arrays[0], (sums, state))

        def visit(shift: Any, hops: int, moved: list, sums: list, state: Any) -> tuple[list, Any]:
            source = (me - shift) % self.count
            arrived = self._pass_on(sums, hops)
            terms, state = step(self.at(arrays, numbers, moved, source), source, state)
            return [x + term for x, term in zip(arrived, terms, strict=True)], state

        last = 0
        for first, count in self.runs:
            hops, final = first - last, first + count - 1
            moved = self._pass_on(moved, hops)
            if count > 1:
                sums = self._pass_on(sums, hops - 1) if hops else sums
                hops = 1

                def one(shift: Any, carry: tuple[list, list, Any]) -> tuple[list, list, Any]:
                    moved, sums, state = carry
                    following = self._pass_on(moved, 1)
                    return following, *visit(shift, 1, moved, sums, state)

                moved, sums, state = lax.fori_loop(first, final, one, (moved, sums, state))
            sums, state = visit(final, hops, moved, sums, state)
            last = final
        return self._pass_on(sums, -last), state

    def _pass_on(self, arrays: list[jax.Array], hops: int) -> list[jax.Array]:
        """Send arrays to the device that is so many places ahead."""
        hops %= self.count
        if not arrays or hops == 0:
            return arrays
        pairs = [(i, (i + hops) % self.count) for i in range(self.count)]
        return [lax.ppermute(x, self.axis, pairs) for x in arrays]

    def _varying(self, like: jax.Array, tree: Any) -> Any:
        """Constants as arrays that differ between devices, as a loop's carry must."""
        leaves, structure = jax.tree.flatten(tree)
        return jax.tree.unflatten(structure, vary_together([like, *leaves])[1:])


def _key_axis(letters: str) -> int:
    """The axis of the keys, counted from the end."""
    return letters.index("s") - len(letters)


def _runs(steps: Sequence[int]) -> list[list[int]]:
    """Cut sorted numbers into runs of consecutive ones."""
    groups = itertools.groupby(enumerate(steps), lambda pair: pair[1] - pair[0])
    return [[number for _, number in group] for _, group in groups]
