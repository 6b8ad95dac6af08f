"""Grid attention (MaxViT's dilated global attention)."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Map
from flax_attn.attention import dot_product_attention, multi_head_attention
from flax_attn.coords import Coords
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._windows import (
    Size,
    as_pair,
    check_divides,
    from_windows,
    to_windows,
    with_relative_bias,
)


def grid_attention(
    x: Float[Array, "*B H W C"],
    query: Map,
    key: Map,
    value: Map,
    out: Map,
    *,
    relative_bias: Float[Array, "R N"] | None = None,
    grid_size: Size = 7,
    attention: Callable[..., Array] = dot_product_attention,
) -> Float[Array, "*B H W C"]:
    """Grid attention: each place attends to a grid of G × G places spread over the image.

    A = softmax(q·kᵀ / √D + t[Δy, Δx]),   y = out(A v)   on the places ≡ (i, j) mod (H / G, W / G)

    The offsets Δ count steps of the grid. Window attention attends within windows; grid attention
    cuts the image into G × G windows and attends across them. MaxViT alternates it with block
    attention, which is `window_attention` without a shift; G = 7 and heads have 32 channels. To
    load a released table, `[N, 2 G − 1, 2 G − 1]` of key minus query, pass
    `table[:, ::-1, ::-1].reshape(N, -1).T`.

    Args:
      x: Image `[*B, H, W, C]`.
      query: Map from `[*B, grids, G², C]` to `[*B, grids, G², N, D]`.
      key: Map from `[*B, grids, G², C]` to `[*B, grids, G², N, D]`.
      value: Map from `[*B, grids, G², C]` to `[*B, grids, G², N, Dv]`.
      out: Map from `[*B, grids, G², N, Dv]` to `[*B, grids, G², C]`.
      relative_bias: t, a number for each offset (query minus key) and head,
        `[(2 Gh − 1) · (2 Gw − 1), N]`, column offsets varying fastest, or None. It is not scaled.
      grid_size: G, one number or (Gh, Gw).
      attention: Attention on heads, called with `query, key, value` and the keywords `score_mod`,
        `query_coords`, `key_coords` of `dot_product_attention`.

    Returns:
      The output `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, G does not divide H or W, or a map or table has another
        shape.
      TypeError: If `x` is not a floating-point array, or G is not a whole number.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.ones((2, 14, 7, 64))
      >>> split = maps.dense(jax.random.normal(jax.random.key(0), (64, 2, 32)))
      >>> join = maps.dense(jax.random.normal(jax.random.key(1), (2, 32, 64)), axes=2)
      >>> vision.grid_attention(
      ...     x, split, split, split, join, relative_bias=jnp.zeros((13 * 13, 2))
      ... ).shape
      (2, 14, 7, 64)

    References:
      Tu, Talebi, Zhang, Yang, Milanfar, Bovik, Li, "MaxViT: Multi-Axis Vision Transformer", ECCV
      2022, arXiv:2204.01697, section 3.2.
    """
    function = "grid_attention"
    x = as_image(function, x, query=query, key=key, value=value, out=out, attention=attention)
    grid = as_pair(function, "grid_size", grid_size, 1)
    check_divides(function, "grid_size", grid, x)
    height, width = x.shape[-3:-1]
    window = (height // grid[0], width // grid[1])

    coords = Coords.grid(*grid)
    tokens = jnp.swapaxes(to_windows(x, window), -3, -2)
    attended = multi_head_attention(
        tokens,
        tokens,
        query,
        key,
        value,
        out,
        attention=with_relative_bias(function, attention, relative_bias, grid),
        query_coords=coords,
        key_coords=coords,
    )
    check_returned(function, "out", attended, tokens.shape, "[*B, grids, G², C]")
    return from_windows(jnp.swapaxes(attended, -3, -2), window, height, width).astype(x.dtype)
