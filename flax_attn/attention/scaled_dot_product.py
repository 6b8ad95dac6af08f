"""Scaled dot-product attention of a single head."""

from collections.abc import Sequence
from typing import Any

from jax import lax
from jaxtyping import Array, Bool, Float, Int

from flax_attn._checks import as_floating, broadcasts_to
from flax_attn.attention.dot_product import dot_product_attention
from flax_attn.attention.dropout import Dropout
from flax_attn.coords import Coords
from flax_attn.masks import Mask, Plan
from flax_attn.normalizers import Normalizer, Softmax
from flax_attn.scores import ScoreMod


def scaled_dot_product_attention(
    query: Float[Array, "*B T D"],
    key: Float[Array, "*B S D"],
    value: Float[Array, "*B S Dv"],
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
    dropout: Dropout | None = None,
    query_coords: Coords | None = None,
    key_coords: Coords | None = None,
    plan: Plan | None = None,
    precision: lax.PrecisionLike = None,
    implementation: str | Sequence[str] | None = None,
    return_residual: bool = False,
) -> Float[Array, "*B T Dv"] | Any:
    """Scaled dot-product attention of a single head, without a head axis.

    O = softmax(scale · Q Kᵀ + bias) V

    The same as `dot_product_attention`, on `[..., T, D]`; there the arguments are explained.

    Args:
      query: Queries `[*B, T, D]`.
      key: Keys `[*B, S, D]`.
      value: Values `[*B, S, Dv]`.
      bias: Added to the scaled scores; broadcasts to `[*B, T, S]`.
      mask: A `Mask`; or True where a query attends, broadcasting to `[*B, T, S]`.
      scale: Factor of the dot products, default 1/√D.
      is_causal: Whether query t sees only the keys s ≤ t.
      query_seq_lengths: Number of queries that count `[*B]`.
      key_value_seq_lengths: Number of keys that count `[*B]`.
      local_window_size: `(left, right)` or one number for both.
      score_mod: A `ScoreMod`, or None.
      normalizer: `Softmax()`, `Softmax(sink)`, ...
      dropout: `Dropout(rate, key)`, or None.
      query_coords: Coordinates of the queries.
      key_coords: Coordinates of the keys.
      plan: The block map of `mask`.
      precision: Precision of both dot products.
      implementation: As in `dot_product_attention`.
      return_residual: Whether to return the LSE `[*B, T]` too.

    Returns:
      The output `[*B, T, Dv]` in the query's dtype; with `return_residual` also the LSE `[*B, T]`.

    Raises:
      ValueError: If shapes, dtypes or numbers do not fit.
      TypeError: If an argument is of the wrong kind.
      NotImplementedError: If the implementation that was asked for declines.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import scaled_dot_product_attention
      >>> q, k = jnp.zeros((5, 4)), jnp.zeros((3, 4))
      >>> v = jnp.array([[0.0], [3.0], [6.0]])
      >>> scaled_dot_product_attention(q, k, v)[0]     # equal scores: the mean of the values
      Array([3.], dtype=float32)

    References:
      Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762, equation 1.
    """
    function = "scaled_dot_product_attention"
    query = as_floating(function, "query", query)
    key = as_floating(function, "key", key)
    value = as_floating(function, "value", value)
    shapes = f"query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}"
    if not 2 <= query.ndim == key.ndim == value.ndim:
        raise ValueError(
            f"{function}: query must be [*B, T, D], key [*B, S, D] and value [*B, S, Dv], of one "
            f"rank, got {shapes}."
        )
    if not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        raise ValueError(f"{function}: the batch axes *B must be equal, got {shapes}.")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"{function}: query and key must have one size D, got {shapes}.")
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"{function}: key and value must have one length S, got {shapes}.")
    weights_shape = (*query.shape[:-1], key.shape[-2])
    result = dot_product_attention(
        query[..., None, :],
        key[..., None, :],
        value[..., None, :],
        _with_head_axis(function, "bias", bias, weights_shape),
        _with_head_axis(function, "mask", mask, weights_shape),
        scale=scale,
        is_causal=is_causal,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
        local_window_size=local_window_size,
        score_mod=score_mod,
        normalizer=normalizer,
        dropout=dropout,
        query_coords=query_coords,
        key_coords=key_coords,
        plan=plan,
        precision=precision,
        implementation=implementation,
        return_residual=return_residual,
    )
    if return_residual:
        output, lse = result
        return output[..., 0, :], lse[..., 0]
    return result[..., 0, :]


def _with_head_axis(function: str, name: str, array: Any, shape: tuple[int, ...]) -> Any:
    if array is None or not hasattr(array, "shape"):
        return array
    if not broadcasts_to(array.shape, shape):
        raise ValueError(
            f"{function}: {name} must broadcast to [*B, T, S] = {list(shape)}, "
            f"got {list(array.shape)}."
        )
    return array if array.ndim < 3 else array[..., None, :, :]
