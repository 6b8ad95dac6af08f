"""A problem on its way through the TPU kernels: arrays in, sweeps, results and derivatives out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flax_attn._checks import statistics_dtype
from flax_attn.attention._core.batch import abstract_with_one_batch_axis
from flax_attn.attention._core.finite import finite, not_finite
from flax_attn.attention._core.implementation import Results, Target
from flax_attn.attention._core.problem import KEY, QUERY, VALUE, Problem, Structure
from flax_attn.attention._staged.blocks import visits
from flax_attn.attention._staged.pairs import Pairs
from flax_attn.attention._staged.program import Depends
from flax_attn.attention.pallas_tpu.derivatives import (
    GivenRows,
    OfKeys,
    OfQueries,
    Tangent,
    Undefined,
    cotangent_of,
)
from flax_attn.attention.pallas_tpu.equations import Forward
from flax_attn.attention.pallas_tpu.grid import Rows
from flax_attn.attention.pallas_tpu.laid import Laid
from flax_attn.attention.pallas_tpu.sizes import (
    TileSizes,
    kinds_that_fit,
    memory_limit,
    vector_memory,
)
from flax_attn.attention.pallas_tpu.sweep import Equations, Settings, sweep
from flax_attn.masks.plan import EMPTY


class Call:
    """What the kernels compute of a problem.

    Args:
      problem: The problem.
      target: What it is compiled for.
      pairs: Its pairs, on tiles.
      sizes: The sizes of blocks.
      interpret: See `PallasTPU`.
    """

    def __init__(
        self, problem: Problem, target: Target, pairs: Pairs, sizes: TileSizes, *, interpret: bool
    ) -> None:
        self._problem, self._target, self._pairs = problem, target, pairs
        self._leaves, self._structure = Structure.of(problem)
        self._laid = Laid(problem, pairs, sizes)
        self._given = pairs.outside(problem, self._laid.distances)
        self._kinds = kinds_that_fit(self._laid.problem, sizes)
        is_ragged = self._laid.lengths[1] != problem.sizes[1]
        is_traced = isinstance(self._kinds, jax.core.Tracer)
        merged = abstract_with_one_batch_axis(problem)
        needed = max(vector_memory(merged, pairs.given, sizes).values())
        self._settings = Settings(
            masks=problem.may_hide or is_ragged,
            interpret=interpret,
            share=1.0 if is_traced else float(jnp.mean(self._kinds != EMPTY)),
            vmem_limit=memory_limit(needed, target.device),
        )

    def _sweep(self, equations: Equations) -> dict[str, jax.Array]:
        """Run one kernel."""
        by_query = equations.rows is Rows.QUERIES
        kinds = self._kinds if by_query else jnp.swapaxes(self._kinds, -1, -2)
        return sweep(equations, self._laid.grid(equations.rows), visits(kinds), self._settings)

    # ---- forward

    def forward(self) -> Results:
        """Output and LSE, NaN where a query sees what is not finite."""
        found = self._sweep(Forward(self._laid, self._given))
        output = self._laid.tokens(found["o"], "t", self._problem.value.values.shape[-1])
        lse = self._laid.tokens(found["lse"], "t")
        if not self._problem.may_hide:
            return output, lse
        of_scores, of_values = self._undefined(lse)
        output = jnp.where((of_scores | of_values)[..., None], jnp.nan, output)
        return output, jnp.where(of_scores, jnp.nan, lse)

    def _undefined(self, lse: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Queries whose scores are undefined, and queries that see an undefined value.

        A kernel finds them where anything is not finite, which is nearly never.
        """
        whole = self._laid.problem
        arrays = {QUERY: whole.query, KEY: whole.key, VALUE: whole.value}
        bad = {i: not_finite(x.values) for i, x in arrays.items()}
        anything = jnp.any(jnp.stack([jnp.any(flags) for flags in bad.values()]))
        no = jnp.zeros(lse.shape, bool)

        def find() -> tuple[jax.Array, jax.Array]:
            found = self._sweep(Undefined(self._laid, self._given, bad))
            of_scores, of_values = (self._laid.tokens(x, "t") > 0 for x in found.values())
            return of_scores, of_values

        return lax.cond(anything, find, lambda: (no, no))

    # ---- tangent

    def tangent(self, results: Results, tangents: Mapping[int, jax.Array]) -> Results:
        """The derivatives of output and LSE along tangents of some leaves."""
        output, lse = results
        rows = GivenRows.of(self._laid, output, lse)
        others = self._others(tuple(tangents))
        point, change = [self._leaves[i] for i in others], [tangents[i] for i in others]
        _, moved = jax.jvp(self._given_of(others), point, change)
        scale = self._structure.scale
        equations = Tangent(
            self._laid,
            self._given,
            rows,
            {i: tangents[i] for i in (QUERY, KEY, VALUE) if i in tangents},
            {i: moved[i] for i in self._pairs.moved_by(self._problem, others)},
            None if scale is None else tangents.get(scale),
        )
        found = self._sweep(equations)
        a = self._laid.tokens(found["change"], "t", output.shape[-1])
        r = self._laid.tokens(found["change of lse"], "t")
        if self._problem.normalizer.coupled:
            a = a - r[..., None] * rows.where_defined(output).astype(a.dtype)
        else:  # the LSE does not make the weights 0 where a row is not defined
            a, r = rows.where_defined(a), jnp.zeros_like(r)
        return a.astype(output.dtype), r.astype(lse.dtype)

    # ---- transpose

    def needs_pairs(self, active: tuple[int, ...]) -> bool:
        """Whether an array over pairs has a cotangent, which these kernels do not sum."""
        moved = self._pairs.moved_by(self._problem, self._others(active))
        given = [self._pairs.given[i] for i in moved]
        return any(x.is_over_pairs for x in given)

    def transpose(
        self, results: Results, cotangents: Results, active: tuple[int, ...]
    ) -> list[jax.Array]:
        """The cotangents of some leaves, given those of output and LSE."""
        others = self._others(active)
        moved = self._pairs.moved_by(self._problem, others)
        (output, lse), (d_output, d_lse) = results, cotangents
        rows = GivenRows.of(self._laid, output, lse)
        d_output, output = (rows.where_defined(x).astype(jnp.float32) for x in (d_output, output))
        delta = jnp.sum(d_output * output, axis=-1) - rows.where_defined(d_lse)
        d_output = d_output.astype(self._problem.dtype)
        shared = self._laid, self._given, rows, d_output, delta, moved

        found: dict[str, jax.Array] = {}
        by_key = [i for i in moved if self._pairs.given[i].depends == Depends.KEY]
        if {QUERY, self._structure.scale}.intersection(active) or len(by_key) < len(moved):
            scale, dtype = self._scale_and_dtype_of_dq
            found |= self._sweep(OfQueries(*shared, scale=scale, dtype=dtype))
        if {KEY, VALUE}.intersection(active) or by_key:
            found |= self._sweep(OfKeys(*shared, dtype=self._dtype(self._problem.dtype)))
        gradients = self._of_tokens(found) | self._of_others(found, moved, others)
        return [gradients[i] for i in active]

    def _dtype(self, dtype: jnp.dtype) -> jnp.dtype:
        """The dtype of the cotangent of a leaf."""
        return statistics_dtype(dtype) if self._target.is_part else dtype

    @property
    def _scale_and_dtype_of_dq(self) -> tuple[float, jnp.dtype]:
        """How a kernel writes dQ: before a traced scale, whose cotangent needs it."""
        scale = self._problem.scale
        if isinstance(scale, int | float):
            return float(scale), self._dtype(self._problem.dtype)
        return 1.0, self._problem.scores_dtype

    def _of_tokens(self, found: Mapping[str, jax.Array]) -> dict[int | None, jax.Array]:
        """The cotangents of query, key, value and scale."""
        problem, gradients = self._problem, {}
        features = problem.query.values.shape[-1]
        if "d query" in found:
            d_query = self._laid.tokens(found["d query"], "t", features)
            scale = problem.scale
            if isinstance(scale, jax.Array):
                query = problem.query.values
                query = finite(query) if problem.may_hide else query
                total = jnp.sum(query.astype(d_query.dtype) * d_query)
                of_scale = total.astype(self._dtype(scale.dtype)).reshape(scale.shape)
                gradients[self._structure.scale] = of_scale
                d_query = d_query * scale.astype(d_query.dtype)
                d_query = d_query.astype(self._dtype(problem.dtype))
            gradients[QUERY] = d_query
        if "d key" in found:
            width = problem.value.values.shape[-1]
            gradients[KEY] = self._laid.tokens(found["d key"], "s", features)
            gradients[VALUE] = self._laid.tokens(found["d value"], "s", width)
        return gradients

    def _of_others(
        self, found: Mapping[str, jax.Array], moved: Sequence[int], others: tuple[int, ...]
    ) -> dict[int | None, jax.Array]:
        """The cotangents of other leaves: JAX's of what the pairs are given, from the sums."""
        if not others:
            return {}
        leaves = [self._leaves[i] for i in others]
        point = [x.astype(self._dtype(x.dtype)) for x in leaves]
        arrays, pull_back = jax.vjp(self._given_of(others), *point)
        cotangents = list(map(_zeros, arrays))
        for i in moved:
            total = self._laid.sums(found[cotangent_of(i)], self._pairs.given[i])
            axes = tuple(a for a, size in enumerate(arrays[i].shape) if size != total.shape[a])
            cotangents[i] = jnp.sum(total, axes, keepdims=True).astype(arrays[i].dtype)
        return dict(zip(others, pull_back(cotangents), strict=True))

    # ---- leaves that are not query, key, value or scale

    def _others(self, leaves: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(i for i in leaves if i not in (QUERY, KEY, VALUE, self._structure.scale))

    def _given_of(self, leaves: tuple[int, ...]) -> Callable[..., list[jax.Array]]:
        """What the pairs are given, as a function of some leaves."""

        def given(*values: jax.Array) -> list[jax.Array]:
            replaced = dict(zip(leaves, values, strict=True))
            every = [replaced.get(i, x) for i, x in enumerate(self._leaves)]
            return self._pairs.outside(self._structure.problem(every), self._laid.distances)

        return given


def _zeros(x: jax.Array) -> Any:
    """A cotangent of 0."""
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.zeros_like(x) if is_float else np.zeros(x.shape, jax.dtypes.float0)
