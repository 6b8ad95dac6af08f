"""All-gather attention: each device attends to all keys, which it gathers."""

import dataclasses
from typing import Any

import jax
from jax import lax

from flax_attn.attention._core.problem import Problem
from flax_attn.sharded._exchange import Exchange
from flax_attn.sharded._placement import AxisPlacement
from flax_attn.sharded.ulysses import Ulysses


@dataclasses.dataclass(frozen=True, repr=False)
class AllGather(Exchange):
    """Attention to keys that are split over devices, each of which gathers all of them.

    A device keeps its queries. The gradients of keys and values are summed in float32 and scattered
    back. There is one exchange forward and one backward, and every normaliser works; but a device
    needs memory for all keys and values, O(S).

    Attributes:
      axis: The mesh axis along which queries and keys are split.
      inner: The implementation of the whole, or another placement. None chooses the best.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import sharded
      >>> mesh = jax.make_mesh((8,), ("seq",))
      >>> x = jnp.ones((1, 16, 2, 8))
      >>> sharded.attention(mesh, sharded.AllGather("seq"), x, x, x, is_causal=True).shape
      (1, 16, 2, 8)

    References:
      Llama Team, "The Llama 3 Herd of Models", 2024, arXiv:2407.21783, section 3.3.2 (context
      parallelism).
    """

    def accepts(self, inner: Any) -> bool:
        """Any but Ulysses, inside of which the queries would be out of order."""
        names = (type(x) for x in inner.chain) if isinstance(inner, AxisPlacement) else ()
        return super().accepts(inner) and Ulysses not in names

    def axes(self, letters: str) -> dict[str, tuple[str, ...]]:
        """Queries and keys are split; an array with both has all keys."""
        inner = self.within.axes(letters) if self.within else {}
        own = {"t": (self.axis,), "s": () if "t" in letters else (self.axis,)}
        return inner | {letter: inner.get(letter, ()) + own[letter] for letter in own}

    def widened(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """An array bias or mask of a device has all keys."""
        *rest, length_k = shape
        return (*rest, length_k * self.size)

    def there(self, x: jax.Array, letters: str, problem: Problem) -> jax.Array:
        """All keys, and what belongs to them."""
        if "s" not in letters or "t" in letters:
            return x
        axis = x.ndim + letters.index("s") - len(letters)
        if x.shape[axis] != problem.sizes[1]:  # one for all keys
            return x
        return lax.all_gather(x, self.axis, axis=axis, tiled=True)
