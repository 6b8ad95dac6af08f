"""Attention weights, for pictures and inspection."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from flax_attn.attention._core.normalize import normalize
from flax_attn.attention._core.scores import scores_of, undefined
from flax_attn.coords import Coords
from flax_attn.masks import Mask
from flax_attn.normalizers import Normalizer, Softmax, with_sink
from flax_attn.scores import ScoreMod

Selection = slice | Int[Array, "X"] | None


def attention_weights(
    query: Float[Array, "*B T N D"],
    key: Float[Array, "*B S K D"],
    bias: Float[Array, "..."] | None = None,
    mask: Mask | Bool[Array, "..."] | None = None,
    *,
    scale: float | Float[Array, ""] | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, "..."] | None = None,
    key_value_seq_lengths: Int[Array, "..."] | None = None,
    local_window_size: int | tuple[int | None, int | None] | None = None,
    score_mod: ScoreMod | None = None,
    normalizer: Normalizer = Softmax(),
    query_coords: Coords | None = None,
    key_coords: Coords | None = None,
    head_ids: Int[Array, "N"] | None = None,
    precision: lax.PrecisionLike = None,
    rows: Selection = None,
    cols: Selection = None,
    lse: Float[Array, "*B T N"] | None = None,
) -> Float[Array, "*B N rows cols"]:
    """The weights of `dot_product_attention`, or a window of them.

    p_ts = exp(scale · Q_t·K_s + bias − LSE_t)

    `rows` and `cols` choose the queries and keys, for a picture of a part of a long sequence. With
    the LSE of `dot_product_attention(..., return_residual=True)` only rows × cols scores are
    computed. Without it, the LSE of these rows is computed here from all S keys.

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
      score_mod: As in `dot_product_attention`.
      normalizer: As in `dot_product_attention`.
      query_coords: As in `dot_product_attention`.
      key_coords: As in `dot_product_attention`.
      head_ids: As in `dot_product_attention`.
      precision: As in `dot_product_attention`.
      rows: Which queries: a slice, an array of numbers, or None for all.
      cols: Which keys: a slice, an array of numbers, or None for all.
      lse: The LSE of all queries `[*B, T, N]`.

    Returns:
      The weights `[*B, N, rows, cols]` in float32 (float64 for float64 inputs), exactly 0 where
      masked. Dropout is not applied. Under `jit` the indices cannot be checked: rows and columns
      that do not exist are NaN.

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
    problem = normalize(
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
        score_mod=score_mod,
        normalizer=normalizer,
        dropout=None,
        query_coords=query_coords,
        key_coords=key_coords,
        head_ids=head_ids,
        plan=None,
        precision=precision,
    )
    row_ids = _select(function, "rows", rows, query.shape[-3])
    col_ids = _select(function, "cols", cols, key.shape[-3])
    whole_rows = problem.take(row_ids, None)
    window = whole_rows.take(None, col_ids)
    if lse is not None and np.shape(lse) != query.shape[:-1]:
        raise ValueError(
            f"{function}: lse must be [*B, T, N] = {list(query.shape[:-1])}, got "
            f"{list(np.shape(lse))}."
        )
    scores, visible = scores_of(window)
    if not normalizer.folds:  # its weights need the whole row
        weights, _ = normalizer.normalize(scores_of(whole_rows).values)
        weights = weights if col_ids is None else jnp.take(weights, col_ids, axis=-1)
    else:
        if lse is None:
            all_keys = scores if col_ids is None else scores_of(whole_rows).values
            _, lse_BNT = problem.normalizer.normalize(all_keys)
            lse_BNT = _with_sink(normalizer, lse_BNT)
        else:
            lse_BNT = jnp.swapaxes(lse, -1, -2).astype(scores.dtype)
            lse_BNT = lse_BNT if row_ids is None else jnp.take(lse_BNT, row_ids, axis=-1)
        # A row without keys has an LSE of −∞, and −∞ − (−∞) is not a number, also in a gradient.
        lse_BNT = jnp.where(jnp.isneginf(lse_BNT), jnp.inf, lse_BNT)
        weights = problem.normalizer.weights(scores, lse_BNT[..., None])
    if visible is not None:
        visible_of_rows = scores_of(whole_rows).visible
        assert visible_of_rows is not None
        bad_BNT, _ = undefined(whole_rows, visible_of_rows)
        weights = jnp.where(bad_BNT[..., None], jnp.nan, weights)
        weights = jnp.where(visible, weights, 0)
    # Traced indices cannot be checked. One that is out of range gives NaN, not another row.
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
    if isinstance(chosen, int | np.integer):
        raise ValueError(
            f"{function}: {name} must be a slice or a one-dimensional array of integers, got "
            f"{chosen}. Write {name}=[{chosen}]."
        )
    if isinstance(chosen, str):
        raise TypeError(f"{function}: {name} must be a slice or an array, got {chosen!r}.")
    ids = jnp.asarray(chosen)
    if ids.ndim != 1 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"{function}: {name} must be a slice or a one-dimensional array of integers, "
            f"got {ids.dtype} {list(ids.shape)}."
        )
    if not isinstance(ids, jax.core.Tracer) and bool(jnp.any((ids < 0) | (ids >= length))):
        raise ValueError(f"{function}: {name} must lie in 0 ... {length - 1}, got {chosen}.")
    return ids


def _with_sink(normalizer: Normalizer, lse_BNT: jax.Array) -> jax.Array:
    lse_BTN = jnp.swapaxes(lse_BNT, -1, -2)
    return jnp.swapaxes(with_sink(normalizer, lse_BTN[..., None], lse_BTN)[1], -1, -2)
