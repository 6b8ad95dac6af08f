"""Attention of a few queries to many keys, as in decoding: keys and values are read once."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import check_positive
from flax_attn.attention._core.implementation import Results, Target
from flax_attn.attention._core.problem import Problem
from flax_attn.attention._core.products import Blocks
from flax_attn.attention.dense import Dense, attend_densely
from flax_attn.coords import Aligned

MOST_QUERIES = 8
PLATFORMS = ("cpu", "cuda")
SLICES_HALF = jax.__version_info__ >= (0, 12)
"""XLA of jaxlib 0.10.2 converts all keys of half precision before a loop that reads a part."""
BYTES_OF_BLOCK = 2**17
"""The keys of a block of one sequence, so that they fit into the cache of a core."""


@dataclasses.dataclass(frozen=True)
class Decode(Dense):
    """Dense attention that reads only the keys up to the last visible one, and reads them once.

    It is for caches: arrays of keys and values that are longer than what they hold. On CPUs, the
    number of keys read is the smallest of 512, 1024, 2048, ... that covers every visible key of the
    batch. Keys are read in blocks, except when all of them are read in float32. GPUs read all keys.

    Dense attention first replaces what is not finite by 0, which copies all keys and values. Here
    they are read as they are. If the output is not finite, it is computed again with that
    replacement.

    Derivatives are those of dense attention.

    Args:
      fewest_keys: The smallest number of keys to read.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import Coords, attention, masks
      >>> cache, query = jnp.ones((1, 4096, 2, 8)), jnp.ones((1, 1, 4, 8))
      >>> here = Coords.arange(1, offset=600)
      >>> attention.dot_product_attention(
      ...     query, cache, cache, mask=masks.Causal(), query_coords=here,
      ...     key_coords=Coords.arange(4096), implementation=attention.Decode()
      ... ).shape
      (1, 1, 4, 8)
    """

    fewest_keys: int = 512
    name: ClassVar[str] = "decode"
    aliases: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_positive("Decode", "fewest_keys", self.fewest_keys)

    def declines(self, problem: Problem, target: Target) -> str | None:
        """Declines lengths that are symbolic."""
        del target
        if not all(isinstance(size, int) for size in problem.sizes):
            return "it chooses among numbers of keys, and a length is symbolic. Use 'dense'."
        return None

    def defers(self, problem: Problem, target: Target) -> str | None:
        """It is faster for a few queries and many keys."""
        length_q, length_k, _, _ = problem.sizes
        if length_q > MOST_QUERIES:
            return f"it is for at most {MOST_QUERIES} queries, and there are {length_q}."
        if length_k < self.fewest_keys:
            return f"it is for at least {self.fewest_keys} keys, and there are {length_k}."
        if target.platform not in PLATFORMS:
            return f"it was found to be faster on {' and '.join(PLATFORMS)} only."
        return None

    def forward(self, problem: Problem, target: Target) -> Results:
        """Output and LSE."""
        if not problem.may_hide:
            return attend_densely(problem)
        heads_first = _with_axes_swapped(problem)
        output, lse = self._attend_as_it_is(heads_first, problem.visible(), target)
        return lax.cond(
            jnp.all(jnp.isfinite(output)),
            lambda: (output, lse),
            lambda: attend_densely(_with_axes_swapped(heads_first)),
        )

    def _attend_as_it_is(self, heads_first: Problem, visible: jax.Array, target: Target) -> Results:
        """Attend to the first keys, as many as the queries need."""
        length_k = heads_first.key.values.shape[-2]

        def attend(count: int) -> Results:
            problem = _with_axes_swapped(heads_first)
            first, blocks = problem.first_keys(count), None
            if target.platform == "cpu":
                blocks = _blocks(problem, count, by_element=not target.partitioned)
            if blocks is not None:  # which cut keys and values themselves
                first = dataclasses.replace(first, key=problem.key, value=problem.value)
            return attend_densely(first, assume_finite=True, blocks=blocks)

        # A GPU reads all keys sooner than it finds out how many are needed (H200: 0.8 ms for
        # 2 GB, and 15 ms for the first of them in blocks).
        counts = self._counts(length_k) if target.platform == "cpu" else [length_k]
        if len(counts) == 1 or visible.shape[-1] == 1:
            return attend(length_k)
        numbers = lax.broadcasted_iota(jnp.int32, visible.shape, visible.ndim - 1)
        num_needed = jnp.max(jnp.where(visible, numbers + 1, 0), initial=0)
        index = jnp.sum(num_needed > jnp.asarray(counts[:-1]), dtype=jnp.int32)
        return lax.switch(index, [functools.partial(attend, count) for count in counts])

    def _counts(self, length_k: int) -> list[int]:
        """The numbers of keys to choose from, each twice the one before."""
        counts = [self.fewest_keys]
        while counts[-1] < length_k:
            counts.append(2 * counts[-1])
        return [*counts[:-1], length_k]


def _blocks(problem: Problem, count: int, *, by_element: bool) -> Blocks | None:
    """How many keys to read at a time; None if XLA reads all of them without a copy."""
    _, length_k, _, num_kv_heads = problem.sizes
    is_half = problem.dtype != problem.scores_dtype
    if count == 0 or not (count < length_k or is_half) or (is_half and not SLICES_HALF):
        return None
    row = num_kv_heads * problem.key.values.shape[-1] * problem.dtype.itemsize
    size = 1 << max(BYTES_OF_BLOCK // row, 16).bit_length() - 1
    return Blocks(count, min(size, count), by_element)


def _with_axes_swapped(problem: Problem) -> Problem:
    """The problem with keys and values as `[*B, K, S, D]`, or such a problem made as it was.

    A branch of XLA's conditionals takes its operands as they are. Caches, which have this layout,
    would be transposed before it otherwise.
    """
    key, value = (
        Aligned(jnp.swapaxes(x.values, -3, -2), x.axes) for x in (problem.key, problem.value)
    )
    return dataclasses.replace(problem, key=key, value=value)
