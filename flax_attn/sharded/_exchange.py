"""Placements that exchange arrays once, before and after another implementation."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flax_attn._checks import statistics_dtype
from flax_attn._jax import vary_together
from flax_attn.attention._core.implementation import Results, Target
from flax_attn.attention._core.problem import Problem, Structure
from flax_attn.sharded._placement import AxisPlacement


@dataclasses.dataclass(frozen=True, repr=False)
class Exchange(AxisPlacement):
    """A placement that brings other parts of the arrays to a device, by a linear map.

    `there` is the map. Results come back by its transpose, and so do gradients: in float32 where
    that sums what several devices have found.
    """

    def there(self, x: jax.Array, letters: str, problem: Problem) -> jax.Array:
        """What a device needs of an array.

        Args:
          x: The part of the array that the device has.
          letters: The axes of the array.
          problem: The problem of the device before the exchange.
        """
        raise NotImplementedError

    def copies(self, letters: str, problem: Problem) -> bool:
        """Whether `there` gives an element to several devices, so that its gradient is a sum."""
        del letters, problem
        return True

    def back(self, x: jax.Array, like: jax.Array, letters: str, problem: Problem) -> jax.Array:
        """The transpose of `there`, for an array `like` before the exchange."""
        x, like = vary_together([x, like])
        _, pull_back = jax.vjp(lambda y: self.there(y, letters, problem), like)
        (returned,) = pull_back(x.astype(like.dtype))
        return returned

    def arrived(self, problem: Problem) -> Problem:
        """The problem after the exchange."""
        leaves, structure = Structure.of(problem)
        arrays = zip(leaves, structure.letters, strict=True)
        return structure.problem([self.there(x, letters, problem) for x, letters in arrays])

    def _returned(self, results: Results, problem: Problem) -> Results:
        """Output and LSE, or derivatives of both, of this device's queries."""
        rows, features = problem.query.values.shape[:-1], results[0].shape[-1]
        like = (
            jnp.zeros(shape, x.dtype)
            for shape, x in zip(((*rows, features), rows), results, strict=True)
        )
        output, lse = (
            self.back(x, y, letters, problem)
            for x, y, letters in zip(results, like, ("btnd", "btn"), strict=True)
        )
        return output, lse

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
        part, inner_target = self.arrived(problem), target._replace(is_part=True)
        inner, given = self.compute(part, target), self._given(results, problem)
        cotangents = self._given(cotangents, problem)
        found = inner.transpose(part, inner_target, given, cotangents, active)

        def returned(gradient: jax.Array, leaf: jax.Array, letters: str) -> jax.Array:
            is_sum = target.is_part or self.copies(letters, problem)
            dtype = statistics_dtype(leaf.dtype) if is_sum else leaf.dtype
            return self.back(gradient, leaf.astype(dtype), letters, problem)

        return [
            returned(g, leaves[i], structure.letters[i]) for g, i in zip(found, active, strict=True)
        ]
