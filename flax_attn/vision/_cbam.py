"""The convolutional block attention module (CBAM)."""

from collections.abc import Sequence

import jax
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map
from flax_attn.vision._channel_attention import channel_attention
from flax_attn.vision._checks import as_image
from flax_attn.vision._spatial_attention import Pooling, spatial_attention


def cbam(
    x: Float[Array, "*B H W C"],
    reduce: Map,
    expand: Map,
    conv: Map,
    *,
    norm: Map | None = None,
    order: Sequence[Pooling] = ("mean", "max"),
    activation_fn: Activation = jax.nn.relu,
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """CBAM: channel attention followed by spatial attention.

    y = spatial_attention(channel_attention(x))

    There is no residual inside. In ResNets it stands before the residual sum.

    Args:
      x: Image `[*B, H, W, C]`.
      reduce: As in `channel_attention`.
      expand: As in `channel_attention`.
      conv: As in `spatial_attention`.
      norm: As in `spatial_attention`.
      order: As in `spatial_attention`.
      activation_fn: As in `channel_attention`.
      gate_fn: σ of both gates.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: As in the two.
      TypeError: As in the two.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> reduce, expand = maps.dense(jnp.ones((16, 4))), maps.dense(jnp.zeros((4, 16)))
      >>> vision.cbam(x, reduce, expand, maps.conv(jnp.ones((3, 3, 2, 1)))).shape
      (2, 7, 7, 16)

    References:
      Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018,
      arXiv:1807.06521, equation 1.
    """
    x = as_image(
        "cbam",
        x,
        conv=conv,
        reduce=reduce,
        expand=expand,
        norm=norm,
        activation_fn=activation_fn,
        gate_fn=gate_fn,
    )
    x = channel_attention(x, reduce, expand, activation_fn=activation_fn, gate_fn=gate_fn)
    return spatial_attention(x, conv, norm=norm, order=order, gate_fn=gate_fn)
