"""Dense attention: every score at once, O(T · S) memory, on any platform."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from flax_attn.attention._core.finite import finite
from flax_attn.attention._core.heads import stack_groups, unstack_groups
from flax_attn.attention._core.implementation import Implementation, Results, Target
from flax_attn.attention._core.problem import Problem, Structure
from flax_attn.attention._core.products import Blocks, value_product
from flax_attn.attention._core.scores import scores_of, undefined
from flax_attn.attention.dropout import kept_share


@dataclasses.dataclass(frozen=True)
class Dense(Implementation):
    """Attention from all scores at once, with memory O(T · S). JAX differentiates it.

    It has no settings.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import attention
      >>> x = jnp.ones((1, 16, 2, 8))
      >>> attention.dot_product_attention(x, x, x, implementation=attention.Dense()).shape
      (1, 16, 2, 8)
    """

    name: ClassVar[str] = "dense"
    aliases: ClassVar[tuple[str, ...]] = ("xla",)
    divisible: ClassVar[bool] = True

    def forward(self, problem: Problem, target: Target) -> Results:
        """Output and LSE."""
        del target
        return attend_densely(problem)

    def tangent(
        self,
        problem: Problem,
        target: Target,
        results: Results,
        tangents: Mapping[int, jax.Array],
    ) -> Results:
        """The derivatives of output and LSE along tangents of some leaves."""
        active = tuple(tangents)
        if not problem.normalizer.folds:
            function, chosen = _of_leaves(attend_densely, problem, active)
            return jax.jvp(function, chosen, list(tangents.values()))[1]
        problem, given = _prepared(problem, results, target)
        function, chosen = _of_leaves(given.sums, problem, active)
        moving = [t.astype(x.dtype) for t, x in zip(tangents.values(), chosen, strict=True)]
        (d_sum, r), dtype = jax.jvp(function, chosen, moving)[1], results[0].dtype
        if not problem.normalizer.coupled:
            return d_sum.astype(dtype), jnp.zeros_like(r)
        return (d_sum - r[..., None] * given.output).astype(dtype), r

    def transpose(
        self,
        problem: Problem,
        target: Target,
        results: Results,
        cotangents: Results,
        active: tuple[int, ...],
    ) -> Sequence[jax.Array]:
        """The cotangents of the leaves `active`."""
        if not problem.normalizer.folds:
            function, chosen = _of_leaves(attend_densely, problem, active)
            return jax.vjp(function, *chosen)[1](tuple(cotangents))
        problem, given = _prepared(problem, results, target)
        d_output, d_lse = (jnp.where(given.defined_like(x), x, 0) for x in cotangents)
        d_output = d_output.astype(given.output.dtype)
        d_total = jnp.zeros_like(d_lse)
        if problem.normalizer.coupled:
            d_total = d_lse - jnp.sum(d_output * given.output, axis=-1)
        function, chosen = _of_leaves(given.sums, problem, active)
        return jax.vjp(function, *chosen)[1]((d_output, d_total))


def _of_leaves(
    compute: Callable[[Problem], Results], problem: Problem, active: tuple[int, ...]
) -> tuple[Callable[..., Results], list[jax.Array]]:
    """What is computed from a problem as a function of some leaves, and these leaves."""
    leaves, structure = Structure.of(problem)

    def function(*chosen: jax.Array) -> Results:
        replaced = dict(zip(active, chosen, strict=True))
        return compute(structure.problem([replaced.get(i, x) for i, x in enumerate(leaves)]))

    return function, [leaves[i] for i in active]


class Given(NamedTuple):
    """Output and LSE of the forward pass, over these keys and perhaps others.

    With P = exp(S − LSE) at this LSE, r = Σ Ṗ: Ȯ = Σ (P V)˙ − r O and LSĖ = r. So the derivatives
    over parts of the keys add up to those over all.

    Attributes:
      output: O `[*B, T, N, Dv]`, 0 where it is not defined.
      lse: LSE `[*B, T, N]`, ∞ where it is not defined.
      defined: Which queries see a key and no NaN `[*B, T, N]`.
    """

    output: jax.Array
    lse: jax.Array
    defined: jax.Array

    def defined_like(self, x: jax.Array) -> jax.Array:
        """`defined` with the rank of the output or the LSE."""
        return self.defined if x.ndim == self.defined.ndim else self.defined[..., None]

    def sums(self, problem: Problem) -> Results:
        """P V and Σ P, the first as in `attend_densely`."""
        scores, visible = scores_of(problem)
        lse_BNT, defined_BNT = (jnp.swapaxes(x, -1, -2) for x in (self.lse, self.defined))
        weights_BNTS = problem.normalizer.weights(
            jnp.where(defined_BNT[..., None], scores, -jnp.inf), lse_BNT[..., None]
        )
        total = jnp.swapaxes(jnp.sum(weights_BNTS, axis=-1), -1, -2)
        return weighted_values(problem, weights_BNTS, visible), total


def _prepared(problem: Problem, results: Results, target: Target) -> tuple[Problem, Given]:
    """The problem in the dtype of scores if its derivatives are parts, and the given results."""
    output, lse = results
    if target.is_part:
        problem = problem.widened()
    defined = ~jnp.isnan(output[..., 0]) & jnp.isfinite(lse)
    output = jnp.where(defined[..., None], output, 0).astype(problem.scores_dtype)
    problem = problem.with_output(problem.scores_dtype)
    return problem, Given(output, jnp.where(defined, lse, jnp.inf), defined)


def attend_densely(
    problem: Problem, *, assume_finite: bool = False, blocks: Blocks | None = None
) -> Results:
    """O = softmax(scale · Q Kᵀ + bias) V, and its LSE.

    Args:
      problem: The problem.
      assume_finite: If True, the inputs are read as they are. The results are right if the output
        is finite.
      blocks: How keys and values are read; see `scores_of`.

    Returns:
      The output `[*B, T, N, Dv]` and the LSE `[*B, T, N]`.
    """
    scores, visible = scores_of(problem, assume_finite=assume_finite, blocks=blocks)
    weights_BNTS, lse_BNT = problem.normalizer.normalize(scores)
    output = weighted_values(
        problem, weights_BNTS, visible, assume_finite=assume_finite, blocks=blocks
    )
    lse = jnp.swapaxes(lse_BNT, -1, -2)
    if visible is not None:
        sees_BTN = jnp.swapaxes(jnp.any(visible, axis=-1), -1, -2)
        output = jnp.where(sees_BTN[..., None], output, 0)
    if assume_finite:
        # A normaliser or dropout may have ignored a score that is not a number.
        has_nan_BTN = jnp.swapaxes(jnp.any(jnp.isnan(scores), axis=-1), -1, -2)
        output = jnp.where(has_nan_BTN[..., None], jnp.nan, output)
    elif visible is not None:
        no_lse_BTN, no_output_BTN = (jnp.swapaxes(x, -1, -2) for x in undefined(problem, visible))
        lse = jnp.where(no_lse_BTN, jnp.nan, lse)
        output = jnp.where(no_output_BTN[..., None], jnp.nan, output)
    return output, lse


def weighted_values(
    problem: Problem,
    weights_BNTS: jax.Array,
    visible: jax.Array | None,
    *,
    assume_finite: bool = False,
    blocks: Blocks | None = None,
) -> jax.Array:
    """P V `[*B, T, N, Dv]`, after dropout."""
    value, dtype = problem.value.values, problem.dtype
    if visible is not None:
        if not assume_finite:
            # A token that no query sees must not get a NaN derivative.
            used_BS = jnp.any(visible, axis=(-3, -2))[..., None, None]
            value = jnp.where(used_BS, finite(value), 0)
        # They are 0 already; but their cotangent may overflow, and 0 · ∞ is not a number.
        weights_BNTS = jnp.where(visible, weights_BNTS, 0)

    if problem.drop is not None:
        share = kept_share(problem.drop.rate, weights_BNTS.dtype)
        weights_BNTS = jnp.where(problem.kept_weights(), weights_BNTS / share, 0)

    output_BKRD = value_product(
        problem,
        stack_groups(weights_BNTS.astype(dtype), value.shape[-2]),
        jnp.swapaxes(value, -3, -2),
        blocks,
    )
    output_BNTD = unstack_groups(output_BKRD, weights_BNTS.shape[-3])
    return jnp.swapaxes(output_BNTD, -3, -2).astype(problem.output_dtype)
