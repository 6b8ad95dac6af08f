"""Placements that exchange arrays once, before and after another implementation."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from flax_attn._checks import statistics_dtype
from flax_attn._jax import vary_together
from flax_attn.attention._core.implementation import Results, Target
from flax_attn.attention._core.problem import Problem, Structure
from flax_attn.sharded._placement import AxisPlacement


@dataclasses.dataclass(frozen=True, repr=False)
class Exchange(AxisPlacement):
    """A placement that brings other parts of the arrays to a device, by a linear map.

    `there` is the map. Results come back by its transpose, and so do gradients, in float32.
    """

    def there(self, x: jax.Array, letters: str, problem: Problem) -> jax.Array:
        """What a device needs of an array.

        Args:
          x: The part of the array that the device has.
          letters: The axes of the array.
          problem: The problem of the device before the exchange.
        """
        raise NotImplementedError

    def back(self, x: jax.Array, like: jax.Array, letters: str, problem: Problem) -> jax.Array:
        """The transpose of `there`, in float32 or more, for an array `like` before the exchange."""
        wide = like.astype(statistics_dtype(like.dtype))
        x, wide = vary_together([x, wide])
        _, pull_back = jax.vjp(lambda y: self.there(y, letters, problem), wide)
        (returned,) = pull_back(x.astype(wide.dtype))
        return returned

    def arrived(self, problem: Problem) -> Problem:
        """The problem after the exchange."""
        leaves, structure = Structure.of(problem)
        arrays = zip(leaves, structure.letters, strict=True)
        return structure.problem([self.there(x, letters, problem) for x, letters in arrays])

    def _returned(self, results: Results, problem: Problem) -> Results:
        """Output and LSE, or derivatives of both, of this device's queries."""
        output, lse = results
        rows = problem.query.values.shape[:-1]
        like = (
            jax.numpy.zeros((*rows, output.shape[-1]), output.dtype),
            jax.numpy.zeros(rows, lse.dtype),
        )
        o, lse = (
            self.back(x, y, letters, problem).astype(x.dtype)
            for x, y, letters in zip(results, like, ("btnd", "btn"), strict=True)
        )
        return o, lse

    def _given(self, results: Results, problem: Problem) -> Results:
        output, lse = results
        return self.there(output, "btnd", problem), self.there(lse, "btn", problem)

    def forward(self, problem: Problem, target: Target) -> Results:
        """Exchange, attend, exchange back."""
        part = self.arrived(problem)
        return self._returned(self.compute(part, target).forward(part, target), problem)

    def tangent(
        self,
        problem: Problem,
        target: Target,
        results: Results,
        tangents: Mapping[int, jax.Array],
    ) -> Results:
        """The same for tangents, which are exchanged as their leaves are."""
        _, structure = Structure.of(problem)
        part = self.arrived(problem)
        moving = {i: self.there(t, structure.letters[i], problem) for i, t in tangents.items()}
        inner, given = self.compute(part, target), self._given(results, problem)
        return self._returned(inner.tangent(part, target, given, moving), problem)

    def transpose(
        self,
        problem: Problem,
        target: Target,
        results: Results,
        cotangents: Results,
        active: tuple[int, ...],
    ) -> Sequence[Any]:
        """The same for cotangents. The gradients of the leaves come back."""
        leaves, structure = Structure.of(problem)
        part, target = self.arrived(problem), target._replace(is_part=True)
        inner, given = self.compute(part, target), self._given(results, problem)
        found = inner.transpose(part, target, given, self._given(cotangents, problem), active)
        return [
            self.back(g, leaves[i], structure.letters[i], problem)
            for g, i in zip(found, active, strict=True)
        ]
