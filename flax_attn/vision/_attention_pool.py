"""Attention pooling, from CLIP's ResNets."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Map, as_floating, expand_rank
from flax_attn.attention import dot_product_attention, multi_head_attention
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import add
from flax_attn.vision._pooling import spatial_mean


def attention_pool(
    x: Float[Array, "*B H W C"],
    positions: Float[Array, "S C"],
    query: Map,
    key: Map,
    value: Map,
    out: Map,
    *,
    attention: Callable[..., Array] = dot_product_attention,
) -> Float[Array, "*B M"]:
    """Attention pooling: the mean of an image attends to its places.

    t = [mean_{H,W} x; x_1; ...; x_{H·W}] + positions
    y = out(Attention(query(t_0), key(t), value(t)))

    It replaces global average pooling at the end of CLIP's ResNets, with C / 64 heads. As in CLIP,
    the positions serve one image size. (timm resamples them for others.)

    Args:
      x: Image `[*B, H, W, C]`.
      positions: Learned positions `[S, C]`, S = 1 + H · W, the mean's first.
      query: Map from `[*B, 1, C]` to `[*B, 1, N, D]`.
      key: Map from `[*B, S, C]` to `[*B, S, N, D]`.
      value: Map like `key`.
      out: Map from `[*B, 1, N, D]` to `[*B, 1, M]`.
      attention: Attention on heads, called as `attention(q, k, v)`.

    Returns:
      One vector for each image `[*B, M]`.

    Raises:
      ValueError: If `x` is not an image, its size does not fit the positions, or a map returns
        another shape.
      TypeError: If `x` or `positions` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x, positions = jnp.ones((2, 7, 7, 16)), jnp.zeros((1 + 7 * 7, 16))
      >>> split = maps.dense(jnp.ones((16, 2, 8)))
      >>> join = maps.dense(jnp.ones((2, 8, 10)), axes=2)
      >>> vision.attention_pool(x, positions, split, split, split, join).shape
      (2, 10)

    References:
      Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
      ICML 2021, arXiv:2103.00020, section 2.4.
    """
    function = "attention_pool"
    x = as_image(function, x, query=query, key=key, value=value, out=out, attention=attention)
    positions = as_floating(function, "positions", positions)
    *batch, height, width, features = x.shape
    if positions.shape != (1 + height * width, features):
        raise ValueError(
            f"{function}: positions must be [1 + H · W, C] = [{1 + height * width}, {features}], "
            f"got {list(positions.shape)}. Make them for images of {height} × {width}, or resize "
            f"the image."
        )
    mean = spatial_mean(x).astype(x.dtype)[..., None, :]
    tokens = jnp.concatenate([mean, x.reshape(*batch, height * width, features)], axis=-2)
    tokens = add(tokens, expand_rank(positions, tokens.ndim))
    y = multi_head_attention(
        tokens[..., :1, :], tokens, query, key, value, out, attention=attention
    )
    if y.shape[:-1] != (*batch, 1):
        raise ValueError(
            f"{function}: out must return [*B, 1, M] = {[*batch, 1]} + [features], "
            f"got {list(y.shape)}."
        )
    return y[..., 0, :].astype(x.dtype)
