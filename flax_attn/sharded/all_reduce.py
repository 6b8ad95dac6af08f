"""All-reduce attention: each device attends to its own keys, and the results are merged."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn.attention._core.implementation import Results
from flax_attn.attention._core.primitive import attend
from flax_attn.attention._core.problem import Problem
from flax_attn.attention._core.selection import as_candidates, refuse_early
from flax_attn.coords import Coords
from flax_attn.sharded._placement import AxisPlacement


@dataclasses.dataclass(frozen=True, repr=False)
class AllReduce(AxisPlacement):
    """Attention of the same queries on all devices, to keys that are split over them.

    It is for decoding, with a cache that is split over its tokens: keys and values stay where they
    are. The devices merge what each has found, by the LSE:

        m = max_i LSE_i,  LSE = m + log Σ_i exp(LSE_i − m),  O = Σ_i exp(LSE_i − LSE) O_i

    That is an all-reduce of one number per query and head, and one of Dv + 3.

    Attributes:
      axis: The mesh axis along which the keys are split.
      inner: The implementation of a device's keys, or another placement. None chooses the best.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import Coords, sharded
      >>> mesh = jax.make_mesh((8,), ("seq",))
      >>> query, cached = jnp.ones((1, 1, 2, 8)), jnp.ones((1, 64, 2, 8))
      >>> sharded.attention(mesh, sharded.AllReduce("seq"), query, cached, cached).shape
      (1, 1, 2, 8)

    References:
      Dao, Haziza, Massa, Sizov, "Flash-Decoding for long-context inference", 2023.
    """

    is_outermost: ClassVar[bool] = True
    split_sides: ClassVar[tuple[str, ...]] = ("keys", "values")

    def axes(self, letters: str) -> dict[str, tuple[str, ...]]:
        """The keys are split."""
        inner = self.within.axes(letters) if self.within else {}
        return inner | {"s": (self.axis, *inner.get("s", ()))}

    def attend(
        self, function: str, problem: Problem, coords: tuple[Coords | None, Coords | None]
    ) -> Results:
        """Output and LSE of the queries, the same on all devices."""
        self.check_problem(function, problem)
        self.check_varying(function, problem)
        if not problem.normalizer.folds:
            name = type(problem.normalizer).__name__
            raise NotImplementedError(
                f"{function}: {self!r} declines: rows of the normaliser {name} cannot be merged "
                f"from parts of the keys. Gather the keys, and use no placement."
            )
        part = problem.with_output(problem.scores_dtype)
        if self.within:
            output, lse = self.within.attend(function, part, coords)
        else:
            candidates = as_candidates(function, self.inner)
            refuse_early(function, part, candidates)
            output, lse = attend(part, candidates)
        if problem.normalizer.coupled:
            output, lse = self._merge(output, lse)
        else:
            output, lse = lax.psum(output, self.axis), lax.pmax(lax.stop_gradient(lse), self.axis)
        return output.astype(problem.output_dtype), lse

    def _merge(self, output: jax.Array, lse: jax.Array) -> Results:
        """Merge the results of all devices. Rows with NaN get NaN everywhere, and no gradient."""
        no_lse, no_output = jnp.isnan(lse), jnp.isnan(output[..., :1])
        lse, output = jnp.where(no_lse, -jnp.inf, lse), jnp.where(no_output, 0, output)
        peak = lax.pmax(lax.stop_gradient(lse), self.axis)
        shift = jnp.maximum(peak, jnp.finfo(lse.dtype).min)
        weight = jnp.exp(lse - shift)[..., None]
        flags: list[Any] = [x.astype(lse.dtype) for x in (no_lse[..., None], no_output)]
        sums = lax.psum(jnp.concatenate([weight * output, weight, *flags], axis=-1), self.axis)
        size = output.shape[-1]
        output, total, no_lse, no_output = jnp.split(sums, [size, size + 1, size + 2], axis=-1)
        is_empty = total == 0
        total = jnp.where(is_empty, 1, total)
        lse = jnp.where(is_empty, -jnp.inf, shift[..., None] + jnp.log(total))
        lse = jnp.where(no_output > 0, lax.stop_gradient(lse), lse)
        return (
            jnp.where(no_output > 0, jnp.nan, output / total),
            jnp.where(no_lse > 0, jnp.nan, lse)[..., 0],
        )
