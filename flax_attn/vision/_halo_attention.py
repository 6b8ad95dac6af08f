"""Halo attention (HaloNet's blocked local attention)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Map, as_integer, check_at_least, check_positive, head_features
from flax_attn.attention import dot_product_attention
from flax_attn.coords import Coords
from flax_attn.vision._checks import as_image
from flax_attn.vision._relative_positions import check_tables, with_relative_positions
from flax_attn.vision._windows import (
    check_divides,
    from_windows,
    overlapping,
    reshape_places,
    to_windows,
)


def halo_attention(
    x: Float[Array, "*B H W C"],
    query: Map,
    key: Map,
    value: Map,
    relative_height: Float[Array, "Rh D"],
    relative_width: Float[Array, "Rw D"],
    *,
    block_size: int = 8,
    halo_size: int = 3,
    scale_positions: bool = True,
    mask_padding: bool = False,
    attention: Callable[..., Array] = dot_product_attention,
) -> Float[Array, "*B H W M"]:
    """Halo attention: the places of a block attend to the block and a halo around it.

    A = softmax((q·kᵀ + q·r_h[Δy] + q·r_w[Δx]) / √D),   y = A v

    for the b² queries of a block and the w² keys of its window, w = b + 2 halo_size. Δ is the place
    in the window minus the place in the block. There is no output projection. Outside the image,
    keys and values are zeros and take part in the softmax, as in timm's `HaloAttn`; `mask_padding`
    masks them. timm's default does not scale the position terms (`scale_positions=False`).

    Keys and values are projected once and then copied, w² / b² times. The position terms are
    computed by the dot product and rounded to the dtype of the queries.

    Args:
      x: Image `[*B, H, W, C]`.
      query: Map from `[*B, H, W, C]` to `[*B, H, W, N, D]`.
      key: Map from `[*B, H, W, C]` to `[*B, H, W, N, D]`.
      value: Map from `[*B, H, W, C]` to `[*B, H, W, N, Dv]`.
      relative_height: r_h `[2 w − 1, D]`; Δy uses row Δy + w − 1. Rows before w − b are unused, as
        in timm.
      relative_width: r_w `[2 w − 1, D]`, with columns in place of rows.
      block_size: b.
      halo_size: Width of the halo around a block.
      scale_positions: If True, the position terms are scaled by 1/√D like q·kᵀ.
      mask_padding: If True, places outside the image are masked.
      attention: Attention on heads, called with `query, key, value` and the keywords `scale`,
        `key_coords` of `dot_product_attention`.

    Returns:
      The concatenated heads, `[*B, H, W, M]` with M = N · Dv.

    Raises:
      ValueError: If `x` is not an image, b does not divide H or W, a size is too small, or a table
        or the output of a map has another shape.
      TypeError: If `x` is not a floating-point array, or a size is not a whole number.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.ones((2, 16, 8, 32))
      >>> split = maps.dense(jax.random.normal(jax.random.key(0), (32, 4, 8)))
      >>> table = jnp.zeros((2 * (8 + 2 * 3) - 1, 8))
      >>> vision.halo_attention(x, split, split, split, table, table).shape
      (2, 16, 8, 32)

    References:
      Vaswani, Ramachandran, Srinivas, Parmar, Hechtman, Shlens, "Scaling Local Self-Attention for
      Parameter Efficient Visual Backbones", CVPR 2021, arXiv:2103.12731, section 2.2.
    """
    function = "halo_attention"
    x = as_image(function, x, query=query, key=key, value=value, attention=attention)
    block = as_integer(function, "block_size", block_size)
    halo = as_integer(function, "halo_size", halo_size)
    if block < 1 or halo < 0:
        raise ValueError(
            f"{function}: block_size must be at least 1 and halo_size at least 0, "
            f"got {block} and {halo}."
        )
    blocks, windows = (block, block), (block + 2 * halo,) * 2
    check_divides(function, "block_size", blocks, x)
    tables = (relative_height, relative_width)
    check_tables(function, tables, windows, ("w", "w"))

    q, k, v = (
        _project(function, name, projection, x)
        for name, projection in (("query", query), ("key", key), ("value", value))
    )
    height, width, heads, head_dim = q.shape[-4:]
    q = to_windows(q.reshape(*x.shape[:-1], heads * head_dim), blocks)
    q = q.reshape(*q.shape[:-1], heads, head_dim)
    k, v = _with_halo(k, block, halo), _with_halo(v, block, halo)
    q, k = with_relative_positions(function, q, k, tables, blocks, windows, scaled=scale_positions)
    coords = None
    if mask_padding:
        inside = _with_halo(jnp.ones((height, width, 1, 1), bool), block, halo)
        coords = Coords.arange(k.shape[-3]).with_features(valid=inside[..., 0, 0])
    attended = attention(q, k, v, scale=head_dim**-0.5, key_coords=coords)
    attended = attended.reshape(*attended.shape[:-2], heads * v.shape[-1])
    return from_windows(attended, blocks, height, width).astype(x.dtype)


def _project(function: str, name: str, projection: Map, x: jax.Array) -> jax.Array:
    projected = projection(x)
    if projected.ndim != x.ndim + 1 or projected.shape[:-2] != x.shape[:-1]:
        raise ValueError(
            f"{function}: {name} must return {list(x.shape[:-1])} + [heads, head size], "
            f"got {list(projected.shape)}."
        )
    return projected


def _with_halo(x: jax.Array, block: int, halo: int) -> jax.Array:
    """`[*B, H, W, K, D]` -> `[*B, blocks, w², K, D]`."""
    x = overlapping(overlapping(x, -4, block, halo), -3, block, halo)
    *batch, rows, height, columns, width, _, _ = x.shape
    x = jnp.swapaxes(x, -5, -4)
    return reshape_places(x, len(batch), rows * columns, height * width, last=2)


def halo_attention_sizes(
    features: int, num_heads: int, block_size: int, halo_size: int
) -> tuple[int, int]:
    """D and the window size w of the modules."""
    head_dim = head_features("HaloAttention", features, num_heads)
    block = check_positive("HaloAttention", "block_size", block_size)
    halo = check_at_least("HaloAttention", "halo_size", halo_size, 0)
    return head_dim, block + 2 * halo
