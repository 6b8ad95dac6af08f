"""Additive attention."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flax_attn._checks import (
    as_floating,
    broadcasts_to,
    check_maps,
    expand_rank,
    statistics_dtype,
)
from flax_attn._functions import kind_of
from flax_attn.attention._core.finite import finite, not_finite, sees
from flax_attn.masks import Mask
from flax_attn.normalizers import Softmax


def additive_attention(
    query: Float[Array, "*B T Dq"],
    key: Float[Array, "*B S Dk"],
    value: Float[Array, "*B S Dv"],
    query_map: Callable[[Array], Array],
    key_map: Callable[[Array], Array],
    score_map: Callable[[Array], Array],
    *,
    mask: Bool[Array, "..."] | None = None,
    return_weights: bool = False,
) -> Float[Array, "*B T Dv"] | Any:
    """Additive attention: a small network scores each pair of query and key.

    O_t = Σ_s p_ts V_s,   p_t = softmax_s(w · tanh(W_q Q_t + W_k K_s))

    Queries and keys may have different widths. The hidden layer exists for each pair, which takes
    O(T · S · M) memory.

    Args:
      query: Queries `[*B, T, Dq]`.
      key: Keys `[*B, S, Dk]`.
      value: Values `[*B, S, Dv]`.
      query_map: W_q, from `[..., Dq]` to `[..., M]`.
      key_map: W_k, from `[..., Dk]` to `[..., M]`.
      score_map: w, from `[..., M]` to `[..., 1]`.
      mask: True where a query attends; broadcasts to `[*B, T, S]`.
      return_weights: Whether to return the weights too.

    Returns:
      The output `[*B, T, Dv]` in the value's dtype; a query that sees no key gives 0. With
      `return_weights` also p `[*B, T, S]` in float32 (float64 for float64 scores), exactly 0 where
      masked.

    Raises:
      ValueError: If shapes do not fit, or a map returns another shape than its own.
      TypeError: If an argument is of the wrong kind.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import additive_attention, maps
      >>> query, key, value = jnp.ones((2, 1, 20)), jnp.ones((2, 10, 2)), jnp.ones((2, 10, 4))
      >>> weights = maps.dense(jnp.ones((20, 8))), maps.dense(jnp.ones((2, 8)))
      >>> additive_attention(query, key, value, *weights, maps.dense(jnp.ones((8, 1)))).shape
      (2, 1, 4)

    References:
      Bahdanau, Cho, Bengio, "Neural Machine Translation by Jointly Learning to Align and
      Translate", ICLR 2015, arXiv:1409.0473, section A.1.2.
    """
    function = "additive_attention"
    check_maps(function, query_map=query_map, key_map=key_map, score_map=score_map)
    query = as_floating(function, "query", query)
    key = as_floating(function, "key", key)
    value = as_floating(function, "value", value)
    _check_shapes(function, query, key, value)
    if mask is not None:
        mask = _as_mask(function, mask, (*query.shape[:-1], key.shape[-2]))
        undefined = _undefined(query, key, value, mask)
        query, key, value = finite(query), finite(key), finite(value)

    scores = _scores(function, query, key, query_map, key_map, score_map)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    weights = Softmax().normalize(scores[..., None, :, :])[0][..., 0, :, :]
    if mask is not None:
        weights = jnp.where(mask, weights, 0)  # their cotangent may overflow
    output = jnp.einsum(
        "...ts,...sd->...td",
        weights.astype(value.dtype),
        value,
        preferred_element_type=scores.dtype,
    ).astype(value.dtype)
    if mask is not None:
        no_scores, no_output = undefined
        output = jnp.where(no_output[..., None], jnp.nan, output)
        weights = jnp.where(no_scores[..., None] & mask, jnp.nan, weights)
    return (output, weights) if return_weights else output


def _scores(
    function: str,
    query: Array,
    key: Array,
    query_map: Callable[[Array], Array],
    key_map: Callable[[Array], Array],
    score_map: Callable[[Array], Array],
) -> Array:
    """w · tanh(W_q Q_t + W_k K_s), `[*B, T, S]`."""
    queries_TM, keys_SM = query_map(query), key_map(key)
    keys_shape = (*key.shape[:-1], queries_TM.shape[-1])
    if queries_TM.shape[:-1] != query.shape[:-1] or keys_SM.shape != keys_shape:
        raise ValueError(
            f"{function}: query_map and key_map must return [*B, T, M] and [*B, S, M], "
            f"got {list(queries_TM.shape)} and {list(keys_SM.shape)}."
        )
    dtype = statistics_dtype(queries_TM.dtype)
    queries_TM, keys_SM = queries_TM.astype(dtype), keys_SM.astype(dtype)
    hidden_TSM = jnp.tanh(queries_TM[..., :, None, :] + keys_SM[..., None, :, :])
    scores_TS1 = score_map(hidden_TSM)
    if scores_TS1.shape != (*hidden_TSM.shape[:-1], 1):
        raise ValueError(
            f"{function}: score_map must return [*B, T, S, 1] = {[*hidden_TSM.shape[:-1], 1]}, "
            f"got {list(scores_TS1.shape)}."
        )
    return scores_TS1[..., 0].astype(statistics_dtype(scores_TS1.dtype))


def _undefined(query: Array, key: Array, value: Array, mask: Array) -> tuple[Array, Array]:
    """Queries `[*B, T]` with undefined scores, and those with an undefined output.

    They see something that is not finite.
    """
    mask_B1TS = mask[..., None, :, :]
    bad_keys = (not_finite(array)[..., None, :] for array in (key, value))
    sees_key, sees_value = (x[..., 0, :] for x in sees(mask_B1TS, *bad_keys))
    no_scores = sees_key | (not_finite(query) & jnp.any(mask, axis=-1))
    return no_scores, no_scores | sees_value


def _check_shapes(function: str, query: Array, key: Array, value: Array) -> None:
    shapes = f"query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}"
    if not 2 <= query.ndim == key.ndim == value.ndim:
        raise ValueError(
            f"{function}: query must be [*B, T, Dq], key [*B, S, Dk] and value [*B, S, Dv], of one "
            f"rank, got {shapes}."
        )
    if not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        raise ValueError(f"{function}: the batch axes *B must be equal, got {shapes}.")
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"{function}: key and value must have one length S, got {shapes}.")


def _as_mask(function: str, mask: Any, shape: tuple[int, ...]) -> Array:
    """The mask, with all axes of the scores."""
    if isinstance(mask, Mask) or callable(mask):
        raise TypeError(
            f"{function}: mask must be a boolean array, True = attend, got {kind_of(mask)}. A Mask "
            f"is for dot_product_attention. Here give an array: jnp.tri(T, S, dtype=bool)."
        )
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(
            f"{function}: mask must be boolean, True = attend, got {mask.dtype}. Write "
            f"mask.astype(bool) for zeros and ones."
        )
    if not broadcasts_to(mask.shape, shape):
        raise ValueError(
            f"{function}: mask must broadcast to [*B, T, S] = {list(shape)}, "
            f"got {list(mask.shape)}."
        )
    return expand_rank(mask, len(shape))
