"""The dense implementation: every score at once, O(T · S) memory, any platform."""

import jax
import jax.numpy as jnp

from flax_attn.attention._finite import finite
from flax_attn.attention._request import Request
from flax_attn.attention._scores import hides_keys, masked_scores


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
    scores_BNTS = masked_scores(request)
    weights_BNTS, total_BNT, lse_BNT = request.normalizer.unnormalized(scores_BNTS)

    length_q, length_k = scores_BNTS.shape[-2:]
    if request.dropout is not None:
        keep = request.dropout.keep(
            request.batch, request.head_ids, jnp.arange(length_q), jnp.arange(length_k)
        )
        weights_BNTS = jnp.where(keep, weights_BNTS / (1 - request.dropout.rate), 0)

    assert request.value is not None
    # masked_scores has marked the rows that see what is not finite.
    value = finite(request.value) if hides_keys(request) else request.value
    num_heads, num_kv_heads = request.query.shape[-2], value.shape[-2]
    weights_BKGTS = weights_BNTS.astype(value.dtype).reshape(
        *request.batch, num_kv_heads, num_heads // num_kv_heads, length_q, length_k
    )
    summed_BTKGD = jnp.einsum(
        "...kgts,...skd->...tkgd",
        weights_BKGTS,
        value,
        precision=request.precision,
        preferred_element_type=request.scores_dtype,
    )
    summed_BTND = summed_BTKGD.reshape(*request.batch, length_q, num_heads, value.shape[-1])
    total_BTN, lse_BTN = (jnp.swapaxes(a, -1, -2) for a in (total_BNT, lse_BNT))
    output = jnp.where(jnp.isnan(lse_BTN)[..., None], jnp.nan, summed_BTND / total_BTN[..., None])
    return output.astype(request.query.dtype), lse_BTN
