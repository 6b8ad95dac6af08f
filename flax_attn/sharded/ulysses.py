"""Ulysses attention: each device attends with some of the heads, to all tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flax_attn.attention._core.problem import Problem
from flax_attn.sharded._exchange import Exchange


@dataclasses.dataclass(frozen=True, repr=False)
class Ulysses(Exchange):
    """Attention whose tokens are split over devices outside, and whose heads are split inside.

    Two all-to-all exchanges lead from a part of the tokens to a part of the heads, and back. A
    device sends 1/n of what it has to each of the n others. The number of query heads must be a
    multiple of n. There may be fewer key heads than devices: then each device gets those that its
    query heads read. Every normaliser works.

    Attributes:
      axis: The mesh axis along which queries and keys are split.
      inner: The implementation of a device's heads, or another placement: `Ulysses("near",
        inner=Ring("far"))` exchanges heads within a node and passes keys between nodes. None
        chooses the best.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import sharded
      >>> mesh = jax.make_mesh((8,), ("seq",))
      >>> q, k = jnp.ones((1, 16, 8, 4)), jnp.ones((1, 16, 2, 4))
      >>> sharded.attention(mesh, sharded.Ulysses("seq"), q, k, k, is_causal=True).shape
      (1, 16, 8, 4)

    References:
      Jacobs et al., "DeepSpeed Ulysses: System Optimizations for Enabling Training of Extreme Long
      Sequence Transformer Models", 2023, arXiv:2309.14509; Fang, Zhao, "USP: A Unified Sequence
      Parallelism Approach for Long Context Generative AI", 2024, arXiv:2405.07719 (the product with
      a ring).
    """

    def axes(self, letters: str) -> dict[str, tuple[str, ...]]:
        """Tokens are split outside. An array of pairs comes with the heads of the device."""
        inner = self.within.axes(letters) if self.within else {}
        if "t" in letters and "s" in letters:
            return inner | {"n": (self.axis, *inner.get("n", ()))}
        if "t" in letters or "s" in letters:
            return inner | {letter: (*inner.get(letter, ()), self.axis) for letter in "ts"}
        return inner

    def widened(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """An array bias or mask of a device has its heads, and all tokens."""
        *batch, num_heads, length_q, length_k = shape
        return (*batch, num_heads // self.size, length_q * self.size, length_k * self.size)

    def check_problem(self, function: str, problem: Problem) -> None:
        """Raise if the heads cannot be split."""
        super().check_problem(function, problem)
        num_heads = problem.sizes[2]
        if num_heads % self.size:
            raise ValueError(
                f"{function}: the number of query heads N of Ulysses({self.axis!r}) must be a "
                f"multiple of its {self.size} devices, got {num_heads}. Use fewer devices for it "
                f'and a ring for the others, Ulysses("near", inner=Ring("far")), or a ring alone.'
            )

    def there(self, x: jax.Array, letters: str, problem: Problem) -> jax.Array:
        """The heads of this device, and all tokens."""
        names = {letter: x.ndim + i - len(letters) for i, letter in enumerate(letters)}
        tokens = [names[letter] for letter in "ts" if letter in names]
        if "k" in names:
            x = jnp.take(x, self._key_heads(problem), axis=names["k"])
        head = names.get("n", names.get("k"))
        if head is None:
            return x
        if len(tokens) == 1:
            (token,) = tokens
            length = problem.sizes["s" in names]
            if x.shape[token] != length:  # one for all tokens
                return x if x.shape[head] == 1 else self._own(x, head)
            if x.shape[head] == 1:
                return lax.all_gather(x, self.axis, axis=token, tiled=True)
            return lax.all_to_all(x, self.axis, head, token, tiled=True)
        if tokens or x.shape[head] != problem.sizes[2]:
            return x
        return self._own(x, head)

    def copies(self, letters: str, problem: Problem) -> bool:
        """Queries, and key heads that are split as they are, are on one device."""
        has_own_heads = "k" in letters and problem.sizes[3] % self.size == 0
        return not (has_own_heads or letters == "btnd")

    def _own(self, x: jax.Array, head: int) -> jax.Array:
        """The heads of this device, of an array that has all of them."""
        count = x.shape[head] // self.size
        return lax.dynamic_slice_in_dim(x, lax.axis_index(self.axis) * count, count, head)

    def _key_heads(self, problem: Problem) -> np.ndarray:
        """The key heads that each device reads, one device after the other.

        One head if all query heads of a device share it; otherwise one for each query head, unless
        the key heads are split as the query heads are.
        """
        _, _, num_heads, num_kv_heads = problem.sizes
        if num_kv_heads % self.size == 0:
            return np.arange(num_kv_heads)
        groups, count = num_heads // num_kv_heads, num_heads // self.size
        step = count if groups % count == 0 else 1
        return np.arange(0, num_heads, step) // groups
