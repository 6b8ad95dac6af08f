"""Attention weights, for pictures and inspection."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from flax_attn.attention._request import check_request
from flax_attn.attention._scores import masked_scores, undefined_scores, visible
from flax_attn.normalizers import Softmax

Selection = slice | Int[Array, "X"] | None


def attention_weights(
    query: Float[Array, "*B T N D"],
    key: Float[Array, "*B S K D"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    *,
    scale: float | Float[Array, ""] | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, "..."] | None = None,
    key_value_seq_lengths: Int[Array, "..."] | None = None,
    local_window_size: int | tuple[int | None, int | None] | None = None,
    normalizer: Softmax = Softmax(),
    precision: lax.PrecisionLike = None,
    rows: Selection = None,
    cols: Selection = None,
    lse: Float[Array, "*B T N"] | None = None,
) -> Float[Array, "*B N rows cols"]:
    """The weights of `dot_product_attention`, or a window of them.

    p_ts = exp(scale · Q_t·K_s + bias − LSE_t)

    For a picture of a part of a long sequence, `rows` and `cols` choose what is computed. With the
    LSE of the whole (`dot_product_attention(..., return_residual=True)`) only rows × cols scores
    exist; without it, the LSE of the chosen rows is computed here from all S keys.

    Args:
      query: Queries `[*B, T, N, D]`.
      key: Keys `[*B, S, K, D]`.
      bias: As in `dot_product_attention`.
      mask: As in `dot_product_attention`.
      scale: As in `dot_product_attention`.
      is_causal: As in `dot_product_attention`.
      query_seq_lengths: As in `dot_product_attention`.
      key_value_seq_lengths: As in `dot_product_attention`.
      local_window_size: As in `dot_product_attention`.
      normalizer: As in `dot_product_attention`.
      precision: As in `dot_product_attention`.
      rows: Which queries: a slice, an array of numbers, or None for all.
      cols: Which keys: a slice, an array of numbers, or None for all.
      lse: The LSE of all queries `[*B, T, N]`.

    Returns:
      The weights `[*B, N, rows, cols]` in float32 (float64 for float64 inputs); exactly 0 where
      masked. Dropout is not applied. Rows or columns outside, where `jit` hides their numbers from
      a check, are NaN.

    Raises:
      ValueError: As `dot_product_attention`, and if `rows` or `cols` lie outside.
      TypeError: As `dot_product_attention`.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from flax_attn import attention_weights
      >>> q = k = jnp.zeros((3, 1, 4))
      >>> print(np.asarray(attention_weights(q, k, is_causal=True)[0]).round(2))
      [[1.   0.   0.  ]
       [0.5  0.5  0.  ]
       [0.33 0.33 0.33]]
      >>> attention_weights(q, k, is_causal=True, rows=slice(2, 3)).shape
      (1, 1, 3)
    """
    function = "attention_weights"
    request = check_request(
        function,
        query,
        key,
        None,
        bias,
        mask,
        scale=scale,
        is_causal=is_causal,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
        local_window_size=local_window_size,
        normalizer=normalizer,
        dropout=None,
        head_ids=None,
        precision=precision,
    )
    row_ids = _select(function, "rows", rows, query.shape[-3])
    col_ids = _select(function, "cols", cols, key.shape[-3])
    scores = masked_scores(request, row_ids, col_ids)
    if lse is None:
        all_keys = scores if col_ids is None else masked_scores(request, row_ids, None)
        _, lse_BNT = normalizer.normalize(all_keys)
    elif lse.shape != query.shape[:-1]:
        raise ValueError(
            f"{function}: lse must be [*B, T, N] = {list(query.shape[:-1])}, got {list(lse.shape)}."
        )
    else:
        lse_BNT = jnp.swapaxes(lse, -1, -2)
        lse_BNT = lse_BNT if row_ids is None else jnp.take(lse_BNT, row_ids, axis=-1)
    hidden = jnp.isneginf(scores)
    # A row without keys has an LSE of −∞, and −∞ − (−∞) is not a number, also in a gradient.
    shift = jnp.where(jnp.isneginf(lse_BNT), 0, lse_BNT).astype(scores.dtype)[..., None]
    weights = jnp.exp(jnp.where(hidden, 0, scores - shift))
    if (seen := visible(request, row_ids)) is not None:
        bad_BNT = undefined_scores(request, seen, row_ids)
        weights = jnp.where(bad_BNT[..., None], jnp.nan, weights)
    weights = jnp.where(hidden, 0, weights)
    # Numbers without a value yet cannot be checked: outside, they must not pass for others.
    for ids, length, axis in ((row_ids, query.shape[-3], -2), (col_ids, key.shape[-3], -1)):
        if ids is not None:
            outside = (ids < 0) | (ids >= length)
            shape = (1,) * (weights.ndim - 2) + ((-1, 1) if axis == -2 else (1, -1))
            weights = jnp.where(outside.reshape(shape), jnp.nan, weights)
    return weights


def _select(function: str, name: str, chosen: Selection, length: int) -> jax.Array | None:
    if chosen is None:
        return None
    if isinstance(chosen, slice):
        return jnp.arange(length)[chosen]
    ids = jnp.asarray(chosen)
    if ids.ndim != 1 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"{function}: {name} must be a slice or a one-dimensional array of integers, "
            f"got {ids.dtype} {list(ids.shape)}."
        )
    if not isinstance(ids, jax.core.Tracer) and bool(jnp.any((ids < 0) | (ids >= length))):
        raise ValueError(f"{function}: {name} must lie in 0 ... {length - 1}, got {chosen}.")
    return ids
