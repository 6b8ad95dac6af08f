"""Spatial attention, the second half of CBAM."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_attn._checks import Activation, Map
from flax_attn.vision._checks import as_image, check_returned
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._pooling import maximum, mean

Pooling = Literal["mean", "max"]


def spatial_attention(
    x: Float[Array, "*B H W C"],
    conv: Map,
    *,
    norm: Map | None = None,
    order: Sequence[Pooling] = ("mean", "max"),
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W C"]:
    """CBAM's spatial attention: gate each place by its mean and maximum over the channels.

    g = σ(norm(conv([mean_C x; max_C x]))),   y = g ⊙ x

    The paper's kernel is 7×7, without normalisation. Its released code normalises the convolved map
    and puts the maximum first. Channels that tie for the maximum share its gradient.

    Args:
      x: Image `[*B, H, W, C]`.
      conv: Map from `[*B, H, W, 2]` to `[*B, H, W, 1]`.
      norm: Map of `[*B, H, W, 1]`, or None.
      order: Order of the two channels; `("max", "mean")` for the released weights.
      gate_fn: σ, from the convolved map to the gate.

    Returns:
      The scaled image `[*B, H, W, C]`.

    Raises:
      ValueError: If `x` is not an image, a map returns another shape, or `order` is unknown.
      TypeError: If `x` is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps, vision
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> vision.spatial_attention(x, maps.conv(jnp.ones((3, 3, 2, 1)))).shape
      (2, 7, 7, 16)

    References:
      Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018,
      arXiv:1807.06521, equation 3.
    """
    return apply_gate(x, spatial_attention_gate(x, conv, norm=norm, order=order, gate_fn=gate_fn))


def spatial_attention_gate(
    x: Float[Array, "*B H W C"],
    conv: Map,
    *,
    norm: Map | None = None,
    order: Sequence[Pooling] = ("mean", "max"),
    gate_fn: Activation = jax.nn.sigmoid,
) -> Float[Array, "*B H W 1"]:
    """The gate g of `spatial_attention`, `[*B, H, W, 1]` in the dtype of x."""
    x = as_image("spatial_attention", x, conv=conv, norm=norm, gate_fn=gate_fn)
    if sorted(order) != ["max", "mean"]:
        raise ValueError(
            f'spatial_attention: order must be ("mean", "max") or ("max", "mean"), got {order}.'
        )
    pooled = {
        "mean": mean(x, -1)[..., None],
        "max": maximum(x, -1)[..., None],
    }
    convolved = conv(jnp.concatenate([pooled[name] for name in order], axis=-1))
    check_returned("spatial_attention", "conv", convolved, (*x.shape[:-1], 1), "[*B, H, W, 1]")
    gate = gate_fn(convolved if norm is None else norm(convolved))
    check_returned("spatial_attention", "norm", gate, (*x.shape[:-1], 1), "[*B, H, W, 1]")
    return gate.astype(x.dtype)
