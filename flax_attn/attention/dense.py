"""The dense implementation: every score at once, O(T · S) memory, any platform."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flax_attn.attention._finite import finite
from flax_attn.attention._problem import Problem, thaw
from flax_attn.attention._scores import (
    scores_of,
    stack_groups,
    undefined,
    unstack_groups,
)
from flax_attn.attention.dropout import kept_share

Arrays = tuple[jax.Array, ...]


def declines(problem: Problem, platform: str | None) -> str | None:
    """Why this implementation cannot serve the problem; it serves all of them."""
    del problem, platform
    return None


def better_left(problem: Problem, platform: str | None) -> str | None:
    """Why another implementation is likely to be faster, or None."""
    del problem, platform
    return None


def run_forward(leaves: Sequence[jax.Array], tree: Any, platform: str | None) -> Arrays:
    """Output and LSE of the leaves of a problem."""
    del platform
    return forward(thaw(tree.unflatten(leaves)))


def run_tangent(
    leaves: Sequence[jax.Array],
    tree: Any,
    platform: str | None,
    output: jax.Array,
    lse: jax.Array,
    *tangents: jax.Array,
    active: tuple[int, ...],
) -> Arrays:
    """The derivatives of output and LSE along tangents of the leaves `active`."""
    del platform, output, lse
    return jax.jvp(*of_active(leaves, tree, active), list(tangents))[1]


def run_transpose(
    leaves: Sequence[jax.Array],
    tree: Any,
    platform: str | None,
    output: jax.Array,
    lse: jax.Array,
    *cotangents: jax.Array,
    active: tuple[int, ...],
) -> Arrays:
    """The cotangents of the leaves `active`."""
    del platform, output, lse
    function, chosen = of_active(leaves, tree, active)
    return jax.vjp(function, *chosen)[1](tuple(cotangents))


def of_active(
    leaves: Sequence[jax.Array], tree: Any, active: tuple[int, ...]
) -> tuple[Callable[..., Arrays], list[jax.Array]]:
    """Output and LSE as a function of some leaves, and these leaves."""

    def function(*chosen: jax.Array) -> Arrays:
        replaced = dict(zip(active, chosen, strict=True))
        return run_forward([replaced.get(i, x) for i, x in enumerate(leaves)], tree, None)

    return function, [leaves[i] for i in active]


def forward(problem: Problem) -> tuple[jax.Array, jax.Array]:
    """O = softmax(scale · Q Kᵀ + bias) V, and its LSE.

    Args:
      problem: The problem.

    Returns:
      The output `[*B, T, N, Dv]` and the LSE `[*B, T, N]`.
    """
    value, dtype = problem.value.values, problem.dtype
    scores, seen = scores_of(problem)
    weights_BNTS, lse_BNT = problem.normalizer.normalize(scores)
    if seen is not None:
        # A token that nobody sees may have a derivative that is not a number, too.
        used_BS = jnp.any(seen, axis=(-3, -2))[..., None, None]
        value = jnp.where(used_BS, finite(value), 0)
        # They are 0 already; but their cotangent may overflow, and 0 · ∞ is not a number.
        weights_BNTS = jnp.where(seen, weights_BNTS, 0)

    if problem.drop is not None:
        keep = problem.keep(problem.batch_ids.values[..., None, None, None])
        share = kept_share(problem.drop[0], weights_BNTS.dtype)
        weights_BNTS = jnp.where(keep, weights_BNTS / share, 0)

    output_BKRD = jnp.einsum(
        "...krs,...skd->...krd",
        stack_groups(weights_BNTS.astype(dtype), value.shape[-2]),
        value,
        precision=problem.precision,
        preferred_element_type=problem.scores_dtype,
    )
    output_BNTD = unstack_groups(output_BKRD, weights_BNTS.shape[-3])
    output = jnp.swapaxes(output_BNTD, -3, -2).astype(problem.output_dtype)
    lse = jnp.swapaxes(lse_BNT, -1, -2)
    if seen is not None:
        sees_BTN = jnp.swapaxes(jnp.any(seen, axis=-1), -1, -2)
        output = jnp.where(sees_BTN[..., None], output, 0)
        no_lse_BTN, no_output_BTN = (jnp.swapaxes(x, -1, -2) for x in undefined(problem, seen))
        lse = jnp.where(no_lse_BTN, jnp.nan, lse)
        output = jnp.where(no_output_BTN[..., None], jnp.nan, output)
    return output, lse
