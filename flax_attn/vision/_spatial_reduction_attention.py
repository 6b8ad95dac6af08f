"""Spatial-reduction attention (SRA), from PVT and PVT v2."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map, check_positive, head_features, statistics_dtype
from flax_attn.attention import dot_product_attention, multi_head_attention
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._pooling import even_bins


def spatial_reduction_attention(
    x: Float[Array, "*B H W C"],
    query: Map,
    key: Map,
    value: Map,
    out: Map,
    *,
    reduce: Map | None = None,
    norm: Map | None = None,
    pool_size: int | None = None,
    activation_fn: Activation | None = None,
    attention: Callable[..., Array] = dot_product_attention,
) -> Float[Array, "*B H W C"]:
    """Spatial-reduction attention: every place attends to a smaller image.

    z = δ(norm(reduce(pool(x)))),   y = out(Attention(query(x), key(z), value(z)))

    In PVT `reduce` is an R×R convolution with stride R, which divides the number of keys by R²
    (R = 8, 4, 2, 1 from the first stage to the last). There is no pool and no δ. In the linear form
    of PVT v2, x is pooled to 7×7 at any size, `reduce` is pointwise and δ is the exact GELU.

    Args:
      x: Image `[*B, H, W, C]`.
      query: Map from `[*B, T, C]` to `[*B, T, N, D]`, T = H · W.
      key: Map from `[*B, S, C]` to `[*B, S, N, D]`, S = H' · W'.
      value: Map like `key`.
      out: Map from `[*B, T, N, D]` to `[*B, T, C]`.
      reduce: Map from `[*B, H, W, C]`, or the pooled image, to `[*B, H', W', C]`. A strided
        convolution drops rows and columns beyond its last full window.
      norm: Map of `[*B, H', W', C]`.
      pool_size: If given, x is first averaged to P×P bins as in PyTorch's adaptive pooling, where
        bins overlap if P does not divide H or W.
      activation_fn: δ.
      attention: Attention on heads, called as `attention(q, k, v)`.

    Returns:
      The output `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, the reduced image is empty, or a map returns
        another shape.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.ones((2, 8, 8, 16))
      >>> split = maps.dense(jnp.ones((16, 2, 8)))
      >>> join = maps.dense(jnp.ones((2, 8, 16)), axes=2)
      >>> reduce = maps.conv(jnp.ones((4, 4, 16, 16)), strides=4, padding=0)
      >>> vision.spatial_reduction_attention(x, split, split, split, join, reduce=reduce).shape
      (2, 8, 8, 16)

    References:
      Wang, Xie, Li, Fan, Song, Liang, Lu, Luo, Shao, "Pyramid Vision Transformer: A Versatile
      Backbone for Dense Prediction without Convolutions", ICCV 2021, arXiv:2102.12122, section 3.3;
      the same, "PVT v2: Improved Baselines with Pyramid Vision Transformer", Computational Visual
      Media 2022, arXiv:2106.13797, section 3.2.
    """
    function = "spatial_reduction_attention"
    x = as_image(
        function,
        x,
        query=query,
        key=key,
        value=value,
        out=out,
        reduce=reduce,
        norm=norm,
        activation_fn=activation_fn,
        attention=attention,
    )
    seen = x if pool_size is None else _adaptive_mean(x, pool_size)
    seen = seen if reduce is None else reduce(seen)
    if seen.ndim != x.ndim or 0 in seen.shape[-3:]:
        raise ValueError(
            f"{function}: reduce must keep at least one place, [*B, H', W', C], got "
            f"{list(seen.shape)} from {list(x.shape)}. Use a smaller reduction."
        )
    seen = seen if norm is None else norm(seen)
    seen = seen if activation_fn is None else activation_fn(seen)
    y = multi_head_attention(_tokens(x), _tokens(seen), query, key, value, out, attention=attention)
    check_returned(function, "out", y, _tokens(x).shape, "[*B, T, C]")
    return y.reshape(x.shape).astype(x.dtype)


def _tokens(x: jax.Array) -> jax.Array:
    *batch, height, width, features = x.shape
    return x.reshape(*batch, height * width, features)


def _adaptive_mean(x: jax.Array, size: int) -> jax.Array:
    """Means over size × size bins: `[*B, H, W, C]` -> `[*B, P, P, C]`."""
    size = check_positive("spatial_reduction_attention", "pool_size", size)
    dtype = statistics_dtype(x.dtype)
    rows, columns = (even_bins(length, size, dtype) for length in x.shape[-3:-1])
    means = jnp.einsum("ph,...hwc,qw->...pqc", rows, x.astype(dtype), columns, precision="highest")
    return means.astype(x.dtype)


def spatial_reduction_head_dim(features: int, num_heads: int, reduction: int) -> int:
    """D of the modules."""
    check_positive("SpatialReductionAttention", "reduction", reduction)
    return head_features("SpatialReductionAttention", features, num_heads)
