"""The dense implementation: every score at once, O(T · S) memory, any platform."""

import jax
import jax.numpy as jnp

from flax_attn.attention._finite import finite
from flax_attn.attention._request import Request
from flax_attn.attention._scores import (
    masked_scores,
    stack_groups,
    undefined_scores,
    undefined_values,
    unstack_groups,
    visible,
)


def declines(request: Request) -> str | None:
    """Why this implementation cannot serve the request; it serves all of them."""
    del request
    return None


def attend(request: Request) -> tuple[jax.Array, jax.Array]:
    """O = softmax(scale · Q Kᵀ + bias) V, and its LSE.

    Args:
      request: The problem.

    Returns:
      The output `[*B, T, N, Dv]` in the query's dtype and the LSE `[*B, T, N]`.
    """
    assert request.value is not None
    value, seen = request.value, visible(request)
    weights_BNTS, lse_BNT = request.normalizer.normalize(masked_scores(request))
    if seen is not None:
        value = finite(value)
        # They are 0 already; but their cotangent may overflow, and 0 · ∞ is not a number.
        weights_BNTS = jnp.where(seen, weights_BNTS, 0)

    if request.dropout is not None:
        rows, cols = (jnp.arange(length) for length in weights_BNTS.shape[-2:])
        keep = request.dropout.keep(request.batch, request.head_ids, rows, cols)
        share = jnp.asarray(1 - request.dropout.rate, weights_BNTS.dtype)
        weights_BNTS = jnp.where(keep, weights_BNTS / share, 0)

    output_BKRD = jnp.einsum(
        "...krs,...skd->...krd",
        stack_groups(weights_BNTS.astype(value.dtype), value.shape[-2]),
        value,
        precision=request.precision,
        preferred_element_type=request.scores_dtype,
    )
    output_BNTD = unstack_groups(output_BKRD, request.query.shape[-2])
    output = jnp.swapaxes(output_BNTD, -3, -2).astype(request.query.dtype)
    lse = jnp.swapaxes(lse_BNT, -1, -2)
    if seen is not None:
        bad_BNT = undefined_scores(request, seen)
        lse = jnp.where(jnp.swapaxes(bad_BNT, -1, -2), jnp.nan, lse)
        bad_BNT = bad_BNT | undefined_values(request, seen)
        output = jnp.where(jnp.swapaxes(bad_BNT, -1, -2)[..., None], jnp.nan, output)
    return output, lse
