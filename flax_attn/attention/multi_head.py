"""Multi-head attention."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import as_floating, check_maps
from flax_attn.attention._core.finite import finite, not_finite
from flax_attn.attention.dot_product import dot_product_attention

Map = Callable[[Array], Array]


def multi_head_attention(
    inputs_q: Float[Array, "*B T Mq"],
    inputs_kv: Float[Array, "*B S Mk"],
    query: Map,
    key: Map,
    value: Map,
    out: Map,
    *,
    inputs_v: Float[Array, "*B S Mv"] | None = None,
    query_norm: Map | None = None,
    key_norm: Map | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    attention: Callable[..., Array] = dot_product_attention,
    **options: Any,
) -> Float[Array, "*B T M"]:
    """Multi-head attention: project the inputs, attend in each head, project the output.

    MHA(X, Y) = out(Attention(query(X), key(Y), value(Y)))

    Self-attention is X = Y. Each projection is a map: a bound matrix, a Linen or NNX layer, or any
    other callable.

    Args:
      inputs_q: Inputs of the queries `[*B, T, Mq]`.
      inputs_kv: Inputs of the keys and values `[*B, S, Mk]`.
      query: Map from `[*B, T, Mq]` to `[*B, T, N, D]`.
      key: Map from `[*B, S, Mk]` to `[*B, S, K, D]`.
      value: Map from `[*B, S, Mk]` to `[*B, S, K, Dv]`.
      out: Map from `[*B, T, N, Dv]` to `[*B, T, M]`.
      inputs_v: Inputs of the values `[*B, S, Mv]`; default `inputs_kv`.
      query_norm: Map applied to the projected queries `[*B, T, N, D]`.
      key_norm: Map applied to the projected keys `[*B, S, K, D]`.
      num_heads: N, for projections without a head axis: `query` then returns `[*B, T, N · D]`, and
        `out` takes `[*B, T, N · Dv]`. Features n · D ... (n + 1) · D − 1 belong to head n.
      num_kv_heads: K, for such projections; default N.
      attention: Attention on heads, called as `attention(q, k, v, **options)`.
      **options: Passed on to `attention`: `mask`, `bias`, `is_causal`, `dropout`, ...

    Returns:
      The output `[*B, T, M]`.

    Raises:
      ValueError: If an input, or the result of a projection, has the wrong shape.
      TypeError: If an input is not floating point, or `attention` does not know an option.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import maps, multi_head_attention
      >>> split = maps.dense(jax.random.normal(jax.random.key(0), (32, 4, 8)))
      >>> join = maps.dense(jax.random.normal(jax.random.key(1), (4, 8, 32)), axes=2)
      >>> x = jnp.ones((2, 10, 32))
      >>> multi_head_attention(x, x, split, split, split, join, is_causal=True).shape
      (2, 10, 32)

    References:
      Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762, section 3.2.2;
      Dehghani et al., "Scaling Vision Transformers to 22 Billion Parameters", ICML 2023,
      arXiv:2302.05442 (normalised queries and keys).
    """
    function = "multi_head_attention"
    check_maps(function, query=query, key=key, value=value, out=out)
    check_maps(function, query_norm=query_norm, key_norm=key_norm, attention=attention)
    inputs_v = inputs_kv if inputs_v is None else inputs_v
    inputs_q = as_floating(function, "inputs_q", inputs_q)
    inputs_kv = as_floating(function, "inputs_kv", inputs_kv)
    inputs_v = as_floating(function, "inputs_v", inputs_v)
    if num_heads is not None and num_heads < 1:
        raise ValueError(f"{function}: num_heads must be at least 1, got {num_heads}.")
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    if num_kv_heads is not None and num_kv_heads < 1:
        raise ValueError(f"{function}: num_kv_heads must be at least 1, got {num_kv_heads}.")
    q = _project(function, "query", query, inputs_q, num_heads)
    k = _project(function, "key", key, inputs_kv, num_kv_heads)
    v = _project(function, "value", value, inputs_v, num_kv_heads)
    q = q if query_norm is None else query_norm(q)
    k = k if key_norm is None else key_norm(k)
    heads = attention(q, k, v, **options)
    if isinstance(heads, tuple):
        raise TypeError(
            f"{function}: attention must return one array, got {len(heads)}. "
            f"Leave out return_residual."
        )
    if num_heads is None:
        return out(heads)
    return out(heads.reshape(*heads.shape[:-2], heads.shape[-2] * heads.shape[-1]))


def _project(
    function: str, name: str, projection: Map, inputs: jax.Array, num_heads: int | None
) -> jax.Array:
    # A token that is not finite stays so after the projection. It must not enter the gradient of
    # the projection's weights: where a mask hides the token, that gradient would be NaN · 0.
    projected = projection(finite(inputs))
    if num_heads is not None:
        if projected.shape[:-1] != inputs.shape[:-1] or projected.shape[-1] % num_heads:
            raise ValueError(
                f"{function}: with {num_heads} heads, {name} must return {list(inputs.shape[:-1])} "
                f"+ [a multiple of {num_heads}], got {list(projected.shape)}."
            )
        head_dim = projected.shape[-1] // num_heads
        projected = projected.reshape(*projected.shape[:-1], num_heads, head_dim)
    elif projected.ndim != inputs.ndim + 1 or projected.shape[:-2] != inputs.shape[:-1]:
        raise ValueError(
            f"{function}: {name} must return {list(inputs.shape[:-1])} + [heads, head size], got "
            f"{list(projected.shape)}. Give num_heads to split a last axis of heads · head size."
        )
    return jnp.where(not_finite(inputs)[..., None, None], jnp.nan, projected)
