"""Dense attention: every score at once, O(T · S) memory, on any platform."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

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
        del target, results
        function, chosen = _of_leaves(problem, tuple(tangents))
        return jax.jvp(function, chosen, list(tangents.values()))[1]

    def transpose(
        self,
        problem: Problem,
        target: Target,
        results: Results,
        cotangents: Results,
        active: tuple[int, ...],
    ) -> Sequence[jax.Array]:
        """The cotangents of the leaves `active`."""
        del target, results
        function, chosen = _of_leaves(problem, active)
        return jax.vjp(function, *chosen)[1](tuple(cotangents))


def _of_leaves(
    problem: Problem, active: tuple[int, ...]
) -> tuple[Callable[..., Results], list[jax.Array]]:
    """Output and LSE as a function of some leaves, and these leaves."""
    leaves, structure = Structure.of(problem)

    def function(*chosen: jax.Array) -> Results:
        replaced = dict(zip(active, chosen, strict=True))
        return attend_densely(structure.problem([replaced.get(i, x) for i, x in enumerate(leaves)]))

    return function, [leaves[i] for i in active]


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
    value, dtype = problem.value.values, problem.dtype
    scores, visible = scores_of(problem, assume_finite=assume_finite, blocks=blocks)
    weights_BNTS, lse_BNT = problem.normalizer.normalize(scores)
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
    output = jnp.swapaxes(output_BNTD, -3, -2).astype(problem.output_dtype)
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
