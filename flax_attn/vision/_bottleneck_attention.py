"""Bottleneck attention: BoTNet's multi-head self-attention over an image."""

import math
from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from flax_attn._checks import Map
from flax_attn.attention import dot_product_attention, multi_head_attention
from flax_attn.vision._checks import as_image
from flax_attn.vision._relative_positions import check_tables, with_relative_positions


def bottleneck_attention(
    x: Float[Array, "*B H W C"],
    query: Map,
    key: Map,
    value: Map,
    relative_height: Float[Array, "Rh D"],
    relative_width: Float[Array, "Rw D"],
    *,
    scale_positions: bool = True,
    attention: Callable[..., Array] = dot_product_attention,
) -> Float[Array, "*B H W M"]:
    """Bottleneck attention: every place attends to all places, by content and relative position.

    A = softmax((q·kᵀ + q·r_h[Δy] + q·r_w[Δx]) / √D),   y = A v,   Δ = key − query

    It replaces the 3×3 convolution in a ResNet's bottleneck, with 4 heads and no output projection.
    The paper scales the query first, and with it the position terms. timm's `BottleneckAttn`, used
    in its botnet26t, does not scale the position terms (`scale_positions=False`).

    The position terms are computed by the dot product, of queries and keys with D + H + W features.
    Memory is O(H W (D + H + W)) per head in memory-efficient attention: no H W × H W array. The
    position terms are rounded to the dtype of the queries.

    Args:
      x: Image `[*B, H, W, C]`.
      query: Map from `[*B, H · W, C]` to `[*B, H · W, N, D]`.
      key: Map from `[*B, H · W, C]` to `[*B, H · W, N, D]`.
      value: Map from `[*B, H · W, C]` to `[*B, H · W, N, Dv]`.
      relative_height: r_h, a vector for each offset of rows −(H − 1) ... H − 1, `[2 H − 1, D]`.
      relative_width: r_w, a vector for each offset of columns, `[2 W − 1, D]`.
      scale_positions: If True, the position terms are scaled by 1/√D like q·kᵀ.
      attention: Attention on heads, called with `query, key, value` and the keyword `scale` of
        `dot_product_attention`.

    Returns:
      The concatenated heads, `[*B, H, W, M]` with M = N · Dv.

    Raises:
      ValueError: If `x` is not an image, its size does not fit the tables, or a map returns another
        shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.ones((2, 6, 5, 32))
      >>> split = maps.dense(jax.random.normal(jax.random.key(0), (32, 4, 8)))
      >>> r_h, r_w = jnp.zeros((2 * 6 - 1, 8)), jnp.zeros((2 * 5 - 1, 8))
      >>> vision.bottleneck_attention(x, split, split, split, r_h, r_w).shape
      (2, 6, 5, 32)

    References:
      Srinivas, Lin, Parmar, Shlens, Abbeel, Vaswani, "Bottleneck Transformers for Visual
      Recognition", CVPR 2021, arXiv:2101.11605, section 3, figure 4.
    """
    function = "bottleneck_attention"
    x = as_image(function, x, query=query, key=key, value=value, attention=attention)
    *batch, height, width, features = x.shape
    size, tables = (height, width), (relative_height, relative_width)
    check_tables(function, tables, size, ("H", "W"))

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scale = q.shape[-1] ** -0.5
        q, k = with_relative_positions(function, q, k, tables, size, size, scaled=scale_positions)
        return attention(q, k, v, scale=scale)

    def join(heads: jax.Array) -> jax.Array:
        return heads.reshape(*heads.shape[:-2], math.prod(heads.shape[-2:]))

    tokens = x.reshape(*batch, height * width, features)
    y = multi_head_attention(tokens, tokens, query, key, value, join, attention=attend)
    return y.reshape(*batch, height, width, y.shape[-1]).astype(x.dtype)
