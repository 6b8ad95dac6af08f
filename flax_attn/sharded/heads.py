"""Attention whose heads are split over devices, without any exchange."""

import dataclasses
from typing import Any, ClassVar

from flax_attn.attention._core.implementation import Results
from flax_attn.attention._core.primitive import attend
from flax_attn.attention._core.problem import Problem
from flax_attn.attention._core.selection import as_candidates, refuse_early
from flax_attn.coords import Coords
from flax_attn.sharded._placement import AxisPlacement


@dataclasses.dataclass(frozen=True, repr=False)
class Heads(AxisPlacement):
    """Attention whose heads are split over devices. Nothing is sent.

    Query heads and key heads are split alike. Within `shard_map`, give `head_ids` if something
    depends on the number of a head. With `on(mesh)` there may be fewer key heads than devices: each
    device then gets those that its query heads read.

    Attributes:
      axis: The mesh axis along which the heads are split.
      inner: The implementation of a device's heads, or another placement: `Heads("heads",
        inner=Ring("seq"))`. None chooses the best.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import sharded
      >>> mesh = jax.make_mesh((2, 4), ("heads", "seq"))
      >>> x = jnp.ones((1, 16, 2, 8))
      >>> placement = sharded.Heads("heads", inner=sharded.Ring("seq"))
      >>> sharded.attention(mesh, placement, x, x, x, is_causal=True).shape
      (1, 16, 2, 8)

    References:
      Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model
      Parallelism", 2019, arXiv:1909.08053.
    """

    is_outermost: ClassVar[bool] = True

    def accepts(self, inner: Any) -> bool:
        """Every placement but itself may be the inner one."""
        return isinstance(inner, AxisPlacement) and not isinstance(inner, Heads)

    def axes(self, letters: str) -> dict[str, tuple[str, ...]]:
        """The heads are split."""
        inner = self.within.axes(letters) if self.within else {}
        return inner | {letter: (self.axis, *inner.get(letter, ())) for letter in "nk"}

    def attend(
        self, function: str, problem: Problem, coords: tuple[Coords | None, Coords | None]
    ) -> Results:
        """Output and LSE of this device's heads."""
        self.check_varying(function, problem)
        if self.within:
            return self.within.attend(function, problem, coords)
        candidates = as_candidates(function, self.inner)
        refuse_early(function, problem, candidates)
        return attend(problem, candidates)
