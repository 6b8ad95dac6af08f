"""Scaled dot-product attention over several heads."""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from flax_attn.attention._implementations import attend
from flax_attn.attention._request import check_request
from flax_attn.attention.dropout import Dropout
from flax_attn.normalizers import Softmax


def dot_product_attention(
    query: Float[Array, "*B T N D"],
    key: Float[Array, "*B S K D"],
    value: Float[Array, "*B S K Dv"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    *,
    scale: float | Float[Array, ""] | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, "..."] | None = None,
    key_value_seq_lengths: Int[Array, "..."] | None = None,
    local_window_size: int | tuple[int | None, int | None] | None = None,
    score_mod: None = None,
    normalizer: Softmax = Softmax(),
    dropout: Dropout | None = None,
    query_coords: None = None,
    key_coords: None = None,
    head_ids: Int[Array, "N"] | None = None,
    plan: None = None,
    precision: lax.PrecisionLike = None,
    implementation: str | Sequence[str] | None = None,
    return_residual: bool = False,
) -> Float[Array, "*B T N Dv"] | Any:
    """Scaled dot-product attention, grouped-query and multi-query attention included.

    O[t, n] = Σ_s p_ts V[s, n // G],   p_t = softmax_s(scale · Q[t, n]·K[s, n // G] + bias)

    The arguments up to `local_window_size` are those of `jax.nn.dot_product_attention`, position
    by position; one thing differs: a row without any visible key gives 0 (not the mean of the
    values), with LSE −∞ and zero gradients. The order is scale, bias, mask, normaliser. Scores,
    statistics and accumulators are float32 (float64 for float64 inputs).

    A key or value that holds NaN or infinity never reaches a query that may not see it, in value or
    gradient. With a mask of any kind or a bias, a query that does see it gets NaN in every feature,
    and no gradient passes through its row.

    Args:
      query: Queries `[*B, T, N, D]`.
      key: Keys `[*B, S, K, D]`; N is a multiple of K, and query head n reads key head n // G with
        G = N // K.
      value: Values `[*B, S, K, Dv]`; Dv may differ from D.
      bias: Added to the scaled scores; broadcasts to `[*B, N, T, S]`.
      mask: True where a query attends; broadcasts to `[*B, N, T, S]`.
      scale: Factor of the dot products, default 1/√D.
      is_causal: Whether query t sees only the keys s ≤ t. Both are counted from their first token,
        also when T ≠ S (jax.nn's convention). For queries that continue a longer sequence, pass
        `mask=jnp.arange(S) <= jnp.arange(T)[:, None] + S - T`.
      query_seq_lengths: Number of queries that count `[*B]`; the rest give 0.
      key_value_seq_lengths: Number of keys that count `[*B]`.
      local_window_size: How many tokens to the left and right a query sees besides its own,
        `(left, right)` or one number for both; None for a side leaves it open. Counted from the
        first token, as `is_causal`.
      score_mod: Not in this version: only None.
      normalizer: From scores to weights: `Softmax()`, or `Softmax(sink)`.
      dropout: `Dropout(rate, key)`, or None.
      query_coords: Not in this version: only None.
      key_coords: Not in this version: only None.
      head_ids: Global number of each query head `[N]`, for devices that hold a part of the heads:
        dropout depends on it. Default 0 ... N − 1.
      plan: Not in this version: only None.
      precision: Precision of both dot products, as in `jax.lax.dot_general`.
      implementation: A name, or several in order of preference: `"dense"` (alias `"xla"`). None
        takes the best that serves the request.
      return_residual: Whether to return the LSE too.

    Returns:
      The output `[*B, T, N, Dv]` in the query's dtype; with `return_residual` also the LSE
      log Σ_s exp(score) `[*B, T, N]` in float32 (float64 for float64 inputs), differentiable.

    Raises:
      ValueError: If shapes, dtypes or numbers do not fit.
      TypeError: If an argument is of the wrong kind.
      NotImplementedError: If the implementation asked for does not serve the request.
      ExceptionGroup: If several were asked for and none does.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import dot_product_attention
      >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 16, 4, 8))
      >>> out, lse = dot_product_attention(q, k, v, is_causal=True, return_residual=True)
      >>> out.shape, lse.shape
      ((2, 16, 4, 8), (2, 16, 4))
      >>> bool(jnp.allclose(out[:, 0], v[:, 0]))    # the first query sees only the first key
      True

    References:
      Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762, equation 1;
      Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head
      Checkpoints", EMNLP 2023, arXiv:2305.13245.
    """
    _refuse_absent(
        "dot_product_attention",
        score_mod=score_mod,
        query_coords=query_coords,
        key_coords=key_coords,
        plan=plan,
    )
    request = check_request(
        "dot_product_attention",
        query,
        key,
        value,
        bias,
        mask,
        scale=scale,
        is_causal=is_causal,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
        local_window_size=local_window_size,
        normalizer=normalizer,
        dropout=dropout,
        head_ids=head_ids,
        precision=precision,
    )
    output, lse = attend("dot_product_attention", request, implementation)
    return (output, lse) if return_residual else output


_ABSENT = {
    "score_mod": "add what depends on positions to bias",
    "query_coords": "write what depends on positions into mask or bias",
    "key_coords": "write what depends on positions into mask or bias",
    "plan": "leave it out",
}


def _refuse_absent(function: str, **arguments: jax.Array | None) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise NotImplementedError(
                f"{function}: {name} is not part of this version and must be None; {_ABSENT[name]}."
            )
